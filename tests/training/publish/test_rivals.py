"""What scikit-learn fitted and what the service serves say the same, of the contest's rivals."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.domain.features import FEATURE_NAMES, features
from app.domain.record.decision import Reading, propose
from app.policy.backends import Backends
from app.policy.calibration import random_scenarios
from app.policy.options import BackendOptions
from app.policy.rivals import RivalPolicy
from app.policy.versions.store import described, load_manifest
from tests.training.support.published import finished_policy, save_base
from training.__main__ import app
from training.arrays import Floats
from training.judging.contest.arms import HEURISTICS, Past
from training.publish.rivals import rival_of
from training.publish.version import PublishError

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
COUNT = 400


def table(seed: int) -> Floats:
    """(COUNT, F) of made-up scenarios: numbers, flags, and fields that nobody knows."""
    return np.array([features(scenario) for scenario in random_scenarios(COUNT, seed)])


@pytest.fixture(scope="module")
def past() -> Past:
    """Plans that win where RSI is high and ADX low, and sometimes anyway."""
    rows = table(1)
    rsi, adx = (rows[:, FEATURE_NAMES.index(name)] for name in ("rsi", "adx"))
    rows[::7, FEATURE_NAMES.index("adx")] = np.nan
    luck = np.random.default_rng(0).normal(0, 0.5, COUNT)
    rewards = np.where((rsi - 50) / 20 - (adx - 30) / 15 + luck > 0, 1.0, -1.0)
    times = np.arange(COUNT, dtype=np.int64) * 86_400
    return Past(rows, rewards, times, times + 3600, np.ones(COUNT), embargo_s=3600.0)


@pytest.mark.parametrize("algorithm", HEURISTICS)
def test_a_published_rival_trades_what_the_contests_arm_trades(algorithm: str, past: Past) -> None:
    new = table(2)
    new[::5, FEATURE_NAMES.index("adx")] = np.nan
    new[::11, FEATURE_NAMES.index("score_over_threshold")] = np.nan
    arm = HEURISTICS[algorithm](past, new, 5)
    rival = rival_of(algorithm, past)
    chances = np.array([rival.chance(tuple(row)) for row in new])
    if arm.probability is not None:
        np.testing.assert_allclose(chances, arm.probability, rtol=0, atol=1e-12)
    assert 20 < arm.trades.sum() < COUNT
    calibration = rival.calibration()
    approves = [
        propose(_reading(chance), calibration).action.approve for chance in chances.tolist()
    ]
    assert approves == arm.trades.tolist()


def _reading(chance: float) -> Reading:
    return Reading.told({"A": 1 - chance, "H": chance})


def test_where_every_plan_had_one_fate_nothing_is_published(past: Past) -> None:
    always = Past(
        past.features,
        np.ones(COUNT),
        past.as_of,
        past.ends_at,
        past.weights,
        embargo_s=past.embargo_s,
    )
    with pytest.raises(PublishError, match="one fate"):
        rival_of("gradient boosting", always)


def test_the_command_publishes_each_rival_as_a_version_that_loads(tmp_path: Path) -> None:
    models = tmp_path / "models"
    save_base(models)
    policy = finished_policy(tmp_path / "artifacts", models / "tiny")
    arguments = ["publish-rivals", str(policy.path), "--models", str(models), "--embargo", "1"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    versions = [path for path, manifest in described([models]) if "rival.json" in manifest.files]
    assert [path.name.rsplit("-", 2)[0] for path in versions] == [
        "rival-cost-filter",
        "rival-gradient-boosting",
        "rival-logistic-regression",
        "rival-score-threshold",
    ]
    for path in versions:
        loaded = Backends(BackendOptions(copies=tmp_path / "copies")).load(path)
        assert isinstance(loaded, RivalPolicy)
        assert loaded.read(random_scenarios(1, 3)[0]).label_mass == pytest.approx(1.0)
        assert "A simple rival" in (path / "README.md").read_text()
        facts = load_manifest(path).provenance
        assert facts["scenarios"] == {"training": 39, "validation": 0}
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    assert len([1 for _, manifest in described([models]) if manifest.base_model]) == 5
