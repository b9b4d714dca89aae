"""What the algorithms are given: a problem, put together from the artefacts before them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.errors import AdvisorError
from app.domain.model.manifest import Calibration
from training.agent.words import Demonstrations
from training.config.data import OutcomesConfig
from training.config.learning import TargetsConfig
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.targets.preferences import Preferences
from training.learning.targets.questions import Questions, questions_of
from training.learning.targets.utility import dealing, dealt_out, targets
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.table import TRAIN, VALIDATE, ScenarioSet

_DIGITS = 5


class TrainingError(AdvisorError):
    """A problem that cannot be trained on; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What an algorithm is given. Rows are the scenario set's.

    rewards : (N, 10) float, what each action is worth, R of the agent's plan: the teacher's
        expectation, but for an ablation; rows with NaN are left out.
    weights : (N,) uniqueness, 0-1; scaled to mean 1 over the training rows.
    train_rows, validate_rows : indices, disjoint.
    calibration, base_name : the base manifest's calibration and model version.
    pairs : (P, 3) int: row, chosen action, rejected action; DPO alone needs them.
    pair_weights : (P,), default 1.
    questions : what is learned beside the action; None: nothing.
    demonstrations : what the agent did and said, for the supervised part; None: labels' format
        alone.
    warm_up : folder of a finished warm-up, for algorithms that start from one.
    """

    encoded: Encoded
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]
    train_rows: NDArray[np.int64]
    validate_rows: NDArray[np.int64]
    calibration: Calibration
    base_name: str
    pairs: NDArray[np.int64] | None = None
    pair_weights: NDArray[np.float64] | None = None
    questions: Questions | None = None
    demonstrations: Demonstrations | None = None
    warm_up: Path | None = None

    def __post_init__(self) -> None:
        rewarded = np.asarray(np.isfinite(self.rewards).all(axis=1))
        for name in ("train_rows", "validate_rows"):
            rows = np.asarray(getattr(self, name), np.int64)
            object.__setattr__(self, name, rows[rewarded[rows]])
            if not len(getattr(self, name)):
                raise TrainingError(
                    f"no {name.replace('_', ' ')} with known rewards: nothing to train or"
                    " validate on; raise scenarios.limit, or bring more bars"
                )
        if np.intersect1d(self.train_rows, self.validate_rows).size:
            raise TrainingError("training and validation rows overlap")
        scaled = self.weights / self.weights[self.train_rows].mean()
        object.__setattr__(self, "weights", scaled)

    def levelled(self, beta: float) -> Problem:
        """With the bias under which the base model, on average over the training rows, scores every
        action as the targets do, and questions in units of what differs between scenarios: an
        adapter then has no level to learn."""
        rows = self.train_rows
        said = np.asarray(self.encoded.label_log_probs[rows], np.float64)
        gap = (said - said[:, :1]) - (self.rewards[rows] - self.rewards[rows, :1]) / beta
        bias = np.average(gap, axis=0, weights=self.weights[rows])
        told = tuple(round(float(value), _DIGITS) for value in bias)
        return replace(
            self,
            calibration=self.calibration.model_copy(update={"bias": told}),
            questions=None if self.questions is None else self.questions.in_units(rows),
        )

    @property
    def untempered(self) -> Calibration:
        """Of the policy that is trained: the base's bias, temperature 1."""
        return self.calibration.model_copy(update={"temperature": 1.0})

    @property
    def bias(self) -> Tensor:
        """(10,) float32, nats."""
        return torch.tensor(self.calibration.bias)


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
    outcomes: OutcomesConfig | None = None,
) -> Problem:
    """Rewards to train on, pairs, and what the agent said if it always did; with `outcomes` (which
    say what trading costs) the questions beside the action. `seed` deals rewards out when they are
    to be shuffled."""
    train = scenarios.rows(TRAIN)
    rewards = targets(labels.rewards, taught, train, config)
    pairs = preferences.indices
    questions = None
    if outcomes is not None:
        questions = questions_of(scenarios, labels, taught, train, config, outcomes)
    if config.shuffled:
        rewards, pairs = dealt_out(rewards, pairs, train, seed)
        if questions is not None:
            questions = questions.dealt(train, dealing(train, seed))
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
        questions=questions,
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
