"""Intervals of a page, worked out by hand."""

from __future__ import annotations

import pytest

from app.domain.intervals import Day, Mean, kappa, mean_of_days, running, running_means, wilson


def test_a_share_has_wilsons_interval() -> None:
    """8 of 10: (0.8 + 1.92073/10) / 1.384146 = 0.71671, and 0.22656 to each side."""
    share = wilson(8, 10)
    assert share is not None
    assert share == pytest.approx((0.8, 0.49016, 0.94331), abs=1e-5)


def test_a_share_of_nothing_is_none_and_bounds_stay_within_zero_and_one() -> None:
    assert wilson(0, 0) is None
    none, all_of_them = wilson(0, 5), wilson(5, 5)
    assert none is not None
    assert all_of_them is not None
    assert none.low == 0
    assert all_of_them.high == 1
    assert none.high == pytest.approx(1 - all_of_them.low)


def test_kappa_is_what_agreement_holds_beyond_chance() -> None:
    """20 approve together, 15 reject together, of 50; 25 and 30 approve: 0.7 against 0.5."""
    assert kappa(50, 35, 25, 30) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa(10, 10, 10, 10) is None, "both always approve: chance agrees as well"
    assert kappa(0, 0, 0, 0) is None


def test_values_of_one_day_count_as_one_observation() -> None:
    """Eight days of two values that sum to +1 or -1: the mean is 0, each day 1 apart; 1.95996 *
    sqrt(8 * 8 / 7) / 16 = 0.37040."""
    days = [Day(2, 1.0), Day(2, -1.0)] * 4
    assert mean_of_days(days) == pytest.approx((0.0, -0.37040, 0.37040), abs=1e-5)


def test_of_few_days_the_mean_has_no_interval_and_of_none_there_is_no_mean() -> None:
    assert mean_of_days([Day(2, 3.0), Day(0, 0.0)]) == Mean(1.5, None, None)
    assert mean_of_days([Day(0, 0.0)]) is None


def test_sums_run() -> None:
    assert running([1.0, -2.0, 0.5]) == [1.0, -1.0, -0.5]


def test_running_means_are_the_means_of_the_days_up_to_each() -> None:
    days = [Day(0, 0.0), *[Day(2, 1.0), Day(1, -1.0), Day(0, 0.0), Day(3, 0.5)] * 4]
    found = running_means(days)
    for count, mean in enumerate(found, 1):
        expected = mean_of_days(days[:count])
        if expected is None or expected.low is None:
            assert mean == expected
        else:
            assert mean == pytest.approx(expected)
    assert found[0] is None
    assert found[-1] is not None
    assert found[-1].low is not None
