"""`make mutation`: would the tests notice? Small errors are put into the rules, the decision, the
simulation and the gate's verdict, one at a time, and the tests of each must fail.

Cosmic-ray makes the mutants, in a copy of the tree in var/mutation. Each is tried in a fork of a
process that has the libraries loaded, so that only our own code is imported anew.
docs/mutation.md judges those that survived.

usage: python -m tests.mutation [TARGET ...]
"""

from __future__ import annotations

import compileall
import difflib
import importlib
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NamedTuple

import pytest
from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
WORK = ROOT / "var" / "mutation"
OURS = ("app", "bench", "training", "tests")
COPIED = (*OURS, "deploy", "docs", "limits.toml", "pyproject.toml")
LEAST = 0.95
CPU_S = 60
"""A loop without an end is a failure; a busy machine is none."""
TIMEOUT_S = 900
ELSEWHERE = 100
"""Exit status of a fork that ran other code than the copy's."""


class Target(NamedTuple):
    """A file to mutate, and the tests that must notice."""

    module: str
    tests: tuple[str, ...]


RULES, DECISION = "tests/domain/rules/test_vetoes.py", "tests/domain/record/test_decision.py"
TARGETS = {
    "rules": Target("app/domain/rules/vetoes.py", (RULES,)),
    "review": Target("app/domain/rules/review.py", ("tests/domain/rules/test_review.py", RULES)),
    "decision": Target("app/domain/record/decision.py", (DECISION, RULES)),
    "simulate": Target("training/outcomes/simulate.py", ("tests/training/outcomes",)),
    "verdict": Target(
        "training/judging/gate/verdict.py", ("tests/training/judging/gate/test_verdict.py",)
    ),
}
OPTIONS = (
    *("-x", "-q", "-p", "no:cacheprovider", "--noconftest", "--assert=plain"),
    *("-m", "not hypothesis"),
)
"""Property tests take most of the time and find by chance what examples must find every time."""
SUBTLE = re.compile(
    r"core/(Replace(Binary|Comparison|Unary)Operator_"
    r"(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitAnd_BitOr"
    r"|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt"
    r"|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|USub_UAdd|Delete_\w+)"
    r"|(?!Replace(Binary|Comparison|Unary)Operator|Variable)\w+)"
)
"""Of operators, comparisons and signs the neighbours: the others fail for anybody. `|` stays, which
means nothing at run time in an annotation."""


class Mutant(NamedTuple):
    """A file with one small error."""

    place: str
    change: str
    code: str


class Finder(Visitor):  # type: ignore[misc]  # cosmic-ray has no types
    """Where an operator could be applied, in the order in which it counts."""

    def __init__(self, operator: object) -> None:
        self.operator = operator
        self.positions: list[tuple[int, int]] = []

    def visit(self, node: object) -> object:
        for start, _ in self.operator.mutation_positions(node):  # type: ignore[attr-defined]
            self.positions.append(start)
        return node


def mutants(module: str, code: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    for name in filter(SUBTLE.fullmatch, operator_names()):
        operator = get_operator(name)()
        finder = Finder(operator)
        finder.walk(get_ast(code))
        for number, (line, column) in enumerate(finder.positions):
            mutated = mutate_code(code, operator, number)
            # The star before keyword arguments is no multiplication.
            star = code.splitlines()[line - 1][column:].startswith("*,")
            if mutated is not None and not star:
                place = f"{module}:{line}:{column} {name.removeprefix('core/')}"
                yield Mutant(place, difference(code, mutated), mutated)


def difference(before: str, after: str) -> str:
    """The lines that differ."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if re.match(r"[-+](?![-+])", line))


def copied(name: str) -> Path:
    """A tree of its own. A file and its mutant may have one size and one second: bytecode goes by
    content."""
    tree = WORK / name
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for part in COPIED:
        if (ROOT / part).is_dir():
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, tree / part, ignore=hidden)
        else:
            shutil.copy2(ROOT / part, tree / part)
    for part in OURS:
        mode = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(tree / part, quiet=2, invalidation_mode=mode)
    return tree


def passes(tree: Path, tests: tuple[str, ...], loaded: Path | None = None) -> bool:
    """Whether the tests pass, in a fork. A hang is a failure. `loaded`: a file for the names of the
    modules that they import."""
    child = os.fork()
    if not child:
        os._exit(_tested(tree, tests, loaded))
    with open(os.pidfd_open(child)) as end:
        in_time = bool(select.select([end], [], [], TIMEOUT_S)[0])
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not in_time:
        return False
    if os.waitstatus_to_exitcode(status) == ELSEWHERE:
        raise RuntimeError(f"{tree} was not what was tested")
    return os.waitstatus_to_exitcode(status) == 0


def _tested(tree: Path, tests: tuple[str, ...], loaded: Path | None) -> int:
    """In the fork: run the tests, and tell how they ended."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    status = int(pytest.main([*OPTIONS, *tests]))
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] in OURS[:3]]
    files = [module.__file__ for module in ours if getattr(module, "__file__", None)]
    if loaded is not None:
        loaded.write_text("\n".join(sys.modules), encoding="utf-8")
    if not all(str(file).startswith(str(tree)) for file in files):
        return ELSEWHERE
    return status


def load_libraries(names: list[str]) -> None:
    """Import what the tests import, but nothing of ours."""
    for name in names:
        if name.split(".")[0] not in (*OURS, "__main__", "conftest"):
            with suppress(Exception):
                importlib.import_module(name)


def run(name: str, target: Target) -> tuple[int, list[Mutant]]:
    """All mutants of a file; how many there were, and those that survived."""
    tree = copied(name)
    loaded = tree / "loaded.txt"
    if not passes(tree, target.tests, loaded):
        raise SystemExit(f"the tests of {target.module} fail without any mutant")
    load_libraries(loaded.read_text(encoding="utf-8").split())
    if not passes(tree, target.tests):
        raise SystemExit(f"the tests of {target.module} fail once libraries are loaded before")
    file = tree / target.module
    code = file.read_text(encoding="utf-8")
    count, survived = 0, []
    for mutant in mutants(target.module, code):
        count += 1
        file.write_text(mutant.code, encoding="utf-8")
        if passes(tree, target.tests):
            survived.append(mutant)
            print(f"\n{mutant.place}\n{mutant.change}", flush=True)
    return count, survived


def main(names: list[str]) -> int:
    """Mutate, and print what survived; 1 when a file's tests notice too little."""
    enough = True
    for name in names or list(TARGETS):
        begin = time.monotonic()
        count, survived = run(name, TARGETS[name])
        killed = 1 - len(survived) / count
        enough &= killed >= LEAST
        seconds = time.monotonic() - begin
        told = f"{count} mutants, {killed:.1%} killed, {seconds:.0f} s"
        print(f"\n== {TARGETS[name].module}: {told}", flush=True)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
