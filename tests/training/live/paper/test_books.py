"""An account that trades one order at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any

import numpy as np
import pytest

from app.domain.record.outcome import Arm, OutcomeCode
from tests.training.support.candles import HOUR, START, table
from training.live.paper.books import Book, Trade, follow, follow_all, never_filled, outcome
from training.market.bars import Bars
from training.outcomes.orders import Order


def trade(net: float, opened: int = START, hours: float = 1) -> Trade:
    return Trade(order(opened, 0.01), opened + int(hours * HOUR), net, {})


def order(as_of: int = START, quantity: float = 1.0, **changes: Any) -> Order:
    """Long at 100, stop 97, targets 106, 108 and 110, ATR 2: the agent's plan."""
    targets = (106.0, 108.0, 110.0)
    return Order("BTCUSDT", as_of, 100.0, 97.0, targets, 2.0, quantity, 3 * quantity)._replace(
        **changes
    )


def test_the_account_follows_what_has_ended_by_now() -> None:
    book = Book()
    midnight = START + 24 * HOUR
    for net, opened in ((100.0, START), (-50.0, START + 3 * HOUR), (-30.0, midnight + HOUR)):
        book.take(trade(net, opened))
        during = book.account(opened)
        assert [p.symbol for p in during.positions or ()] == ["BTCUSDT"]
        book.settle(opened + HOUR - 1)
        assert not book.flat
        book.settle(opened + HOUR)
        assert book.flat
    account = book.account(midnight + 4 * HOUR)
    assert account.equity == 10_020.0
    assert account.day_pnl_fraction == pytest.approx(-30 / 10_050)
    assert account.drawdown_fraction == pytest.approx(80 / 10_100)
    assert account.consecutive_losses == 2
    assert account.seconds_since_loss == 2 * HOUR
    assert account.positions == ()


def test_a_win_ends_a_run_of_losses() -> None:
    book = Book()
    for n, net in enumerate((-1.0, -1.0, 2.0)):
        book.take(trade(net, START + n * 2 * HOUR))
        book.settle(START + n * 2 * HOUR + HOUR)
    assert book.account(START + 10 * HOUR).consecutive_losses == 0


def test_a_second_trade_at_a_time_is_refused() -> None:
    book = Book()
    book.take(trade(1.0))
    with pytest.raises(ValueError, match="BTCUSDT is still open"):
        book.take(trade(1.0))


def test_an_order_is_followed_and_told_in_the_words_of_an_outcome() -> None:
    bars = table((100, 101, 99, 100), (99, 100, 96, 97), *[(97, 98, 96, 97)] * 6)
    ended = follow(bars, order(quantity=5.0))
    assert ended.exited_at == START + 2 * HOUR
    # Bought at 100.05, sold at 96.9515, fees 0.001 x 197.0015: net -3.2955015 a unit.
    assert ended.net == pytest.approx(-16.4775075)
    assert ended.r == pytest.approx(-1.0985005)
    told = outcome(ended, Arm.ADVICE, "v1", traded=True)
    assert told is not None
    assert told.outcome is OutcomeCode.SL
    assert told.exit_time == datetime.fromtimestamp(START + 2 * HOUR, UTC)
    assert told.exit_price == 97.0
    assert told.net_pnl == pytest.approx(-16.4775075)
    assert told.pnl_pct == pytest.approx(-3.2955015)
    assert (told.mae_r, told.mfe_r) == (pytest.approx(-1.0), pytest.approx(1 / 3))
    assert told.holding_seconds == 2 * HOUR


def test_an_advised_order_counts_in_r_of_the_agents_plan_and_reports_its_own_risk() -> None:
    """A quarter of the plan's risk of 15: 1.25 units from 100 to 97, own risk 3.75."""
    bars = table((100, 101, 99, 100), (99, 100, 96, 97), *[(97, 98, 96, 97)] * 6)
    ended = follow(bars, order(quantity=1.25, plan_risk=15.0))
    assert ended.net == pytest.approx(-4.119376875)
    assert ended.r == pytest.approx(-4.119376875 / 15)
    told = outcome(ended, Arm.ADVICE, "v1", traded=True)
    assert told is not None
    assert told.r_multiple == pytest.approx(-4.119376875 / 3.75)


def test_a_rejection_is_an_outcome_of_zero_and_the_unresolved_is_none() -> None:
    rejected = outcome(None, Arm.ADVICE, "v1", traded=False)
    assert rejected is not None
    assert (rejected.outcome, rejected.r_multiple, rejected.net_pnl) == (
        OutcomeCode.NOT_TRADED,
        0.0,
        0.0,
    )
    open_still = follow(table((100, 101, 99, 100)), order())
    assert open_still.exited_at is None
    assert outcome(open_still, Arm.AGENT, None, traded=True) is None


def test_orders_followed_together_fare_as_each_alone() -> None:
    bars = table(*[(100, 101, 99, 100)] * 3, *[(100, 107, 99.5, 104), (104, 104, 95, 96)] * 6)
    orders = [order(START + n * HOUR, quantity=n + 1.0) for n in range(9)]
    assert follow_all(bars, orders) == [follow(bars, each) for each in orders]


def test_a_plan_with_one_target_trails_from_it_and_no_further() -> None:
    """Target 1 at 103: the high of 106 passes it, not the targets that are not there; stop 106 -
    1.5 x 2 = 103, and no lower than 100 + 75 % of 6 = 104.5. The next bar falls through 104.5."""
    bars = table((100, 106, 99, 105), (105, 105, 100, 101), *[(101, 101, 100, 101)] * 6)
    told = outcome(follow(bars, order(targets=(103.0, inf, inf))), Arm.AGENT, None, traded=True)
    assert told is not None
    assert (told.exit_reason, told.exit_price) == ("trail_1", 104.5)


def test_an_order_without_an_entry_bar_is_never_filled_and_known_to_be_so_after_eight_hours() -> (
    None
):
    bars = table(*[(100, 101, 99, 100)] * 10, skip=3)
    unfilled = follow(bars, order())
    assert unfilled.exited_at is None
    assert not never_filled(bars, unfilled, START + 8 * HOUR - 1)
    assert never_filled(bars, unfilled, START + 8 * HOUR)
    assert not never_filled(bars.part(0, 3), unfilled, START + 20 * HOUR)
    assert not never_filled(bars, follow(bars, order(START + 3 * HOUR)), START + 20 * HOUR)


def test_a_book_learns_how_its_open_trade_ended_and_takes_back_one_that_was_never_filled() -> None:
    book, still_open = Book(), trade(0.0)._replace(exited_at=None)
    book.take(still_open)
    book.learn(trade(5.0, START + HOUR))
    assert book.trades == [still_open], "another trade's end is none of its business"
    book.learn(trade(5.0))
    book.settle(START + HOUR)
    assert (book.flat, book.equity, book.trades) == (True, 10_005.0, [trade(5.0)])
    book.take(still_open)
    book.cancel(still_open)
    assert (book.flat, book.trades) == (True, [trade(5.0)])


def holed(hours: int) -> Bars:
    """Quiet bars, then so many hours without any, then a market three times as high."""
    bars = table(*[(100, 101, 99, 100)] * 3, *[(300, 301, 299, 300)] * 8)
    later = np.where(np.arange(len(bars)) < 3, 0, hours * HOUR)
    return replace(bars, closed_at=bars.closed_at + later)


def test_a_trade_across_an_outage_has_no_end_that_anybody_knows() -> None:
    """Bought at 100, held for 38 hours in which nobody could sell, marked at 300: no 66 R."""
    bars = holed(38)
    across = follow(bars, order())
    assert (across.exited_at, across.outcome) == (None, None)
    assert never_filled(bars, across, START + 60 * HOUR)
    assert follow(holed(0), order()).exited_at is not None
    stopped = replace(bars, low=np.where(np.arange(len(bars)) == 1, 96.0, bars.low))
    assert follow(stopped, order()).net < 0, "it ended before the outage"


def test_a_trade_in_bars_without_trades_or_of_another_market_is_none() -> None:
    bars = holed(0)
    still = replace(bars, volume=np.where(np.arange(len(bars)) == 2, 0.0, bars.volume))
    assert follow(still, order()).exited_at is None
    elsewhere = order(entry=130.0, stop=120.0)
    assert follow(bars, elsewhere).exited_at is None
