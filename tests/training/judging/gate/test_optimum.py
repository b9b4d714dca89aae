"""The exact optimum of what policies are trained for, with honest readings, passes the gate: it was
refused when approving was taken for winning."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from app.domain.model.actions import ACTIONS
from bench.judging.gate_power import PASSED
from training.arrays import DAY_S, Floats
from training.config.judging import GateConfig
from training.config.learning import ExpectedConfig
from training.judging.gate.verdict import WIN, Evidence, Foretold, Mode, RefusalCode, judge
from training.learning.model.answers import choices
from training.statistics.calibration import expected_calibration_error

PER_DAY, DAYS = 4, 750
SIZE = np.array([action.risk_fraction for action in ACTIONS])
GAIN, LOSS = np.array([2.6, 0.45]), -1.15
CHANCE = np.array([0.4, 0.62])
MEAN = CHANCE * GAIN + (1 - CHANCE) * LOSS
"""+0.35 and -0.158 R: seldom right and worth it, often right and not."""


def optimum(forward: Floats, win: Floats, state: np.ndarray, r: Floats) -> Evidence:
    """Evidence of a policy with such (S, 10) probabilities, in a market of two states."""
    action = choices(np.log(forward))[state]
    source = np.random.default_rng(1)
    agent = source.random(len(r)) < 0.5
    policy = SIZE[action] * r

    def returns(earned: Floats) -> Floats:
        return 0.005 * earned.reshape(*earned.shape[:-1], DAYS, PER_DAY).sum(-1)

    dealt = np.stack([source.permutation(SIZE[action]) * r for _ in range(10)])
    return Evidence(
        model_version="optimum",
        as_of=np.repeat(np.arange(DAYS), PER_DAY) * DAY_S,
        trained_until=-2 * DAY_S,
        policy=policy,
        agent=agent * r,
        random_veto=SIZE[action].mean() * r,
        heuristics={"always": r},
        traded=action > 0,
        agent_traded=agent,
        policy_returns=returns(policy),
        agent_returns=returns(agent * r),
        random_veto_returns=returns(dealt),
        heuristic_returns={"always": returns(r)},
        steps_per_year=365.25,
        trial_sharpes=(float(returns(policy).mean() / returns(policy).std(ddof=1)), 0.0, 0.02),
        trials=3,
        looks=1,
        foretold={WIN: Foretold(win[state], (r > 0).astype(float))},
        checks=PASSED,
    )


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, Floats]:
    """(N,) states, and R of the plan."""
    source = np.random.default_rng(0)
    state = source.integers(0, 2, PER_DAY * DAYS)
    won = source.random(len(state)) < CHANCE[state]
    return state, np.where(won, GAIN[state], LOSS)


@pytest.mark.parametrize("mode", Mode)
def test_the_exact_optimum_with_honest_readings_passes(
    world: tuple[np.ndarray, Floats], mode: Mode
) -> None:
    state, r = world
    probabilities = softmax(MEAN[:, None] * SIZE / ExpectedConfig().beta, axis=1)
    assert choices(probabilities)[1] == 0, "what loses is rejected"
    seen = optimum(probabilities, CHANCE, state, r)
    assert judge(seen, GateConfig(draws=300), mode).refusals == ()
    # By what it used to be judged, it would not: nobody wins as often as this approves.
    approving = np.asarray(1 - probabilities[state, 0], dtype=np.float64)
    assert (expected_calibration_error(approving, (r > 0).astype(float), draws=0).value or 0) > 0.2


def test_the_same_policy_with_its_approvals_as_chances_is_refused(
    world: tuple[np.ndarray, Floats],
) -> None:
    state, r = world
    probabilities = softmax(MEAN[:, None] * SIZE / ExpectedConfig().beta, axis=1)
    seen = optimum(probabilities, 1 - probabilities[:, 0], state, r)
    (refusal,) = judge(seen, GateConfig(draws=300), Mode.FIXED).refusals
    assert (refusal.code, refusal.about) == (RefusalCode.CALIBRATION_POOR, WIN)
