"""The control: a linear probe of the base model's last hidden state with the target of the
expected-reward algorithm.

Multinomial logistic regression (scikit-learn) fitted to the closed-form optimum pi* ~ exp(E[U] /
beta): each row stands for all its actions, weighted by pi*. Same states, same rewards, no
language model to tune: an algorithm that does not reach it has lost something on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import Calibration
from training.config.learning import TargetsConfig
from training.learning.model.answers import Answers, choices
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.targets.preferences import Preferences
from training.learning.targets.problem import Problem, problem_of
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.table import ScenarioSet
from training.stages.declared import stage
from training.stages.store import Facts

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation, the candidates."""
_FOLDS = 4


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe: (N, 10) log-probabilities of all rows, and the strength that was chosen."""

    log_policy: NDArray[np.float64]
    strength: float
    model: Any

    def of(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, 10) log-probabilities for other scenarios' last hidden states (n, H)."""
        return _log_policy(self.model, np.asarray(states, np.float64))


@stage("answers")
def of_probe(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    encoded: Encoded,
    taught: Predictions,
    preferences: Preferences,
    base: Base,
    held_out: Encoded,
    *,
    beta: float,
    targets: TargetsConfig,
    seed: int,
) -> Facts:
    """Answers to the held-out scenarios of a probe fitted to those before them."""
    problem = problem_of(scenarios, labels, encoded, taught, preferences, base, targets, seed)
    probe = fit_probe(problem, beta)
    answers = Answers(probe.of(np.asarray(held_out.last)), Calibration())
    return answers.save(folder) | {"strength": probe.strength}


def fit_probe(problem: Problem, beta: float, strengths: tuple[float, ...] = STRENGTHS) -> Probe:
    """Fit on the training rows; the strength by expected reward in contiguous folds of them, not on
    validation rows."""
    states = np.asarray(problem.encoded.last, np.float64)
    target = np.exp(log_softmax(np.nan_to_num(problem.rewards) / beta, axis=1))
    rows = problem.train_rows
    gains = {}
    for strength in strengths:
        parts = np.array_split(rows, _FOLDS)
        gain = 0.0
        for part in parts:
            model = _fit(states, target, problem.weights, np.setdiff1d(rows, part), strength)
            chosen = choices(_log_policy(model, states[part]))
            gain += float((problem.weights[part] * problem.rewards[part, chosen]).sum())
        gains[strength] = gain
    best = max(gains, key=lambda strength: gains[strength])
    model = _fit(states, target, problem.weights, rows, best)
    return Probe(_log_policy(model, states), best, model)


def _fit(
    states: NDArray[np.float64],
    target: NDArray[np.float64],
    weights: NDArray[np.float64],
    rows: NDArray[np.int64],
    strength: float,
) -> Any:
    actions = len(ACTIONS)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
    repeated = np.repeat(rows, actions)
    weight = (target[rows] * weights[rows, None]).ravel()
    kept = weight > 1e-6
    labels = np.tile(np.arange(actions), len(rows))
    return model.fit(
        states[repeated[kept]], labels[kept], logisticregression__sample_weight=weight[kept]
    )


def _log_policy(model: Any, states: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 10); an action that never had weight keeps a vanishing probability."""
    log_policy = np.full((len(states), len(ACTIONS)), -50.0)
    log_policy[:, model[-1].classes_] = model.predict_log_proba(states)
    return log_policy
