"""A blend: the learners' answers to one question, weighted so that they mean what they say.

Least squares of what came on what was foretold out of fold, with weights of 0 or more: a learner
that says nothing gets 0, one that exaggerates less than 1. A chance stays a chance. Whether one
learner teaches alone or all together is decided out of fold as well: weights from the other folds,
errors of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.optimize import nnls

from training.arrays import Flags, Floats, Rows

STACK = "stack"
SURE = 0.005
"""No chance is said to be nearer to 0 or 1."""


class Blend(NamedTuple):
    """level + sum of weight x (answer - centre), by learner."""

    level: float
    weights: dict[str, float]
    centres: dict[str, float]
    chance: bool

    @classmethod
    def fit(
        cls, foretold: Mapping[str, Floats], came: Floats, weight: Floats, chance: bool
    ) -> Self:
        """All (N,), known rows."""
        level = float(np.average(came, weights=weight))
        centres = {name: float(np.average(told, weights=weight)) for name, told in foretold.items()}
        columns = np.column_stack([told - centres[name] for name, told in foretold.items()])
        root = np.sqrt(weight)
        weights, _ = nnls(columns * root[:, None], (came - level) * root)
        return cls(level, dict(zip(foretold, weights.tolist(), strict=True)), centres, chance)

    def of(self, foretold: Mapping[str, Floats]) -> Floats:
        """(N,)"""
        total = self.level + sum(
            weight * (foretold[name] - self.centres[name]) for name, weight in self.weights.items()
        )
        return np.asarray(np.clip(total, SURE, 1 - SURE) if self.chance else total)

    def as_json(self) -> dict[str, Any]:
        """As it is stored."""
        return self._asdict()


class Choice(NamedTuple):
    """Who teaches: one learner, or all of them."""

    name: str
    blend: Blend
    errors: dict[str, float]
    """Weighted mean squared error by choice, each by a blend of the other folds."""


def chosen(
    foretold: Mapping[str, Floats], came: Floats, weight: Floats, fold: Rows, chance: bool
) -> Choice:
    """The choice with the least squared error out of fold (of a chance: Brier's score)."""
    choices = {name: {name: told} for name, told in foretold.items()}
    choices[STACK] = dict(foretold)
    errors = {}
    for name, some in choices.items():
        gap = np.empty(len(came))
        for number in np.unique(fold):
            here, rest = fold == number, fold != number
            blend = Blend.fit(_at(some, rest), came[rest], weight[rest], chance)
            gap[here] = blend.of(_at(some, here)) - came[here]
        errors[name] = float(np.average(gap**2, weights=weight))
    best = min(errors, key=lambda name: errors[name])
    return Choice(best, Blend.fit(choices[best], came, weight, chance), errors)


def _at(foretold: Mapping[str, Floats], rows: Flags) -> dict[str, Floats]:
    return {name: told[rows] for name, told in foretold.items()}
