"""The agent's own loop on local bars: only what it asks the internet is answered here, and each of
its scans is one turn. Runs in the agent's environment, in a copy of it.

usage: loop.py BARS.json SCANS
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import agent
import pandas as pd
import trade_manager
import trade_storage

SYMBOLS = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
CODES = ["sl", "trailing_sl", "trailing_stop", "early_exit", "orderbook_exit", "time_exit"]
SHOWN = 300
BRAIN: list[dict[str, Any]] = [
    {"decision": False, "reason": "Trend is weak. " * 20},
    {"decision": True, "llm_decision": "approved", "llm_approval": True, "llm_confidence": 7.5},
    {"decision": True, "llm_decision": "unavailable", "llm_error": True, "llm_confidence": None},
    {"decision": True, "llm_decision": "vetoed", "llm_approval": False, "llm_confidence": 0.4},
]
"""Answers as the agent gives them, in its own types."""


class End(BaseException):
    """The last turn is over."""


class Bars:
    """Minutes that have just closed, of one series for every symbol."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows
        self.turn = 0

    def frame(self, symbol: str) -> pd.DataFrame:
        begin = 200 * self.turn % (len(self.rows) - 2 * SHOWN) + 37 * SYMBOLS.index(symbol)
        rows = self.rows[begin : begin + SHOWN]
        end = pd.Timestamp.now(tz="UTC").floor("min") - pd.Timedelta(minutes=1)
        index = pd.date_range(end=end, periods=len(rows), freq="min")
        names = ("open", "high", "low", "close", "volume")
        frame = pd.DataFrame(rows, columns=names, index=index)
        frame["quote_volume"] = frame["close"] * frame["volume"]
        frame["taker_buy_base"] = frame["volume"] / 2
        frame["taker_buy_quote"] = frame["quote_volume"] / 2
        frame["number_of_trades"] = 100
        frame.attrs["signal_features"] = {
            "setup_type": "mean_reversion",
            "activation_threshold": 5.0,
            "trend_norm": 6.0,
            "mean_rev_norm": 2.0,
            "order_flow_score": 0.2,
            "order_flow_flag": 1,
            "spoofing_alert": 0,
            "spread_bps": 1.5,
            "volume_ratio": float("nan"),
        }
        frame.attrs["news_severity"] = 0
        return frame


class Cache:
    """The agent's cache of signals, always fresh."""

    use_streams = False

    def __init__(self, bars: Bars) -> None:
        self.bars = bars

    def get(self, symbol: str) -> Any:
        score = 6.0 + 0.7 * SYMBOLS.index(symbol)
        frame = self.bars.frame(symbol)
        return SimpleNamespace(
            price_data=frame,
            score=score,
            direction="long",
            position_size=100.0,
            pattern="hammer",
            age=lambda: 1.0,
        )

    def bars_len(self, symbol: str) -> int:
        return 1000

    def circuit_breaker_active(self) -> bool:
        return False

    def symbols(self) -> list[str]:
        return SYMBOLS

    def force_rest_backfill(self, symbol: str) -> bool:
        return True

    def pending_diagnostics(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **others: None


def install(bars: Bars) -> None:
    """Put local answers where the agent would ask the internet."""

    async def price_data(symbol: str, *arguments: Any, **others: Any) -> pd.DataFrame:
        return bars.frame(symbol if symbol in SYMBOLS else "BTCUSDT")

    own_flow = agent.detect_aggression

    def buyers(frame: pd.DataFrame, **others: Any) -> Any:
        """The feed of trades says that buyers are in control."""
        return SimpleNamespace(
            state="buyers in control", features=own_flow(frame, **others).features
        )

    cache = Cache(bars)
    answers: dict[str, Any] = {
        "get_active_cache": lambda: cache,
        "get_top_symbols": lambda limit=30: SYMBOLS,
        "get_price_data_async": price_data,
        "detect_aggression": buyers,
        "get_order_book": lambda symbol, limit=20: None,
        "compute_alt_adj": lambda symbol: None,
        "get_alternative_data": lambda symbol, ttl=0: None,
        "start_background_news_monitor": lambda **others: None,
        "get_news_monitor": lambda: None,
        "send_email": lambda *arguments: None,
        "is_trading_blocked": lambda: False,
        "compute_performance_metrics": lambda: {},
        "dynamic_max_active_trades": lambda *arguments: 1,
        "predict_success_probability": lambda **others: 0.1 if bars.turn % 7 == 3 else 0.8,
        "schedule_sequence_model_training": lambda frame: False,
        "manage_trades": lambda: None,
        "ENABLE_WS_BRIDGE": False,
    }
    for name, answer in answers.items():
        assert hasattr(agent, name), name
        setattr(agent, name, answer)


def close_what_is_open(closed: list[str]) -> None:
    """By the agent's own hand, with one code after the other."""
    for trade in trade_storage.load_active_trades():
        code = CODES[len(closed) % len(CODES)]
        closed.append(code)
        price = trade["entry"] * (0.99 if "sl" in code else 1.01)
        trade_manager.execute_exit_trade(trade, exit_price=price, reason=code, outcome=code)
    trade_storage.save_active_trades([])


def main() -> None:
    bars_file, scans = sys.argv[1:]
    bars = Bars(json.loads(Path(bars_file).read_text()))
    install(bars)
    considered: list[str] = []
    closed: list[str] = []

    def prepared(**names: Any) -> Any:
        """The agent's brain fails on every candidate at this commit: its answers, one by one."""
        considered.append(names["symbol"])
        answer = BRAIN[len(considered) % len(BRAIN)]
        return {"confidence": 7.0, "reason": "", "narrative": "It rises.", **answer}, None

    agent.prepare_trade_decision = prepared

    class Turns:
        """Lets each scan begin; ends the loop after the last."""

        def set(self) -> None: ...

        def clear(self) -> None: ...

        def wait(self, timeout: float) -> bool:
            close_what_is_open(closed)
            bars.turn += 1
            if bars.turn > int(scans):
                raise End
            return True

    events: list[Any] = [threading.Event(), Turns()]
    names = ("Thread", "Lock", "RLock", "current_thread")
    agent.threading = SimpleNamespace(
        Event=lambda: events.pop(0), **{name: getattr(threading, name) for name in names}
    )
    agent._prepare_signal_cache_params = lambda: (1.0, 2.0, 1, 0.0, 1.0)
    with suppress(End):
        agent.run_agent_loop()
    shadow = agent.shadow
    shadow.client.close(60)
    stats = shadow.client.stats()
    told = {
        "considered": len(considered),
        "closed": closed,
        "sent": stats.sent,
        "dropped": stats.dropped,
        "refusals": stats.refusals,
        "left_out": stats.left_out,
    }
    print("TOLD", json.dumps(told))


if __name__ == "__main__":
    main()
