"""A key follows code, libraries, settings and inputs, for every stage that is declared; nothing of
it is a list."""

from __future__ import annotations

import ast
import shutil
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from tests.training.support.stages import (
    Data,
    arguments,
    artifact,
    changes,
    is_aside,
    is_input,
    is_setting,
    named,
    stages,
)
from training.config.learning import Algorithm
from training.learning.algorithms import dpo
from training.stages.declared import Stage
from training.stages.key import ABSENT, PYTHON, ROOT, Sources, installed
from training.stages.store import Artifact
from training.stages.workshop import depends_on

CONFIG = "training.config"
HELPERS: dict[str, tuple[str, str]] = {
    "answers-of_base": (
        "training/learning/model/base_pass.py",
        "training/learning/teacher/teacher.py",
    ),
    "answers-of_policy": (
        "training/learning/model/tail_attention.py",
        "training/learning/targets/utility.py",
    ),
    "answers-of_probe": (
        "training/learning/targets/problem.py",
        "training/learning/algorithms/dpo.py",
    ),
    "answers-of_published": (
        "app/policy/in_process/label_reader.py",
        "training/learning/teacher/teacher.py",
    ),
    "answers-of_teacher": (
        "training/learning/teacher/predictions.py",
        "training/learning/algorithms/dpo.py",
    ),
    "checks-checks": ("app/domain/rules/vetoes.py", "training/judging/contest/arms.py"),
    "encoded-encoded": ("app/policy/encoding.py", "training/outcomes/simulate.py"),
    "evaluation-evaluation": (
        "training/judging/report/page.html.j2",
        "training/learning/algorithms/run.py",
    ),
    "labels-labels": ("training/outcomes/simulate.py", "training/learning/model/base_pass.py"),
    "policy-policy": ("training/learning/targets/utility.py", "training/judging/report/arms.py"),
    "preferences-preferences": (
        "app/domain/model/prompt.py",
        "training/learning/algorithms/losses.py",
    ),
    "scenarios-of_history": ("app/domain/charts/indicators.py", "training/outcomes/simulate.py"),
    "scenarios-of_log": ("training/log.py", "training/market/sources.py"),
    "taught-taught": (
        "training/learning/teacher/boosting.py",
        "training/learning/algorithms/dpo.py",
    ),
    "teacher-teacher": ("training/scenarios/splits.py", "training/learning/algorithms/dpo.py"),
    "walk_forward-walk_forward": (
        "training/judging/contest/portfolio.py",
        "training/learning/algorithms/run.py",
    ),
    "warm_up-warm_up": (
        "training/learning/targets/utility.py",
        "training/judging/evaluation.py",
    ),
}
"""Of every stage a file that it uses and one that it does not."""
STAGES = pytest.mark.parametrize("stage", stages(), ids=named)


SOURCES = Sources()


def key(stage: Stage, sources: Sources = SOURCES, /, **other: Any) -> dict[str, Any]:
    return depends_on(stage, arguments(stage) | other, sources)


def keys(tree: Path) -> dict[str, dict[str, Any]]:
    """Of all stages."""
    sources = Sources(tree)
    return {named(stage): key(stage, sources) for stage in stages()}


def files_of(root: Path) -> list[dict[str, str]]:
    """Files behind every stage."""
    sources = Sources(root)
    return [sources.behind([stage.function.__module__]).files for stage in stages()]


def other_inputs(value: Any) -> list[Any]:
    """Others of the same kind: of many, each with another of one of them."""
    if isinstance(value, dict):
        return [
            value | {name: other} for name, held in value.items() for other in other_inputs(held)
        ]
    if isinstance(value, Data):
        return [Data("other")]
    return [artifact("other") if isinstance(value, Artifact) else dpo.train]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The sources, to be edited."""
    for package in ("app", "training"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def edit(path: Path, before: str = "", after: str = "") -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after) if before else f"{text}\n# edited\n")


def test_every_stage_has_its_helpers_here() -> None:
    assert [named(stage) for stage in stages()] == sorted(HELPERS)


@STAGES
def test_a_helper_that_a_stage_uses_moves_its_key_and_another_does_not(
    stage: Stage, tree: Path
) -> None:
    used, unused = HELPERS[named(stage)]
    before = key(stage, Sources(tree))
    assert before == key(stage), "where the sources lie does not matter"
    edit(tree / unused)
    assert key(stage, Sources(tree)) == before
    edit(tree / used)
    after = key(stage, Sources(tree))
    assert after["code"] != before["code"]
    assert after | {"code": ""} == before | {"code": ""}


@STAGES
def test_every_stage_depends_on_its_own_module(stage: Stage, tree: Path) -> None:
    before = key(stage, Sources(tree))
    edit(tree / f"{stage.function.__module__.replace('.', '/')}.py")
    assert key(stage, Sources(tree)) != before


@STAGES
def test_every_setting_moves_the_key(stage: Stage) -> None:
    before = key(stage)
    for name, parameter in stage.parameters.items():
        if is_setting(parameter):
            values = changes(arguments(stage)[name])
            assert values, name
            for value in values:
                assert key(stage, **{name: value})["config"] != before["config"], (name, value)


@STAGES
def test_every_input_moves_the_key_and_what_lies_aside_does_not(stage: Stage) -> None:
    given, before = arguments(stage), key(stage)
    for name, parameter in stage.parameters.items():
        if is_aside(parameter):
            assert key(stage, **{name: "elsewhere"}) == before, name
        elif is_input(parameter):
            for other in other_inputs(given[name]):
                assert key(stage, **{name: other}) != before, (name, other)


@STAGES
def test_another_version_of_a_library_that_it_imports_moves_the_key(stage: Stage) -> None:
    before, newer = key(stage), dict[str, str]()
    sources = Sources(version_of=lambda name: newer.get(name) or installed(name))
    assert before["libraries"]["numpy"] == metadata.version("numpy")
    for library, version in before["libraries"].items():
        newer = {library: f"{version}.1"}
        assert key(stage, sources)["libraries"] == before["libraries"] | newer
    newer = {"fastapi": "0"}
    assert key(stage, sources) == before, "no stage imports the service"


def test_what_computes_is_among_the_libraries() -> None:
    libraries = {named(stage): set(key(stage)["libraries"]) for stage in stages()}
    assert all(PYTHON in each for each in libraries.values()), "3.12 sums floats in another way"
    assert installed(PYTHON) == f"{sys.version_info.major}.{sys.version_info.minor}"
    computing = {"torch", "transformers", "peft", "accelerate", "numpy", "polars"}
    assert libraries["policy-policy"] >= computing
    assert libraries["teacher-teacher"] >= {"scikit-learn", "numpy", "polars"}
    assert libraries["encoded-encoded"] >= {"torch", "transformers", "numpy"}
    assert libraries["labels-labels"] >= {"numpy", "polars"}
    assert not libraries["labels-labels"] & {"torch", "transformers", "peft"}


def test_a_changed_target_moves_the_policy_and_no_label(tree: Path) -> None:
    """The fault: another formula found the policy of the one before it."""
    before = keys(tree)
    edit(
        tree / "training/learning/targets/utility.py",
        "np.asarray(known - np.nanmean",
        "np.asarray(known + np.nanmean",
    )
    after = keys(tree)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {
        "preferences-preferences", "policy-policy", "warm_up-warm_up",
        "answers-of_probe", "answers-of_teacher",
    }  # fmt: skip


def test_a_program_that_another_process_runs_is_code(tree: Path) -> None:
    """It renders the chat template of every prompt."""
    before = keys(tree)
    edit(tree / "app/policy/versions/template_worker.py")
    after = keys(tree)
    moved = {name for name in before if before[name] != after[name]}
    assert moved >= {"encoded-encoded", "policy-policy", "answers-of_published", "checks-checks"}
    assert not moved & {"labels-labels", "scenarios-of_history"}


def test_two_ways_to_one_artefact_have_two_keys() -> None:
    ways = {named(stage): key(stage)["function"] for stage in stages() if stage.name == "answers"}
    assert len(set(ways.values())) == len(ways) == 5


def test_an_evaluations_own_code_moves_the_evaluation_alone(tree: Path) -> None:
    before = keys(tree)
    edit(tree / "training/judging/evaluation.py")
    after = keys(tree)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"evaluation-evaluation", "walk_forward-walk_forward"}


def test_an_algorithm_counts_where_it_is_chosen(tree: Path) -> None:
    [policy] = [stage for stage in stages() if stage.name == "policy"]
    by_expected = key(policy, Sources(tree))
    by_dpo = key(policy, Sources(tree), algorithm=dpo.train)
    edit(tree / "training/learning/algorithms/dpo.py")
    assert key(policy, Sources(tree)) == by_expected
    assert key(policy, Sources(tree), algorithm=dpo.train) != by_dpo


VALIDATORS = {"model_validator(mode='after')", "model_validator(mode='before')", "classmethod"}


def test_settings_enter_by_value_because_they_have_no_code() -> None:
    """A stage imports sections from training.config and nothing else, and a section has validators
    alone, which change nothing: what is computed from settings is computed in a module that
    counts."""
    files = {file for each in files_of(ROOT) for file in each}
    for file in files:
        for node in ast.walk(ast.parse((ROOT / file).read_text())) if file.endswith(".py") else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(CONFIG):
                module = import_module(str(node.module))
                kinds = [getattr(module, alias.name) for alias in node.names]
                assert all(kind is Algorithm or isinstance(kind, type) for kind in kinds), file
    for path in sorted((ROOT / CONFIG.replace(".", "/")).glob("*.py")):
        for kind in ast.walk(ast.parse(path.read_text())):
            if isinstance(kind, ast.ClassDef):
                functions = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
                decorators = {
                    ast.unparse(each) for node in functions for each in node.decorator_list
                }
                assert decorators <= VALIDATORS


FILES = {
    "training/__init__.py": "",
    "training/room/__init__.py": "",
    "training/room/work.py": """
        from __future__ import annotations
        import json, numpy as np
        from . import near
        from training.room.names import value
        import training.config.values
        def work():
            from training import late
            import no_such_library
            run("python", "worker.py")
            run("python", "-m", "app.other_worker", "app.no_such_worker", "no_such_worker.py")
    """,
    "training/room/near.py": "from ..deep import below",
    "training/room/names.py": "value = 1",
    "training/room/text.txt": "read by somebody",
    "training/room/tables/numbers.json": "read by somebody, too",
    "training/room/worker.py": "import jinja2",
    "training/room/unrelated.py": "",
    "training/deep/__init__.py": "",
    "training/deep/below.py": "import app.tool",
    "training/late.py": "",
    "training/config/__init__.py": "",
    "training/config/values.py": "import torch",
    "app/__init__.py": "",
    "app/tool.py": "import sklearn.linear_model",
    "app/other_worker.py": "",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small one."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))
    return tmp_path


def test_imports_are_followed_wherever_they_stand(house: Path) -> None:
    code = Sources(house).behind(["training.room.work"])
    assert set(code.files) == set(FILES) - {
        "training/room/unrelated.py",
        "training/config/__init__.py",
        "training/config/values.py",
    }
    assert code.libraries == {
        "numpy": metadata.version("numpy"),
        "scikit-learn": metadata.version("scikit-learn"),
        "Jinja2": metadata.version("jinja2"),
        "no_such_library": ABSENT,
        PYTHON: installed(PYTHON),
    }


def test_what_lies_beside_a_module_counts_and_hidden_files_do_not(house: Path) -> None:
    before = Sources(house).behind(["training.room.work"])
    (house / "training/room/.text.txt.swp").write_text("")
    (house / "training/deep/below.pyc").write_text("")
    assert Sources(house).behind(["training.room.work"]) == before
    for name in ("training/room/text.txt", "training/room/tables/numbers.json"):
        (house / name).write_text("read by nobody")
        after = Sources(house).behind(["training.room.work"])
        assert after.hash != before.hash
        before = after


def test_what_is_edited_while_a_pipeline_runs_is_not_what_runs(house: Path) -> None:
    """A stage that is reached hours later was imported when the process began."""
    before = Sources(house).behind(["training.room.work"])
    sources = Sources(house)
    for name in ("training/late.py", "training/room/text.txt"):
        (house / name).write_text("import torch")
    (house / "training/room/new.txt").write_text("")
    assert sources.behind(["training.room.work"]) == before


def test_a_file_that_moved_is_other_code(house: Path) -> None:
    before = Sources(house).behind(["training.room.work"]).hash
    (house / "training/room/text.txt").rename(house / "training/room/words.txt")
    assert Sources(house).behind(["training.room.work"]).hash != before


def test_a_module_that_is_not_there_is_named(house: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no source file of training\.attic"):
        Sources(house).behind(["training.attic"])
