"""Candle tables: what each path of bars does to an order, worked out by hand.

The order: decided at START, 5 units, entry 100, stop 97, targets 106, 108, 110, ATR 2: the stop is
1.5 ATR, and 15 are at risk.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from app.domain.charts.indicators import indicators
from app.domain.exits import REPORTED, TRAIL, Barrier, Exits, Fixed, Freqtrade, Trail
from tests.training.support.candles import HOUR, START, random_walk, table
from training.market.bars import Bars
from training.outcomes.orders import Orders
from training.outcomes.simulate import COSTS, Costs, Exit, Fate, Fates, simulate

FREE = Costs(fee=0.0, slippage=0.0)
QUIET = (100, 101, 99, 100)


def orders(count: int = 1, stop: float = 97.0, as_of: int = START, exits: Exits = TRAIL) -> Orders:
    return Orders(
        symbol=np.full(count, "BTCUSDT"),
        as_of=np.full(count, as_of),
        entry=np.full(count, 100.0),
        stop=np.full(count, stop),
        targets=np.tile([106.0, 108.0, 110.0], (count, 1)),
        atr=np.full(count, 2.0),
        quantity=np.full(count, 5.0),
        plan_risk=np.full(count, 15.0),
        exits=np.full(count, exits, dtype=object),
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
        "TARGET_1": 6, "TARGET_2": 7, "TARGET_3": 8, "ROI": 9, "TRAIL": 10,
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
        np.full(len(at), TRAIL, dtype=object),
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


DAY = Fixed(hours=24)


def ended(exits: Exits, *path: tuple[float, ...], costs: Costs = FREE, **order: float) -> Fates:
    """What becomes of the order on these hours and quiet ones after them."""
    bars = table(*path, *[QUIET] * 30)  # type: ignore[arg-type]
    return simulate(bars, orders(exits=exits, **order), costs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exits", "path", "exit", "sold", "hours"),
    [
        pytest.param(
            DAY, [QUIET, (100, 107, 99, 105)], Exit.TARGET_1, 106.0, 2, id="a target is sold at"
        ),
        pytest.param(
            DAY, [(100, 106, 99, 105)], Exit.TARGET_1, 106.0, 1, id="touching a target is enough"
        ),
        pytest.param(
            DAY, [(100, 107, 97, 105)], Exit.STOP, 97.0, 1, id="stop before target within a bar"
        ),
        pytest.param(
            DAY,
            [QUIET, (107, 109, 96, 105)],
            Exit.STOP,
            97.0,
            2,
            id="even where the bar opens beyond the target",
        ),
        pytest.param(
            DAY,
            [QUIET, (107.5, 109, 105, 106)],
            Exit.TARGET_1,
            107.5,
            2,
            id="a gap beyond the target sells at the open",
        ),
        pytest.param(
            DAY,
            [(106.5, 107, 106, 106)],
            Exit.TARGET_1,
            106.5,
            1,
            id="an entry beyond the target is sold at once",
        ),
        pytest.param(
            DAY, [QUIET, (96, 97, 95, 96)], Exit.STOP, 96.0, 2, id="a gap through the stop"
        ),
        pytest.param(
            Fixed(hours=24, target=2),
            [(100, 107, 99, 105), (105, 109, 104, 108)],
            Exit.TARGET_2,
            108.0,
            2,
            id="the second target",
        ),
        pytest.param(DAY, [QUIET] * 3, Exit.TIME, 100.0, 24, id="and a day later the close"),
        pytest.param(
            Barrier(hours=2.5),
            [(100, 130, 99, 129), (129, 131, 120, 125), (125, 126, 121, 122)],
            Exit.TIME,
            122.0,
            3,
            id="a barrier sells at no target",
        ),
        pytest.param(
            Barrier(hours=2), [QUIET, (100, 100, 96, 99)], Exit.STOP, 97.0, 2, id="but at the stop"
        ),
        pytest.param(
            # Target 1 at 106, and half an ATR below the highest high from there on: 106 - 1 = 105.
            Trail(hours=24, atr=(0.5,), keep=0.5),
            [(100, 106, 99, 105), (106, 106, 104, 104)],
            Exit.TRAIL_1,
            105.0,
            2,
            id="a trail of other distances",
        ),
        pytest.param(
            # Target 2 is none of this trail's: from target 1 on nothing changes. 110 - 3 = 107.
            Trail(hours=24, atr=(1.5,), keep=0.0),
            [(100, 110, 99, 109), (109, 109, 106, 106)],
            Exit.TRAIL_1,
            107.0,
            2,
            id="a trail of one distance knows one target",
        ),
    ],
)
def test_declared_exits_end_an_order(
    exits: Exits, path: list[tuple[float, ...]], exit: Exit, sold: float, hours: int
) -> None:
    fates = ended(exits, *path)
    assert (Exit(fates.exit[0]), fates.sold[0]) == (exit, pytest.approx(sold))
    assert fates.exited_at[0] == START + hours * HOUR
    assert fates.net[0] == pytest.approx(5 * (sold - fates.bought[0]))


def freqtrade(**fields: object) -> Freqtrade:
    return Freqtrade.from_json({"kind": "freqtrade", "hours": 24, **fields})


ROI = {"0": 0.04, "60": 0.02, "180": 0.0}
TRAILING = {"trailing_stop": True}
POSITIVE = TRAILING | {"trailing_stop_positive": 0.01, "trailing_stop_positive_offset": 0.02}
OFFSET_ONLY = POSITIVE | {"trailing_only_offset_is_reached": True}


@pytest.mark.parametrize(
    ("fields", "path", "exit", "sold", "hours"),
    [
        pytest.param(
            {}, [QUIET, (100, 130, 97, 99)], Exit.STOP, 97.0, 2, id="the stop loss is the order's"
        ),
        pytest.param(
            {"minimal_roi": ROI},
            [(100, 105, 99, 101)],
            Exit.ROI,
            104.0,
            1,
            id="the first step of the ROI table",
        ),
        pytest.param(
            {"minimal_roi": ROI},
            [(100, 103, 99, 101), (101, 103, 100, 101)],
            Exit.ROI,
            102.0,
            2,
            id="after an hour less is enough",
        ),
        pytest.param(
            # The bar opens 60 minutes after entry: the step of 60 holds, above which it opens.
            {"minimal_roi": ROI},
            [(100, 103.5, 99, 103), (103, 103.2, 102.5, 103)],
            Exit.ROI,
            103.0,
            2,
            id="a step that is exceeded when it begins sells at the open",
        ),
        pytest.param(
            {"minimal_roi": ROI},
            [(100, 101, 98, 99)] * 3 + [(99, 100.5, 98, 99)],
            Exit.ROI,
            100.0,
            4,
            id="a ratio of 0 asks for no loss",
        ),
        pytest.param(
            # The second bar opens after 60 minutes, the third after 120.
            {"minimal_roi": {"61": 0.02}},
            [(100, 103, 99, 101), (101, 103, 100, 101), (101, 103, 100, 101)],
            Exit.ROI,
            102.0,
            3,
            id="a minute before a step begins nothing is asked",
        ),
        pytest.param(
            {"minimal_roi": {"120": -1}},
            [(100, 103, 98, 99), (99, 103, 98, 99), (98.5, 99, 98, 99)],
            Exit.ROI,
            98.5,
            3,
            id="a ratio of -1 sells at any price, and before the first step nothing is asked",
        ),
        pytest.param(
            # Of the first high 103 x 0.97 = 99.91, of the second 104 x 0.97 = 100.88.
            TRAILING,
            [(100, 103, 99.95, 102), (102, 104, 101, 103), (103, 103, 100.5, 101)],
            Exit.TRAIL,
            100.88,
            3,
            id="a trailing stop keeps the distance of the first",
        ),
        pytest.param(
            # The high of the second bar comes before its low: 104 x 0.97 = 100.88.
            TRAILING,
            [(100, 102, 99, 101), (101, 104, 100, 103)],
            Exit.TRAIL,
            100.88,
            2,
            id="a bar's own high moves its stop",
        ),
        pytest.param(
            TRAILING,
            [(100, 104, 101, 103), (100.5, 101, 100.4, 101)],
            Exit.TRAIL,
            100.5,
            2,
            id="a gap through it sells at the open",
        ),
        pytest.param(
            # It may have risen hardly at all: 97 is the worst, and it did not fall so far.
            TRAILING,
            [(100, 104, 98, 103)],
            Exit.TRAIL,
            98.0,
            1,
            id="in the bar of entry it sells as low as it may",
        ),
        pytest.param(
            # Past the offset 1 % below is enough, of which the entry is the worst: 99.
            POSITIVE,
            [(100, 104, 98, 103)],
            Exit.TRAIL,
            99.0,
            1,
            id="in the bar of entry as near as it trails",
        ),
        pytest.param(
            # It must have reached 102, of which it fell by 1 % of its entry.
            OFFSET_ONLY,
            [(100, 104, 98, 103)],
            Exit.TRAIL,
            101.0,
            1,
            id="in the bar of entry from the offset on",
        ),
        pytest.param(
            # 101.5 is below the offset: 3 % below it. 103 is above: 1 % below it, 101.97.
            POSITIVE,
            [(100, 101.5, 99, 101), (101, 103, 102, 102.5), (102.5, 102.8, 101, 101)],
            Exit.TRAIL,
            101.97,
            3,
            id="nearer once the offset is passed",
        ),
        pytest.param(
            # 101.9 x 0.97 = 98.843 would have sold.
            OFFSET_ONLY,
            [(100, 101.9, 99, 101), (101, 101, 98.5, 99), (99, 99, 97, 97.5)],
            Exit.STOP,
            97.0,
            3,
            id="with an offset alone nothing trails below it",
        ),
        pytest.param(
            # Exactly at the offset it trails, and not yet by the positive distance: 102 x 0.97.
            OFFSET_ONLY,
            [(100, 102, 99, 101), (101, 101, 98, 99)],
            Exit.TRAIL,
            98.94,
            2,
            id="at the offset as far as the first stop",
        ),
        pytest.param(
            {"minimal_roi": {"0": 0.04}} | OFFSET_ONLY,
            [(100, 103, 102, 102.5), (102.5, 106, 102, 105)],
            Exit.ROI,
            104.0,
            2,
            id="ROI before a trailing stop that was not touched",
        ),
        pytest.param(
            {"minimal_roi": {"0": 0.04}} | OFFSET_ONLY,
            [(100, 103, 102, 102.5), (102.5, 106, 101.9, 105)],
            Exit.TRAIL,
            101.97,
            2,
            id="and the trailing stop before it where both were",
        ),
    ],
)
def test_a_freqtrade_strategy_ends_an_order(
    fields: dict[str, object], path: list[tuple[float, ...]], exit: Exit, sold: float, hours: int
) -> None:
    fates = ended(freqtrade(**fields), *path)
    assert (Exit(fates.exit[0]), fates.sold[0]) == (exit, pytest.approx(sold))
    assert fates.exited_at[0] == START + hours * HOUR


def test_freqtrade_s_profit_is_after_the_fees_of_both_sides_and_slippage_comes_off_it() -> None:
    """Bought at 100, 100.1 with the fee; 4 % more is 104.104, which is left of 104.2082... after
    the fee of the sale."""
    asked = 100 * 1.001 * 1.04 / 0.999
    path = ((100, 104.2, 99, 104), (104, 104.3, 103, 104))
    fee = ended(freqtrade(minimal_roi={"0": 0.04}), *path, costs=Costs(0.001, 0.0))
    assert (fee.exit[0], fee.sold[0]) == (Exit.ROI, pytest.approx(asked))
    assert fee.exited_at[0] == START + 2 * HOUR
    assert fee.net[0] == pytest.approx(5 * 100 * 1.001 * 0.04)
    slipped = ended(freqtrade(minimal_roi={"0": 0.04}), *path, costs=Costs(0.001, 0.0005))
    assert slipped.sold[0] == pytest.approx(asked)
    paid, received = 100 * 1.0005, asked * 0.9995
    assert slipped.net[0] == pytest.approx(5 * (received - paid - 0.001 * (paid + received)))


def test_a_trailing_stop_is_as_far_as_that_of_its_order() -> None:
    """A stop at 95 is 5 % below entry: 104 x 0.95 = 98.8."""
    fates = ended(freqtrade(**TRAILING), (100, 104, 99, 102), (102, 102, 98, 98), stop=95.0)
    assert (fates.exit[0], fates.sold[0]) == (Exit.TRAIL, pytest.approx(98.8))


def test_touching_a_stop_that_trails_is_enough_and_one_that_has_not_moved_is_the_first() -> None:
    """A stop at 75 is a quarter below entry, and of 120 it is 90."""
    touched = ended(freqtrade(**TRAILING), QUIET, (100, 120, 90, 110), QUIET, stop=75.0)
    assert (touched.exit[0], touched.sold[0]) == (Exit.TRAIL, 90.0)
    assert touched.exited_at[0] == START + 2 * HOUR
    unmoved = ended(freqtrade(**TRAILING), (100, 100, 99, 100), (80, 80, 70, 72), stop=75.0)
    assert (unmoved.exit[0], unmoved.sold[0]) == (Exit.STOP, 75.0)


def test_excursions_of_a_target_end_at_it_and_take_the_worst_of_its_bar() -> None:
    fates = ended(DAY, (100, 103, 98.5, 102), (102, 109, 98, 108))
    assert (fates.exit[0], fates.highest[0]) == (Exit.TARGET_1, 106.0)
    assert (fates.mae[0], fates.mfe[0]) == (pytest.approx(-10.0), pytest.approx(30.0))
    gap = ended(DAY, (100, 103, 98.5, 102), (107, 109, 98, 108))
    assert (gap.mae[0], gap.mfe[0]) == (pytest.approx(-7.5), pytest.approx(35.0))
    at_it = ended(DAY, (100, 103, 98.5, 102), (106, 109, 98, 108))
    assert (at_it.mae[0], at_it.mfe[0]) == (pytest.approx(-7.5), pytest.approx(30.0))


def test_orders_of_different_exits_are_each_followed_by_their_own() -> None:
    bars = random_walk(900)
    walk = many(bars)
    kinds: list[Exits] = [TRAIL, DAY, Barrier(hours=3), freqtrade(minimal_roi=ROI), REPORTED]
    mixed = replace(walk, exits=np.array([kinds[n % 5] for n in range(len(walk))]))
    followed = mixed.only(np.arange(len(walk)) % 5 != 4)
    together = simulate(bars, followed)
    for number, exits in enumerate(kinds[:4]):
        rows = np.arange(number, len(walk), 5)
        alone = simulate(bars, replace(walk.at(rows), exits=np.full(len(rows), exits, object)))
        for name, values in vars(alone).items():
            np.testing.assert_array_equal(getattr(together, name)[rows], values)
    with pytest.raises(ValueError, match="exits must be declared"):
        simulate(bars, mixed)


def test_only_the_trail_needs_an_atr() -> None:
    for exits in (DAY, Barrier(hours=1), freqtrade()):
        order = orders(exits=exits)
        order.atr[:] = np.nan
        assert simulate(table(*[QUIET] * 30), order).row(0) is not None
    order = orders()
    order.atr[:] = np.nan
    with pytest.raises(ValueError, match="every ATR"):
        simulate(table(*[QUIET] * 30), order)


@pytest.mark.parametrize("exits", [DAY, freqtrade(minimal_roi=ROI, **OFFSET_ONLY)])
def test_no_exits_make_money_from_a_fair_game(exits: Exits) -> None:
    means = []
    for seed in range(8):
        bars = random_walk(3000, seed)
        walk = many(bars)
        walk = replace(walk, exits=np.full(len(walk), exits, object))
        means.append(float(np.nanmean(simulate(bars, walk, FREE).net / walk.plan_risk)))
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 3 * error + 0.02
