"""Labels: finer bars decide, actions by hand, what bars cannot judge is left out and counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.charts.indicators import indicators
from app.domain.exits import TRAIL
from app.domain.model.actions import ACTIONS, LABELS
from app.domain.rules.case import order_for
from app.domain.scenario import Scenario
from tests.builders import scenario as plain
from tests.training.outcomes.plain import follow_plainly
from tests.training.support.candles import HOUR, START, emptied, holed, random_walk, table
from tests.training.support.histories import history, label_artifact, scenario_set
from training.config.data import OutcomesConfig
from training.market.bars import Bars
from training.outcomes.ground import Exclusion
from training.outcomes.labels import (
    AGENT,
    APPROVALS,
    Judged,
    Labels,
    build_labels,
    judge,
    plan_orders,
    shares_of,
)
from training.outcomes.orders import Orders
from training.outcomes.simulate import COSTS, Costs, Exit, simulate

FREE = Costs(0.0, 0.0)
Candle = tuple[float, float, float, float]
QUIET: Candle = (100, 101, 99, 100)


def order(**changes: Any) -> Scenario:
    """Decided at START: entry 100, stop 97, targets 106, 108, 110, ATR 2, quantity 5: a risk of
    15."""
    fields: dict[str, Any] = {
        "candidate__symbol": "BTCUSDT", "candidate__atr": 2.0, "plan__entry": 100.0,
        "plan__stop": 97.0,
        "plan__targets": [106.0, 108.0, 110.0], "plan__quantity": 5.0,
    }  # fmt: skip
    return plain(**(fields | changes))


def judged(
    *series: Bars, scenarios: tuple[Scenario, ...] = (), as_of: int = START, costs: Costs = FREE
) -> Judged:
    subjects = scenarios or (order(),)
    plans = replace(plan_orders(subjects), as_of=np.full(len(subjects), as_of))
    return judge({"BTCUSDT": series}, plans, shares_of(subjects), costs)


def whole(*first: Candle, seconds: int = HOUR, skip: int = 0) -> Bars:
    """These bars, then quiet ones to the end of the six hours."""
    quiet = [QUIET] * (8 * HOUR // seconds)
    return table(*first, *quiet, seconds=seconds, skip=skip)


# An hour that touches both 97 and 111: alone it is a stop, for the stop comes first within a bar.
BOTH = (100, 111, 96, 110)


def test_without_finer_bars_the_stop_comes_first() -> None:
    found = judged(whole(BOTH))
    assert found.fates[AGENT].exit[0] == Exit.STOP
    assert found.ground.resolution[0] == HOUR


def test_finer_bars_tell_that_the_target_came_first() -> None:
    """Up to 111 in the first half hour: target 3, the trail follows half an ATR below, 110, and is
    touched at once."""
    found = judged(
        whole(BOTH), whole((100, 111, 99.5, 110.5), (110.5, 110.6, 96, 110), seconds=1800)
    )
    assert found.ground.resolution[0] == 1800
    assert found.fates[AGENT].exit[0] == Exit.TRAIL_3
    assert found.fates[AGENT].sold[0] == 110.0
    assert found.agent_reward()[0] == pytest.approx(10 / 3)


def test_finer_bars_tell_that_the_stop_came_first() -> None:
    found = judged(whole(BOTH), whole((100, 100, 96, 97), (97, 111, 97, 110), seconds=1800))
    assert (found.ground.resolution[0], found.fates[AGENT].exit[0]) == (1800, Exit.STOP)
    assert found.agent_reward()[0] == pytest.approx(-1.0)


def test_the_finest_of_three_lengths_decides() -> None:
    quarters = [(100, 111, 99.5, 110.5), (110.5, 110.6, 96, 100), QUIET, QUIET]
    found = judged(
        whole(BOTH), whole((100, 111, 96, 110), QUIET, seconds=1800), whole(*quarters, seconds=900)
    )
    assert (found.ground.resolution[0], found.fates[AGENT].exit[0]) == (900, Exit.TRAIL_3)


@pytest.mark.parametrize(
    "finer",
    [
        pytest.param(
            whole((100, 111, 99.5, 110.5), seconds=1800, skip=1), id="they begin too late"
        ),
        pytest.param(
            table((100, 111, 99.5, 110.5), *[QUIET] * 10, seconds=1800), id="they end too early"
        ),
        pytest.param(
            holed(whole((100, 111, 99.5, 110.5), seconds=1800), 3), id="one of them is missing"
        ),
    ],
)
def test_finer_bars_with_a_hole_do_not_decide(finer: Bars) -> None:
    found = judged(whole(BOTH), finer)
    assert (found.ground.resolution[0], found.fates[AGENT].exit[0]) == (HOUR, Exit.STOP)


def test_every_action_by_hand() -> None:
    """The low of 96.5 touches stops at 98 (1.0 ATR) and 97 (1.5), not 95 (2.5); then six hours end
    at 102.

    Quantities at ATR 2: fraction x 15 / (stop ATR x 2), never above 5. Agent R is 15.
    """
    bars = table((100, 101, 96.5, 100), *[(100, 103, 99.5, 102)] * 8)
    found = judged(bars)
    quantity = {
        (f, s): min(5.0, f * 15 / (2 * s)) for f in (0.25, 0.5, 1.0) for s in (1.0, 1.5, 2.5)
    }
    net = {1.0: -2.0, 1.5: -3.0, 2.5: 2.0}
    expected = [0.0] + [
        quantity[a.risk_fraction, a.stop_atr] * net[a.stop_atr] / 15 for a in APPROVALS
    ]
    assert found.rewards()[0] == pytest.approx(expected)
    assert found.rewards()[0, LABELS.index("H")] == pytest.approx(5 * -2 / 15)
    assert found.rewards()[0, LABELS.index("J")] == pytest.approx(3 * 2 / 15)
    assert found.agent_reward()[0] == pytest.approx(-1.0)


def test_costs_are_in_the_reward() -> None:
    """0.3 of price for a round trip at 100, over a risk of 3 per unit."""
    found = judged(whole(QUIET), costs=Costs(0.001, 0.0005))
    assert found.agent_reward()[0] == pytest.approx(-0.1)


def test_a_decision_within_a_bar_enters_with_the_next_one() -> None:
    """A minute after the hour the bar under way opened in the past: its open is not to be had any
    more."""
    bars = table((90, 101, 89, 100), (100, 101, 99, 100), *[QUIET] * 8)
    assert judged(bars, as_of=START + 60).fates[AGENT].bought[0] == 100.0
    finer = whole(*[(90, 101, 89, 100), (99, 101, 98, 100)], seconds=1800)
    found = judged(bars, finer, as_of=START + 60)
    assert (found.ground.resolution[0], found.fates[AGENT].bought[0]) == (1800, 99.0)


@pytest.mark.parametrize(
    ("series", "changes", "reason"),
    [
        pytest.param((), {}, Exclusion.NO_BARS, id="a symbol without bars"),
        pytest.param(
            (table(QUIET, QUIET, skip=-100),),
            {},
            Exclusion.NO_BARS,
            id="bars that ended long before",
        ),
        pytest.param(
            (whole(QUIET, skip=100),), {}, Exclusion.NO_BARS, id="bars that begin long after"
        ),
        pytest.param(
            (table(*[QUIET] * 5),), {}, Exclusion.UNRESOLVED, id="bars that end within the window"
        ),
        pytest.param(
            (holed(whole(QUIET), 0),), {}, Exclusion.GAP, id="an outage right after the decision"
        ),
        pytest.param(
            (holed(whole(QUIET), 3),), {}, Exclusion.GAP, id="an outage within the window"
        ),
        pytest.param(
            (emptied(whole(QUIET), 5),), {}, Exclusion.NO_VOLUME, id="an hour without a trade"
        ),
        pytest.param(
            (whole(QUIET),),
            {"plan__entry": 130.0, "plan__stop": 127.0, "plan__targets": [136.0]},
            Exclusion.PRICE_MISMATCH,
            id="prices of another market",
        ),
        pytest.param(
            (whole(QUIET),),
            {"candidate__direction": "short"},
            Exclusion.NOT_A_LONG_ORDER,
            id="a short",
        ),
        pytest.param(
            (whole(QUIET),), {"plan__stop": 100.0}, Exclusion.NOT_A_LONG_ORDER, id="a stop at entry"
        ),
        pytest.param(
            (whole(QUIET),),
            {"plan__stop": 103.0},
            Exclusion.NOT_A_LONG_ORDER,
            id="a stop above entry",
        ),
    ],
)
def test_what_bars_cannot_judge_is_excluded(
    series: Any, changes: dict[str, Any], reason: Exclusion
) -> None:
    found = judged(*series, scenarios=(order(**changes), order()))
    assert found.ground.excluded[0] == reason
    assert np.isnan(found.rewards()[0]).all()
    assert np.isnan(found.agent_reward()[0])
    assert found.ground.resolution[0] == 0


@pytest.mark.parametrize("at", [6, 7])
def test_what_happens_after_the_window_excludes_nothing(at: int) -> None:
    for bars in (holed(whole(QUIET), at), emptied(whole(QUIET), at)):
        assert judged(bars).ground.excluded[0] == ""


def test_fewer_targets_and_any_order_of_them_are_understood() -> None:
    rally = whole((100, 106, 99, 106), (106, 106, 104, 105))
    one = judged(
        rally, scenarios=(order(plan__targets=[106.0]), order(plan__targets=[110.0, 106.0, 108.0]))
    )
    assert one.fates[AGENT].exit.tolist() == [Exit.TRAIL_1, Exit.TRAIL_1]


def test_all_at_once_equals_the_plain_loop() -> None:
    """An implementation of its own, bar by bar, on every order of a market with an outage."""
    bars = holed(random_walk(700, 3), 640)
    at = np.arange(400, len(bars) - 3, 3)
    entry, atr = bars.close[at], indicators(bars).atr[at]
    targets = entry[:, None] + np.array([3.0, 4.0, 5.0]) * atr[:, None]
    as_of, one = bars.closed_at[at] + at % 2 * 30, np.ones(len(at))
    symbol = np.full(len(at), bars.symbol)
    exits = np.full(len(at), TRAIL, dtype=object)
    orders = Orders(symbol, as_of, entry, entry - 1.5 * atr, targets, atr, one, 1.5 * atr, exits)
    together = simulate(bars, orders)
    for n in range(len(at)):
        alone = follow_plainly(bars, orders, n)
        assert together.exit[n] == alone.exit
        np.testing.assert_allclose([together.sold[n], together.net[n]], [alone.sold, alone.net])


@settings(max_examples=40)
@given(st.floats(0.5, 6), st.floats(0.2, 8), st.floats(0.01, 100), st.integers(0, 50))
def test_no_action_risks_or_spends_more_than_the_agent(
    atr: float, distance: float, quantity: float, seed: int
) -> None:
    scenario = order(candidate__atr=atr, plan__stop=100 - distance, plan__quantity=quantity)
    shares = shares_of([scenario])
    for n, action in enumerate(APPROVALS):
        share = shares[0, n]
        assert share * quantity == pytest.approx(order_for(action, scenario).quantity)
        assert share <= 1
        assert share * action.stop_atr * atr <= action.risk_fraction * distance * (1 + 1e-9)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("artifacts")
    market = history()
    scenarios = scenario_set(folder, market, perturbations=1)
    return scenarios, label_artifact(folder, scenarios, market.series(), clip_r=1.0)


def test_a_stage_leaves_rows_aligned_with_the_scenarios(artifact: Any) -> None:
    scenarios, made = artifact
    labels = Labels.open(made)
    count = len(scenarios)
    assert labels.rewards.shape == (count, len(ACTIONS))
    assert labels.agent_reward.shape == (count,)
    known = ~np.isnan(labels.rewards[:, 0])
    assert (labels.rewards[known, 0] == 0).all()
    assert np.nanmax(np.abs(labels.rewards)) == 1.0 == np.nanmax(np.abs(labels.agent_reward))
    assert labels.table.height == count * (len(ACTIONS) + 1)
    assert labels.table["row"].to_list() == [row for row in range(count) for _ in range(11)]
    assert labels.table["action"].to_list()[:11] == [AGENT, *LABELS]
    by_action = labels.table.filter(pl.col("action") == "I").sort("row")
    np.testing.assert_allclose(
        by_action["reward"].clip(-1, 1).to_numpy(), labels.rewards[:, LABELS.index("I")]
    )
    # The agent's stop is 1.5 ATR below entry, as action I has it with the whole risk.
    real = scenarios.real
    np.testing.assert_allclose(
        labels.agent_reward[real], labels.rewards[real, LABELS.index("I")], atol=1e-12
    )


def test_the_table_tells_how_each_order_ended(artifact: Any) -> None:
    _, made = artifact
    table = Labels.open(made).table
    traded = table.filter(pl.col("exit").is_not_null())
    assert set(traded["exit"]) <= {"stop", "time", "trail_1", "trail_2", "trail_3"}
    assert (traded["holding_s"] == traded["exited_at"] - traded["entered_at"]).all()
    assert traded["holding_s"].is_between(HOUR, 6 * HOUR).all()
    assert (traded["mae"] <= 1e-12).all()
    assert (traded["mfe"] >= -1e-12).all()
    rejected = table.filter(pl.col("action") == "A", pl.col("excluded").is_null())
    assert rejected["exit"].null_count() == rejected.height
    assert (rejected["reward"] == 0).all()
    assert (rejected["quantity"] == 0).all()
    money = (
        traded["quantity"] * (traded["sold"] - traded["bought"])
        - traded["fees"]
        - traded["slippage"]
    )
    assert money.to_numpy() == pytest.approx(traded["net"].to_numpy(), abs=1e-6)


def test_facts_count_real_rows_by_reason(artifact: Any) -> None:
    scenarios, made = artifact
    facts = made.facts
    assert facts["scenarios"] == int(scenarios.real.sum())
    assert facts["labelled"] + sum(facts["excluded"].values()) == facts["scenarios"]
    assert sum(facts["exits"].values()) == facts["labelled"] == sum(facts["resolution_s"].values())
    assert facts["mean_reward"]["A"] == 0.0
    assert facts["mean_best_reward"] > 0


def test_a_symbol_without_bars_is_counted(tmp_path: Path) -> None:
    market = history()
    scenarios = scenario_set(tmp_path, market)
    made = label_artifact(tmp_path, scenarios, {"BTCUSDT": market.series()["BTCUSDT"]})
    others = int((scenarios.symbols != "BTCUSDT").sum())
    assert made.facts["excluded"][Exclusion.NO_BARS] == others > 0
    assert np.isnan(Labels.open(made).rewards[scenarios.symbols != "BTCUSDT"]).all()


def test_the_same_inputs_give_the_same_labels(tmp_path: Path) -> None:
    market = history()
    hashes = set()
    for name in ("a", "b"):
        scenarios = scenario_set(tmp_path / name, market)
        hashes.add(label_artifact(tmp_path / name, scenarios, market.series()).hash)
    assert len(hashes) == 1


STAIRS = table(*[(100 + n, 100.5 + n, 99.5 + n, 100 + n) for n in range(10)])
"""Bar n opens and closes at 100 + n."""


def late(folder: Path, delay_s: int, *series: Bars) -> pl.DataFrame:
    """Labels of an order whose targets are far, decided at START, without costs, when it comes so
    late."""
    folder.mkdir()
    far = order(as_of=datetime.fromtimestamp(START, UTC), plan__targets=[200.0])
    config = OutcomesConfig(fee=0.0, slippage=0.0, delay_s=delay_s, clip_r=9.0)
    facts = build_labels(folder, [far], np.array([True]), {"BTCUSDT": series}, config)
    assert facts["delay_s"] == delay_s
    return pl.read_parquet(folder / "labels.parquet")


def test_an_order_that_comes_an_hour_late_enters_at_the_open_of_the_following_bar(
    tmp_path: Path,
) -> None:
    """In time it is bought at 100 and sold at 105, the sixth bar's close: 5 over a risk of 3. An
    hour later at 101, and sold at the seventh's, 106. Its stop and its risk are those that were
    planned."""
    plain, delayed = (
        late(tmp_path / str(delay), delay, STAIRS).row(0, named=True) for delay in (0, HOUR)
    )
    assert plain["action"] == delayed["action"] == AGENT
    assert (plain["entered_at"], plain["exited_at"], plain["bought"], plain["sold"]) == (
        START,
        START + 6 * HOUR,
        100,
        105,
    )
    assert (delayed["entered_at"], delayed["exited_at"]) == (START + HOUR, START + 7 * HOUR)
    assert (delayed["bought"], delayed["sold"]) == (101, 106)
    assert plain["reward"] == pytest.approx(5 / 3)
    assert delayed["reward"] == pytest.approx(5 / 3)
    assert delayed["quantity"] == plain["quantity"] == 5.0


def test_an_order_that_comes_late_misses_what_happened_meanwhile(tmp_path: Path) -> None:
    """The first hour touches the stop at 97: who comes after it buys at 98, and is not stopped
    out."""
    bars = table((100, 100, 96, 98), *[(98, 99, 97.5, 99)] * 8)
    plain, delayed = (
        late(tmp_path / str(delay), delay, bars).row(0, named=True) for delay in (0, HOUR)
    )
    assert (plain["exit"], plain["reward"]) == ("stop", pytest.approx(-1.0))
    assert (delayed["exit"], delayed["bought"], delayed["sold"]) == ("time", 98, 99)
    assert delayed["reward"] == pytest.approx(1 / 3)


def test_without_delay_nothing_changes(tmp_path: Path) -> None:
    market = history()
    scenarios = scenario_set(tmp_path, market)
    plain = Labels.open(label_artifact(tmp_path / "plain", scenarios, market.series()))
    assert Labels.open(
        label_artifact(tmp_path / "zero", scenarios, market.series(), delay_s=0)
    ).table.equals(plain.table)
    symbol = scenarios.symbols == "ETHUSDT"
    mine = [one for one, here in zip(scenarios.scenarios(), symbol, strict=True) if here]
    directly = judge(market.series(), plan_orders(mine), shares_of(mine), COSTS)
    assert plain.rewards[symbol] == pytest.approx(np.clip(directly.rewards(), -3, 3), nan_ok=True)


@pytest.mark.parametrize(
    ("delay_s", "bar"), [(1, 1), (HOUR - 1, 1), (HOUR, 1), (HOUR + 1, 2), (2 * HOUR, 2)]
)
def test_a_delay_within_a_bar_waits_for_the_next_one(
    delay_s: int, bar: int, tmp_path: Path
) -> None:
    found = late(tmp_path / "labels", delay_s, STAIRS)
    traded = found.filter(pl.col("exit").is_not_null())
    assert len(traded) == 10
    assert set(traded["entered_at"]) == {START + bar * HOUR}
    assert set(traded["bought"]) == {100.0 + bar}


def test_a_delay_beyond_the_last_bars_is_unresolved(tmp_path: Path) -> None:
    found = late(tmp_path / "labels", 5 * HOUR, STAIRS)
    assert set(found["excluded"]) == {Exclusion.UNRESOLVED}
    assert found["reward"].is_nan().all()
