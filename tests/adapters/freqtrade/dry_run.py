"""A dry run of the real bot on the local exchange, a loop at a time: it enters two pairs, is
started again, and the price of one rises and of the other falls. Prints its trades.

usage: dry_run.py CANDLES CONFIG STRATEGIES STRATEGY
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import talib
from local_exchange import Prices, install
from numpy import array

CANDLE_MS = 30 * 60 * 1000
SHOWN = 300


def where_it_buys(rows: list[list[float]]) -> int:
    """The last candle after which the example's strategy buys."""
    high, low, close = (array([row[place] for row in rows]) for place in (2, 3, 4))
    rsi, adx = talib.RSI(close), talib.ADX(high, low, close)
    return max(place for place in range(SHOWN, len(rows)) if rsi[place] < 28 and adx[place] < 40)


def moved_to_now(rows: list[list[float]], last: int) -> list[list[float]]:
    """Candles up to `last`, as if that one had closed just now, and one that is open."""
    opened = int(time.time() * 1000) // CANDLE_MS * CANDLE_MS
    shown = rows[last - SHOWN : last + 1]
    begin = opened - len(shown) * CANDLE_MS
    moved = [[begin + place * CANDLE_MS, *row[1:]] for place, row in enumerate(shown)]
    close = moved[-1][4]
    return [*moved, [opened, close, close, close, close, 1.0]]


def prices_of(folder: Path, symbols: list[str]) -> Prices:
    prices = Prices(folder)
    for symbol in symbols:
        name = symbol.partition(":")[0].replace("/", "_")
        rows = json.loads((folder / f"{name}-30m.json").read_text())
        prices.candles[symbol] = moved_to_now(rows, where_it_buys(rows))
        prices.ticker[symbol] = prices.candles[symbol][-1][4]
    return prices


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    folder, config_file, strategies, strategy = sys.argv[1:]
    symbols = json.loads(Path(config_file).read_text())["exchange"]["pair_whitelist"]
    prices = prices_of(Path(folder), symbols)
    install(prices)
    # ccxt must be replaced before freqtrade reads it.
    from freqtrade.configuration import Configuration
    from freqtrade.enums import RunMode
    from freqtrade.freqtradebot import FreqtradeBot
    from freqtrade.persistence import Trade

    arguments: dict[str, Any] = {
        "config": [config_file],
        "strategy": strategy,
        "strategy_path": strategies,
        "user_data_dir": "user",
    }
    config = Configuration(arguments, RunMode.DRY_RUN).get_config()
    config["initial_state"] = "running"

    bot = FreqtradeBot(config)
    bot.process()
    faults = dict(bot.strategy.shadow_advisor_faults)
    bot.cleanup()

    bot = FreqtradeBot(config)
    for symbol, change in zip(symbols, (1.06, 0.9), strict=True):
        prices.ticker[symbol] *= change
    bot.process()
    bot.process()
    trades = [trade.to_json() for trade in Trade.get_trades_proxy()]
    faults.update(bot.strategy.shadow_advisor_faults)
    bot.cleanup()
    print("TRADES", json.dumps({"trades": trades, "faults": faults}, default=str))


if __name__ == "__main__":
    main()
