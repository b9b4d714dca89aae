"""Models for the policy tests: the real small one, imported once, and tiny random ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.domain.model.manifest import ModelManifest
from app.policy.encoding import PromptEncoder
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import LabelReader
from app.policy.versions.store import load_manifest
from tests.policy.tiny_models import POSITIONS, save_tiny_model


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """SmolLM2, imported into the folder that the service uses too, or into
    ADVISOR_TEST_MODEL_CACHE."""
    repository = Path(__file__).parents[2]
    return import_smollm2(
        Path(os.environ.get("ADVISOR_TEST_MODEL_CACHE", repository / "var" / "models"))
    )


@pytest.fixture(scope="session")
def smollm2_manifest(smollm2_directory: Path) -> ModelManifest:
    return load_manifest(smollm2_directory)


@pytest.fixture(scope="session")
def smollm2(smollm2_directory: Path) -> LabelReader:
    return LabelReader.load(smollm2_directory)


@pytest.fixture(scope="session")
def smollm2_encoder(smollm2_directory: Path) -> PromptEncoder:
    return PromptEncoder.from_directory(smollm2_directory)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama without a manifest; treat it as read-only."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_directory: Path) -> LabelReader:
    return LabelReader.load(tiny_directory, POSITIONS)


@pytest.fixture
def fresh(tiny_directory: Path) -> LabelReader:
    """A reader that has read nothing yet."""
    return LabelReader.load(tiny_directory, POSITIONS)
