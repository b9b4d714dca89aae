"""Arms meet on the same scenarios: every order is simulated as it is, and pays in R of the agent's
plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from tests.builders import scenario
from tests.training.support.candles import HOUR, START, table
from tests.training.support.histories import history, scenario_set
from training.arrays import Flags, Floats
from training.config.data import OutcomesConfig
from training.judging.contest.arena import Arena, ArenaError
from training.judging.contest.arms import Arm
from training.market.bars import Bars
from training.outcomes.labels import plan_orders
from training.outcomes.simulate import simulate
from training.scenarios.table import ScenarioSet

FREE = OutcomesConfig(fee=0.0, slippage=0.0)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> ScenarioSet:
    return scenario_set(tmp_path_factory.mktemp("arena"), history(), limit=40)


@pytest.fixture(scope="module")
def arena(scenarios: ScenarioSet) -> Arena:
    return Arena.of(scenarios, history().series(), OutcomesConfig())


def shaped(arena: Arena, stop_atr: Floats | float, share: Floats | float) -> Arm:
    """The plans with their stops at so many ATR and this share of their quantity; NaN refuses."""
    plans = arena.plans
    return Arm(
        replace(plans, stop=plans.entry - stop_atr * plans.atr, quantity=share * plans.quantity)
    )


@pytest.mark.parametrize(("stop_atr", "share"), [(1.0, 1.0), (1.5, 0.25), (2.3077, 0.6)])
def test_an_order_earns_what_its_simulation_earns_whatever_its_stop(
    arena: Arena, stop_atr: float, share: float
) -> None:
    arm = shaped(arena, stop_atr, share)
    played = arena.play(arm)
    for bars in history().bars:
        here = arena.symbols == bars.symbol
        fates = simulate(bars, arm.orders.at(here))
        for name, values in vars(fates).items():
            np.testing.assert_array_equal(getattr(played.fates, name)[here], values)
        plans = arena.plans.at(here)
        risk = plans.quantity * (plans.entry - plans.stop)
        assert played.r[here] == pytest.approx(fates.net / risk)


def test_not_trading_earns_nothing_and_half_the_size_half(arena: Arena) -> None:
    half, whole = (arena.play(shaped(arena, 1.5, share)) for share in (0.5, 1.0))
    assert half.r == pytest.approx(whole.r / 2)
    nobody = np.zeros(len(arena), dtype=bool)
    still = arena.play(Arm(whole.arm.orders.only(nobody)))
    assert not still.arm.approve.any()
    assert (still.r == 0).all()
    assert np.isnan(still.fates.net).all()


def by_hand(*bars: Bars, clamped: float | None = None, quantity: float = 5.0) -> tuple[Arena, Arm]:
    """One plan at START: entry 100, stop 97, 5 units, targets far, ATR 2; an order with its own
    stop and quantity."""
    plan = {
        "candidate__symbol": "BTCUSDT", "candidate__atr": 2.0, "plan__entry": 100.0,
        "plan__stop": 97.0,
        "plan__targets": [200.0], "plan__quantity": 5.0,
    }  # fmt: skip
    subject = scenario(as_of=datetime.fromtimestamp(START, UTC), **plan)
    kinds = {"synthetic": pl.String(), "scenario": pl.String(), "as_of": pl.Int64()}
    made = pl.DataFrame(
        {
            "scenario": [subject.model_dump_json()],
            "synthetic": [None],
            "as_of": [subject.second],
            "ends_at": [START + 7 * HOUR],
        },
        schema_overrides=kinds,
    )
    only = ScenarioSet(made, pl.DataFrame())
    arena = Arena.of(only, {"BTCUSDT": bars}, FREE)
    orders = plan_orders([subject])
    stop = orders.stop if clamped is None else np.array([clamped])
    return arena, Arm(replace(orders, stop=stop, quantity=np.array([quantity])))


def test_a_clamped_order_by_hand() -> None:
    """2.5 ATR would be a stop at 95; a limit moved it to 95.5 and left 3 of 5 units.

    The second bar falls to 95.2: at 95 it would have lived, at 95.5 it is sold. 3 x -4.5 = -13.5,
    over the plan's risk of 5 x 3 = 15: -0.9 R. (Of its own risk, 3 x 4.5, it lost all.)
    """
    bars = table((100, 101, 99, 100), (100, 100, 95.2, 98), *[(98, 99, 97, 98)] * 8)
    arena, arm = by_hand(bars, clamped=95.5, quantity=3.0)
    played = arena.play(arm)
    assert played.fates.sold[0] == 95.5
    assert played.fates.net[0] == pytest.approx(-13.5)
    assert played.r[0] == pytest.approx(-0.9)
    unclamped = arena.play(by_hand(bars, clamped=95.0, quantity=3.0)[1])
    assert unclamped.r[0] == pytest.approx(3 * (98 - 100) / 15)


def test_dealt_onto_another_scenario_an_order_keeps_its_distance_in_atr_and_its_share(
    arena: Arena,
) -> None:
    """Shapes differ from row to row; what is dealt is the shape, and each is simulated where it
    went."""
    count = len(arena)
    source = np.random.default_rng(0)
    stop_atr, share = source.uniform(0.7, 2.9, count), source.uniform(0.1, 1.0, count)
    refuses = source.random(count) < 0.3
    share[refuses] = np.nan
    arm = shaped(arena, stop_atr, share)
    answers, onto = source.permutation(count), np.arange(count)
    dealt = arena.deal(arm, answers, onto)
    wanted = shaped(arena, stop_atr[answers], share[answers])
    assert dealt.arm.approve.tolist() == (~refuses[answers]).tolist()
    assert dealt.arm.orders.stop == pytest.approx(wanted.orders.stop)
    assert dealt.arm.orders.quantity == pytest.approx(wanted.orders.quantity, nan_ok=True)
    assert dealt.r == pytest.approx(arena.play(wanted).r)
    assert arena.deal(arm, onto, onto).r == pytest.approx(arena.play(arm).r)
    some = np.array([5, 3, 3])
    assert arena.deal(arm, answers[some], some).r == pytest.approx(dealt.r[some])


def test_a_random_veto_deals_the_same_answers_to_other_scenarios(arena: Arena) -> None:
    count = len(arena)
    trades: Flags = np.random.default_rng(0).random(count) < 0.4
    arm = shaped(arena, 2.5, np.where(trades, 0.25, np.nan))
    draws = list(arena.random_veto(arm, 23, seed=1))
    for draw in draws:
        assert draw.arm.approve.sum() == trades.sum()
        placed = draw.arm.orders.placed
        share = draw.arm.orders.quantity[placed] / arena.plans.quantity[placed]
        assert share == pytest.approx(0.25)
        everywhere = arena.play(shaped(arena, 2.5, 0.25))
        assert draw.r == pytest.approx(np.where(placed, everywhere.r, 0.0))
    assert len({draw.arm.approve.tobytes() for draw in draws}) == 23
    again = [draw.r.tolist() for draw in arena.random_veto(arm, 23, seed=1)]
    assert again == [draw.r.tolist() for draw in draws]


def test_what_bars_cannot_judge_and_synthetic_scenarios_never_enter(
    scenarios: ScenarioSet,
) -> None:
    only = {"BTCUSDT": history().series()["BTCUSDT"]}
    arena = Arena.of(scenarios, only, OutcomesConfig())
    assert set(arena.symbols) == {"BTCUSDT"}
    assert arena.rows.tolist() == np.flatnonzero(scenarios.symbols == "BTCUSDT").tolist()
    made_up = scenarios.table.with_columns(
        synthetic=pl.Series(["rename", *[None] * (len(scenarios) - 1)], dtype=pl.String())
    )
    real = Arena.of(ScenarioSet(made_up, scenarios.reported), history().series(), OutcomesConfig())
    assert 0 not in real.rows
    with pytest.raises(ArenaError, match="no scenario with a known outcome"):
        Arena.of(scenarios, {}, OutcomesConfig())


def test_orders_reach_the_market_when_the_arena_says(arena: Arena, scenarios: ScenarioSet) -> None:
    late = Arena.of(scenarios, history().series(), OutcomesConfig(delay_s=HOUR), arena.rows)
    kept = np.isin(arena.rows, late.rows)
    arm = shaped(arena, 1.5, 1.0).at(np.flatnonzero(kept))
    assert (late.as_of == arena.as_of[kept]).all()
    fates = late.play(arm).fates
    assert (fates.entered_at == arena.as_of[kept] + HOUR).all()


def test_an_arm_of_another_number_of_scenarios_is_refused(arena: Arena) -> None:
    with pytest.raises(ArenaError, match="answers 2 scenarios"):
        arena.play(shaped(arena, 1.5, 1.0).at(np.arange(2)))


def test_doubled_costs_take_from_the_plan_what_it_paid_before(
    arena: Arena, scenarios: ScenarioSet
) -> None:
    """Fees of 0.1 % and slippage of 0.05 % a side: once more of both, and 2 x 0.1 % x 0.05 % of the
    price's move."""
    dear = Arena.of(scenarios, history().series(), OutcomesConfig(fee=0.002, slippage=0.001))
    plain, doubled = (each.play(Arm(arena.plans)).fates for each in (arena, dear))
    moved = 1e-6 * arena.plans.quantity * (plain.bought - plain.sold)
    assert plain.net - doubled.net == pytest.approx(plain.fees + plain.slippage + moved)
