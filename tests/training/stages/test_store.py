"""Artefacts are immutable, found again, and never half there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from training.stages.store import MANIFEST, Artifact, ArtifactError, Facts, Store

DEPENDS = {"config": {"fee": 0.001}, "inputs": {}}


def write(text: str) -> Callable[[Path], Facts]:
    def fill(folder: Path) -> Facts:
        (folder / "sub").mkdir()
        (folder / "sub" / "data.txt").write_text(text)
        return {"characters": len(text)}

    return fill


def test_what_is_finished_is_found_by_what_it_depends_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("labels", DEPENDS) is None
    first = store.build("labels", DEPENDS, write("hello"))
    again = Store(tmp_path).find("labels", DEPENDS)
    assert again is not None
    assert (first.path, first.hash, first.facts) == (again.path, again.hash, {"characters": 5})
    assert (again / "sub/data.txt").read_text() == "hello"
    assert store.find("labels", DEPENDS | {"config": {"fee": 0.002}}) is None
    assert store.find("pairs", DEPENDS) is None


def test_the_same_work_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    hashes = {
        Store(tmp_path / name).build("labels", DEPENDS, write("same")).hash for name in ("a", "b")
    }
    assert len(hashes) == 1


def test_what_is_only_to_watch_is_kept_and_changes_no_hash(tmp_path: Path) -> None:
    def run(number: int) -> Callable[[Path], Facts]:
        def fill(folder: Path) -> Facts:
            (folder / "tensorboard" / "run").mkdir(parents=True)
            (folder / "tensorboard" / "run" / f"events.{number}").write_text(str(number))
            return write("same")(folder)

        return fill

    first, second = (Store(tmp_path / str(n)).build("policy", DEPENDS, run(n)) for n in (1, 2))
    assert first.hash == second.hash
    assert (second / "tensorboard/run/events.2").is_file()
    assert list(first.manifest["files"]) == ["sub/data.txt"]


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> Facts:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError, match="lights"):
        store.build("labels", DEPENDS, fail)
    assert list(tmp_path.iterdir()) == []
    assert store.build("labels", DEPENDS, write("whole")).facts == {"characters": 5}


def test_a_disk_that_is_full_and_a_folder_that_is_none_are_one_sentence(tmp_path: Path) -> None:
    """Each library says so in its own words: this is how polars and safetensors do."""
    full = os.strerror(errno.ENOSPC)
    for error in (OSError(errno.ENOSPC, full), ValueError(f"underlying IO error: {full}")):

        def fail(folder: Path, error: Exception = error) -> Facts:
            raise error

        said = rf"labels-\w+ cannot be made in .*{full}.* What is finished stays"
        with pytest.raises(ArtifactError, match=said):
            Store(tmp_path).build("labels", DEPENDS, fail)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"cannot be made in .*file: .*exists"):
        Store(tmp_path / "file").build("labels", DEPENDS, write("whole"))


def test_what_a_killed_build_left_is_removed_and_what_is_being_built_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    killed, alive = (
        tmp_path / f".{store.name('labels', DEPENDS)}-{end}" for end in ("killed", "alive")
    )
    other = tmp_path / f".{store.name('pairs', DEPENDS)}-killed"
    for folder in (killed, alive, other):
        folder.mkdir()
        (folder / "half").write_text("half")
    builder = os.open(alive, os.O_RDONLY)
    fcntl.flock(builder, fcntl.LOCK_EX)
    artifact = store.build("labels", DEPENDS, write("whole"))
    assert not killed.exists()
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {artifact.path, alive, other}
    os.close(builder)


def test_a_folder_without_a_manifest_is_replaced(tmp_path: Path) -> None:
    """What a kill between two renames, or a person, may leave."""
    store = Store(tmp_path)
    made = store.build("labels", DEPENDS, write("whole"))
    (made / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match="no finished artefact"):
        Artifact.open(made.path)
    assert store.find("labels", DEPENDS) is None
    assert (store.build("labels", DEPENDS, write("whole")) / "sub/data.txt").read_text() == "whole"


def test_of_two_builds_of_the_same_the_first_that_is_finished_stays(tmp_path: Path) -> None:
    """A second process finds nothing and begins too; what the first made may be in use by then."""
    store, kept = Store(tmp_path), []

    def overtaken(folder: Path) -> Facts:
        kept.append(Store(tmp_path).build("labels", DEPENDS, write("first")))
        return write("second")(folder)

    second = store.build("labels", DEPENDS, overtaken)
    assert second == kept[0]
    assert (kept[0] / "sub/data.txt").read_text() == "first"
    assert list(tmp_path.iterdir()) == [second.path]


def test_truncated_missing_and_changed_files_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.build("labels", DEPENDS, write("whole"))
    data = made / "sub/data.txt"
    data.write_text("whol")
    with pytest.raises(ArtifactError, match=r"data\.txt was cut or changed"):
        Artifact.open(made.path)
    data.write_text("WHOLE")
    Artifact.open(made.path)  # the size is right: bytes are compared when a pipeline finds it
    with pytest.raises(ArtifactError, match=r"data\.txt was cut or changed"):
        Artifact.open(made.path, deep=True)
    with pytest.raises(ArtifactError, match=r"data\.txt was cut or changed"):
        store.find("labels", DEPENDS)
    data.unlink()
    with pytest.raises(ArtifactError, match=r"data\.txt is missing"):
        Artifact.open(made.path)


def test_another_stage_and_a_broken_manifest_are_refused(tmp_path: Path) -> None:
    made = Store(tmp_path).build("labels", DEPENDS, write("whole"))
    with pytest.raises(ArtifactError, match="stage 'labels', wanted is 'pairs'"):
        Artifact.open(made.path, "pairs")
    (made / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is no manifest"):
        Artifact.open(made.path)


def test_a_folder_that_somebody_copied_is_not_found_under_another_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.build("words", {"config": 1}, write("hello"))
    shutil.copytree(made.path, tmp_path / store.name("words", {"config": 2}))
    with pytest.raises(ArtifactError, match=r"holds another artefact, of key sha256:.* build it"):
        store.find("words", {"config": 2})
    assert store.find("words", {"config": 1}) == made


def test_the_manifest_says_what_the_result_depends_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    labels = store.build("labels", DEPENDS, write("a"))
    depends = {"config": {"margin": 0.25}, "inputs": {"labels": labels.hash}, "code": "sha256:0"}
    manifest = json.loads((store.build("pairs", depends, write("b")) / MANIFEST).read_text())
    assert {name: manifest[name] for name in depends} == depends
    assert set(manifest) >= {"stage", "key", "files", "facts", "cost", "created_at"}
    assert manifest["files"]["sub/data.txt"]["bytes"] == 1
