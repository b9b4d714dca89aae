"""Arms decide without outcomes, and the simpler rivals are fitted on training scenarios alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.actions import ACTIONS
from app.domain.features import FEATURE_NAMES
from app.domain.manifest import Calibration
from tests.builders import agent_action, reading, scenario
from tests.domain.scenarios import LIMITS
from training.judging.contest.arms import (
    Arm,
    Known,
    agent,
    allowed,
    always,
    best_cut,
    fitted,
    policy,
    random_veto,
)

DAY = 86_400


def readings(*labels: str) -> np.ndarray:
    return np.array([reading(label).log_probabilities for label in labels])


def test_always_takes_every_plan_whole() -> None:
    arm = always([scenario(), scenario()])
    plan = scenario().plan
    assert arm.approve.tolist() == [True, True]
    assert arm.share.tolist() == [1.0, 1.0]
    assert arm.stop_atr[0] == pytest.approx((plan.entry - plan.stop) / scenario().candidate.atr)


def test_the_agent_trades_where_it_says_yes() -> None:
    arm = agent([scenario()] * 3, [agent_action(True), agent_action(False), None])
    assert (arm.name, arm.approve.tolist(), arm.share.tolist()) == (
        "agent",
        [True, False, False],
        [1.0, 0.0, 0.0],
    )
    assert np.isnan(arm.stop_atr[1:]).all()


def test_the_policy_is_judged_as_the_service_judges_it() -> None:
    refused = scenario(candidate__volatility_pct=0.99)
    before, after = policy(
        [scenario(), scenario(), refused], readings("H", "A", "H"), Calibration(), LIMITS
    )
    assert before.approve.tolist() == [True, False, True]
    assert after.approve.tolist() == [True, False, False]
    assert after.vetoes is not None
    assert "VOLATILITY_SPIKE" in after.vetoes[2]
    assert after.vetoes[0] == ()
    half_risk = next(i for i, action in enumerate(ACTIONS) if action.label == "H")
    assert after.stop_atr[0] == pytest.approx(ACTIONS[half_risk].stop_atr)
    assert 0 < after.share[0] <= 1
    assert before.probability is not None
    assert before.probability[1] == pytest.approx(1 - 0.91)


def test_rivals_may_trade_what_the_rules_would_let_the_agent_trade() -> None:
    volatile = scenario(candidate__volatility_pct=0.99)
    assert allowed([scenario(), volatile, scenario()], LIMITS).tolist() == [True, False, True]


def test_a_random_veto_deals_the_same_answers_to_other_scenarios() -> None:
    source = np.random.default_rng(0)
    approve = source.random(200) < 0.3
    arm = Arm("policy", approve, np.where(approve, 2.5, np.nan), np.where(approve, 0.25, 0.0))
    draws = list(random_veto(arm, 20, seed=1))
    for draw in draws:
        assert draw.approve.sum() == approve.sum()
        assert (draw.share[draw.approve] == 0.25).all()
        assert np.isnan(draw.stop_atr[~draw.approve]).all()
    assert len({draw.approve.tobytes() for draw in draws}) == 20
    again = list(random_veto(arm, 20, seed=1))
    assert all((a.approve == b.approve).all() for a, b in zip(draws, again, strict=True))


def test_the_best_cut_keeps_what_pays_and_always_trades() -> None:
    scores = np.arange(100.0)
    pays_high = np.where(scores >= 50, 1.0, -1.0)
    assert 45 <= best_cut(scores, pays_high, np.ones(100)) <= 55
    never_pays = np.full(100, -1.0)
    cut = best_cut(scores, never_pays, np.ones(100))
    assert (scores >= cut).sum() >= 5


def problem(rows: int, seed: int, *, signal: bool) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(seed)
    features = source.normal(size=(rows, len(FEATURE_NAMES)))
    edge = np.sign(features[:, FEATURE_NAMES.index("rsi")]) if signal else 0.0
    return features, 0.8 * edge + source.normal(size=rows)


def rivals(rows: int, *, signal: bool) -> dict[str, tuple[Arm, np.ndarray]]:
    features, rewards = problem(rows, 1, signal=signal)
    new_features, new_rewards = problem(rows, 2, signal=signal)
    plan = Arm("always approve", np.ones(rows, dtype=bool), np.full(rows, 1.5), np.ones(rows))
    as_of = np.arange(rows) * DAY
    known = Known(features, rewards, as_of, as_of + DAY // 4, np.ones(rows), DAY)
    arms = fitted(known, plan, new_features)
    return {arm.name: (arm, new_rewards) for arm in arms}


def test_rivals_find_a_signal_out_of_sample() -> None:
    found = rivals(800, signal=True)
    assert set(found) == {"score threshold", "logistic regression", "gradient boosting"}
    for name in ("logistic regression", "gradient boosting"):
        arm, rewards = found[name]
        assert rewards[arm.approve].mean() > 0.5
        assert arm.probability is not None


def test_rivals_see_no_outcome_of_the_new_scenarios() -> None:
    """They are given features only; where there is no signal, what they choose earns what chance
    earns."""
    for arm, rewards in rivals(800, signal=False).values():
        chosen = rewards[arm.approve]
        assert abs(chosen.mean() - rewards.mean()) < 4 * rewards.std() / math.sqrt(len(chosen))


def same(one: Arm, other: Arm) -> bool:
    """Every answer, whatever fitting took."""
    if (one.name, one.vetoes, one.probability is None) != (
        other.name,
        other.vetoes,
        other.probability is None,
    ):
        return False
    names = ("approve", "stop_atr", "share", *(() if one.probability is None else ("probability",)))
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in names
    )


def any_arm(count: int, seed: int, *, judged: bool) -> Arm:
    source = np.random.default_rng(seed)
    approve = source.random(count) < 0.5
    return Arm(
        "policy",
        approve,
        np.where(approve, source.choice([1.0, 1.5, 2.5], count), np.nan),
        np.where(approve, source.random(count), 0.0),
        source.random(count) if judged else None,
        tuple(("VOLATILITY_SPIKE",) * int(n) for n in source.integers(0, 3, count))
        if judged
        else None,
        fitted_in_s=1.5,
    )


@given(
    st.integers(0, 30), st.integers(0, 5), st.booleans(), st.lists(st.integers(0, 30), max_size=3)
)
def test_an_arm_in_parts_joins_to_the_same_arm(
    count: int, seed: int, judged: bool, cuts: list[int]
) -> None:
    arm = any_arm(count, seed, judged=judged)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [arm.at(np.arange(begin, end)) for begin, end in pairwise(edges)]
    assert same(Arm.joined(parts), arm)
    assert Arm.joined(parts).fitted_in_s == 1.5 * len(parts), "what fitting took adds up"


@given(st.permutations(range(12)), st.integers(0, 5))
def test_an_arm_at_some_scenarios_answers_them_alike(order: list[int], seed: int) -> None:
    arm, chosen = any_arm(12, seed, judged=True), np.array(order)
    there = arm.at(chosen)
    assert there.approve.tolist() == [arm.approve[i] for i in order]
    assert there.vetoes == tuple((arm.vetoes or ())[i] for i in order)
    assert same(there.at(np.argsort(chosen)), arm)
    assert same(arm.at(chosen[:5]).at(np.array([3])), arm.at(chosen[3:4]))


def test_an_arm_of_which_a_part_has_no_probability_has_none() -> None:
    whole, bare = any_arm(4, 0, judged=True), any_arm(3, 1, judged=False)
    joined = Arm.joined([whole, bare])
    assert (joined.probability, joined.vetoes) == (None, None)
    assert joined.approve.tolist() == [*whole.approve, *bare.approve]


@given(st.integers(2, 40), st.integers(0, 40), st.integers(0, 5))
def test_what_is_known_in_parts_adds_up_to_the_same(count: int, cut: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    as_of = np.cumsum(source.integers(1, DAY, count))
    known = Known(
        source.normal(size=(count, 3)),
        source.normal(size=count),
        as_of,
        as_of + 7,
        as_of / DAY,
        5.0,
    )
    rows = np.arange(count)
    first, second = known.at(rows[:cut]), known.at(rows[cut:])
    for name in ("features", "rewards", "as_of", "ends_at", "weights"):
        whole = getattr(known, name)
        assert getattr(first + second, name).tolist() == whole.tolist()
        assert getattr(known.at(rows[::-1]), name).tolist() == whole[::-1].tolist()
        assert len(getattr(first, name)) == min(cut, count)
    assert (first + second).embargo_s == first.embargo_s == 5.0


def test_where_every_plan_lost_nothing_is_told_apart() -> None:
    features, _ = problem(200, 1, signal=False)
    as_of = np.arange(200) * DAY
    for rewards in (-np.ones(200), np.where(np.arange(200) < 40, 1.0, -1.0)):
        known = Known(features, rewards, as_of, as_of + DAY // 4, np.ones(200), DAY)
        plan = Arm("always approve", np.ones(50, dtype=bool), np.full(50, 1.5), np.ones(50))
        for arm in fitted(known, plan, features[:50]):
            assert len(arm.approve) == 50
            assert arm.probability is None or np.isfinite(arm.probability).all()
