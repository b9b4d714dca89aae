"""A linear learner as arrays: ridge regression, or logistic regression for chances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from training.arrays import Floats
from training.config.learning import TeacherConfig

_FURTHEST = 5.0
"""Standard deviations; what lies beyond counts as that far."""


@dataclass(frozen=True, eq=False)
class Linear:
    """Standardised inputs times a slope. What is not known counts as the training mean.

    mean, scale, slope : (F,). level, chance : (1,); `chance` is 1 where the answer is a
        probability, the logistic function of the sum.
    """

    mean: Floats
    scale: Floats
    slope: Floats
    level: Floats
    chance: Floats

    @classmethod
    def fit(
        cls, inputs: Floats, answer: Floats, weight: Floats, config: TeacherConfig, chance: bool
    ) -> Self:
        """On rows whose answer is known."""
        finite = np.isfinite(inputs)
        count = np.maximum(finite.sum(0), 1)
        mean = np.where(finite, inputs, 0.0).sum(0) / count
        spread = np.sqrt((np.where(finite, inputs - mean, 0.0) ** 2).sum(0) / count)
        scale = np.where(spread > 1e-9, spread, 1.0)
        scaled = standardised(inputs, mean, scale)
        if chance and np.ptp(answer) > 0:
            # A chance's curvature is at most a quarter of a square's.
            model = LogisticRegression(C=4 / config.ridge, max_iter=500)
            model.fit(scaled, answer, weight)
            slope, level = model.coef_[0], float(model.intercept_[0])
        elif chance:  # it always, or never, came
            slope = np.zeros(len(mean))
            level = float(np.log((answer.mean() + 1e-3) / (1 - answer.mean() + 1e-3)))
        else:
            model = Ridge(config.ridge).fit(scaled, answer, weight)
            slope, level = model.coef_, float(model.intercept_)
        return cls(mean, scale, np.asarray(slope), np.array([level]), np.array([float(chance)]))

    def predict(self, inputs: Floats) -> Floats:
        """(N,)"""
        raw = standardised(inputs, self.mean, self.scale) @ self.slope + self.level[0]
        return np.asarray(expit(raw) if self.chance[0] else raw)


def standardised(inputs: Floats, mean: Floats, scale: Floats) -> Floats:
    """(N, F) within +-5, 0 where not known."""
    return np.nan_to_num(np.clip((inputs - mean) / scale, -_FURTHEST, _FURTHEST), nan=0.0)
