"""A model version: its calibration, its weights, and the base that an adapter names."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord, ManifestMismatch, ModelFileError
from app.domain.model.manifest import BaseModelRef, Calibration, ModelManifest
from tests.domain.scenarios import AS_OF

WEIGHTS = "sha256:" + "1" * 64
TOKENS = "sha256:" + "2" * 64


def manifest(**changes: Any) -> ModelManifest:
    files = {"model.safetensors": WEIGHTS, "tokenizer.json": TOKENS}
    given = {"model_version": "m-1", "base_model": "b", "licence": "l", "created_at": AS_OF}
    return ModelManifest.from_json(given | {"files": files} | changes)


def test_a_bias_has_one_entry_per_action() -> None:
    with pytest.raises(InvalidRecord, match="bias has 9 entries, the action space has 10"):
        Calibration.from_json({"bias": [0.0] * 9})


def test_the_weights_are_hashed_without_what_lies_beside_them() -> None:
    whole = manifest()
    assert whole.weights_hash() == content_hash({"model.safetensors": WEIGHTS})
    retokenised = manifest(files={"model.safetensors": WEIGHTS, "tokenizer.json": WEIGHTS})
    assert retokenised.weights_hash() == whole.weights_hash()
    assert retokenised.hash() != whole.hash()
    with pytest.raises(ModelFileError, match="m-1 lists no safetensors"):
        manifest(files={"tokenizer.json": TOKENS}).weights_hash()


def test_an_adapter_names_a_whole_model_as_its_base() -> None:
    whole = manifest()
    base = BaseModelRef.of(whole)
    assert (base.model_version, base.manifest_hash) == ("m-1", whole.hash())
    assert base.weights_hash == whole.weights_hash()
    adapter = manifest(model_version="a-1", base=base.as_json())
    assert adapter.as_json()["base"] == base.as_json()
    with pytest.raises(ModelFileError, match="a-1 is an adapter itself"):
        BaseModelRef.of(adapter)


def test_a_whole_model_says_nothing_of_a_base() -> None:
    """As before there were adapters: manifests that were written then keep their hash."""
    assert "base" not in manifest().as_json()
    assert manifest().hash() == content_hash(manifest().as_json())


def test_the_files_of_an_adapters_base_are_named_by_the_reference_or_by_its_provenance() -> None:
    whole = manifest()
    assert whole.base_files_hash() is None, "it has no base"
    base = BaseModelRef.of(whole).as_json()
    assert manifest(base=base).base_files_hash() == content_hash(whole.files)
    # As versions were written before the reference named the files, and before provenance did.
    del base["files_hash"]
    earlier = manifest(base=base)
    assert earlier.as_json()["base"] == base
    assert earlier.base_files_hash() is None
    told = {"config": {"encoded": {"base": whole.files}}}
    assert manifest(base=base, provenance=told).base_files_hash() == content_hash(whole.files)
    untold = {"config": {"encoded": "a key"}}
    assert manifest(base=base, provenance=untold).base_files_hash() is None


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("prompt_version", "0", "prompt version 0"),
        ("action_space", "sha256:" + "3" * 64, "action space sha256:333"),
        ("feature_schema", "sha256:" + "4" * 64, "feature schema sha256:444"),
    ],
)
def test_a_model_made_for_something_else_is_refused_by_name(
    field: str, value: str, what: str
) -> None:
    manifest().require_compatible()
    with pytest.raises(ManifestMismatch, match=f"m-1 was made for {what}.*, this service has"):
        manifest(**{field: value}).require_compatible()
