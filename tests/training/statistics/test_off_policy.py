"""Estimates from logs agree with the value that is known when every action's reward is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.arrays import Floats
from training.statistics.bootstrap import StatisticsError
from training.statistics.off_policy import (
    LogError,
    LoggedDecisions,
    doubly_robust,
    full_information,
    inverse_propensity,
    self_normalised,
)

ACTIONS = 10


def softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def simulated(seed: int, count: int = 1500) -> tuple[LoggedDecisions, Floats, Floats]:
    """A log of a policy that leans one way, a target that leans towards rewards; all rewards; a
    poor model's."""
    source = np.random.default_rng(seed)
    rewards = source.normal(-0.2, 0.6, (count, 1)) + source.normal(0, 0.5, (count, ACTIONS))
    rewards[:, 0] = 0.0
    behaviour = softmax(source.normal(0, 0.7, (count, ACTIONS)))
    target = softmax(1.5 * rewards + source.normal(0, 0.5, (count, ACTIONS)))
    action = (behaviour.cumsum(1) > source.random((count, 1))).argmax(1)
    at = np.arange(count)
    log = LoggedDecisions(
        action, behaviour[at, action], rewards[at, action], target, as_of=at * 21_600
    )
    return log, rewards, 0.5 * rewards + 0.1


def test_by_hand() -> None:
    # Weights 0.5 / 0.25 = 2 and 0.2 / 0.8 = 0.25.
    log = LoggedDecisions(
        np.array([1, 0]),
        np.array([0.25, 0.8]),
        np.array([1.0, -2.0]),
        np.array([[0.5, 0.5], [0.2, 0.8]]),
    )
    assert log.weights == pytest.approx([2.0, 0.25])
    assert inverse_propensity(log).estimate.value == pytest.approx((2 - 0.5) / 2)
    assert self_normalised(log).estimate.value == pytest.approx((2 - 0.5) / 2.25)
    predicted = np.array([[0.0, 0.5], [-1.0, 1.0]])
    # Row 1: 0.25 + 2 (1 - 0.5) = 1.25; row 2: -0.2 + 0.8 + 0.25 (-2 + 1) = 0.35.
    assert doubly_robust(log, predicted).estimate.value == pytest.approx((1.25 + 0.35) / 2)
    assert inverse_propensity(log).effective == pytest.approx(2.25**2 / 4.0625)
    assert inverse_propensity(log).largest == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(4))
def test_every_estimate_agrees_with_the_full_information_value(seed: int) -> None:
    log, rewards, predicted = simulated(seed)
    truth = full_information(rewards, log.target)
    for found in (
        inverse_propensity(log, level=0.999),
        self_normalised(log, level=0.999),
        doubly_robust(log, predicted, level=0.999),
    ):
        low, high = found.estimate.low, found.estimate.high
        assert low is not None
        assert high is not None
        assert low < truth < high
        assert 50 < found.effective < 1500


def test_intervals_cover_the_truth_as_often_as_they_promise_and_the_robust_one_is_narrower() -> (
    None
):
    missed, widths = np.zeros(3), np.zeros(3)
    runs = 120
    for seed in range(runs):
        log, rewards, predicted = simulated(100 + seed, 600)
        truth = full_information(rewards, log.target)
        found = [
            inverse_propensity(log, draws=200).estimate,
            self_normalised(log, draws=200).estimate,
            doubly_robust(log, predicted, draws=200).estimate,
        ]
        low, high = (np.array([getattr(each, side) for each in found]) for side in ("low", "high"))
        missed += (truth < low) | (truth > high)
        widths += (high - low) / runs
    assert (missed / runs < 0.11).all(), "5 % and three standard errors of 120 runs"
    assert widths[2] < widths[1] < widths[0] * 1.05


def test_a_common_factor_in_logged_probabilities_changes_nothing_once_normalised() -> None:
    log, _, _ = simulated(2)
    halved = replace(log, logged=log.logged / 2)
    assert self_normalised(halved).estimate[:4] == pytest.approx(self_normalised(log).estimate[:4])
    whole = inverse_propensity(log).estimate.value
    assert whole is not None
    assert inverse_propensity(halved).estimate.value == pytest.approx(2 * whole)


def test_a_policy_valued_on_its_own_log_is_worth_what_it_earned() -> None:
    log, _, _ = simulated(1)
    action = log.action
    own = np.full(log.target.shape, 0.0)
    own[np.arange(len(action)), action] = log.logged
    own[np.arange(len(action)), (action + 1) % ACTIONS] = 1 - log.logged
    same = replace(log, target=own)
    assert inverse_propensity(same).estimate.value == pytest.approx(log.reward.mean())
    assert self_normalised(same).estimate.value == pytest.approx(log.reward.mean())


def test_a_policy_that_never_does_what_was_logged_has_no_self_normalised_value() -> None:
    target = np.array([[0.0, 1.0]] * 20)
    log = LoggedDecisions(np.zeros(20, dtype=int), np.full(20, 0.5), np.linspace(0, 1, 20), target)
    assert self_normalised(log).estimate.reason == "the policy never does what was logged"
    assert inverse_propensity(log).estimate.value == 0.0
    assert inverse_propensity(log).effective == 0.0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"logged": np.array([0.0, 0.5])}, LogError),
        ({"logged": np.array([np.nan, 0.5])}, LogError),
        ({"action": np.array([0, 2])}, LogError),
        ({"target": np.array([[0.5, 0.6], [0.5, 0.5]])}, LogError),
        ({"target": np.array([[np.nan, 0.5], [0.5, 0.5]])}, LogError),
        ({"reward": np.array([1.0])}, LogError),
        ({"reward": np.array([1.0, np.nan])}, StatisticsError),
    ],
)
def test_a_log_that_cannot_be_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    log = LoggedDecisions(
        np.array([0, 1]), np.array([0.5, 0.5]), np.array([1.0, 0.0]), np.full((2, 2), 0.5)
    )
    with pytest.raises(error):
        replace(log, **change)


def test_no_decisions_have_no_value() -> None:
    log = LoggedDecisions(np.array([], dtype=int), np.array([]), np.array([]), np.empty((0, 2)))
    assert inverse_propensity(log).estimate.reason == "no decisions"
    assert doubly_robust(log, np.empty((0, 2))).estimate.value is None
