"""An account that trades one order at a time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.domain.agent_action import Arm, OutcomeCode
from tests.training.candles import HOUR, START, table
from training.books import Book, Trade, follow, outcome


def trade(net: float, opened: int = START, hours: float = 1) -> Trade:
    return Trade("BTCUSDT", 0.01, 100.0, 97.0, opened, opened + int(hours * HOUR), net, net / 3, {})


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
    ended = follow(bars, START, 100.0, 97.0, (106.0, 108.0, 110.0), 2.0, quantity=5.0)
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


def test_a_rejection_is_an_outcome_of_zero_and_the_unresolved_is_none() -> None:
    rejected = outcome(None, Arm.ADVICE, "v1", traded=False)
    assert rejected is not None
    assert (rejected.outcome, rejected.r_multiple, rejected.net_pnl) == (OutcomeCode.NOT_TRADED, 0.0, 0.0)
    open_still = follow(table((100, 101, 99, 100)), START, 100.0, 97.0, (106.0, 108.0, 110.0), 2.0, 1.0)
    assert open_still.exited_at is None
    assert outcome(open_still, Arm.AGENT, None, traded=True) is None
