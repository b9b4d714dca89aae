"""The bot's account, trade by trade."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from shadow_advisor_client.adapters.freqtrade.book import Book

DAY = datetime(2024, 3, 1, tzinfo=timezone.utc)


def test_a_new_book_knows_no_loss() -> None:
    assert Book().account(1000.0, DAY) == {
        "equity": 1000.0,
        "day_pnl_fraction": 0.0,
        "drawdown_fraction": 0.0,
        "consecutive_losses": 0,
        "seconds_since_loss": None,
    }


def test_losses_in_a_row_the_day_and_the_fall_from_the_peak() -> None:
    book = Book()
    book.close(100.0, DAY - timedelta(hours=2))
    book.close(-30.0, DAY + timedelta(hours=1))
    book.close(-20.0, DAY + timedelta(hours=2))
    # 1000 + 100 - 50: today began with 1100, which was the peak.
    account = book.account(1050.0, DAY + timedelta(hours=3))
    assert account["day_pnl_fraction"] == pytest.approx(-50 / 1100)
    assert account["drawdown_fraction"] == pytest.approx(50 / 1100)
    assert (account["consecutive_losses"], account["seconds_since_loss"]) == (2, 3600)
    assert book.account(1050.0, DAY + timedelta(days=1))["day_pnl_fraction"] == 0.0
    book.close(1.0, DAY + timedelta(hours=4))
    assert book.account(1051.0, DAY + timedelta(hours=4))["consecutive_losses"] == 0


def test_an_account_without_money_claims_no_fractions() -> None:
    assert Book().account(0.0, DAY) == {"consecutive_losses": 0}
