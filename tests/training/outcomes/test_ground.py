"""Which bars judge a decision is settled once; every order that answers it is followed on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from app.domain.exits import REPORTED, TRAIL, Barrier
from tests.training.support.candles import HOUR, START, table
from training.market.bars import Bars
from training.outcomes.ground import Exclusion, Ground
from training.outcomes.orders import Orders
from training.outcomes.simulate import Costs, Exit

FREE = Costs(0.0, 0.0)
QUIET = (100, 101, 99, 100)
BOTH = (100, 111, 96, 110)
"""Touches stop and targets: which came first, only finer bars tell."""


def bars(first: tuple[float, ...], symbol: str, seconds: int = HOUR) -> Bars:
    rows = [first, *[QUIET] * (8 * HOUR // seconds)]
    return replace(table(*rows, seconds=seconds), symbol=symbol)  # type: ignore[arg-type]


def plans(*symbols: str) -> Orders:
    """At START: entry 100, stop 97, targets 106, 108, 110, ATR 2, 5 units."""
    count = len(symbols)
    return Orders(
        np.array(symbols),
        np.full(count, START),
        np.full(count, 100.0),
        np.full(count, 97.0),
        np.tile([106.0, 108.0, 110.0], (count, 1)),
        np.full(count, 2.0),
        np.full(count, 5.0),
        np.full(count, 15.0),
        np.full(count, TRAIL, dtype=object),
    )


SERIES = {
    "BTCUSDT": (bars(BOTH, "BTCUSDT"), bars((100, 111, 99, 110.5), "BTCUSDT", seconds=1800)),
    "ETHUSDT": (bars(BOTH, "ETHUSDT"),),
}


def test_each_decision_has_its_own_symbols_finest_bars() -> None:
    ground = Ground.of(SERIES, plans("ETHUSDT", "BTCUSDT", "XRPUSDT", "BTCUSDT"))
    assert ground.excluded.tolist() == ["", "", Exclusion.NO_BARS, ""]
    assert ground.resolution.tolist() == [HOUR, 1800, 0, 1800]
    fates = ground.follow(plans("ETHUSDT", "BTCUSDT", "XRPUSDT", "BTCUSDT"), FREE)
    assert fates.exit.tolist() == [Exit.STOP, Exit.TRAIL_3, Exit.UNRESOLVED, Exit.TRAIL_3]


def test_bars_judge_a_symbol_however_it_is_spelt() -> None:
    ground = Ground.of(SERIES, plans("ETH/USDT", "btc-usdt", "BTC/EUR"))
    assert ground.excluded.tolist() == ["", "", Exclusion.NO_BARS]


def test_many_orders_may_answer_one_decision_and_are_judged_on_its_bars() -> None:
    decided = plans("ETHUSDT", "BTCUSDT")
    ground = Ground.of(SERIES, decided)
    which = np.array([1, 0, 0, 1, 0])
    answers = replace(decided.at(which), stop=np.array([97.0, 97.0, 95.0, 95.5, 97.0])).only(
        np.array([True, True, True, True, False])
    )
    fates = ground.follow(answers, FREE, which)
    # On hours: the stop at 97 is touched, the one at 95 is not, and then 75 % of 11 is kept.
    assert fates.exit.tolist() == [
        Exit.TRAIL_3, Exit.STOP, Exit.TRAIL_3, Exit.TRAIL_3, Exit.UNRESOLVED,
    ]  # fmt: skip
    assert fates.net[1] == -15.0
    assert np.isnan(fates.net[4])


def test_each_plan_is_judged_as_far_as_its_own_exits_reach() -> None:
    """Nine hours of bars, the third of them without a trade."""
    whole = bars(QUIET, "ETHUSDT")
    empty = replace(whole, volume=np.where(np.arange(len(whole)) == 2, 0.0, whole.volume))
    decided = plans(*["ETHUSDT"] * 5)
    kinds = [Barrier(hours=2), Barrier(hours=3), Barrier(hours=9), Barrier(hours=10), REPORTED]
    declared = replace(decided, exits=np.array(kinds))
    ground = Ground.of({"ETHUSDT": [empty]}, declared)
    assert ground.excluded.tolist() == [
        "",
        Exclusion.NO_VOLUME,
        Exclusion.NO_VOLUME,
        Exclusion.UNRESOLVED,
        Exclusion.REPORTED_ONLY,
    ]
    rising = replace(whole, high=whole.high + np.arange(len(whole)))
    ground = Ground.of({"ETHUSDT": [rising]}, declared)
    assert ground.range_of(declared)[:3].tolist() == [3.0, 4.0, 10.0]


def test_labels_need_an_atr_whatever_the_exits() -> None:
    decided = plans("ETHUSDT")
    blind = replace(decided, atr=np.array([np.nan]), exits=np.array([Barrier(hours=2)]))
    assert Ground.of(SERIES, blind).excluded.tolist() == [Exclusion.NOT_A_LONG_ORDER]
