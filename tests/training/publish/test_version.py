"""Publishing on disk: immutable versions with manifest and card; and a service that is away is one
clear error."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from app.domain.errors import ManifestMismatch, ModelFileError
from app.domain.model.manifest import Calibration
from app.policy.encoding import PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.numbers import Numbers
from app.policy.in_process.whole.weights import load_model
from app.policy.versions.store import NUMBERS_NAME, described, load_manifest, read_manifest
from tests.policy.tiny_models import POSITIONS
from tests.training.support.published import BASE, finished_policy, save_base
from training.__main__ import app
from training.cli.options import console
from training.publish.card import model_card
from training.publish.version import (
    ADAPTER_FILES,
    PublishError,
    Release,
    in_half_precision,
    publish,
    release_of,
)
from training.stages.store import Artifact, ArtifactError

ROOT = Path(__file__).parents[3]
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = datetime(2026, 12, 24, 12, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    save_base(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def policy(models: Path, tmp_path: Path) -> Artifact:
    return finished_policy(tmp_path / "artifacts", models / "tiny")


@pytest.fixture
def release(policy: Artifact, models: Path) -> Release:
    return release_of(policy, "advisor", [models])


def test_a_version_is_verified_names_its_base_and_its_adapter_loads(
    release: Release, models: Path
) -> None:
    path = publish(release, models, NOON)
    manifest = load_manifest(path)
    assert path.name == manifest.model_version
    assert path.name.startswith("advisor-20261124-")
    assert manifest.base is not None
    assert manifest.base.model_version == BASE
    assert manifest.base.manifest_hash == load_manifest(models / "tiny").hash()
    assert manifest.calibration == Calibration(temperature=1.5)
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert {one.name for one in path.iterdir()} == {*manifest.files, "manifest.json", "README.md"}
    tail = PromptEncoder.from_directory(models / "tiny", POSITIONS).tail
    assert Adapter.load(path, load_model(models / "tiny"), tail).activated
    assert not [one for one in models.iterdir() if one.name.startswith(".")]


def test_an_adapter_that_reads_numbers_brings_its_map_at_half_precision_too(
    release: Release, models: Path, tmp_path: Path
) -> None:
    source, model = tmp_path / "reads numbers", load_model(models / "tiny")
    shutil.copytree(release.files, source)
    embedding = model.get_input_embeddings().embedding_dim
    made = Numbers(torch.zeros(2), torch.ones(2), torch.ones(1, 2, embedding), ("rsi", "adx"))
    made.save(source)
    (tmp_path / "half").mkdir()
    tail = PromptEncoder.from_directory(models / "tiny", POSITIONS).tail
    for files in (source, in_half_precision(source, tmp_path / "half")):
        path = publish(replace(release, files=files), models, NOON)
        assert set(load_manifest(path).files) == {*ADAPTER_FILES, NUMBERS_NAME}
        read = Adapter.load(path, model, tail).numbers
        assert read is not None
        assert torch.equal(read.weight, made.weight)


def test_provenance_names_every_artefact_code_and_configuration(
    release: Release, policy: Artifact
) -> None:
    facts = release.provenance
    assert facts["data"]["policy"] == policy.hash
    assert set(facts["data"]) == {"scenarios", "labels", "encoded", "taught", "policy"}
    assert facts["code"] == policy.manifest["code"]
    assert facts["config"]["policy"]["policy"] == {"seed": 1}
    assert facts["algorithm"] == "expected"
    assert facts["left_out"] == ["book", "scores"]
    assert facts["scenarios"] == {"training": 31, "validation": 8}  # one of forty is embargoed
    assert facts["market"] == "history: ETHUSDT"


def test_results_are_realised_net_rewards_of_the_validation_scenarios(release: Release) -> None:
    """Rows 32-39: half of them win 1 R. The policy takes those alone, the plan and the base model
    take all."""
    found = release.provenance["results"]
    assert (found["scenarios"], found["days"]) == (8, 8)
    assert found["policy"]["value"] == 0.5
    assert found["always_approve"]["value"] == found["base_model"]["value"] == 0.0
    assert found["never_approve"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["approval_rate"] == {
        "policy": 0.5,
        "base_model": 1.0,
        "always_approve": 1.0,
        "never_approve": 0.0,
    }
    assert found["lead"]["always_approve"]["value"] == 0.5
    assert found["lead"]["always_approve"]["low"] > 0


def test_the_card_says_what_it_is_and_is_not_and_how_sure_the_numbers_are(
    release: Release, models: Path
) -> None:
    path = publish(release, models, NOON)
    card = (path / "README.md").read_text()
    low, high = (release.provenance["results"]["policy"][name] for name in ("low", "high"))
    for text in (
        f"# {path.name}",
        "## What it is not",
        "no investment advice",
        f"| policy | 0.500 | {low:.3f} to {high:.3f} | 50% |",
        "| never approve | 0.000 | 0.000 to 0.000 |",
        "| win | network | ridge 0.2400, network 0.2300, stack 0.2350 |",
        "decisions from 2022-06-23 to 2022-08-01",
        "licence: Apache-2.0",
        "algorithm: expected",
        "leaves out the prompt's lines of book, scores, which its features say",
        release.provenance["code"],
    ):
        assert text in card
    assert "/" + "tmp" not in card


def test_the_card_that_comes_with_a_release_is_what_is_written_today() -> None:
    for path in (ROOT / "models").iterdir():
        card = (path / "README.md").read_text()
        assert card == model_card(load_manifest(path))
        assert "56 % of decisions turn when the options come in another order" in card
    results = (ROOT / "docs" / "results.md").read_text()
    assert "| options in another order | 56 % |" in results
    assert not re.search(r"[+-]0\.000(?!\d)", results), "what rounds to zero has no sign"


def test_the_same_content_finds_its_version_again_on_another_day(
    release: Release, models: Path
) -> None:
    path = publish(release, models, NOON)
    before = {one.name: one.stat().st_mtime_ns for one in path.iterdir()}
    assert publish(release, models, LATER) == path
    assert {one.name: one.stat().st_mtime_ns for one in path.iterdir()} == before
    assert len(list(described([models]))) == 2  # with the base


def test_another_adapter_or_calibration_is_another_version(
    release: Release, models: Path, tmp_path: Path
) -> None:
    other = release_of(
        finished_policy(tmp_path / "other", models / "tiny", seed=2), "advisor", [models]
    )
    warmer = Release(
        release.files, "advisor", release.base, Calibration(temperature=2.0), release.provenance
    )
    paths = [
        publish(each, models, moment)
        for each, moment in ((release, NOON), (other, NOON), (warmer, LATER))
    ]
    assert len(set(paths)) == 3
    assert {path for path, _ in described([models])} == {models / "tiny", *paths}


def test_a_version_that_was_changed_is_refused_not_mended(release: Release, models: Path) -> None:
    path = publish(release, models, NOON)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ManifestMismatch, match=r"adapter_config\.json"):
        publish(release, models, NOON)
    assert (path / "adapter_config.json").read_text() == "{}"


def test_a_folder_of_that_name_with_other_content_is_never_overwritten(
    release: Release, models: Path
) -> None:
    path = publish(release, models, NOON)
    (path / "manifest.json").rename(path / "other.md")
    with pytest.raises(PublishError, match="immutable"):
        publish(release, models, NOON)
    assert (path / "other.md").is_file()
    assert not [one for one in models.iterdir() if one.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("extra.safetensors", PublishError, "at fault: extra.safetensors"),
        ("optimizer.pt", ModelFileError, "safetensors"),
    ],
)
def test_a_folder_with_more_than_an_adapter_is_refused(
    release: Release, models: Path, name: str, error: type[Exception], says: str
) -> None:
    (release.files / name).write_bytes(b"x")
    with pytest.raises(error, match=says):
        publish(release, models, NOON)
    assert len(list(described([models]))) == 1


def test_half_an_adapter_and_no_model_are_refused(release: Release, models: Path) -> None:
    (release.files / "adapter_config.json").unlink()
    with pytest.raises(PublishError, match=r"config\.json"):
        publish(release, models, NOON)
    (release.files / "adapter_model.safetensors").unlink()
    with pytest.raises(PublishError, match="holds no safetensors"):
        publish(release, models, NOON)


def test_an_adapter_without_its_base_beside_it_is_refused(release: Release, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="base-1"):
        publish(release, tmp_path / "elsewhere", NOON)
    assert not (tmp_path / "elsewhere").exists()


def test_the_base_may_lie_in_another_folder_that_the_service_reads(
    release: Release, models: Path
) -> None:
    shipped = models.parent / "shipped"
    assert publish(release, shipped, NOON, [models]).parent == shipped


def test_a_publishing_that_dies_midway_leaves_no_version(
    release: Release, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("training.publish.version.load_manifest", die)
    with pytest.raises(OSError, match="space"):
        publish(release, models, NOON)
    assert {one.name for one in models.iterdir()} == {"tiny"}


def test_an_input_that_is_gone_is_named(policy: Artifact, models: Path) -> None:
    next(policy.path.parent.glob("labels-*")).rename(policy.path.parent / "gone")
    with pytest.raises(ArtifactError, match="labels"):
        release_of(policy, "advisor", [models])


def test_a_whole_model_is_published_without_a_base(policy: Artifact, models: Path) -> None:
    path = publish(release_of(policy, "whole", [models], models / "tiny"), models, NOON)
    manifest = load_manifest(path)
    assert manifest.base is None
    assert "model.safetensors" in manifest.files
    assert "A whole model" in (path / "README.md").read_text()


def test_the_command_publishes_and_lists(
    policy: Artifact, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 400)  # whatever the terminal was when it was made
    runner = CliRunner()
    done = runner.invoke(
        app, ["publish", str(policy.path), "--models", str(models)], catch_exceptions=False
    )
    assert done.exit_code == 0
    path = Path(done.output.split("published ")[1].split("\n")[0])
    assert read_manifest(path / "manifest.json").provenance["algorithm"] == "expected"
    listed = runner.invoke(app, ["versions", "--models", str(models)], catch_exceptions=False)
    assert BASE in listed.output
    names = [line for line in listed.output.splitlines() if not line.startswith(" ")]
    assert names == [BASE, path.name]  # the oldest first


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_command_merges_an_ordinary_adapter_and_refuses_an_activated_one(
    policy: Artifact, models: Path, tmp_path: Path
) -> None:
    runner = CliRunner()
    refused = runner.invoke(app, ["publish", str(policy.path), "--models", str(models), "--merged"])
    assert isinstance(refused.exception, PublishError)
    assert "activated" in str(refused.exception)
    ordinary = finished_policy(tmp_path / "ordinary", models / "tiny", activated=False)
    arguments = [
        "publish",
        str(ordinary.path),
        "--models",
        str(models),
        "--merged",
        "--name",
        "merged",
    ]
    assert runner.invoke(app, arguments, catch_exceptions=False).exit_code == 0
    path = next(models.glob("merged-*"))
    manifest = load_manifest(path)
    assert manifest.base is None
    assert PromptEncoder.from_directory(path, POSITIONS).tail
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert files["model.safetensors"] != load_manifest(models / "tiny").files["model.safetensors"]


def test_half_precision_halves_the_weights_and_is_another_version(
    policy: Artifact, models: Path
) -> None:
    command = ["publish", str(policy.path), "--models", str(models)]
    for more in ([], ["--half"]):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
    whole, half = sorted(
        (path.parent for path in models.glob("advisor-*/adapter_model.safetensors")),
        key=lambda path: -(path / "adapter_model.safetensors").stat().st_size,
    )
    full, rounded = (load_file(path / "adapter_model.safetensors") for path in (whole, half))
    assert full.keys() == rounded.keys()
    for name, values in full.items():
        assert rounded[name].dtype == np.float16
        assert rounded[name].astype(np.float32) == pytest.approx(values, rel=1e-3, abs=1e-6)
    assert load_manifest(half).model_version != load_manifest(whole).model_version


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    save_file({"big": np.array([1e6], dtype=np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PublishError, match="beyond float16"):
        in_half_precision(tmp_path, tmp_path)
