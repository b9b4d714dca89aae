"""Are probabilities honest? Reliability curve, expected calibration error and Brier score, with
intervals.

The formulas are scikit-learn's (`calibration_curve`, `brier_score_loss`), written so that all
bootstrap samples are computed at once; the tests compare them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.domain.errors import AdvisorError
from training.arrays import Floats, Rows
from training.statistics.bootstrap import (
    DRAWS,
    LEVEL,
    Estimate,
    block_length,
    interval,
    none,
    require_finite,
    wilson,
)

BINS = 10


class CalibrationError(AdvisorError):
    """Probabilities or outcomes are not what they should be."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of equal count, lowest probabilities first; arrays of shape (B,).

    predicted : mean probability. observed : share of events; low, high : its 95 % Wilson interval.
        count : rows.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Floats


def reliability_curve(
    probability: Floats, happened: Floats, *, weight: Floats | None = None, bins: int = BINS
) -> Reliability:
    """Share of events against probability, in bins of equal count (quantiles; equal probabilities
    stay together).

    probability : (N,) in 0-1. happened : (N,) 0 or 1. weight : (N,), of each row in its bin's
    means. Bins that nothing falls into are left out.
    """
    _check(probability, happened)
    if not len(probability):
        nothing = np.empty(0)
        return Reliability(nothing, nothing, nothing, nothing, nothing)
    bin_of = _bins(probability, bins)
    used, bin_of = np.unique(bin_of, return_inverse=True)
    weights = _mean_one(weight, len(probability))
    weighed = np.bincount(bin_of, weights)
    predicted = np.bincount(bin_of, weights * probability) / weighed
    observed = np.bincount(bin_of, weights * happened) / weighed
    count = np.bincount(bin_of, minlength=len(used)).astype(np.float64)
    return Reliability(predicted, observed, *wilson(observed, count), count)


def expected_calibration_error(
    probability: Floats,
    happened: Floats,
    *,
    weight: Floats | None = None,
    bins: int = BINS,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean over rows of |share of events - mean probability| of the row's bin: Guo et al. 2017,
    equation 5.

    Bins hold equal counts (Nguyen & O'Connor 2015), chosen once. Noise alone gives about sqrt(bins
    / N) / 2.5, so compare it at a like N; for the same reason the interval, a percentile one, leans
    upwards. `draws` = 0: no interval.
    """
    _check(probability, happened)
    if not len(probability):
        return none("no rows")
    gap = _mean_one(weight, len(probability)) * (happened - probability)
    # One column per bin, 0 for rows of other bins: a column's mean is the bin's gap times its
    # share of the rows.
    gaps = np.zeros((len(gap), bins))
    gaps[np.arange(len(gap)), _bins(probability, bins)] = gap
    if not draws or len(gap) < 2:
        return Estimate(float(np.abs(gaps.mean(0)).sum()), n=len(gap))
    return interval(
        gaps,
        lambda sample: np.abs(sample.mean(1)).sum(-1),
        block=block_length(gap),
        level=level,
        draws=draws,
        seed=seed,
    )


def brier_score(
    probability: Floats,
    happened: Floats,
    *,
    weight: Floats | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean squared distance of probability and event: Brier 1950. Rows are in order of time."""
    _check(probability, happened)
    if not len(probability):
        return none("no rows")
    squares = _mean_one(weight, len(probability)) * (probability - happened) ** 2
    if not draws or len(squares) < 2:
        return Estimate(float(squares.mean()), n=len(squares))
    return interval(squares, lambda sample: sample.mean(-1), level=level, draws=draws, seed=seed)


def log_loss(probability: Floats, happened: Floats, weight: Floats | None = None) -> float | None:
    """Mean of -log of the probability of what came, nats; probabilities are kept 1e-6 away from 0
    and 1. None without rows."""
    _check(probability, happened)
    if not len(probability):
        return None
    safe = np.clip(probability, 1e-6, 1 - 1e-6)
    losses = -np.log(np.where(happened == 1, safe, 1 - safe))
    return float((_mean_one(weight, len(losses)) * losses).mean())


def _mean_one(weight: Floats | None, n: int) -> Floats:
    """(n,) weights scaled to a mean of 1, so that a mean of products is a weighted mean."""
    return np.ones(n) if weight is None else weight / weight.mean()


def _bins(probability: Floats, bins: int) -> Rows:
    """(N,) bin of each row: between quantiles, as scikit-learn's `strategy="quantile"`."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1))
    return np.asarray(np.searchsorted(edges[1:-1], probability))


def _check(probability: Floats, happened: Floats) -> None:
    if probability.shape != happened.shape or probability.ndim != 1:
        raise CalibrationError(
            f"probabilities {probability.shape} and events {happened.shape} must be two equal lists"
        )
    require_finite(probability, "probabilities")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise CalibrationError("a probability lies outside 0-1")
    if not np.isin(happened, (0.0, 1.0)).all():
        raise CalibrationError(
            "an event is neither 0 nor 1: leave out rows whose outcome is unknown"
        )
