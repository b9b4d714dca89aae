"""What a policy would have earned, estimated from decisions that another policy took and logged
with its probabilities.

Rewards here are known for every action, since the price path does not react to us; that
full-information value judges these estimates. They are for logs where only the outcome of the
action taken is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import AdvisorError
from training.arrays import Floats, Rows
from training.statistics.bootstrap import (
    DRAWS,
    LEVEL,
    Estimate,
    mean_intervals,
    none,
    require_finite,
)


class LogError(AdvisorError):
    """Logged decisions cannot be used: shapes differ, or a probability is none."""


@dataclass(frozen=True, eq=False)
class LoggedDecisions:
    """N decisions in order of time, A actions.

    action : (N,) that was taken.
    logged : (N,) probability with which it was, in (0, 1].
    reward : (N,) that followed, R.
    target : (N, A) probabilities of the policy to be valued; rows sum to 1.
    as_of : (N,) seconds since 1970 UTC; days are resampled as a whole. None: rows stand for
        themselves.
    """

    action: Rows
    logged: Floats
    reward: Floats
    target: Floats
    as_of: Rows | None = None

    def __post_init__(self) -> None:
        n, actions = self.target.shape
        if not len(self.action) == len(self.logged) == len(self.reward) == n:
            raise LogError(
                f"{len(self.action)} actions, {len(self.logged)} probabilities, {len(self.reward)}"
                f" rewards, {n}"
            )
        require_finite(self.reward, "logged rewards")
        if n and (self.action.min() < 0 or self.action.max() >= actions):
            raise LogError(f"action {int(self.action.max())} is not among {actions}")
        if not ((self.logged > 0) & (self.logged <= 1)).all():
            row = int(np.argmin((self.logged > 0) & (self.logged <= 1)))
            raise LogError(
                f"decision {row} was logged with probability {self.logged[row]}: it must be in"
                " (0, 1]"
            )
        if not (self.target >= 0).all() or not np.allclose(self.target.sum(1), 1, atol=1e-6):
            raise LogError(
                "the target policy's probabilities must be 0 or more and sum to 1 in every row"
            )

    @property
    def weights(self) -> Floats:
        """(N,) target over logged probability of the action taken."""
        return np.asarray(self.target[np.arange(len(self.action)), self.action] / self.logged)


class Value(NamedTuple):
    """An estimate of the mean reward (R), and how much it can be trusted.

    effective : Kish's effective sample size, (sum w)^2 / sum w^2. Far below n, a few decisions say
        it all.
    largest : largest weight.
    """

    estimate: Estimate
    effective: float
    largest: float


def inverse_propensity(
    log: LoggedDecisions, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Value:
    """Mean of w r: Horvitz & Thompson 1952; Dudík, Langford & Li 2011, section 2.2. Wide with large
    weights."""
    return _value(log, log.weights * log.reward, level, draws, seed)


def self_normalised(
    log: LoggedDecisions, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Value:
    """sum w r / sum w. Swaminathan & Joachims 2015, "The Self-Normalized Estimator", equation 9.
    Bias of order 1 / n.

    Its interval is that of the linearised terms w (r - value) / mean(w).
    """
    weights = log.weights
    if not weights.sum() > 0:
        return Value(none("the policy never does what was logged", len(weights)), 0.0, 0.0)
    value = float((weights * log.reward).sum() / weights.sum())
    return _value(log, value + weights * (log.reward - value) / weights.mean(), level, draws, seed)


def doubly_robust(
    log: LoggedDecisions,
    predicted: Floats,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Value:
    """Predicted value of the policy, corrected where rewards are known: Dudík, Langford & Li 2011,
    equation 1.

    predicted : (N, A) rewards that a model foretells, R; fitted on other decisions. Unbiased when
    the model or the logged probabilities are right.
    """
    require_finite(predicted, "predicted rewards")
    if predicted.shape != log.target.shape:
        raise LogError(
            f"predicted rewards have shape {predicted.shape}, the policy has {log.target.shape}"
        )
    base = (log.target * predicted).sum(1)
    error = log.reward - predicted[np.arange(len(log.action)), log.action]
    return _value(log, base + log.weights * error, level, draws, seed)


def full_information(rewards: Floats, target: Floats) -> float:
    """Mean reward when every action's is known: (N, A) both. What the estimates above aim at."""
    return float((rewards * target).sum(1).mean())


def _value(
    log: LoggedDecisions, terms: NDArray[np.float64], level: float, draws: int, seed: int
) -> Value:
    """Interval of the mean of the terms, one per decision."""
    weights = log.weights
    if not len(terms):
        return Value(none("no decisions"), 0.0, 0.0)
    squares = float((weights**2).sum())
    effective = float(weights.sum()) ** 2 / squares if squares > 0 else 0.0
    (estimate,) = mean_intervals(
        terms[:, None], as_of=log.as_of, level=level, draws=draws, seed=seed
    )
    return Value(estimate, effective, float(weights.max()))
