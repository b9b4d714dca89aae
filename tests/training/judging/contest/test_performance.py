"""Measures by hand, against empyrical, and where there is nothing to measure."""

from __future__ import annotations

import math
from dataclasses import fields

import empyrical
import numpy as np
import pytest

from tests.training.support.candles import HOUR, START, table
from training.arrays import Floats
from training.judging.contest.performance import (
    CONSTANT,
    NO_PLAN,
    NO_TRADES,
    Performance,
    curve_measures,
    longest_drawdown_s,
    open_share,
    performance,
    tail_ratio,
)
from training.judging.contest.portfolio import Book, Clock, Curve, Refused, Trades, trade

DAY = 86_400


def book(
    returns: list[float] | Floats, pnl: list[float], r: list[float], seconds: int = DAY
) -> Book:
    """A book with this daily curve and these trades, one a day, each open for half of it."""
    steps = np.arange(1, len(returns) + 1)
    curve = Curve(START, START + seconds * steps, 1000 * np.cumprod(1 + np.array(returns)), 1000.0)
    count = len(pnl)
    entered = START + seconds * np.arange(count)
    return Book(
        curve=curve,
        taken=np.arange(count),
        quantity=np.ones(count),
        pnl=np.array(pnl, dtype=float),
        r=np.array(r, dtype=float),
        notional=np.full(count, 200.0),
        entered_at=entered,
        held_s=np.full(count, seconds // 2),
        exposed=np.zeros(len(returns)),
        refused=dict.fromkeys(Refused, 0),
    )


def test_measures_are_those_worked_out_by_hand() -> None:
    found = performance(
        book([0.01, -0.02, 0.03, 0.0], [30, -10, -10, 20], [1.5, -1, -1, 1]), draws=0
    )
    # mean 0.005; squares about it 0.000025 + 0.000625 + 0.000625 + 0.000025 = 0.0013, over 3
    assert found.sharpe.value == pytest.approx(0.005 / math.sqrt(0.0013 / 3) * math.sqrt(365.25))
    # downside: sqrt(0.0004 / 4) = 0.01
    assert found.sortino.value == pytest.approx(0.5 * math.sqrt(365.25))
    assert found.cagr.value == pytest.approx((1.01 * 0.98 * 1.03) ** (365.25 / 4) - 1)
    assert found.max_drawdown.value == pytest.approx(0.02)
    # The peak is at the first close, and passed at the third.
    assert found.drawdown_days.value == pytest.approx(2.0)
    assert found.win_rate.value == pytest.approx(0.5)
    assert found.expectancy_r.value == pytest.approx(0.125)
    assert found.profit_factor.value == pytest.approx(2.5)
    values = np.array([1010, 989.8, 1019.494, 1019.494])
    assert found.turnover.value == pytest.approx(800 / (4 / 365.25) / values.mean())
    assert found.exposure.value == pytest.approx(0.5)
    assert found.sharpe.n == 4
    assert found.win_rate.n == 4


def test_curve_measures_are_those_of_empyrical_sample_by_sample() -> None:
    samples = np.random.default_rng(0).normal(0.001, 0.02, (5, 300))
    measures = curve_measures(365.25)
    for name, formula in (
        ("sharpe", lambda x: empyrical.sharpe_ratio(x, annualization=365.25)),
        ("sortino", lambda x: empyrical.sortino_ratio(x, annualization=365.25)),
        ("cagr", lambda x: empyrical.cagr(x, annualization=365.25)),
        ("max_drawdown", lambda x: -empyrical.max_drawdown(x)),
        ("tail_ratio", empyrical.tail_ratio),
    ):
        assert measures[name](samples) == pytest.approx([formula(sample) for sample in samples]), (
            name
        )


def test_the_tail_ratio_takes_the_fifth_and_the_ninety_fifth_percentile() -> None:
    assert tail_ratio(np.arange(-50.0, 151.0)[None]) == pytest.approx([140 / 40])


def test_intervals_enclose_their_values_and_carry_sample_sizes() -> None:
    source = np.random.default_rng(1)
    r = source.normal(0.2, 1, 400)
    found = performance(book(source.normal(0.001, 0.01, 500), list(r * 10), list(r)), draws=300)
    for each in fields(Performance):
        one = getattr(found, each.name)
        assert one.value is not None
        assert one.n in (400, 500)
        if one.low is not None and each.name != "max_drawdown":
            assert one.low < one.value < one.high, each.name
    with_interval = {
        each.name for each in fields(Performance) if getattr(found, each.name).low is not None
    }
    assert with_interval == {
        "total_return", "sharpe", "sortino", "cagr", "max_drawdown", "tail_ratio", "win_rate",
        "expectancy_r",
        "profit_factor",
    }  # fmt: skip


def test_an_arm_without_trades_has_reasons_instead_of_numbers() -> None:
    clock = Clock([table(*[(100, 101, 99, 100)] * 50)])
    nothing = Trades(
        *(np.array([], dtype=kind) for kind in (int, int, int, float, float, float, float))
    )
    found = performance(trade(clock, nothing, capital=1000))
    for name in ("sharpe", "sortino", "tail_ratio", "win_rate", "expectancy_r", "profit_factor"):
        assert getattr(found, name)[0] is None, name
        assert getattr(found, name).reason == NO_TRADES, name
    for name in ("cagr", "max_drawdown", "drawdown_days", "turnover", "exposure"):
        assert getattr(found, name).value == 0.0, name


def test_what_has_no_plan_has_no_r_and_is_measured_otherwise() -> None:
    found = performance(book([0.01, -0.02] * 20, [3.0, -1.0], [math.nan, math.nan]), draws=50)
    assert (found.expectancy_r.value, found.expectancy_r.reason) == (None, NO_PLAN)
    assert found.win_rate.value == 0.5
    assert found.sharpe.value is not None


def test_constant_returns_have_no_ratio_but_a_growth() -> None:
    found = performance(book([0.001] * 300, [1.0, 1.0], [0.1, 0.1]), draws=50)
    assert (found.sharpe.value, found.sharpe.reason) == (None, CONSTANT)
    assert (found.sortino.value, found.sortino.reason) == (None, CONSTANT)
    assert found.cagr.value == pytest.approx(1.001**365.25 - 1)
    assert found.max_drawdown.value == 0.0
    assert (found.profit_factor.value, found.profit_factor.reason) == (None, "no losing trade")
    assert found.expectancy_r.value == pytest.approx(0.1)
    assert (found.expectancy_r.low, found.expectancy_r.reason) == (
        None,
        "constant values have no interval",
    )


@pytest.mark.parametrize("draws", [0, 50])
def test_whatever_the_book_no_number_is_nan(draws: int) -> None:
    books = [
        book([0.01], [1.0], [0.1]),
        book([0.01, 0.01], [], []),
        book([0.0] * 10, [0.0], [0.0]),
        book([0.02, 0.01, 0.03], [1.0], [0.1]),
        book([-0.5, -0.5], [-500.0, -250.0], [-1.0, -1.0]),
    ]
    for one in books:
        for name, measure in performance(one, draws=draws).as_json().items():
            numbers = [measure[key] for key in ("value", "low", "high", "p")]
            assert all(number is None or math.isfinite(number) for number in numbers), name
            assert measure["value"] is not None or measure["reason"], name


def test_the_longest_drawdown_runs_to_the_end_when_the_peak_is_not_reached_again() -> None:
    def days(*values: float) -> float:
        at = START + DAY * np.arange(1, len(values) + 1)
        return longest_drawdown_s(Curve(START, at, np.array(values, dtype=float), 100.0)) / DAY

    assert days(100, 100, 100) == 0
    assert days(101, 102, 103) == 0
    assert days(110, 105, 100, 110, 120) == 3
    assert days(110, 120, 90, 95, 100) == 3
    assert days(99, 98, 97) == 3


def test_time_with_two_trades_open_counts_once() -> None:
    one = book([0.0] * 4, [1, 1, 1], [1, 1, 1])
    overlapping = Book(**{
        **{each.name: getattr(one, each.name) for each in fields(Book)},
        "entered_at": START + HOUR * np.array([0, 6, 48]),
        "held_s": HOUR * np.array([12, 3, 12]),
    })  # fmt: skip
    assert open_share(overlapping) == pytest.approx(24 / 96)


def test_a_daily_look_gives_the_numbers_of_the_daily_curve() -> None:
    source = np.random.default_rng(5)
    hourly = book(source.normal(0, 0.003, 24 * 30), [1, -1], [1, -1], seconds=HOUR)
    found = performance(hourly, seconds=DAY, draws=0)
    assert found.sharpe.n == 30
    assert found.sharpe.value == pytest.approx(
        empyrical.sharpe_ratio(hourly.curve.sampled(DAY).returns, annualization=365.25)
    )
