"""What a stage's code leads to: source files, and the libraries that these import.

Nothing here is a list that somebody must remember. From the module of the stage's function, imports
are followed through `training` and `app`, within functions too; so are modules that are named in a
text, as those of other processes are ("worker.py" beside, "app.worker"). Their files count, and the
files that are no Python beside them, which they may read; of every other library that one of them
imports, the installed version counts, and Python's own. What is not code is left out: settings
enter a key by value, and how artefacts are kept says nothing about what they hold.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from app.domain.canonical import content_hash, digest

ROOT = Path(__file__).parents[2]
"""The folder that holds `training` and `app`."""
OURS = ("training", "app")
NO_CODE = ("training.config", "training.stages")
"""Packages whose values, or nothing, enter a key."""
_DOTTED = re.compile(rf"({'|'.join(OURS)})(\.\w+)+")
_SCRIPT = re.compile(r"\w+\.py")
ABSENT = "absent"
PYTHON = "python"
"""Stands among the libraries: from 3.12 on, `sum` adds floats in another way."""


def installed(distribution: str) -> str:
    """Its version; of Python without the part that mends. Raises `PackageNotFoundError`."""
    if distribution == PYTHON:
        return "{}.{}".format(*sys.version_info)
    return metadata.version(distribution)


class Code(NamedTuple):
    """What a stage's result depends on beside settings and inputs."""

    files: dict[str, str]
    """Content hash by path below the root."""
    libraries: dict[str, str]
    """Installed version by distribution; `absent` where an import is optional."""

    @property
    def hash(self) -> str:
        """Of every file's path and content."""
        return content_hash(self.files)


class Sources:
    """A tree of source files, as it is when this is made: what somebody edits while a pipeline runs
    is not what runs.

    Parameters
    ----------
    root : folder that holds the packages.
    version_of : of a distribution; `installed` but in tests.
    """

    def __init__(self, root: Path = ROOT, version_of: Callable[[str], str] = installed) -> None:
        self._root, self._version_of = root, version_of
        self._imports: dict[str, frozenset[str]] = {}
        self._read = {path: path.read_bytes() for name in OURS for path in _files_in(root / name)}
        self._rooms = {path.parent for path in self._read if path.suffix == ".py"}
        self._hashes: dict[Path, str] = {}

    def behind(self, modules: Iterable[str]) -> Code:
        """All that these modules lead to. Raises `ModuleNotFoundError`: there is no such module."""
        waiting, reached, others = [*modules], set[str](), set[str]()
        while waiting:
            module = waiting.pop()
            if module in reached:
                continue
            reached.add(module)
            for name in self._imported(module):
                if _within(name, OURS):
                    waiting.append(name)
                else:
                    others.add(name)
        paths = {path for module in reached for path in self._files(module)}
        files = {path.relative_to(self._root).as_posix(): self._hash(path) for path in paths}
        return Code(dict(sorted(files.items())), self._libraries(others))

    def _imported(self, module: str) -> frozenset[str]:
        """Modules of ours, and top-level names of other libraries."""
        if module not in self._imports:
            path = self._path(module)
            if path is None:
                raise ModuleNotFoundError(f"no source file of {module} in {self._root}")
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            tree = ast.parse(self._read[path])
            names = {name for node in ast.walk(tree) for name in _named(node, package)}
            mine = {
                name
                for name in names
                if _within(name, OURS) and not _within(name, NO_CODE) and self._path(name)
            }
            theirs = {name.partition(".")[0] for name in names if not _within(name, OURS)}
            self._imports[module] = frozenset(mine | (theirs - sys.stdlib_module_names))
        return self._imports[module]

    def _path(self, module: str) -> Path | None:
        """Its file; None when the name is of something within a module."""
        stem = self._root.joinpath(*module.split("."))
        for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if self._has(path):
                return path
        return None

    def _has(self, path: Path) -> bool:
        """A stage may be declared elsewhere: such a file is read when it is first asked for."""
        ours = path.relative_to(self._root).parts[0] in OURS
        if path not in self._read and not ours and path.is_file():
            self._read[path] = path.read_bytes()
        return path in self._read

    def _files(self, module: str) -> Iterator[Path]:
        """The module's, those of the packages that are imported with it, and what lies beside it,
        in folders that are no packages too, and is no Python."""
        path = self._path(module)
        assert path is not None
        yield path
        for folder in path.relative_to(self._root).parents[:-1]:
            package = self._root / folder / "__init__.py"
            if package in self._read:
                yield package
        for other in self._read:
            if other.suffix != ".py" and self._room(other) == path.parent:
                yield other

    def _room(self, path: Path) -> Path | None:
        """The nearest folder above with Python in it: whose modules may read the file."""
        return next((folder for folder in path.parents if folder in self._rooms), None)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = digest(self._read[path])
        return self._hashes[path]

    def _libraries(self, imported: Iterable[str]) -> dict[str, str]:
        versions = {PYTHON: self._version_of(PYTHON)}
        for name in imported:
            for distribution in _distributions().get(name, ()):
                versions[distribution] = self._version_of(distribution)
            if name not in _distributions():
                versions[name] = ABSENT
        return dict(sorted(versions.items()))


def _named(node: ast.AST, package: str) -> Iterator[str]:
    """Modules that an import may mean (`from package import name` may name a module or what is in
    one), and those that a text names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*above, *([module] if module else [])])
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if _DOTTED.fullmatch(node.value):
            yield node.value
        elif _SCRIPT.fullmatch(node.value) and _within(package, OURS):
            yield f"{package}.{node.value.removesuffix('.py')}"


def _files_in(folder: Path) -> Iterator[Path]:
    """What is not hidden and not made by Python."""
    for path in sorted(folder.rglob("*")):
        made = path.suffix == ".pyc" or "__pycache__" in path.parts
        if not made and not path.name.startswith(".") and path.is_file():
            yield path


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def _distributions() -> dict[str, tuple[str, ...]]:
    """By the name that is imported: `sklearn` is of scikit-learn."""
    return {
        name: tuple(sorted(set(many))) for name, many in metadata.packages_distributions().items()
    }
