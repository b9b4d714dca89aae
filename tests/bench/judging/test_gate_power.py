"""The simulated markets are what they say, and the gate is as seldom wrong there as it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.judging.gate_power import (
    NO_EDGE,
    NO_SAVING,
    Share,
    World,
    as_veto,
    best_of_many,
    evidence,
    kept_until,
    power_curve,
    running_rate,
    runs,
    simulate,
    true_edge,
)
from training.arrays import DAY_S
from training.config.judging import GateConfig
from training.judging.gate.verdict import RANDOM_VETO, WIN, Mode, judge
from training.statistics.anytime import log_wealth, period_means
from training.statistics.bootstrap import day_totals

CONFIG = GateConfig(draws=200)


def test_outcomes_look_like_those_of_trades() -> None:
    r = simulate(World("any"), 100_000, 0).r
    assert r.mean() == pytest.approx(-0.33, abs=0.03)
    assert np.quantile(r, [0.1, 0.3]) == pytest.approx([-1.1, -1.1])
    assert r.min() < -1.8
    assert r.max() <= 3.0
    assert (r > 1).mean() == pytest.approx(0.125, abs=0.015)
    skew = ((r - r.mean()) ** 3).mean() / r.std() ** 3
    assert skew > 1


def test_outcomes_of_a_day_hang_together() -> None:
    market = simulate(World("any", per_day=10), 60_000, 1)
    totals, counts = day_totals(market.r[:, None], market.as_of)
    within = (totals[:, 0] / counts).var()
    assert within > 2 * market.r.var() / 10, "independent outcomes would vary less from day to day"
    means = (totals[:, 0] / counts) - market.r.mean()
    assert means[1:] @ means[:-1] / (means @ means) == pytest.approx(0.15, abs=0.05), (
        "and so do days"
    )
    assert len(market.r) == pytest.approx(60_000, rel=0.02)


@pytest.mark.parametrize("skill", [0.0, 0.5])
def test_the_stated_edge_is_the_one_that_is_simulated(skill: float) -> None:
    world = World("edge", policy_skill=skill, shift=0.2)
    market = simulate(world, 200_000, 2)
    edge, per_trade = true_edge(world)
    traded = market.policy > 0
    assert (market.policy * market.r).mean() - traded.mean() * market.r.mean() == pytest.approx(
        edge, abs=0.01
    )
    assert market.r[traded].mean() == pytest.approx(per_trade, abs=0.03)
    assert traded.mean() == pytest.approx(world.policy_rate, abs=0.01)
    if skill == 0:
        assert edge == pytest.approx(0, abs=1e-12)


def test_the_policys_probabilities_are_honest() -> None:
    world = World("edge", policy_skill=0.5)
    win = evidence(simulate(world, 40_000, 3), world, 3).foretold[WIN]
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 1.0)):
        part = (win.probability >= low) & (win.probability < high)
        assert win.came[part].mean() == pytest.approx(win.probability[part].mean(), abs=0.02)


def test_the_live_rate_of_a_day_is_known_before_it_begins() -> None:
    world = World("any")
    market = simulate(world, 800, 4)
    rate = running_rate(market, world)
    later = market.as_of >= 50 * DAY_S
    turned = replace(market, policy=np.where(later, 1 - market.policy, market.policy))
    until = market.as_of <= 50 * DAY_S
    assert np.array_equal(running_rate(turned, world)[until], rate[until])
    assert rate[0] == pytest.approx(0.3)


@pytest.mark.parametrize("world", NO_EDGE, ids=lambda world: world.name)
def test_consulted_every_day_the_gate_seldom_promotes_what_has_no_edge(world: World) -> None:
    fooled = 0
    for seed in range(150):
        market = simulate(world, 1600, seed)
        seen = evidence(market, world, seed)
        veto = running_rate(market, world) * market.r
        wealth = [
            log_wealth(period_means(seen.policy - other, seen.as_of), 6.0).max()
            for other in (seen.agent, *seen.heuristics.values(), veto)
        ]
        fooled += min(wealth) >= math.log(1 / 0.05)
    # 5 % at the wider level used here; 2.5 % is the gate's own.
    assert fooled <= 0.05 * 150


@pytest.mark.parametrize("world", NO_EDGE[1:], ids=lambda world: world.name)
def test_asked_once_the_gate_seldom_promotes_what_has_no_edge(world: World) -> None:
    found = runs(world, 1600, 80, CONFIG)
    assert sum(run.fixed for run in found) <= 6, (
        "2.5 % of 80 are 2; 7 or more have a chance of 0.4 %"
    )
    assert sum(run.live for run in found) <= 6


def test_a_clear_edge_is_promoted_and_more_decisions_never_hurt_much() -> None:
    curve = power_curve(World("edge", policy_rate=0.2), [0.65], [600, 2000], 12, CONFIG)
    few, many = curve
    assert many.fixed.hits >= 11
    assert many.live.hits >= 11
    assert few.fixed.hits <= many.fixed.hits
    assert few.live.hits <= few.fixed.hits + 1
    assert many.edge == few.edge == true_edge(World("edge", policy_rate=0.2, policy_skill=0.65))[0]


def test_runs_are_the_same_over_several_processes() -> None:
    world = World("edge", policy_skill=0.5)
    assert runs(world, 700, 4, CONFIG, workers=2) == runs(world, 700, 4, CONFIG)


def test_the_random_veto_is_what_binds_a_policy_that_only_trades_less() -> None:
    world = NO_EDGE[1]
    verdict = judge(evidence(simulate(world, 2900, 5), world, 5), CONFIG, Mode.FIXED)
    agent, veto = (verdict.differences[name].low for name in ("agent", RANDOM_VETO))
    assert agent is not None
    assert agent > 0.1
    assert veto is not None
    assert veto < 0


def test_a_share_has_a_wilson_interval() -> None:
    # Wilson's interval of 5 in 500, worked out: 0.43 % to 2.32 %.
    assert Share("five", 5, 500).interval == pytest.approx((0.00428, 0.02319), abs=2e-5)
    assert Share("none", 0, 500).interval[0] == pytest.approx(0.0)


@pytest.mark.parametrize("world", NO_SAVING, ids=lambda world: world.name)
def test_refusals_without_skill_are_seldom_promoted_as_a_veto(world: World) -> None:
    found = runs(world, 1600, 40, CONFIG)
    # Five looks: 0.5 % of 40 each; 3 or more have a chance of 0.1 %.
    assert sum(run.veto for run in found) <= 2
    assert sum(run.live_veto for run in found) <= 2


def test_a_veto_with_skill_is_promoted_where_the_agent_only_loses() -> None:
    world = World("edge", policy_skill=0.65, policy_rate=0.5, tried=0)
    found = runs(world, 1600, 10, CONFIG)
    assert sum(run.veto for run in found) >= 9


def test_the_live_rate_of_a_veto_is_that_of_earlier_days() -> None:
    world = World("any")
    market = simulate(world, 800, 4)
    rate, both = kept_until(market), market.policy * market.agent
    assert rate[0] == 1.0
    before = market.as_of < market.as_of[-1]
    assert rate[-1] == pytest.approx(both[before].sum() / market.agent[before].sum())


def test_a_veto_keeps_the_agents_trades_alone() -> None:
    world = World("any")
    market = simulate(world, 800, 4)
    seen = as_veto(evidence(market, world, 4), market)
    assert not (seen.traded & ~seen.agent_traded).any()
    assert seen.random_veto.sum() == pytest.approx(
        seen.traded.sum() / seen.agent_traded.sum() * seen.agent.sum()
    )


def test_the_best_of_eight_without_skill_passes_no_more_than_one_does() -> None:
    """1 - 0.95^8 = 33.7 % of best ones look confident by themselves; 5 % may."""
    alone, together = best_of_many(8, 300, CONFIG)
    assert alone.share == pytest.approx(0.337, abs=0.09)
    assert together.share <= 0.05
