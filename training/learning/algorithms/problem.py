"""What the algorithms are given, put together from the artefacts before them."""

from __future__ import annotations

from pathlib import Path

from training.agent.words import Demonstrations
from training.config.learning import TargetsConfig
from training.learning.algorithms.preferences import Preferences
from training.learning.algorithms.run import Problem
from training.learning.algorithms.targets import dealt_out, targets
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.table import TRAIN, VALIDATE, ScenarioSet


def problem_of(
    scenarios: ScenarioSet,
    labels: Labels,
    encoded: Encoded,
    taught: Predictions,
    preferences: Preferences,
    base: Base,
    config: TargetsConfig,
    seed: int,
    warm_up: Path | None = None,
) -> Problem:
    """Rewards to train on, pairs, and what the agent said if it always did. `seed` deals rewards
    out when they are to be shuffled."""
    train = scenarios.rows(TRAIN)
    rewards = targets(labels.rewards, taught, train, config)
    pairs = preferences.indices
    if config.shuffled:
        rewards, pairs = dealt_out(rewards, pairs, train, seed)
    return Problem(
        encoded=encoded,
        rewards=rewards,
        weights=scenarios.weight,
        train_rows=train,
        validate_rows=scenarios.rows(VALIDATE, real_only=True),
        calibration=base.manifest.calibration,
        base_name=base.manifest.model_version,
        pairs=pairs,
        pair_weights=preferences.weights,
        demonstrations=_demonstrations(scenarios),
        warm_up=warm_up,
    )


def _demonstrations(scenarios: ScenarioSet) -> Demonstrations | None:
    """None where the agent did not always say what it did."""
    controls = scenarios.controls()
    spoken = [control for control in controls if control is not None]
    if len(spoken) < len(controls):
        return None
    return Demonstrations.of(scenarios.scenarios(), spoken)
