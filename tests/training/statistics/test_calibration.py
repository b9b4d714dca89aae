"""Calibration by hand, against scikit-learn, and on probabilities that are honest or not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from training.arrays import Floats
from training.statistics.bootstrap import StatisticsError
from training.statistics.calibration import (
    CalibrationError,
    brier_score,
    expected_calibration_error,
    reliability_curve,
)


def world(seed: int, shift: float = 0.0, count: int = 2000) -> tuple[Floats, Floats]:
    source = np.random.default_rng(seed)
    truth = source.beta(2, 3, count)
    return np.clip(truth + shift, 0, 1), (source.random(count) < truth).astype(float)


def test_the_curve_and_the_score_are_those_of_scikit_learn() -> None:
    probability, happened = world(0)
    observed, predicted = calibration_curve(happened, probability, n_bins=10, strategy="quantile")
    curve = reliability_curve(probability, happened)
    assert curve.observed == pytest.approx(observed)
    assert curve.predicted == pytest.approx(predicted)
    assert curve.count.sum() == 2000
    assert (curve.low < curve.observed).all()
    assert (curve.observed < curve.high).all()
    assert brier_score(probability, happened).value == pytest.approx(
        brier_score_loss(happened, probability)
    )


def test_errors_by_hand() -> None:
    probability = np.array([0.1, 0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.7])
    happened = np.array([0, 0, 0, 1, 1, 1, 0, 0.0])
    # Bins: |0.25 - 0.1| and |0.5 - 0.7|, half of the rows each.
    assert expected_calibration_error(probability, happened, bins=2).value == pytest.approx(0.175)
    assert brier_score(probability, happened).value == pytest.approx(
        (3 * 0.01 + 0.81 + 2 * 0.09 + 2 * 0.49) / 8
    )


def test_honest_probabilities_have_a_small_error_and_shifted_ones_a_large_one() -> None:
    honest = expected_calibration_error(*world(1))
    shifted = expected_calibration_error(*world(1, 0.2))
    assert honest.value is not None
    assert honest.value < 0.04
    assert shifted.low is not None
    assert shifted.high is not None
    assert shifted.low < 0.2 < shifted.high
    assert shifted.n == 2000
    curve = reliability_curve(*world(1))
    inside = (curve.low <= curve.predicted) & (curve.predicted <= curve.high)
    assert inside.sum() >= 8


def test_one_probability_for_all_has_one_bin() -> None:
    happened = np.array([1.0, 0, 0, 0] * 25)
    curve = reliability_curve(np.full(100, 0.4), happened)
    assert curve.count.tolist() == [100]
    assert curve.observed.tolist() == [0.25]
    assert expected_calibration_error(np.full(100, 0.4), happened).value == pytest.approx(0.15)


def test_nothing_ever_happening_has_an_interval_within_bounds() -> None:
    curve = reliability_curve(np.linspace(0, 0.2, 50), np.zeros(50), bins=1)
    assert curve.low.tolist() == [0.0]
    # The score interval of 0 in 50.
    assert curve.high[0] == pytest.approx(1.959964**2 / (50 + 1.959964**2), rel=1e-5)


def test_no_rows_have_a_reason() -> None:
    assert expected_calibration_error(np.empty(0), np.empty(0)).reason == "no rows"
    assert brier_score(np.empty(0), np.empty(0)).reason == "no rows"
    assert len(reliability_curve(np.empty(0), np.empty(0)).count) == 0


def test_what_is_no_probability_or_no_event_is_refused() -> None:
    with pytest.raises(CalibrationError, match="0-1"):
        brier_score(np.array([1.2]), np.array([1.0]))
    with pytest.raises(CalibrationError, match="neither 0 nor 1"):
        brier_score(np.array([0.2]), np.array([np.nan]))
    with pytest.raises(CalibrationError, match="two equal lists"):
        brier_score(np.array([0.2, 0.1]), np.array([1.0]))
    with pytest.raises(StatisticsError):
        expected_calibration_error(np.array([np.nan]), np.array([1.0]))
