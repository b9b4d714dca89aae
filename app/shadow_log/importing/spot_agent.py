"""The Spot AI Agent's CSV files: trades, audit of every candidate, rejected trades. None of them
has stop, targets and ATR: bars give them, by the agent's own rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shadow_advisor_client.adapters.freqtrade.request import session_of
from shadow_advisor_client.adapters.spot_ai_agent import (
    SETUPS,
    SNAPSHOT,
    code_of,
    confidence_share,
)

from app.shadow_log.importing.rows import ImportFault, rows_of
from app.shadow_log.importing.trade import Source, Told
from app.shadow_log.importing.values import flag, moment, number

TRADE = {"entry_time", "exit_time", "outcome"}
AUDIT = {"ts", "final_skip_reason"}
REJECTION = {"timestamp", "symbol", "reason"}
NUMBERS = (
    *SNAPSHOT,
    "score",
    "confidence",
    "order_imbalance",
    "btc_dominance",
    "fear_greed",
    "sentiment_confidence",
    "di_plus",
    "di_minus",
)
"""Columns that have the candidate's name; no file has all of them."""
RENAMED = {"rsi_14": "rsi", "adx_14": "adx", "atr_percentile": "volatility_pct"}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one of the agent's files. Raises `ImportFault` for another one."""
    for row in rows_of(path):
        if not any(row.keys() >= columns for columns in (TRADE, AUDIT, REJECTION)):
            raise ImportFault(
                f"{path}: has neither the columns of its trades ({', '.join(sorted(TRADE))})"
                " nor those of its audit or its rejected trades; a mapping file reads any other"
            )
        yield row


def _told(row: Mapping[str, Any]) -> Told | None:
    if row.get("symbol") is None:
        return None
    if row.keys() >= TRADE:
        return _trade(row)
    return _audited(row) if row.keys() >= AUDIT else _rejected(row)


def _trade(row: Mapping[str, Any]) -> Told | None:
    begin, end = moment(row["entry_time"]), moment(row["exit_time"])
    entry = number(row, "entry")
    if begin is None or end is None or entry is None or end < begin:
        return None
    notional = number(row, "notional", "size") or 0.0
    quantity, told = notional / entry, str(row["outcome"])
    fees, slippage = (number(row, name, f"{name}_usdt") for name in ("fees", "slippage"))
    action = {
        "decision": True,
        "decided_at": begin,
        "llm_approval": flag(row.get("llm_approval")),
        "llm_confidence": confidence_share(number(row, "llm_confidence")),
        "llm_error": _text(row, "llm_error"),
        "reason": _text(row, "narrative"),
        "entry": entry,
        "size_usd": notional,
        "quantity": quantity,
        "take_profit_strategy": _text(row, "take_profit_strategy"),
    }
    outcome = {
        "arm": "agent",
        "outcome": code_of(told),
        "exit_time": end,
        "exit_price": number(row, "exit") or None,
        "exit_reason": _text(row, "exit_reason") or told,
        "fees": fees,
        "slippage": slippage,
        "net_pnl": number(row, "net_pnl", "pnl"),
        "pnl_pct": number(row, "pnl_pct"),
        "max_price": number(row, "max_price") or None,
        "holding_seconds": (end - begin).total_seconds(),
        "extra": {"outcome": told, "trade_id": _text(row, "trade_id")},
    }
    volatility = number(row, "volatility")
    candidate = _candidate(row, begin) | {
        # 0-100 in this file, 0-1 everywhere else.
        "volatility_pct": None if volatility is None else volatility / 100,
        "htf_trend_pct": number(row, "htf_trend"),
    }
    plan = {"entry": entry, "quantity": quantity}
    return Told(str(row["symbol"]).upper(), "long", begin, action, outcome, candidate, plan)


def _audited(row: Mapping[str, Any]) -> Told | None:
    at = moment(row["ts"])
    if at is None or not flag(row.get("selected_for_candidate_list")):
        return None
    if flag(row.get("final_trade_taken")):
        return None  # The file of trades has it, with what became of it.
    reason = _text(row, "final_skip_reason") or "not told"
    action = {"decision": False, "final_skip_reason": reason[:200], "reason": reason}
    candidate = _candidate(row, at) | {"tier": _text(row, "tier")}
    return Told(str(row["symbol"]).upper(), "long", at, action, None, candidate)


def _rejected(row: Mapping[str, Any]) -> Told | None:
    at = moment(row["timestamp"])
    if at is None:
        return None
    reason = str(row["reason"])
    action = {"decision": False, "final_skip_reason": reason[:200], "reason": reason}
    candidate = {"session": session_of(at), "setup_type": "none"}
    return Told(str(row["symbol"]).upper(), "long", at, action, None, candidate)


def _candidate(row: Mapping[str, Any], at: Any) -> dict[str, Any]:
    setup = row.get("setup_type") or row.get("setup_type_base")
    bias, auction = row.get("sentiment_bias"), row.get("auction_state")
    return {
        **{name: number(row, name) for name in NUMBERS},
        **{ours: number(row, theirs) for theirs, ours in RENAMED.items()},
        "spoofing_alert": flag(row.get("spoofing_alert")),
        "session": row.get("session") or session_of(at),
        "setup_type": setup if setup in SETUPS else "none",
        "pattern": _text(row, "pattern"),
        "auction_state": auction or "unknown",
        "sentiment_bias": bias if bias in ("bullish", "neutral", "bearish") else None,
        "news_severity": number(row, "news_severity"),
        "news_summary": _text(row, "news_summary"),
    }


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return None if value is None else str(value)


SPOT_AGENT = Source("spot-ai-agent", _rows, _told)
