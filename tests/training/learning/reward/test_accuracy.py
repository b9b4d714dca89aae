"""Pairwise accuracy, intervals by day, calibration and rank correlation: numbers worked out by
hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.actions import ACTIONS
from training.arrays import DAY_S
from training.learning.reward.accuracy import (
    Pairs,
    accuracies,
    calibration,
    compared,
    pairs_across,
    pairs_within,
    spearman,
)

RISING = np.arange(10.0)


def table(*rows: list[float] | np.ndarray) -> np.ndarray:
    return np.array(rows, dtype=float)


def days(count: int) -> np.ndarray:
    return DAY_S * np.arange(count)


def test_pairs_of_equal_or_unknown_rewards_are_left_out() -> None:
    rewards = table([0.0] * 8 + [1.0, 2.0], [np.nan] * 10, RISING)
    pairs = pairs_within(rewards, np.array([0.5, 1.0, 0.25]), days(3), np.arange(3))
    # Row 0: eight equal actions against 1.0 and 2.0, and those two: 17. Row 2: all 45.
    assert np.bincount(pairs.row).tolist() == [17, 0, 45]
    assert pairs.weight[pairs.row == 2].tolist() == [0.25] * 45
    assert pairs.day.tolist() == [0] * 17 + [2] * 45


def test_accuracy_counts_pairs_by_weight_and_a_tie_as_half() -> None:
    rewards = table(RISING, RISING)
    pairs = pairs_within(rewards, np.array([3.0, 1.0]), days(2), np.arange(2))
    found = accuracies(pairs, {"one": table(RISING, -RISING), "flat": np.zeros((2, 10))}, "one", 0)
    assert found["one"]["value"] == 0.75
    assert found["flat"]["value"] == 0.5
    assert found["lead"]["flat"]["value"] == 0.25
    assert (found["pairs"], found["days"]) == (90, 2)


def test_a_day_counts_as_one_however_many_scenarios_it_has() -> None:
    """Nine scenarios of one day that are right, one of another that is wrong: two clusters, so the
    interval is wide."""
    day = np.array([0] * 9 + [1])
    right = np.array([1.0] * 9 + [0.0])
    found = compared({"a": right, "b": 1 - right}, np.ones(10), day, day, "a", 0)
    assert found["a"] == {"value": 0.9, "low": 0.0, "high": 1.0}
    alone = compared({"a": right}, np.ones(10), np.arange(10), np.arange(10), "a", 0)
    assert alone["a"]["low"] > 0.6


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    source = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        level = source.normal(0.2, 1, 40)  # of each day; ten values a day
        day = np.repeat(np.arange(40), 10)
        found = compared(
            {"a": level[day] + source.normal(0, 0.5, 400)}, np.ones(400), day, day, "a", seed
        )["a"]
        covered += found["low"] <= 0.2 <= found["high"]
    assert 51 <= covered <= 60  # 95 % of 60 is 57; without clusters it would be some 30


def test_pairs_across_compare_one_action_of_two_scenarios() -> None:
    rewards = table(RISING * 0.1, RISING * 0.3, [np.nan] * 10)
    pairs = pairs_across(rewards, np.array([0.5, 0.25, 1.0]), days(3), np.arange(3), 0)
    assert set(pairs.row) | set(pairs.other_row) == {0, 1}
    assert (pairs.action == pairs.other_action).all()
    assert (pairs.action > 0).all()
    assert (pairs.first == (pairs.row == 1)).all()
    assert set(pairs.weight) == {0.125}
    assert (
        accuracies(pairs, {"truth": rewards, "wrong": -rewards}, "truth", 0)["truth"]["value"]
        == 1.0
    )


def test_without_pairs_there_are_no_numbers() -> None:
    pairs = pairs_within(table([1.0] * 10), np.ones(1), days(1), np.arange(1))
    found = accuracies(pairs, {"a": table(RISING)}, "a", 0)
    assert found["a"] == {"value": None, "low": None, "high": None}
    assert calibration(pairs, np.empty(0))["ece"] is None
    assert len(pairs_across(table([np.nan] * 10), np.ones(1), days(1), np.arange(1), 0)) == 0


def pairs_won(won: list[bool]) -> Pairs:
    """One pair a day."""
    number = np.arange(len(won))
    zeros = np.zeros(len(won), np.int64)
    return Pairs(number, zeros, number, zeros + 1, np.array(won), np.ones(len(won)), number, number)


def test_calibration_of_a_judge_that_says_four_in_five() -> None:
    """Right four times in five it is calibrated; right three in five, each bin is 0.2 off."""
    for won, error in ((4, 0.0), (3, 0.2)):
        pairs = pairs_won([i % 5 < won for i in range(100)])
        found = calibration(pairs, np.full(100, 0.8))
        assert found["ece"] == pytest.approx(error)
        assert [one["predicted"] for one in found["bins"]] == pytest.approx([0.2, 0.8])
        assert [one["observed"] for one in found["bins"]] == pytest.approx([1 - won / 5, won / 5])
        assert sum(one["pairs"] for one in found["bins"]) == 200
        share = won / 5
        assert found["log_loss"] == pytest.approx(
            -(share * np.log(0.8) + (1 - share) * np.log(0.2)), abs=1e-4
        )
        assert found["brier"] == pytest.approx(share * 0.04 + (1 - share) * 0.64)


def test_spearman_is_of_ranks_and_undefined_for_constants() -> None:
    rewards = table(RISING, RISING + 20)
    assert spearman(rewards**3, rewards, np.arange(2)) == {"pooled": 1.0, "within": 1.0}
    assert spearman(-rewards, rewards, np.arange(2)) == {"pooled": -1.0, "within": -1.0}
    assert spearman(np.zeros_like(rewards), rewards, np.arange(2)) == {
        "pooled": None,
        "within": None,
    }
    # The same order in both scenarios says all about actions, and half about which scenario was
    # better.
    constant = np.tile(RISING, (2, 1))
    assert spearman(constant, rewards, np.arange(2))["within"] == 1.0
    assert spearman(constant, rewards, np.arange(2))["pooled"] == pytest.approx(0.498, abs=0.02)
    assert len(ACTIONS) == rewards.shape[1]
