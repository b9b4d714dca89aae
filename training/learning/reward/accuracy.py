"""How good a reward model is out of sample: pairwise accuracy, calibration, rank correlation,
beside trivial controls.

Scenarios of one day share their market, so intervals are those of a bootstrap over whole UTC days.
All rankings are compared on the same pairs and the same samples, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from app.domain.actions import ACTIONS
from training.arrays import DAY_S, Floats, Rows
from training.learning.reward.network import SAME
from training.statistics.bootstrap import Cluster, Estimate, compare_means
from training.statistics.calibration import (
    brier_score,
    expected_calibration_error,
    log_loss,
    reliability_curve,
)

ACROSS = 100_000
"""Pairs across scenarios that are drawn."""
_DIGITS = 4


@dataclass(frozen=True, eq=False)
class Pairs:
    """Comparisons with a known winner; arrays of shape (P,).

    (row, action) against (other_row, other_action); `first` says whether the first one earned more;
    `weight` is the product of the scenarios' weights (the weight itself within one scenario);
    `day`, `other_day` number the days.
    """

    row: Rows
    action: Rows
    other_row: Rows
    other_action: Rows
    first: NDArray[np.bool_]
    weight: Floats
    day: Rows
    other_day: Rows

    def __len__(self) -> int:
        return len(self.row)

    def right(self, values: Floats) -> Floats:
        """Whether `values` (N, 10) rank each pair as it came out: 1, 0, or 0.5 where they are
        equal."""
        gap = values[self.row, self.action] - values[self.other_row, self.other_action]
        return np.where(np.abs(gap) <= SAME, 0.5, (gap > 0) == self.first)


def pairs_within(rewards: Floats, weights: Floats, as_of: Rows, rows: Rows) -> Pairs:
    """All pairs of actions of one scenario whose rewards differ. Rows without rewards have none."""
    i, j = np.triu_indices(len(ACTIONS), 1)
    gained = rewards[rows][:, i] - rewards[rows][:, j]
    at, pair = np.nonzero(np.abs(np.nan_to_num(gained)) > SAME)
    day = _days(as_of)[rows[at]]
    return Pairs(
        rows[at], i[pair], rows[at], j[pair], gained[at, pair] > 0, weights[rows[at]], day, day
    )


def pairs_across(rewards: Floats, weights: Floats, as_of: Rows, rows: Rows, seed: int) -> Pairs:
    """`ACROSS` random pairs of scenarios for the same approving action: is this trade better than
    that one?"""
    known = rows[np.isfinite(rewards[rows]).all(1)]
    source = np.random.default_rng(seed)
    size = ACROSS if len(known) else 0
    one, other = (source.choice(known, size) for _ in range(2))
    action = source.integers(1, len(ACTIONS), size)
    gained = rewards[one, action] - rewards[other, action]
    kept = np.abs(gained) > SAME
    one, other, action, gained = one[kept], other[kept], action[kept], gained[kept]
    day = _days(as_of)
    return Pairs(
        one, action, other, action, gained > 0, weights[one] * weights[other], day[one], day[other]
    )


def accuracies(
    pairs: Pairs, rankings: Mapping[str, Floats], subject: str, seed: int
) -> dict[str, Any]:
    """Weighted share of pairs that each ranking (N, 10) orders rightly, as `compared` tells it,
    with counts."""
    right = {name: pairs.right(values) for name, values in rankings.items()}
    days = len(np.unique(np.concatenate([pairs.day, pairs.other_day])))
    found = compared(right, pairs.weight, pairs.day, pairs.other_day, subject, seed)
    return {"pairs": len(pairs), "days": days, **found}


def compared(
    values: Mapping[str, Floats],
    weight: Floats,
    day: Rows,
    other_day: Rows,
    subject: str,
    seed: int,
) -> dict[str, Any]:
    """Weighted means of named values (P,) with intervals, and by how much `subject` leads each of
    the others.

    Returns
    -------
    {NAME: {"value", "low", "high"}, "lead": {NAME: the same of the difference}}; numbers are None
    where P is 0.
    """
    means, leads = compare_means(values, weight, Cluster(day, other_day), subject, seed=seed)
    lead = {name: _summary(estimate) for name, estimate in leads.items()}
    return {name: _summary(estimate) for name, estimate in means.items()} | {"lead": lead}


def calibration(pairs: Pairs, probability: Floats) -> dict[str, Any]:
    """Is P(first beats second) what it says? (P,) probabilities, in ten bins of equal count of the
    probability.

    Bins hold weighted means of prediction and outcome; `ece` is their mean distance by weight,
    `log_loss` in nats, `log_loss_of_even_odds` is ln 2 for comparison.
    """
    # The order of actions is ours, so each pair stands for both directions, and the curve is
    # symmetric.
    stated = np.concatenate([probability, 1 - probability])
    came = np.concatenate([pairs.first, ~pairs.first]).astype(float)
    weight = np.concatenate([pairs.weight, pairs.weight])
    curve = reliability_curve(stated, came, weight=weight)
    bins = zip(curve.predicted, curve.observed, curve.count, strict=True)
    error, brier = (
        measure(stated, came, weight=weight, draws=0).value
        for measure in (expected_calibration_error, brier_score)
    )
    return {
        "bins": [
            {"predicted": _rounded(predicted), "observed": _rounded(observed), "pairs": int(count)}
            for predicted, observed, count in bins
        ],
        "ece": _rounded(error),
        "log_loss": _rounded(log_loss(stated, came, weight)),
        "log_loss_of_even_odds": _rounded(np.log(2)),
        "brier": _rounded(brier),
    }


def spearman(predicted: Floats, rewards: Floats, rows: Rows) -> dict[str, float | None]:
    """Rank correlation of predicted and realised rewards over scenarios and approving actions; None
    when either is constant. `within` is the mean over scenarios of the correlation over their ten
    actions, where it exists."""
    known = rows[np.isfinite(rewards[rows]).all(1)]
    pooled = _correlation(predicted[known, 1:].ravel(), rewards[known, 1:].ravel())
    by_row = [_correlation(predicted[row], rewards[row]) for row in known]
    there = [value for value in by_row if value is not None]
    return {"pooled": _rounded(pooled), "within": _rounded(np.mean(there)) if there else None}


def _summary(estimate: Estimate) -> dict[str, float | None]:
    return {name: _rounded(getattr(estimate, name)) for name in ("value", "low", "high")}


def _correlation(one: Floats, other: Floats) -> float | None:
    if len(one) < 2 or np.ptp(one) <= SAME or np.ptp(other) <= SAME:
        return None
    return float(spearmanr(one, other).statistic)


def _days(as_of: Rows) -> Rows:
    return np.asarray(as_of // DAY_S)


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
