"""Artefacts are immutable, found again, built anew when anything they depend on changes, and never
half there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.stages.store import MANIFEST, Artifact, ArtifactError, Workshop


def write(text: str, calls: list[str]) -> Any:
    def build(folder: Path) -> dict[str, Any]:
        calls.append(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "data.txt").write_text(text)
        return {"characters": len(text)}

    return build


def test_a_finished_stage_is_found_again_and_not_built_twice(tmp_path: Path) -> None:
    calls: list[str] = []
    shop = Workshop(tmp_path)
    first = shop.stage("labels", {"fee": 0.001}, {}, write("hello", calls))
    again = Workshop(tmp_path).stage("labels", {"fee": 0.001}, {}, write("hello", calls))
    assert calls == ["hello"]
    assert (first.path, first.hash, first.facts) == (again.path, again.hash, {"characters": 5})
    assert (again / "sub/data.txt").read_text() == "hello"


def test_another_configuration_or_input_gives_another_artefact(tmp_path: Path) -> None:
    calls: list[str] = []
    shop = Workshop(tmp_path)
    one = shop.stage("labels", {"fee": 0.001}, {}, write("a", calls))
    other = shop.stage("labels", {"fee": 0.002}, {}, write("b", calls))
    on_one = shop.stage("pairs", {}, {"labels": one}, write("c", calls))
    on_other = shop.stage("pairs", {}, {"labels": other}, write("d", calls))
    assert calls == ["a", "b", "c", "d"]
    assert len({each.path for each in (one, other, on_one, on_other)}) == 4


def test_a_stage_depends_on_what_its_modules_import_and_on_no_other_code() -> None:
    import training.learning.algorithms.dpo
    import training.outcomes.labels
    from training.stages.key import sources_of
    from training.stages.store import code_hash

    names = {path.name for path in sources_of(["training.learning.algorithms.dpo"])}
    assert {"train_dpo.py", "losses.py", "optimise.py", "encoding.py", "actions.py"} <= names
    assert not names & {"evaluation_report.py", "train_ppo.py", "config.py", "registry.py"}
    build, other = write("a", []), write("b", [])
    assert code_hash(build, [training.outcomes.labels]) == code_hash(
        other, [training.outcomes.labels]
    )
    assert code_hash(build, [training.outcomes.labels]) != code_hash(
        build, [training.learning.algorithms.dpo]
    )


def test_the_same_work_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    hashes = {
        Workshop(tmp_path / name).stage("labels", {"fee": 0.001}, {}, write("same", [])).hash
        for name in ("a", "b")
    }
    assert len(hashes) == 1


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError, match="lights"):
        shop.stage("labels", {}, {}, fail)
    assert list(tmp_path.iterdir()) == []
    assert shop.stage("labels", {}, {}, write("whole", [])).facts == {"characters": 5}


def test_a_folder_without_a_manifest_is_replaced(tmp_path: Path) -> None:
    """What a kill between two renames, or a person, may leave."""
    shop = Workshop(tmp_path)
    made = shop.stage("labels", {}, {}, write("whole", []))
    (made / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="no finished artefact"):
        Artifact.open(made.path)
    assert (
        shop.stage("labels", {}, {}, write("whole", [])) / "sub/data.txt"
    ).read_text() == "whole"


def test_truncated_missing_and_changed_files_are_named(tmp_path: Path) -> None:
    made = Workshop(tmp_path).stage("labels", {}, {}, write("whole", []))
    data = made / "sub/data.txt"
    data.write_text("whol")
    with pytest.raises(ArtifactError, match=r"data\.txt was cut or changed"):
        Artifact.open(made.path)
    data.write_text("WHOLE")
    Artifact.open(made.path)  # the size is right: bytes are compared only when asked
    with pytest.raises(ArtifactError, match=r"data\.txt was cut or changed"):
        Artifact.open(made.path, deep=True)
    data.unlink()
    with pytest.raises(ArtifactError, match=r"data\.txt is missing"):
        Artifact.open(made.path)


def test_another_stage_and_a_broken_manifest_are_refused(tmp_path: Path) -> None:
    made = Workshop(tmp_path).stage("labels", {}, {}, write("whole", []))
    with pytest.raises(ArtifactError, match="stage 'labels', wanted is 'pairs'"):
        Artifact.open(made.path, "pairs")
    (made / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is no manifest"):
        Artifact.open(made.path)


def test_the_manifest_says_what_the_result_depends_on(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    labels = shop.stage("labels", {"fee": 0.001}, {}, write("a", []))
    pairs = shop.stage("pairs", {"margin": 0.25}, {"labels": labels}, write("b", []))
    manifest = json.loads((pairs / MANIFEST).read_text())
    assert manifest["inputs"] == {"labels": labels.hash}
    assert manifest["config"] == {"margin": 0.25}
    assert set(manifest) >= {
        "code",
        "prompt_version",
        "action_space",
        "feature_schema",
        "files",
        "facts",
        "created_at",
    }
    assert manifest["files"]["sub/data.txt"]["bytes"] == 1
