"""Arms decide without outcomes, and the simpler rivals are fitted on training scenarios alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from app.domain.exits import TRAIL
from app.domain.features import FEATURE_NAMES
from app.domain.model.actions import BY_LABEL
from app.domain.model.manifest import Calibration
from app.domain.record.control import AgentAction
from app.domain.rules.case import order_for
from app.domain.scenario import Scenario
from tests.builders import agent_action, reading, scenario
from tests.domain.scenarios import LIMITS
from training.judging.contest.arms import (
    ARMS,
    AS_VETO,
    HEURISTICS,
    POLICY,
    RAW,
    TEACHER,
    Arm,
    Choice,
    Given,
    Past,
    act,
    advised,
    agent,
    always,
    behind_rules,
    best_cut,
    not_trading,
    proposed,
    sized,
)
from training.learning.model.answers import Answers
from training.outcomes.labels import plan_orders
from training.outcomes.orders import Orders

DAY = 86_400


def readings(*labels: str) -> Answers:
    rows = [reading(label).log_probabilities for label in labels]
    return Answers(np.array(rows), Calibration())


def given(
    scenarios: Sequence[Scenario],
    version: Answers | None = None,
    controls: Sequence[AgentAction | None] = (),
    past: Past | None = None,
    features: np.ndarray | None = None,
) -> Given:
    """What a test is not about is missing."""
    nothing = np.zeros((len(scenarios), len(FEATURE_NAMES)))
    return Given(
        scenarios,
        controls or [None] * len(scenarios),
        plan_orders(scenarios),
        nothing if features is None else features,
        past or problem(60, 0, signal=False)[0],
        {POLICY: version or readings(*["A"] * len(scenarios))},
        LIMITS,
    )


def test_always_takes_every_plan_whole() -> None:
    plan = scenario().plan
    orders = always(given([scenario(), scenario()])).orders
    assert orders.quantity.tolist() == [plan.quantity] * 2
    assert orders.stop.tolist() == [plan.stop] * 2


def test_the_agent_trades_where_it_says_yes() -> None:
    answers = [agent_action(True), agent_action(False), None]
    assert agent(given([scenario()] * 3, controls=answers)).approve.tolist() == [True, False, False]


def test_the_policy_is_judged_as_the_service_judges_it() -> None:
    refused = scenario(candidate__volatility_pct=0.99)
    about = given([scenario(), scenario(), refused], readings("H", "A", "H"))
    before, after = proposed(POLICY, about), advised(POLICY, about)
    assert before.approve.tolist() == [True, False, True]
    assert after.approve.tolist() == [True, False, False]
    assert after.vetoes is not None
    assert "VOLATILITY_SPIKE" in after.vetoes[2]
    assert after.vetoes[0] == ()
    order = order_for(BY_LABEL["H"], scenario())
    assert (before.orders.stop[0], before.orders.quantity[0]) == (order.stop, order.quantity)
    assert before.probability is not None
    assert before.probability[1] == pytest.approx(1 - 0.91)


def test_what_a_limit_clamps_and_caps_is_the_order() -> None:
    """A stop may lie 2 ATR below entry, a trade be worth 100: J, 2.5 ATR, becomes that order."""
    tight = LIMITS.model_copy(
        update={
            "stop_distance": LIMITS.stop_distance.model_copy(update={"max_atr": 2.0}),
            "exposure": LIMITS.exposure.model_copy(update={"max_notional": 100.0}),
        }
    )
    subject = scenario()
    atr = subject.candidate.atr
    assert atr is not None
    about = replace(given([subject], readings("J")), limits=tight)
    (stop,), (quantity,) = (getattr(advised(POLICY, about).orders, n) for n in ("stop", "quantity"))
    assert stop == pytest.approx(subject.plan.entry - 2.0 * atr)
    assert quantity == pytest.approx(100.0 / subject.plan.entry)
    assert proposed(POLICY, about).orders.stop[0] == pytest.approx(subject.plan.entry - 2.5 * atr)


def test_rivals_may_trade_what_the_rules_would_let_the_agent_trade() -> None:
    volatile = scenario(candidate__volatility_pct=0.99)
    about = given([scenario(), volatile, scenario()])
    assert about.allowed.tolist() == [True, False, True]

    def everything(past: Past, features: np.ndarray, folds: int) -> Choice:
        return Choice(np.ones(len(features), dtype=bool))

    assert behind_rules(everything, about).approve.tolist() == [True, False, True]


def test_every_arm_acts_under_its_own_name() -> None:
    arms = act(given([scenario()] * 4, readings("H", "A", "J", "A")))
    assert list(arms) == [*ARMS, POLICY, RAW, AS_VETO]
    assert set(HEURISTICS) < set(ARMS)
    assert all(len(arm.orders) == 4 for arm in arms.values())


def test_without_a_policy_every_arm_acts_that_needs_no_language_model() -> None:
    about = given([scenario()] * 4, readings("H", "A", "J", "A"))
    alone = replace(about, versions={TEACHER: about.versions[POLICY]})
    assert list(act(alone)) == [*ARMS, TEACHER]


def test_not_trading_is_an_arm_and_the_cost_filter_knows_the_atr_alone() -> None:
    about = given([scenario()] * 3)
    assert not not_trading(about).approve.any()
    atr = FEATURE_NAMES.index("atr_fraction")
    past, _ = problem(400, 1, signal=False)
    wide = past.features[:, atr] > 0
    past = replace(past, rewards=np.where(wide, 0.5, -0.5))
    new = np.zeros((2, len(FEATURE_NAMES)))
    new[:, atr] = (-1.0, 1.0)
    assert HEURISTICS["cost filter"](past, new, 5).trades.tolist() == [False, True]


def test_sizes_by_atr_are_the_agents_on_average_and_half_where_markets_move_twice_as_much() -> None:
    answers = [AgentAction(decision=True)] * 2 + [AgentAction(decision=False)]
    about = given([scenario()] * 3, controls=answers)
    column = FEATURE_NAMES.index("atr_fraction")
    before, new = about.past.features.copy(), about.features.copy()
    before[:, column], new[:, column] = 0.01, (0.01, 0.02, 0.01)
    about = replace(about, features=new, past=replace(about.past, features=before))
    found = sized(about).orders.quantity / about.plans.quantity
    assert found[:2].tolist() == pytest.approx([1.0, 0.5])
    assert np.isnan(found[2]), "the agent said no"


def test_a_veto_keeps_the_agents_order_where_the_policy_approves() -> None:
    answers = [AgentAction(decision=True), AgentAction(decision=True), AgentAction(decision=False)]
    about = given([scenario()] * 3, readings("B", "A", "J"), controls=answers)
    arms = act(about)
    veto = arms[AS_VETO]
    assert veto.approve.tolist() == [True, False, False]
    assert veto.orders.quantity[0] == about.plans.quantity[0], "the agent's size, not a quarter"
    assert veto.orders.stop[0] == about.plans.stop[0]


def test_the_best_cut_keeps_what_pays_and_always_trades() -> None:
    scores = np.arange(100.0)
    pays_high = np.where(scores >= 50, 1.0, -1.0)
    assert 45 <= best_cut(scores, pays_high, np.ones(100)) <= 55
    never_pays = np.full(100, -1.0)
    cut = best_cut(scores, never_pays, np.ones(100))
    assert (scores >= cut).sum() >= 5


def test_a_score_that_nobody_has_lets_nothing_pass() -> None:
    unknown = np.full(3, np.nan)
    assert best_cut(unknown, np.ones(3), np.ones(3)) == np.inf
    assert best_cut(np.arange(3.0), unknown, np.ones(3)) == np.inf, "fates that nobody knows"


def problem(rows: int, seed: int, *, signal: bool) -> tuple[Past, np.ndarray]:
    """What is past, and its rewards again."""
    source = np.random.default_rng(seed)
    features = source.normal(size=(rows, len(FEATURE_NAMES)))
    edge = np.sign(features[:, FEATURE_NAMES.index("rsi")]) if signal else 0.0
    rewards = 0.8 * edge + source.normal(size=rows)
    as_of = np.arange(rows) * DAY
    return Past(features, rewards, as_of, as_of + DAY // 4, np.ones(rows), DAY), rewards


def rivals(rows: int, *, signal: bool) -> dict[str, tuple[Choice, np.ndarray]]:
    past, _ = problem(rows, 1, signal=signal)
    new, rewards = problem(rows, 2, signal=signal)
    return {name: (rival(past, new.features, 5), rewards) for name, rival in HEURISTICS.items()}


def test_rivals_find_a_signal_out_of_sample() -> None:
    found = rivals(800, signal=True)
    for name in ("logistic regression", "gradient boosting"):
        choice, rewards = found[name]
        assert rewards[choice.trades].mean() > 0.5
        assert choice.probability is not None
        assert choice.fitted_in_s > 0


def test_rivals_see_no_outcome_of_the_new_scenarios() -> None:
    """They are given features only; where there is no signal, what they choose earns what chance
    earns."""
    for choice, rewards in rivals(800, signal=False).values():
        chosen = rewards[choice.trades]
        assert abs(chosen.mean() - rewards.mean()) < 4 * rewards.std() / math.sqrt(len(chosen))


def test_rivals_are_the_same_in_every_run_however_many_scenarios_they_learn_from() -> None:
    """From 10,000 on boosting would stop early, by a split at random."""
    past, _ = problem(10_500, 1, signal=True)
    new, _ = problem(100, 2, signal=True)
    for name in ("logistic regression", "gradient boosting"):
        first, second = (HEURISTICS[name](past, new.features, 2) for _ in range(2))
        assert first.probability is not None
        assert second.probability is not None
        assert np.array_equal(first.probability, second.probability), name
        assert np.array_equal(first.trades, second.trades), name


def same(one: Arm, other: Arm) -> bool:
    """Every answer, whatever fitting took."""
    if (one.vetoes, one.probability is None) != (other.vetoes, other.probability is None):
        return False
    mine, theirs = (
        [] if arm.probability is None else arm.probability.tolist() for arm in (one, other)
    )
    return mine == theirs and all(
        np.array_equal(values, getattr(other.orders, name), equal_nan=name == "quantity")
        for name, values in vars(one.orders).items()
    )


def any_arm(count: int, seed: int, *, judged: bool) -> Arm:
    source = np.random.default_rng(seed)
    entry, atr = source.uniform(50, 150, count), source.uniform(1, 3, count)
    orders = Orders(
        source.choice(["BTCUSDT", "ETHUSDT"], count),
        source.integers(0, 10**9, count),
        entry,
        entry - source.choice([1.0, 1.5, 2.5], count) * atr,
        entry[:, None] + np.array([1.0, 2.0, 3.0]),
        atr,
        np.where(source.random(count) < 0.5, source.random(count), np.nan),
        source.random(count),
        np.full(count, TRAIL, dtype=object),
    )
    codes = tuple(("VOLATILITY_SPIKE",) * int(n) for n in source.integers(0, 3, count))
    return Arm(
        orders, source.random(count) if judged else None, codes if judged else None, fitted_in_s=1.5
    )


@drawn(
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


@drawn(st.permutations(range(12)), st.integers(0, 5))
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


@drawn(st.integers(2, 40), st.integers(0, 40), st.integers(0, 5))
def test_what_is_known_in_parts_adds_up_to_the_same(count: int, cut: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    as_of = np.cumsum(source.integers(1, DAY, count))
    past = Past(
        source.normal(size=(count, 3)),
        source.normal(size=count),
        as_of,
        as_of + 7,
        as_of / DAY,
        5.0,
    )
    rows = np.arange(count)
    first, second = past.at(rows[:cut]), past.at(rows[cut:])
    for name in ("features", "rewards", "as_of", "ends_at", "weights"):
        whole = getattr(past, name)
        assert getattr(first + second, name).tolist() == whole.tolist()
        assert getattr(past.at(rows[::-1]), name).tolist() == whole[::-1].tolist()
        assert len(getattr(first, name)) == min(cut, count)
    assert (first + second).embargo_s == first.embargo_s == 5.0


def test_where_every_plan_lost_nothing_is_told_apart() -> None:
    features = problem(200, 1, signal=False)[0].features
    as_of = np.arange(200) * DAY
    for rewards in (-np.ones(200), np.where(np.arange(200) < 40, 1.0, -1.0)):
        past = Past(features, rewards, as_of, as_of + DAY // 4, np.ones(200), DAY)
        for rival in HEURISTICS.values():
            choice = rival(past, features[:50], 5)
            assert len(choice.trades) == 50
            assert choice.probability is None or np.isfinite(choice.probability).all()
