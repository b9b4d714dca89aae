"""A model version: its calibration, its weights, and the base that an adapter names."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord, ModelFileError
from app.domain.manifest import BaseModelRef, Calibration, ModelManifest
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
