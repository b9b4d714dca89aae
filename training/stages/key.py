"""Which source files a module leads to: its own and those that it imports, within what decides a
model's results."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("training", "app.domain", "app.policy")
WITHOUT = frozenset(
    {
        "training.config.learning",
        "training.config.judging",
        "training.stages.store",
        "training.stages.key",
    }
)
"""Settings enter an artefact's key by value, and how it is kept says nothing about what it
holds."""


def sources_of(modules: Iterable[str]) -> list[Path]:
    """Files of the modules and of all they import, directly or not, inside functions too; sorted by
    name."""
    found: set[str] = set()
    left = [*modules]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _imported(name)
    return sorted(_file(name) for name in found)


@cache
def _imported(module: str) -> tuple[str, ...]:
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    return tuple(name for node in ast.walk(tree) for name in _named(node) if _ours(name))


def _named(node: ast.AST) -> Iterator[str]:
    """Modules that an import may mean: `from package import name` may name a module or what is in
    one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _ours(name: str) -> bool:
    if name in WITHOUT or not name.startswith(tuple(f"{package}." for package in PACKAGES)):
        return False
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a name within a module
        return False


def _file(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source file of {module}")
    return Path(spec.origin)
