"""How good a teacher is on scenarios that it never saw, beside baselines that know next to nothing.

A ranking is worth what the better half of the candidates earns beyond half of what all earn: what
choosing adds to a random veto of the same rate. Scenarios of one day share their market, so
intervals are those of a bootstrap over whole UTC days.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from app.domain.features import FEATURE_NAMES
from training.arrays import DAY_S, Floats, Times
from training.statistics.bootstrap import Cluster, Estimate, compare_means
from training.statistics.calibration import brier_score, expected_calibration_error, log_loss

HAR = (
    "volatility_1h_over_atr",
    "volatility_6h_over_atr",
    "volatility_24h_over_atr",
    "volatility_7d_over_atr",
    "volatility_same_hours_over_atr",
    "atr_fraction",
)
_ATR, _SIN, _COS = (FEATURE_NAMES.index(name) for name in ("atr_fraction", "hour_sin", "hour_cos"))


class Chance(NamedTuple):
    """How good a probability is."""

    auc: float
    calibration_error: float
    brier: float
    of_base_rate: float
    """Brier's score of always saying the share of events."""
    log_score: float


def uplift(
    rankings: Mapping[str, Floats], earned: Floats, as_of: Times, subject: str, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """R a scenario that taking each ranking's better half adds to a random veto of the same rate;
    and by how much `subject` leads each of the others. All (N,)."""
    values = {name: (better_half(value) - 0.5) * earned for name, value in rankings.items()}
    days = as_of // DAY_S
    return compare_means(values, np.ones(len(earned)), Cluster(days, days), subject, seed=seed)


def better_half(ranking: Floats) -> Floats:
    """(N,) 1 for the half that ranks higher, 0 for the other; equals in the middle share what is
    left of the half alike, so that a ranking that says one thing of all takes half of each."""
    _, group, sizes = np.unique(-ranking, return_inverse=True, return_counts=True)
    higher = np.cumsum(sizes) - sizes
    taken: Floats = np.clip(len(ranking) / 2 - higher, 0, sizes) / sizes
    return taken[group]


def chance(probability: Floats, came: Floats) -> Chance:
    """Of events (N,), 0 or 1."""
    error, brier = (
        measure(probability, came, draws=0).value
        for measure in (expected_calibration_error, brier_score)
    )
    score = log_loss(probability, came)
    assert error is not None
    assert brier is not None
    assert score is not None
    auc = float(roc_auc_score(came, probability))
    return Chance(auc, error, brier, float(came.mean() * (1 - came.mean())), score)


def slope(predicted: Floats, realised: Floats) -> float:
    """Of realised on predicted, by least squares; 1 means what it says."""
    return float(np.polyfit(predicted, realised, 1)[0])


class RangeControls(NamedTuple):
    """Logarithms of the range in ATR, foretold by simple regressions. (N,) each."""

    atr: Floats
    har: Floats


def range_baselines(train: Floats, ranges: Floats, test: Floats) -> RangeControls:
    """Fitted by least squares on the features of `train` and the logarithms of what came: on the
    logarithm of the ATR alone; and HAR (Corsi 2009): volatility of an hour, six hours, a day and a
    week, of the coming hours on the days before, and the hour of day."""
    columns = [FEATURE_NAMES.index(name) for name in HAR]

    def atr(features: Floats) -> Floats:
        return np.log(features[:, [_ATR]])

    def har(features: Floats) -> Floats:
        angle = np.arctan2(features[:, _SIN], features[:, _COS])
        hour = np.round(angle / (2 * np.pi) * 24).astype(np.int64) % 24
        numbers = features[:, columns]
        numbers = np.where(np.isfinite(numbers), numbers, np.nanmean(train[:, columns], axis=0))
        return np.hstack([numbers, atr(features), np.eye(24)[hour]])

    return RangeControls(*(_regression(of(train), ranges, of(test)) for of in (atr, har)))


def _regression(train: Floats, came: Floats, test: Floats) -> Floats:
    finite, ones = np.isfinite(came), np.ones
    design = np.hstack([ones((len(train), 1)), train])[finite]
    weights = np.linalg.lstsq(design, came[finite], rcond=None)[0]
    return np.asarray(np.hstack([ones((len(test), 1)), test]) @ weights)
