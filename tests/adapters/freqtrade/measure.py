"""What the mixin costs a bot: per candle, and per entry. Runs in freqtrade's environment; the
service need not be there.

usage: measure.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from types import SimpleNamespace
from typing import Any

import pandas as pd
from freqtrade.persistence import Trade
from shadow_advisor_client.adapters.freqtrade import ShadowAdvisor

ROUNDS = 500
CANDLES = 1000
AT = datetime(2024, 3, 1, tzinfo=UTC)


class Bare:
    """The hooks of a strategy that does nothing."""

    timeframe = "5m"
    stoploss = -0.05
    minimal_roi = {"0": 0.04}  # noqa: RUF012

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        columns = dict.fromkeys(("open", "high", "low", "close", "volume", "rsi", "adx"), 100.0)
        dates = pd.date_range(end=AT, periods=CANDLES, freq="5min", tz="UTC")
        frame = pd.DataFrame({"date": dates, **columns})
        self.dp = SimpleNamespace(get_analyzed_dataframe=lambda pair, timeframe: (frame, AT))
        self.wallets = SimpleNamespace(get_total_stake_amount=lambda: 10_000.0)

    def bot_start(self, **others: Any) -> None: ...

    def bot_loop_start(self, current_time: datetime, **others: Any) -> None: ...

    def custom_stake_amount(self, proposed_stake: float, **others: Any) -> float:
        return proposed_stake

    def confirm_trade_entry(self, **others: Any) -> bool:
        return True

    def order_filled(self, **others: Any) -> None: ...

    def ft_bot_cleanup(self) -> None: ...


def microseconds(call: Callable[[], object]) -> float:
    """Median of one call."""
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return 1e6 * median(taken)


def main() -> None:
    Trade.use_db = False
    strategy = type("Shadowed", (ShadowAdvisor, Bare), {})(
        {"runmode": "dry_run", "shadow_advisor": {"url": "http://127.0.0.1:9"}}
    )
    bare = Bare({})
    entry = {
        "pair": "BTC/USDT",
        "order_type": "market",
        "amount": 0.1,
        "rate": 100.0,
        "time_in_force": "GTC",
        "current_time": AT,
        "entry_tag": None,
        "side": "long",
    }

    def confirmed() -> None:
        strategy.confirm_trade_entry(**entry)
        strategy.shadow_advisor._confirmed.clear()

    candle = microseconds(lambda: strategy.bot_loop_start(current_time=AT))
    candle -= microseconds(lambda: bare.bot_loop_start(current_time=AT))
    print(f"per candle {candle:8.1f} us")
    print(f"per entry  {microseconds(confirmed):8.1f} us, with 350 candles")
    assert not strategy.shadow_advisor_faults


if __name__ == "__main__":
    main()
