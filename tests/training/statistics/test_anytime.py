"""The bound keeps its confidence however often it is consulted, and still finds what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.arrays import DAY_S, Floats
from training.statistics.anytime import (
    SHARES,
    UnboundedValues,
    log_wealth,
    lower_bound,
    period_means,
)
from training.statistics.bootstrap import StatisticsError, mean_intervals

ALPHA = 0.05
RUNS, LENGTH, BOUND = 1500, 500, 3.0


def skewed(source: np.random.Generator, mean: float) -> Floats:
    """Winners up to +3, losers at -1.1, both rarer than nothing: (RUNS, LENGTH)."""
    chance = source.random((RUNS, LENGTH))
    gain = np.where(chance < 0.6, 0.0, np.where(chance < 0.88, -1.1, 2.4))
    return gain + mean - (0.28 * -1.1 + 0.12 * 2.4)


def test_wealth_is_that_of_the_formula() -> None:
    values = np.array([0.5, -1.0, 2.0])
    expected = [
        np.mean([math.prod(1 - q + q * (x + 3) / (0.2 + 3) for x in values[:stop]) for q in SHARES])
        for stop in (1, 2, 3)
    ]
    assert np.exp(log_wealth(values, 3.0, 0.2)) == pytest.approx(expected)
    assert log_wealth(np.stack([values, values]), 3.0, 0.2)[1] == pytest.approx(np.log(expected))


def test_consulted_after_every_value_it_is_seldom_ever_fooled() -> None:
    ever = (
        log_wealth(skewed(np.random.default_rng(0), 0.0), BOUND).max(1) >= math.log(1 / ALPHA)
    ).mean()
    # At most 5 % are promised, in all runs and at all 500 looks together.
    assert ever <= ALPHA
    assert ever > 0.005, "a bound that is never fooled finds nothing either"


def test_a_bound_for_one_look_is_fooled_when_it_is_consulted_again_and_again() -> None:
    values = skewed(np.random.default_rng(0), 0.0)
    count = np.arange(1, LENGTH + 1)
    mean = np.cumsum(values, 1) / count
    error = np.sqrt(np.maximum(np.cumsum(values**2, 1) / count - mean**2, 1e-12) / count)
    looks = slice(49, None)
    assert ((mean - 1.645 * error)[:, looks] > 0).any(1).mean() > 0.15


def test_it_finds_an_edge_in_time() -> None:
    source = np.random.default_rng(1)
    found = log_wealth(skewed(source, 0.25), BOUND).max(1) >= math.log(1 / ALPHA)
    assert found.mean() > 0.9


def test_dependent_values_are_covered_as_long_as_none_foretells_the_next_mean() -> None:
    source = np.random.default_rng(2)
    # The spread is known from the day before, the sign is not.
    spread = np.repeat(source.choice([0.2, 1.4], (RUNS, LENGTH // 20)), 20, axis=1)
    values = spread * np.where(source.random((RUNS, LENGTH)) < 2 / 3, -1.0, 2.0)
    assert (log_wealth(values, BOUND).max(1) >= math.log(1 / ALPHA)).mean() <= ALPHA


def test_the_bound_is_the_highest_refuted_mean_and_never_falls_back() -> None:
    values = skewed(np.random.default_rng(3), 0.4)[0]
    bounds = [lower_bound(values[:stop], BOUND, ALPHA) for stop in (0, 1, 50, 200, 500)]
    assert bounds[0] == -BOUND
    assert bounds == sorted(bounds)
    last = bounds[-1]
    assert log_wealth(values, BOUND, last - 1e-5).max() >= math.log(1 / ALPHA)
    assert log_wealth(values, BOUND, last + 1e-5).max() < math.log(1 / ALPHA)
    later_losses = np.concatenate([values, np.full(300, -1.1)])
    assert lower_bound(later_losses, BOUND, ALPHA) >= last - 1e-9
    fixed = mean_intervals(values[:, None], level=0.9)[0]
    assert fixed.low is not None
    assert last < fixed.low, "always valid costs width"


@settings(max_examples=50)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=40), st.floats(-2.9, 2.8), st.floats(0.01, 0.1)
)
def test_wealth_falls_with_the_mean_that_is_bet_against(
    values: list[float], mean: float, more: float
) -> None:
    x = np.array(values)
    assert (log_wealth(x, BOUND, mean + more) <= log_wealth(x, BOUND, mean) + 1e-12).all()


def test_values_beyond_the_bound_and_no_numbers_are_refused() -> None:
    with pytest.raises(UnboundedValues, match=r"3\.200 is beyond"):
        log_wealth(np.array([0.1, -3.2]), BOUND)
    with pytest.raises(StatisticsError):
        log_wealth(np.array([0.1, math.nan]), BOUND)


def test_a_gambler_bets_once_a_day() -> None:
    as_of = np.array([5, 10, DAY_S + 5, 9 * DAY_S, 9 * DAY_S + 7])
    values = np.array([1.0, 2.0, -1.0, 0.5, 0.1])
    assert period_means(values, as_of) == pytest.approx([1.5, -1.0, 0.3])
    assert period_means(values, as_of, days=7) == pytest.approx([2 / 3, 0.3])
