"""The shuffled teacher: fates change hands net of costs. And what sizes do, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench.learning.teacher import daily, shares_by_risk, shuffled, tail, tail_gain
from training.learning.teacher.lessons import GROSS, QUESTIONS, WIN, Lessons, Told


def test_shuffled_fates_are_dealt_net_of_costs_and_whole_to_learned_rows_alone() -> None:
    source = np.random.default_rng(0)
    count, costs = 60, np.linspace(0.1, 0.5, 60)
    answers = source.normal(size=(count, len(QUESTIONS)))
    told = Told(
        np.zeros((count, 2)),
        np.ones((count, 9)),
        np.full(count, 2.0),
        np.full(count, 0.001),
        costs,
        np.zeros(count),
    )
    as_of = np.arange(count) * 3600
    given = Lessons(told, answers, np.ones(count), as_of, as_of + 3600)
    learned = np.arange(40)
    dealt = shuffled(given, learned).answers
    gross, win = QUESTIONS.index(GROSS[1]), QUESTIONS.index(WIN)
    assert np.array_equal(dealt[40:], answers[40:])
    before = {
        row[win]: row[gross] - 2 * cost for row, cost in zip(answers[:40], costs, strict=False)
    }
    for row, cost in zip(dealt[:40], costs, strict=False):
        assert np.isclose(row[gross] - 2 * cost, before[row[win]])
    assert (dealt[:40, win] != answers[:40, win]).sum() > 30


def test_smaller_shares_go_where_risk_is_high() -> None:
    """0.15 f - a f^2 d^2: a 0.1, deviation 1: 0.05 whole, 0.05 half (the smaller of equals); stake
    three times: 0.3: -0.15, 0, 0.01875; deviation 0.5: 0.125, 0.069, 0.036."""
    sd, stake = np.array([0.99, 1.0, 0.5]), np.array([0.001, 0.003, 0.001])
    assert shares_by_risk(sd, stake).tolist() == [1.0, 0.25, 1.0]


def test_sizes_are_compared_at_one_mean_notional() -> None:
    """Sizes 1 and 3 of equal notionals scale to a half and one and a half."""
    size, notional = np.array([1.0, 3.0, 3.0, 1.0]), np.full(4, 7.0)
    earned, days = np.array([-0.2, 0.1, -0.1, 0.3]), np.array([5, 5, 6, 6])
    assert daily(size, notional, earned, days).tolist() == pytest.approx([0.05, 0.0])
    assert daily(np.ones(4), notional, earned, days).tolist() == pytest.approx([-0.1, 0.2])


def test_the_tail_is_the_mean_loss_of_the_worst_twentieth_of_days() -> None:
    sums = np.arange(-20.0, 20.0)
    assert tail(sums) == 19.5
    low, high = tail_gain(0.8 * sums, sums)
    assert (low, high) == pytest.approx((0.2, 0.2))
