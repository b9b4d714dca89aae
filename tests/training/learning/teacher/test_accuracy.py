"""What a ranking, a chance and an expectation are worth, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.features import FEATURE_NAMES
from training.arrays import DAY_S
from training.learning.teacher.accuracy import (
    better_half,
    chance,
    range_baselines,
    slope,
    uplift,
)


def test_the_better_half_is_the_half_that_ranks_higher() -> None:
    assert better_half(np.array([0.3, -1.0, 2.0, 0.1])).tolist() == [1, 0, 1, 0]
    assert better_half(np.array([3.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]
    assert better_half(np.array([5.0, 5.0, 5.0])).tolist() == [0.5, 0.5, 0.5], "says nothing"
    assert better_half(np.array([9.0, 5.0, 5.0, 5.0])).tolist() == [1, 1 / 3, 1 / 3, 1 / 3]


def test_uplift_is_what_choosing_adds_to_half_of_everything() -> None:
    earned = np.array([1.0, -1.0, 0.5, -0.7])
    as_of = np.arange(4) * DAY_S
    gains, leads = uplift({"right": earned, "wrong": -earned}, earned, as_of, "right")
    # The better half earns 1.5 in four scenarios, half of all earns -0.1.
    assert gains["right"].value == pytest.approx((1.5 + 0.1) / 4)
    assert gains["wrong"].value == pytest.approx((-1.7 + 0.1) / 4)
    assert leads["wrong"].value == pytest.approx(0.8)


def test_an_empty_ranking_adds_nothing() -> None:
    source = np.random.default_rng(0)
    earned = source.normal(size=4000)
    gains, _ = uplift({"noise": source.normal(size=4000)}, earned, np.arange(4000) * 9000, "noise")
    assert gains["noise"].low is not None
    assert gains["noise"].high is not None
    assert gains["noise"].low < 0 < gains["noise"].high


def test_a_chance_by_hand() -> None:
    good = chance(np.array([0.2, 0.2, 0.8, 0.8]), np.array([0.0, 0.0, 1.0, 0.0]))
    assert good.auc == pytest.approx(5 / 6)
    assert good.brier == pytest.approx((0.04 + 0.04 + 0.04 + 0.64) / 4)
    assert good.of_base_rate == pytest.approx(0.25 * 0.75)
    assert good.log_score == pytest.approx(-(3 * np.log(0.8) + np.log(0.2)) / 4)


def test_an_expectation_that_exaggerates_twice_has_slope_a_half() -> None:
    realised = np.array([-1.0, 0.5, 2.0])
    assert slope(2 * realised + 7, realised) == pytest.approx(0.5)


def test_the_controls_of_the_range_find_what_they_may_know_and_no_more() -> None:
    source = np.random.default_rng(1)
    features = np.full((600, len(FEATURE_NAMES)), np.nan)
    hour, atr, day = (
        source.integers(0, 24, 600),
        source.uniform(0.01, 0.05, 600),
        source.normal(size=600),
    )
    known = {
        "hour_sin": np.sin(2 * np.pi * hour / 24),
        "hour_cos": np.cos(2 * np.pi * hour / 24),
        "atr_fraction": atr,
        "volatility_1h_over_atr": day * 0.0,
        "volatility_6h_over_atr": day * 0.0,
        "volatility_24h_over_atr": day,
        "volatility_7d_over_atr": day * 0.0,
        "volatility_same_hours_over_atr": day * 0.0,
    }
    for name, values in known.items():
        features[:, FEATURE_NAMES.index(name)] = values
    ranges = 1.0 - 0.2 * np.log(atr) + 0.5 * day + 0.3 * (hour == 15)
    said = range_baselines(features[:400], ranges[:400], features[400:])
    assert np.mean((said.har - ranges[400:]) ** 2) < 1e-10
    assert np.mean((said.atr - ranges[400:]) ** 2) > 0.2
