"""Candle tables: what each path of bars does to an order, worked out by hand.

The order: decided at START, 5 units, entry 100, stop 97, targets 106, 108, 110, ATR 2: the stop is
1.5 ATR, and 15 are at risk.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from app.domain.charts.indicators import indicators
from tests.training.support.candles import HOUR, START, random_walk, table
from training.market.bars import Bars
from training.outcomes.orders import Orders
from training.outcomes.simulate import COSTS, Costs, Exit, Fate, Fates, simulate

FREE = Costs(fee=0.0, slippage=0.0)
QUIET = (100, 101, 99, 100)


def orders(count: int = 1, stop: float = 97.0, as_of: int = START) -> Orders:
    return Orders(
        symbol=np.full(count, "BTCUSDT"),
        as_of=np.full(count, as_of),
        entry=np.full(count, 100.0),
        stop=np.full(count, stop),
        targets=np.tile([106.0, 108.0, 110.0], (count, 1)),
        atr=np.full(count, 2.0),
        quantity=np.full(count, 5.0),
        plan_risk=np.full(count, 15.0),
    )


def fate(bars: Bars, costs: Costs = FREE, **order: float) -> Fates:
    return simulate(bars, orders(**order), costs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "exit", "sold", "hours"),
    [
        pytest.param(
            [(100, 101, 97, 99)], Exit.STOP, 97.0, 1, id="touching the stop sells at the stop"
        ),
        pytest.param(
            [(100, 120, 96, 119)], Exit.STOP, 97.0, 1, id="stop before target within a bar"
        ),
        pytest.param(
            [QUIET, (95, 99, 94, 98)],
            Exit.STOP,
            95.0,
            2,
            id="a gap through the stop sells at the open",
        ),
        pytest.param([QUIET] * 6, Exit.TIME, 100.0, 6, id="after six hours the close is sold at"),
        pytest.param(
            [QUIET] * 5 + [(100, 101, 90, 91)],
            Exit.STOP,
            97.0,
            6,
            id="in the last bar too the stop comes first",
        ),
        pytest.param(
            # Peak 106: target 1 is passed. max(106 - 1.5 x 2, 100 + 0.75 x 6) = 104.5 from the next
            # bar on.
            [(100, 106, 99, 105), (105, 105, 104, 104)],
            Exit.TRAIL_1,
            104.5,
            2,
            id="from target 1 on 75 % of the move is kept",
        ),
        pytest.param(
            # The bar that reaches the target falls back below the new stop: its own high does not
            # raise its own stop.
            [(100, 106, 98, 99), (104.6, 105, 104.6, 105), (104, 104, 103, 103)],
            Exit.TRAIL_1,
            104.0,
            3,
            id="a bar never trails itself, and a gap through the trail sells at the open",
        ),
        pytest.param(
            # Peak 110.4: target 3. max(110.4 - 0.5 x 2, 100 + 0.75 x 10.4 = 107.8) = 109.4.
            [(100, 110.4, 100, 110), (110, 110, 109, 109)],
            Exit.TRAIL_3,
            109.4,
            2,
            id="from target 3 on half an ATR",
        ),
        pytest.param(
            # Peak 108.8: target 2. max(108.8 - 2, 100 + 0.75 x 8.8 = 106.6) = 106.8.
            [(100, 108.8, 100, 108), (107, 107.5, 106, 106)],
            Exit.TRAIL_2,
            106.8,
            2,
            id="from target 2 on one ATR",
        ),
        pytest.param(
            [(100, 107, 99, 106)] + [(106, 106.5, 105.4, 106)] * 5,
            Exit.TIME,
            106.0,
            6,
            id="time exit while trailing",
        ),
    ],
)
def test_a_path_of_bars_ends_an_order(
    path: list[tuple[float, ...]], exit: Exit, sold: float, hours: int
) -> None:
    ended = fate(table(*path, *[QUIET] * 8))  # type: ignore[arg-type]
    assert Exit(ended.exit[0]) is exit
    assert ended.sold[0] == pytest.approx(sold)
    assert ended.exited_at[0] == START + hours * HOUR
    assert ended.net[0] == pytest.approx(5 * (sold - 100))


def test_entry_is_the_open_of_the_next_bar() -> None:
    ended = fate(table((101, 102, 100, 101), *[(101, 102, 100, 102)] * 6))
    assert ended.entered_at[0] == START
    assert ended.bought[0] == 101.0
    assert ended.net[0] == pytest.approx(5 * (102 - 101))


def test_costs_are_paid_on_both_sides() -> None:
    ended = fate(table(*[QUIET] * 7), Costs(fee=0.001, slippage=0.0005))
    paid, received = 100 * 1.0005, 100 * 0.9995
    fees = 0.001 * (paid + received)
    assert ended.fees[0] == pytest.approx(5 * 0.2)
    assert ended.slippage[0] == pytest.approx(5 * 0.1)
    assert ended.net[0] == pytest.approx(5 * (received - paid - fees)) == pytest.approx(-1.5)


def test_excursions_are_measured_until_the_exit_and_not_beyond() -> None:
    ended = fate(table((100, 103, 98.5, 102), (102, 150, 96, 140), *[QUIET] * 6))
    assert ended.exit[0] == Exit.STOP
    assert ended.mae[0] == pytest.approx(5 * (97 - 100))
    assert ended.mfe[0] == pytest.approx(5 * (103 - 100))
    assert ended.highest[0] == 103.0


def test_half_hour_bars_end_after_six_hours_too() -> None:
    ended = fate(table(*[QUIET] * 20, seconds=1800))
    assert ended.exited_at[0] - ended.entered_at[0] == 6 * HOUR


@pytest.mark.parametrize(
    "bars",
    [
        pytest.param(table(*[QUIET] * 5), id="the bars end before the order does"),
        pytest.param(table(*[QUIET] * 9, skip=3), id="an outage follows the decision"),
        pytest.param(table(QUIET, skip=-5), id="there is no later bar"),
    ],
)
def test_what_bars_do_not_tell_is_unresolved(bars: Bars) -> None:
    ended = fate(bars)
    assert ended.exit[0] == Exit.UNRESOLVED
    for values in (ended.bought, ended.sold, ended.net, ended.mae, ended.mfe):
        assert np.isnan(values[0])
    assert ended.row(0) is None


def test_where_nothing_is_bought_there_is_no_fate_and_the_others_keep_theirs() -> None:
    bars = random_walk(600)
    together = many(bars)
    some = np.arange(len(together)) % 3 == 0
    apart = simulate(bars, together.only(some))
    alone = simulate(bars, together.at(some))
    for name, values in vars(alone).items():
        np.testing.assert_array_equal(getattr(apart, name)[some], values)
    assert (apart.exit[~some] == Exit.UNRESOLVED).all()
    assert np.isnan(apart.net[~some]).all()
    assert not apart.entered_at[~some].any()


def test_a_row_is_the_fate_of_one_order() -> None:
    ended = fate(table((100, 103, 98.5, 102), (102, 150, 96, 140), *[QUIET] * 6))
    assert ended.row(0) == Fate(
        Exit.STOP, START, START + 2 * HOUR, 100.0, 97.0, 0.0, 0.0, -15.0, -15.0, 15.0, 103.0
    )


def test_the_last_bar_of_all_may_be_the_entry_and_the_exit() -> None:
    ended = fate(table((80, 81, 79, 80), (100, 101, 97, 99)), as_of=START + HOUR)
    assert ended.row(0) == Fate(
        Exit.STOP, START + HOUR, START + 2 * HOUR, 100.0, 97.0, 0.0, 0.0, -15.0, -15.0, 0.0, 100.0
    )


def test_a_bar_that_opens_one_bar_after_the_decision_is_too_late() -> None:
    assert fate(table(*[QUIET] * 9, skip=1)).row(0) is None
    assert fate(table(*[QUIET] * 9, skip=1), as_of=START + 1).row(0) is not None


def test_bars_that_six_hours_do_not_divide_exit_with_the_first_that_completes_them() -> None:
    ended = fate(table(QUIET, (100, 101, 99, 100.5), QUIET, seconds=4 * HOUR))
    assert (ended.exit[0], ended.exited_at[0]) == (Exit.TIME, START + 8 * HOUR)
    assert ended.sold[0] == 100.5


def test_a_far_move_is_trailed_by_atr_and_a_near_one_by_its_share() -> None:
    """Peak 120, entry 100: 75 % of the move is 115; 1.5, 1.0, 0.5 ATR below the peak are nearer."""
    for passed, stop in ((1, 117.0), (2, 118.0), (3, 119.0)):
        order = orders()
        order.targets[0] = [106.0] * passed + [200.0] * (3 - passed)
        ended = simulate(table((100, 120, 99, 119), (119.5, 119.5, 110, 111)), order, FREE)
        assert (ended.exit[0], ended.sold[0]) == (Exit.STOP + passed, stop)


def test_exits_keep_their_numbers() -> None:
    """They lie in artefacts of earlier runs."""
    assert {name: int(number) for name, number in Exit.__members__.items()} == {
        "UNRESOLVED": 0, "STOP": 1, "TRAIL_1": 2, "TRAIL_2": 3, "TRAIL_3": 4, "TIME": 5,
    }  # fmt: skip


def test_costs_that_all_share_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        COSTS.fee = 0.0  # type: ignore[misc]


def test_an_outage_in_the_middle_exits_at_what_is_found_after_it() -> None:
    before = table(*[QUIET] * 3)
    after = table((93, 94, 92, 93), skip=9)
    columns = [
        np.concatenate([getattr(before, n), getattr(after, n)])
        for n in ("open", "high", "low", "close", "volume")
    ]
    ended = fate(
        Bars("BTCUSDT", HOUR, np.concatenate([before.closed_at, after.closed_at]), *columns)
    )
    assert ended.exit[0] == Exit.STOP
    assert ended.sold[0] == 93.0


@pytest.mark.parametrize(
    ("stop", "atr"), [(100.0, 2.0), (101.0, 2.0), (97.0, 0.0), (float("nan"), 2.0)]
)
def test_an_order_without_risk_is_refused(stop: float, atr: float) -> None:
    order = orders(stop=stop)
    order.atr[:] = atr
    with pytest.raises(ValueError, match="every stop must lie below its entry, and every ATR"):
        simulate(table(QUIET), order)


def many(bars: Bars) -> Orders:
    at = np.arange(400, len(bars) - 10)
    entry, atr = bars.close[at], indicators(bars).atr[at]
    targets = entry[:, None] + np.array([3.0, 4.0, 5.0]) * atr[:, None]
    symbol, quantity = np.full(len(at), bars.symbol), np.linspace(0.5, 2, len(at))
    return Orders(
        symbol,
        bars.closed_at[at],
        entry,
        entry - 1.5 * atr,
        targets,
        atr,
        quantity,
        1.5 * atr * quantity,
    )


def test_all_at_once_equals_one_by_one() -> None:
    bars = random_walk(600)
    together = many(bars)
    everything = simulate(bars, together)
    for n in range(len(together.entry)):
        alone = simulate(bars, together.at(np.array([n])))
        for name in ("exit", "exited_at", "sold", "net", "mae", "mfe"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(everything, name)[n])


def test_without_costs_random_entries_into_a_fair_game_earn_nothing() -> None:
    """A rule of exits cannot make money from a martingale: a positive mean would be a bug of the
    simulator."""
    means = []
    for seed in range(12):
        bars = random_walk(6000, seed)
        orders = many(bars)
        means.append(float(np.nanmean(simulate(bars, orders, FREE).net / orders.plan_risk)))
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 3 * error + 0.02
    assert error < 0.05
