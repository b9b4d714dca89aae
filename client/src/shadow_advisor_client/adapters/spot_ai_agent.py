"""The Spot AI Agent with a shadow advisor: nine lines of the agent.

In agent.py:

```python
from shadow_advisor_client.adapters.spot_ai_agent import shadow_at   # with the imports
shadow = shadow_at("http://127.0.0.1:8321")                          # below them
shadow.considers(locals())         # before pending_trade_contexts.append(context)
shadow.checked(risk_payload)       # after run_pretrade_risk_check
shadow.opens(new_trade)            # before create_new_trade
shadow.decided(row)                # in _audit_finalize, before log_signal_audit(row)
```

In trade_manager.py the same import and object, and in `execute_exit_trade`:

```python
shadow.closed(trade)               # after log_trade_result
```

The agent's names are read as they are at commit 5af6208. Whatever one of them lacks is left out;
nothing raises into the agent.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, TypeVar

from shadow_advisor_client import AdvisorClient

log = logging.getLogger("advisor.spot_ai_agent")
DECISION = "shadow_advisor_decision"
"""Where the id of a decision is kept with its trade: the agent stores its trades."""
REMEMBERED = 1000
LONGEST_TEXT = 2000
STOP_ATR = 1.5
TARGETS_ATR = (3.0, 4.0, 5.0)
ATR_FALLBACK = 0.02
SIZES = ((8.5, 500.0), (6.5, 450.0), (-math.inf, 400.0))
"""Confidence from which a trade is so large, in USDT."""
SETUPS = frozenset({"trend", "mean_reversion", "counter_trend"})
CODES = {"trailing_stop": "trailing_sl"}
"""Its further word for a code of ours; the service keeps any other as it is."""
SNAPSHOT = (
    "normalized_score_pre_macro",
    "score_after_profile",
    "trend_norm",
    "mean_rev_norm",
    "activation_threshold",
    "macro_score_adjustment",
    "hurst",
    "order_flow_score",
    "order_flow_flag",
    "cvd",
    "cvd_change",
    "cvd_divergence",
    "cvd_absorption",
    "cvd_accumulation",
    "taker_buy_ratio",
    "trade_imbalance",
    "aggressive_trade_rate",
    "spoofing_intensity",
    "spoofing_alert",
    "volume_ratio",
    "price_change_pct",
    "spread_bps",
)
"""Fields that the agent's signal snapshot has under their own names, and its files too."""
Returned = TypeVar("Returned")


def _harmless(method: Callable[..., Returned]) -> Callable[..., Returned | None]:
    """What fails in here is logged, and the agent goes on."""

    @functools.wraps(method)
    def guarded(*arguments: Any, **keywords: Any) -> Returned | None:
        try:
            return method(*arguments, **keywords)
        except Exception:
            log.warning("the shadow advisor failed in %s", method.__name__, exc_info=True)
            return None

    return guarded


class Shadow:
    """Asks about what the agent considers, and reports what it did."""

    def __init__(self, client: AdvisorClient) -> None:
        self.client = client
        self._considered: OrderedDict[str, _Considered] = OrderedDict()

    @_harmless
    def considers(self, names: Mapping[str, Any]) -> None:
        """A candidate reached its decision: `locals()` of the agent's loop."""
        # The agent writes whole seconds: no trade of its may end before its decision.
        request = request_of(names, datetime.now(timezone.utc).replace(microsecond=0))
        symbol = str(request["candidate"]["symbol"])
        self._considered[symbol] = _Considered(self.client.submit(request))
        if len(self._considered) > REMEMBERED:
            self._considered.popitem(last=False)

    @_harmless
    def checked(self, risk_payload: Mapping[str, Any]) -> None:
        """The agent's own risk veto was asked."""
        if considered := self._considered.get(str(risk_payload["symbol"]).upper()):
            considered.extra = {
                "final_confidence": risk_payload.get("confidence"),
                "ml_probability": risk_payload.get("ml_probability"),
            }

    @_harmless
    def opens(self, trade: dict[str, Any]) -> None:
        """A trade is about to be opened."""
        if considered := self._considered.get(str(trade["symbol"]).upper()):
            trade[DECISION] = considered.decision_id
            considered.action = opened(trade)

    @_harmless
    def decided(self, row: Mapping[str, Any]) -> None:
        """The last word on a candidate: its row of the agent's audit."""
        considered = self._considered.pop(str(row.get("symbol", "")).upper(), None)
        if considered is None:
            return
        action = considered.action if row.get("final_trade_taken") else rejected(row)
        extra = {**considered.extra, **(action or {}).get("extra", {})}
        self.client.report_action(
            considered.decision_id, {**(action or {"decision": True}), "extra": extra}
        )

    @_harmless
    def closed(self, trade: Mapping[str, Any]) -> None:
        """A trade was closed."""
        if decision_id := trade.get(DECISION):
            self.client.report_outcome(decision_id, outcome_of(trade))


class _Considered:
    """What is known of a candidate until the agent's last word."""

    def __init__(self, decision_id: str | None) -> None:
        self.decision_id = decision_id
        self.extra: dict[str, Any] = {}
        self.action: dict[str, Any] | None = None


@functools.cache
def shadow_at(url: str, token: str | None = None) -> Shadow:
    """The one shadow of this process: the agent's files share it."""
    return Shadow(AdvisorClient(url, token=token))


def request_of(names: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The request of a candidate. `names` are those of the agent's loop."""
    price_data, snapshot = names["price_data"], names.get("signal_snapshot") or {}
    close = float(price_data["close"].iloc[-1])
    prepared = names.get("prepared")
    before = names.get("pre_result") or {}
    confidence = getattr(prepared, "final_confidence", before.get("confidence"))
    atr = _last(names.get("indicators_df"), "atr")
    candidate = {
        **{name: snapshot.get(name) for name in SNAPSHOT},
        **_setting(names),
        **_surroundings(names),
        "symbol": str(names["symbol"]).upper(),
        "direction": "long",
        "ts": now,
        "score": names.get("score"),
        "confidence": confidence,
        "technical_score": getattr(prepared, "technical_score", None),
        "atr": atr,
    }
    return {
        "candidate": candidate,
        "plan": plan_of(close, atr, confidence),
        "account": {"positions": [_position(trade) for trade in names.get("active_trades") or ()]},
        "market": _market(price_data, close, now),
    }


def plan_of(entry: float, atr: float | None, confidence: float | None) -> dict[str, Any]:
    """The order that the agent would place, by its rules, before its book and volume profile have
    their say."""
    distance = atr if atr and atr > 0 else entry * ATR_FALLBACK
    known = confidence if confidence is not None and confidence == confidence else -math.inf
    size = next(size for least, size in SIZES if known >= least)
    return {
        "entry": entry,
        "stop": entry - STOP_ATR * distance,
        "targets": [entry + factor * distance for factor in TARGETS_ATR],
        "quantity": size / entry,
    }


def _setting(names: Mapping[str, Any]) -> dict[str, Any]:
    """What the agent sees in the symbol itself."""
    indicators = names.get("indicators") or {}
    setup, tier = names.get("setup_type"), names.get("tier")
    profile = names.get("volume_profile_result")
    return {
        "session": names.get("session"),
        "tier": tier if tier in ("TIER1", "TIER2", "TIER3") else None,
        "setup_type": setup if setup in SETUPS else "none",
        "pattern": names.get("pattern_name"),
        "auction_state": names.get("auction_state") or "unknown",
        **{name: indicators.get(name) for name in ("rsi", "macd", "macd_signal", "adx")},
        **{name: indicators.get(name) for name in ("di_plus", "di_minus", "next_return")},
        "atr_15m_ratio": names["price_data"].attrs.get("atr_15m_ratio"),
        "volatility_pct": names.get("sym_vol_pct"),
        "htf_trend_pct": names.get("htf_trend_pct"),
        "orderflow": names.get("orderflow"),
        "order_imbalance": names.get("order_imb"),
        "alt_adjustment": names.get("alt_adjustment"),
        "volume_profile": None if profile is None else _profile(profile),
        "lvn_level": names.get("lvn_level"),
    }


def _surroundings(names: Mapping[str, Any]) -> dict[str, Any]:
    """What the agent knows of the market, the news and its own book."""
    alternative = names.get("alt_features") or {}
    news = names.get("macro_news_assessment") or {}
    return {
        "btc_trend": names.get("btc_trend_bias"),
        "btc_dominance": names.get("btc_d"),
        "fear_greed": names.get("fg"),
        "sentiment_bias": names.get("sentiment_bias"),
        "sentiment_confidence": names.get("sentiment_confidence"),
        "macro_indicator": names.get("macro_ind"),
        "macro_news_safe": news.get("safe"),
        "macro_news_reason": _cut(news.get("reason")),
        "news_summary": _cut(names.get("macro_news_summary")),
        "news_severity": names["price_data"].attrs.get("news_severity"),
        "time_to_news_minutes": names.get("next_news_minutes"),
        "social": {
            "bias": alternative.get("social_bias"),
            "score": alternative.get("social_score"),
            "confidence": alternative.get("social_confidence"),
            "posts": alternative.get("social_posts"),
        },
        "onchain": {
            "score": alternative.get("onchain_score"),
            "net_flow": alternative.get("onchain_net_flow"),
            "whale_ratio": alternative.get("onchain_whale_ratio"),
        },
        "open_positions": len(names.get("active_trades") or ()),
        "max_trades": names.get("max_active_trades"),
    }


def _profile(profile: Any) -> dict[str, Any]:
    return {
        "leg_type": getattr(profile, "leg_type", None),
        "poc": getattr(profile, "poc", None),
        "lvns": [float(level) for level in getattr(profile, "lvns", ())],
        "bin_width": getattr(profile, "bin_width", None),
        "failed_low": (getattr(profile, "metadata", None) or {}).get("failed_low"),
    }


def _market(price_data: Any, close: float, now: datetime) -> dict[str, Any]:
    """The last bar, stamped at its close; rows of the agent are stamped at their open."""
    opened_at = price_data.index[-1].to_pydatetime()
    length = timedelta(minutes=1)
    if len(price_data.index) > 1:
        length = (price_data.index[-1] - price_data.index[-2]).to_pytimedelta()
    zone = opened_at if opened_at.tzinfo else opened_at.replace(tzinfo=timezone.utc)
    closed_at = zone + length
    return {
        "last_close": close,
        # The newest bar may be running still.
        "bar_closed_at": min(closed_at, now),
        "bar_seconds": length.total_seconds(),
        "volume_24h": price_data.attrs.get("quote_volume_24h"),
    }


def _position(trade: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "symbol": str(trade["symbol"]).upper(),
        "quantity": trade.get("position_size"),
        "entry": trade.get("entry"),
        "stop": trade.get("sl") or None,
        "opened_at": _in_utc(trade.get("entry_time")),
    }


def opened(trade: Mapping[str, Any]) -> dict[str, Any]:
    """The action of a trade that was opened."""
    told = str(trade.get("llm_decision") or "").strip().lower()
    error = trade.get("llm_error")
    return {
        "decision": True,
        "llm_decision": {"approved": True, "greenlight": True, "yes": True}.get(told),
        "llm_approval": trade.get("llm_approval"),
        "llm_confidence": confidence_share(trade.get("llm_confidence")),
        "llm_error": str(error) if error else None,
        "reason": _cut(trade.get("narrative")) or None,
        "entry": trade.get("entry"),
        "stop": trade.get("sl"),
        "targets": [trade[name] for name in ("tp1", "tp2", "tp3") if trade.get(name)],
        "atr_at_entry": trade.get("atr_at_entry"),
        "size_usd": trade.get("size"),
        "quantity": trade.get("initial_size") or trade.get("position_size"),
        "take_profit_strategy": trade.get("take_profit_strategy"),
        "micro_plan": _cut(trade.get("microstructure_plan") or None),
    }


def rejected(row: Mapping[str, Any]) -> dict[str, Any]:
    """The action of a candidate that was not traded."""
    reason = str(row.get("final_skip_reason") or "not told")
    return {"decision": False, "final_skip_reason": reason[:200], "reason": _cut(reason)}


def outcome_of(trade: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a closed trade. Money counts its partial exits too."""
    told = str(trade.get("outcome") or "")
    begin, end = _in_utc(trade.get("entry_time")), _in_utc(trade.get("exit_time"))
    return {
        "arm": "agent",
        "outcome": code_of(told),
        "exit_time": end,
        "exit_price": trade.get("fill_price") or trade.get("exit_price") or None,
        "exit_reason": str(trade.get("exit_reason") or told)[:200],
        "fees": trade.get("total_fees"),
        "slippage": trade.get("total_slippage"),
        "net_pnl": trade.get("net_pnl"),
        "pnl_pct": trade.get("pnl_pct"),
        "max_price": trade.get("max_price") or None,
        "holding_seconds": (end - begin).total_seconds() if begin and end else None,
        "extra": {"outcome": told, "trade_id": trade.get("trade_id")},
    }


def _cut(text: Any) -> str | None:
    """No longer than the service takes."""
    return None if text is None else str(text)[:LONGEST_TEXT]


def code_of(told: str) -> str:
    """The outcome code of the agent's word for how a trade ended."""
    return CODES.get(told, told)


def confidence_share(confidence: Any) -> float | None:
    """The agent's confidence is 0-1 in one place, 0-10 in another."""
    if not isinstance(confidence, (int, float)) or confidence != confidence:
        return None
    return confidence / 10 if confidence > 1 else float(confidence)


def _in_utc(told: Any) -> datetime | None:
    """The agent writes UTC without saying so."""
    if not told:
        return None
    moment = told if isinstance(told, datetime) else datetime.fromisoformat(str(told)[:19])
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _last(frame: Any, column: str) -> float | None:
    """The newest value of a column; None where there is none."""
    try:
        value = float(frame[column].iloc[-1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
