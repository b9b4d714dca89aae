"""What a run prints, worked out by hand."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from training.live.paper.books import Book, Trade
from training.live.paper.tables import books
from training.outcomes.orders import Order


def closed(symbol: str, net: float) -> Trade:
    order = Order(symbol, 0, 100.0, 98.0, (102.0,), 1.0, 1.0, 2.0)
    return Trade(order, 3600, net, {"net_pnl": net})


def test_money_is_summed_by_the_currency_that_is_paid_with() -> None:
    """Euros and dollars do not add up; a symbol that names none says so."""
    agent, advice = Book(), Book()
    agent.trades.extend([closed("BTCUSDT", 3.0), closed("BTC/EUR", -1.0), closed("ETHUSDT", -5.0)])
    advice.trades.extend([closed("XYZ", 2.0)])
    console = Console(width=100, record=True, file=StringIO())
    console.print(books(agent, advice))
    rows = {
        name.strip(): values.split()
        for name, _, values in (
            line.strip().partition("  ") for line in console.export_text().splitlines()
        )
    }
    assert rows["P&L, USDT"] == ["-2.00", "+0.00"]
    assert rows["P&L, EUR"] == ["-1.00", "+0.00"]
    assert rows["P&L, quote currency"] == ["+0.00", "+2.00"]
    assert rows["deepest drawdown, USDT"] == ["5.00", "0.00"]
