"""Are probabilities honest? Reliability curve, expected calibration error and Brier score, with
intervals.

The formulas are scikit-learn's (`calibration_curve`, `brier_score_loss`), written so that all
bootstrap samples are computed at once; the tests compare them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.domain.errors import AdvisorError
from training.arrays import Floats
from training.statistics.bootstrap import (
    DRAWS,
    LEVEL,
    Estimate,
    block_length,
    interval,
    none,
    require_finite,
)

BINS = 10
_Z = 1.959963984540054


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


def reliability_curve(probability: Floats, happened: Floats, bins: int = BINS) -> Reliability:
    """Share of events against probability, in bins of equal count (quantiles; equal probabilities
    stay together).

    probability : (N,) in 0-1. happened : (N,) 0 or 1. Bins that nothing falls into are left out.
    """
    _check(probability, happened)
    if not len(probability):
        nothing = np.empty(0)
        return Reliability(nothing, nothing, nothing, nothing, nothing)
    which = _bins(probability, bins)
    count = np.bincount(which, minlength=bins).astype(np.float64)
    seen = count > 0
    count = count[seen]
    predicted = np.bincount(which, probability, bins)[seen] / count
    observed = np.bincount(which, happened, bins)[seen] / count
    # Wilson 1927, the score interval: defined and within 0-1 even when all or none happened.
    centre = (observed + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = (
        _Z
        / (1 + _Z**2 / count)
        * np.sqrt(observed * (1 - observed) / count + _Z**2 / (4 * count**2))
    )
    return Reliability(
        predicted, observed, np.maximum(centre - reach, 0), np.minimum(centre + reach, 1), count
    )


def expected_calibration_error(
    probability: Floats,
    happened: Floats,
    *,
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
    which = _bins(probability, bins)
    gaps = np.zeros((len(which), bins))
    gaps[np.arange(len(which)), which] = happened - probability
    if not draws or len(which) < 2:
        return Estimate(float(np.abs(gaps.mean(0)).sum()), n=len(which))
    block = block_length(happened - probability)
    return interval(
        gaps,
        lambda sample: np.abs(sample.mean(1)).sum(-1),
        block=block,
        level=level,
        draws=draws,
        seed=seed,
    )


def brier_score(
    probability: Floats,
    happened: Floats,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean squared distance of probability and event: Brier 1950. Rows are in order of time."""
    _check(probability, happened)
    if not len(probability):
        return none("no rows")
    squares = (probability - happened) ** 2
    if not draws or len(squares) < 2:
        return Estimate(float(squares.mean()), n=len(squares))
    return interval(squares, lambda sample: sample.mean(-1), level=level, draws=draws, seed=seed)


def _bins(probability: Floats, bins: int) -> np.ndarray:
    """(N,) bin of each row: between quantiles, as scikit-learn's `strategy="quantile"`."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1))
    return np.searchsorted(edges[1:-1], probability)


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
