"""The learning curve: readers find what is there to be read, on rows they were not fitted to, and
intervals are over whole days."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench.learning.curve import (
    ADAPTER,
    NUMBERS,
    READERS,
    Point,
    agreement,
    beyond_rejecting,
    drawn,
    read,
)
from training.arrays import DAY_S
from training.learning.algorithms.measures import rank_agreement
from training.statistics.bootstrap import Estimate


def test_a_reader_finds_what_its_inputs_hold_and_nothing_else() -> None:
    source = np.random.default_rng(0)
    inputs = source.normal(size=(600, 5))
    rewards = np.zeros((600, 10))
    rewards[:, 4] = inputs[:, 2] + 5.0
    given = SimpleNamespace(
        rewards=rewards,
        weights=np.ones(600),
        train_rows=np.arange(400),
        validate_rows=np.arange(400, 600),
    )
    worth, as_of = beyond_rejecting(rewards[400:]), np.arange(200) * DAY_S
    said = read(inputs, given, given.train_rows)  # type: ignore[arg-type]
    sees = agreement([said], worth, as_of)
    assert sees.value is not None
    assert sees.value > 0.99
    noise = source.normal(size=(600, 5))
    said = read(noise, given, given.train_rows)  # type: ignore[arg-type]
    blind = agreement([said], worth, as_of)
    assert blind.value is not None
    assert abs(blind.value) < 0.25
    assert blind.low is not None
    assert blind.high is not None
    assert blind.low < 0 < blind.high


def test_rank_agreement_by_hand() -> None:
    """Best approvals less rejecting: 1, 2, 4, 3 against 10, 20, 30, 40: squared differences of
    ranks 0, 0, 1, 1; 1 - 6 x 2 / (4 x 15) = 0.8."""
    policy = np.array([[0.0, 1.0, 0.5], [1.0, 3.0, 0.0], [-1.0, 0.0, 3.0], [0.0, 3.0, 3.0]])
    rewards = np.array([[0.0, 10.0, 0.0], [0.0, 0.0, 20.0], [0.0, 30.0, 30.0], [0.0, 40.0, 1.0]])
    assert rank_agreement(policy, rewards) == pytest.approx(0.8)
    assert rank_agreement(np.zeros((4, 3)), rewards) == 0.0
    said, worth = beyond_rejecting(policy), beyond_rejecting(rewards)
    days = np.arange(4) * DAY_S
    assert agreement([said], worth, days).value == pytest.approx(0.8)
    assert agreement([said, np.zeros(4)], worth, days).value == pytest.approx(0.4)


def test_rows_of_one_day_are_drawn_together() -> None:
    """Two days, each in perfect order by itself and against the other: every sample of whole days
    agrees by 1 (one day twice) or by what all rows show; rows alone would give anything between."""
    said = np.array([1.0, 2.0, 3.0, 4.0])
    worth = np.array([3.0, 4.0, 1.0, 2.0])
    as_of = np.array([0, 3600, DAY_S, DAY_S + 3600])
    rank = agreement([said], worth, as_of)
    assert rank.value == pytest.approx(1 - 6 * 16 / 60)
    assert rank.low == pytest.approx(rank.value)
    assert rank.high == pytest.approx(1.0)


def test_the_first_draw_is_even_and_others_are_not_alike() -> None:
    rows = np.arange(100, 200)
    first, second, third = (drawn(rows, 10, seed) for seed in range(3))
    assert len(set(np.diff(first))) <= 2
    assert not np.array_equal(second, third)
    assert np.array_equal(second, drawn(rows, 10, 1))
    assert set(second) <= set(rows)
    assert len(set(second)) == 10
    assert len(drawn(rows, 1000, 1)) == 100


def test_a_point_says_what_was_not_asked() -> None:
    rank = Estimate(0.5, 0.25, 0.75, 40)
    ranks = {name: rank for name in READERS if name != ADAPTER}
    point = Point(1200, ranks, {"win": 0.125, "range": 0.5})
    shown = "0.50 [0.25, 0.75]"
    assert point.line == f"| 1,200 | none | {shown} | {shown} | {shown} | 0.12 | none | 0.50 |"
    assert point.figures[f"{NUMBERS}: low"] == 0.25
