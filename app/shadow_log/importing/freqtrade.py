"""Freqtrade's trades: its database, an export of a back-test (JSON, or the archive with it), or a
table with the columns of either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadow_advisor_client.adapters.freqtrade.request import (
    Exits,
    closed,
    entered,
    session_of,
    symbol_of,
)

from app.domain.errors import InvalidRecord
from app.shadow_log.importing.rows import SQLITE, document_in, rows_of, sqlite_rows
from app.shadow_log.importing.trade import Source, Told
from app.shadow_log.importing.values import flag, moment, number

QUERY = """
SELECT trades.*, (
    SELECT count(*) FROM orders
    WHERE orders.ft_trade_id = trades.id AND orders.ft_order_side = CASE
        WHEN trades.is_short THEN 'sell' ELSE 'buy' END AND orders.filled > 0
) AS nr_of_successful_entries
FROM trades ORDER BY open_date
"""


def freqtrade(exits: Exits | None) -> Source:
    """Its files. `exits` are the strategy's, where a file does not tell them."""
    return Source("freqtrade", _rows, lambda found: _told(found[0], found[1] or exits))


def _rows(path: Path) -> Iterator[tuple[Mapping[str, Any], Exits | None]]:
    ending = path.suffix.lstrip(".").lower()
    if ending in SQLITE:
        yield from ((row, None) for row in sqlite_rows(path, QUERY))
        return
    document = document_in(path) if ending in ("json", "zip") else None
    if not isinstance(document, dict) or "strategy" not in document:
        yield from ((row, None) for row in rows_of(path))
        return
    for result in document["strategy"].values():
        declared = Exits(result["stoploss"], result.get("minimal_roi") or {})
        yield from ((row, declared) for row in result["trades"])


def _told(row: Mapping[str, Any], exits: Exits | None) -> Told | None:
    begin, end = (
        moment(row.get(f"{name}_timestamp")) or moment(row.get(f"{name}_date"))
        for name in ("open", "close")
    )
    if begin is None or end is None or flag(row.get("is_open")) or row.get("pair") is None:
        return None
    if not (number(row, "open_rate") and number(row, "amount")):
        raise InvalidRecord("open_rate and amount: a trade has both")
    trade = SimpleNamespace(
        id=row.get("id") or row.get("trade_id"),
        is_short=bool(flag(row.get("is_short"))),
        open_rate=number(row, "open_rate"),
        amount=number(row, "amount"),
        stake_amount=number(row, "stake_amount"),
        leverage=number(row, "leverage") or 1.0,
        open_date_utc=begin,
        min_rate=number(row, "min_rate"),
        max_rate=number(row, "max_rate"),
        exit_reason=row.get("exit_reason") or row.get("sell_reason"),
        fee_open=number(row, "fee_open"),
        fee_close=number(row, "fee_close"),
        funding_fees=number(row, "funding_fees"),
        nr_of_successful_entries=row.get("nr_of_successful_entries") or len(row.get("orders", "1")),
    )
    side = "short" if trade.is_short else "long"
    stop = number(row, "initial_stop_loss_abs", "initial_stop_loss")
    action = entered(exits or Exits(-1.0, {}), trade) | {"stop": stop or _stop(exits, trade, side)}
    targets = [exits.target(trade.open_rate, side, trade.leverage)] if exits else None
    profit = number(row, "profit_abs", "close_profit_abs")
    outcome = closed(
        Exits(-1.0, {}), trade, number(row, "close_rate") or trade.open_rate, profit or 0.0, end
    )
    return Told(
        symbol_of(str(row["pair"])),
        side,
        begin,
        action | {"targets": targets or []},
        # Excursions are over the risk, which is known where the stop is.
        outcome
        | ({} if profit is not None else {"net_pnl": None, "pnl_pct": None})
        | _excursions(trade, action["stop"]),
        {"session": session_of(begin), "setup_type": "none", "enter_tag": row.get("enter_tag")},
        {
            "entry": trade.open_rate,
            "stop": action["stop"],
            "targets": targets,
            "quantity": trade.amount,
        },
    )


def _stop(exits: Exits | None, trade: Any, side: str) -> float | None:
    return exits.stop(trade.open_rate, side, trade.leverage) if exits else None


def _excursions(trade: Any, stop: float | None) -> dict[str, float | None]:
    """Best and worst move over the distance of the stop."""
    if stop is None or not trade.min_rate or not trade.max_rate or stop == trade.open_rate:
        return {"mae_r": None, "mfe_r": None}
    distance = abs(trade.open_rate - stop) * (-1 if trade.is_short else 1)
    moves = [(price - trade.open_rate) / distance for price in (trade.min_rate, trade.max_rate)]
    return {"mae_r": min(0.0, *moves), "mfe_r": max(0.0, *moves)}
