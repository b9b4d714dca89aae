"""One rebuild, published and judged, for all tests that look at what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy.tiny_models import save_tiny_model, write_manifest
from tests.training.support.rebuilds import NOW, RIVAL, config_in, shop_of
from training.pipeline.evaluate import Evaluated, evaluate


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model as version `base-1`, alone in its folder; the rebuild publishes beside
    it."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "base")
    write_manifest(folder, "base-1")
    return folder


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rebuild's artefacts are. Tests that evaluate anew do so in a copy: looks are
    counted."""
    return tmp_path_factory.mktemp("rebuild")


@pytest.fixture(scope="session")
def evaluated(workplace: Path, tiny_base: Path) -> Evaluated:
    """A rebuild by `expected`, published and judged against the agent, simple rules and a policy
    trained by DPO."""
    config = config_in(workplace, tiny_base)
    return evaluate(config, shop_of(config), NOW, [RIVAL])
