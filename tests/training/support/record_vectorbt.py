"""Records what vectorbt makes of a list of orders: `python
tests/training/support/record_vectorbt.py FILE`.

Needs vectorbt in an environment of its own; nothing of this project is imported. Two symbols share
the cash. Every hourly bar becomes two rows, its open and its close, since a trade may enter at the
open and leave within the same bar. Which orders are taken (at most two trades, one per symbol) is
decided here by a plain loop; vectorbt does the money.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import vectorbt

HOURS, CAPITAL, FEE, SLIPPAGE, START, HOUR = 160, 1000.0, 0.001, 0.0005, 1_609_459_200, 3600


def market(source: np.random.Generator) -> list[dict[str, list[float]]]:
    """Two symbols with gaps between bars, prices rounded so that the file stays small."""
    symbols = []
    for first in (100.0, 20.0):
        closes = first * np.exp(np.cumsum(source.normal(0, 0.01, HOURS)))
        opens = np.concatenate([[first], closes[:-1]]) * np.exp(source.normal(0, 0.002, HOURS))
        symbols.append({"open": np.round(opens, 4).tolist(), "close": np.round(closes, 4).tolist()})
    return symbols


def orders(
    source: np.random.Generator, symbols: list[dict[str, list[float]]]
) -> list[dict[str, Any]]:
    """Wishes in order of entry; some overlap, some ask for more than the cash can pay."""
    found = []
    for hour in range(HOURS - 8):
        if source.random() < 0.35:
            symbol, length = int(source.integers(2)), int(source.integers(0, 7))
            bought, left = symbols[symbol]["open"][hour], symbols[symbol]["close"][hour + length]
            sold = round(left * float(np.exp(source.normal(0, 0.003))), 4)
            quantity = round(float(source.uniform(100, 900)) / bought, 4)
            one = {"symbol": symbol, "hour": hour, "length": length, "bought": bought, "sold": sold}
            found.append(one | {"quantity": quantity})
    return found


def taken(wishes: list[dict[str, Any]]) -> list[int]:
    """At most two trades, one per symbol; a trade that leaves in a bar makes room at the next
    open."""
    until, accepted = {0: -1, 1: -1}, []
    for number, wish in enumerate(wishes):
        if until[wish["symbol"]] < wish["hour"]:
            until[wish["symbol"]] = wish["hour"] + wish["length"]
            accepted.append(number)
    return accepted


def main() -> None:
    """Run and write."""
    source = np.random.default_rng(7)
    symbols = market(source)
    wishes = orders(source, symbols)
    accepted = taken(wishes)
    price = np.stack([np.column_stack([s["open"], s["close"]]).ravel() for s in symbols], axis=1)
    size, at = np.full_like(price, np.nan), price.copy()
    for number in accepted:
        wish = wishes[number]
        enter, leave = 2 * wish["hour"], 2 * (wish["hour"] + wish["length"]) + 1
        size[enter, wish["symbol"]], at[enter, wish["symbol"]] = wish["quantity"], wish["bought"]
        size[leave, wish["symbol"]], at[leave, wish["symbol"]] = -np.inf, wish["sold"]
    portfolio = vectorbt.Portfolio.from_orders(
        price,
        size,
        price=at,
        fees=FEE,
        slippage=SLIPPAGE,
        init_cash=CAPITAL,
        direction="longonly",
        cash_sharing=True,
        group_by=True,
        freq="30m",
    )
    trades = portfolio.trades.records_readable.sort_values(["Entry Timestamp", "Column"])
    document = {
        "made_with": f"vectorbt {vectorbt.__version__}",
        "begins_at": START,
        "seconds": HOUR,
        "capital": CAPITAL,
        "fee": FEE,
        "slippage": SLIPPAGE,
        "symbols": symbols,
        "orders": wishes,
        "taken": accepted,
        "quantity": trades["Size"].tolist(),
        "pnl": trades["PnL"].tolist(),
        "equity": portfolio.value().to_numpy()[1::2].tolist(),
    }
    Path(sys.argv[1]).write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
