"""`make mutation`: would the tests notice? Small errors are put into the rules, the decision, the
simulation and the gate's verdict, one at a time, and the tests of each must fail.

Works on a copy of the tree in var/mutation. docs/mutation.md judges the mutants that survived.
usage: python -m tests.mutation [TARGET ...]
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome

ROOT = Path(__file__).parents[1]
WORK = ROOT / "var" / "mutation"
COPIED = ("app", "bench", "deploy", "training", "tests", "limits.toml", "pyproject.toml")
LEAST = 0.95
TIMEOUT_S = 120


class Target(NamedTuple):
    """A file to mutate, and the tests that must notice."""

    module: str
    tests: tuple[str, ...]


RULES, DECISION = "tests/domain/test_rules.py", "tests/domain/test_decision.py"
OUTCOMES = "tests/training/outcomes"
TARGETS = {
    "rules": Target("app/domain/rules.py", (RULES,)),
    "review": Target("app/domain/review.py", (RULES, DECISION)),
    "decision": Target("app/domain/decision.py", (DECISION, RULES)),
    "simulate": Target(
        "training/outcomes/simulate.py",
        (f"{OUTCOMES}/test_simulate.py", f"{OUTCOMES}/test_labels.py"),
    ),
    "verdict": Target(
        "training/judging/gate/verdict.py", ("tests/training/judging/gate/test_verdict.py",)
    ),
}
SUBTLE = (
    "Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitAnd_BitOr",
    "Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is",
    "USub_UAdd|Delete_USub|Delete_Not|Delete_Invert",
)
"""Of operators, comparisons and signs, the neighbours: the others fail for anybody. `|` stays,
which in an annotation means nothing at run time."""
OPTIONS = "-x -q -p no:cacheprovider --noconftest -m 'not hypothesis'"
"""Property tests take most of the time and find by chance what examples must find every time."""
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{command}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = [
  "core/ReplaceBinaryOperator_(?!({binary})$)",
  "core/ReplaceComparisonOperator_(?!({comparison})$)",
  "core/ReplaceUnaryOperator_(?!({unary})$)",
]
"""


class Survivor(NamedTuple):
    """A mutant that no test noticed."""

    place: str
    diff: str


def run(name: str, target: Target) -> tuple[int, list[Survivor]]:
    """All mutants of a file; how many there were, and those that survived."""
    tree = WORK / name
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for part in COPIED:
        if (ROOT / part).is_dir():
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, tree / part, ignore=hidden)
        else:
            shutil.copy2(ROOT / part, tree / part)
    # A file and its mutant may have one size and one second: bytecode must go by content.
    compiling = ["compileall", "-q", "--invalidation-mode", "checked-hash"]
    python(tree, *compiling, "app", "bench", "training", "tests")
    tests = shlex.join(target.tests)
    command = f"{sys.executable} -m pytest {OPTIONS} {tests}"
    binary, comparison, unary = SUBTLE
    text = CONFIG.format(
        module=target.module,
        timeout=TIMEOUT_S,
        command=command,
        binary=binary,
        comparison=comparison,
        unary=unary,
    )
    (tree / "mutation.toml").write_text(text, encoding="utf-8")
    session = tree / "session.sqlite"
    python(tree, "cosmic_ray.cli", "baseline", "mutation.toml")
    python(tree, "cosmic_ray.cli", "init", "mutation.toml", session.name)
    python(tree, "cosmic_ray.tools.filters.operators_filter", session.name, "mutation.toml")
    python(tree, "cosmic_ray.cli", "exec", "mutation.toml", session.name)
    return results(session)


def python(tree: Path, *arguments: str) -> None:
    """`python -m ...` in the copied tree. Raises when it fails."""
    subprocess.run([sys.executable, "-m", *arguments], cwd=tree, check=True)


def results(session: Path) -> tuple[int, list[Survivor]]:
    """Mutants that were tried, and those that survived, in the order of the file."""
    count, survived = 0, []
    with use_db(str(session), WorkDB.Mode.open) as database:
        for item, result in database.completed_work_items:
            if result.worker_outcome is WorkerOutcome.SKIPPED:
                continue
            count += 1
            if not result.is_killed:
                (mutation,) = item.mutations
                line, column = mutation.start_pos
                place = f"{mutation.module_path}:{line}:{column} {mutation.operator_name}"
                survived.append((mutation.start_pos, Survivor(place, changed(result.diff or ""))))
    return count, [survivor for _, survivor in sorted(survived)]


def changed(diff: str) -> str:
    """The lines that differ."""
    return "\n".join(re.findall(r"^[-+](?![-+]).*$", diff, re.MULTILINE))


def main(names: list[str]) -> int:
    """Mutate, and print what survived; 1 when a file's tests notice too little."""
    enough = True
    for name in names or list(TARGETS):
        count, survivors = run(name, TARGETS[name])
        killed = 1 - len(survivors) / count
        enough &= killed >= LEAST
        print(f"\n{TARGETS[name].module}: {count} mutants, {killed:.1%} killed")
        for survivor in survivors:
            print(f"\n{survivor.place}\n{survivor.diff}")
        sys.stdout.flush()
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
