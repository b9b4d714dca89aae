"""Small markets for the training tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.market.bars import Bars

FIRST = datetime(2021, 1, 1, tzinfo=UTC)
START = int(FIRST.timestamp())
HOUR = 3600


def table(*rows: tuple[float, float, float, float], seconds: int = HOUR, skip: int = 0) -> Bars:
    """Bars of (open, high, low, close), the first closing one bar after START; `skip` leaves out
    bars before."""
    opened = START + seconds * (np.arange(len(rows)) + skip)
    o, h, low, c = np.array(rows, dtype=float).T
    return Bars("BTCUSDT", seconds, opened + seconds, o, h, low, c, np.ones(len(rows)))


def random_walk(
    count: int = 1500, seed: int = 0, symbol: str = "BTCUSDT", seconds: int = HOUR
) -> Bars:
    """A lively market without an edge: a geometric walk, 0.8 % a bar, with changing volume."""
    rng = np.random.default_rng(seed)
    steps = (
        rng.normal(0, 0.008, count) * np.repeat(rng.uniform(0.4, 1.6, count // 50 + 1), 50)[:count]
    )
    close = 20_000 * np.exp(np.cumsum(steps))
    opened = np.concatenate([[20_000.0], close[:-1]])
    reach = np.abs(rng.normal(0, 0.004, (2, count)))
    high, low = (
        np.maximum(opened, close) * (1 + reach[0]),
        np.minimum(opened, close) * (1 - reach[1]),
    )
    closed_at = START + seconds * np.arange(1, count + 1)
    return Bars(symbol, seconds, closed_at, opened, high, low, close, rng.uniform(5, 50, count))


def with_corrupt_future(bars: Bars, as_of: int) -> Bars:
    """The same bars up to `as_of`, and absurd ones after it."""
    later = bars.closed_at > as_of
    prices = {
        name: np.where(later, getattr(bars, name) * 7 + 3, getattr(bars, name))
        for name in ("open", "high", "low", "close")
    }
    return replace(bars, **prices, volume=np.where(later, 9e9, bars.volume))


def frame(count: int = 200, **columns: Any) -> pl.DataFrame:
    """Flawless hourly bars as a file has them, stamped at their open; `columns` replace, None
    drops."""
    data: dict[str, Any] = {
        "ts": [FIRST + timedelta(hours=n) for n in range(count)],
        "open": [100.0] * count,
        "high": [102.0] * count,
        "low": [99.0] * count,
        "close": [101.0] * count,
        "volume": [5.0] * count,
    }
    data |= columns
    return pl.DataFrame({name: values for name, values in data.items() if values is not None})


def emptied(bars: Bars, at: int) -> Bars:
    """The same bars, one without volume."""
    volume = bars.volume.copy()
    volume[at] = 0
    return replace(bars, volume=volume)


def holed(bars: Bars, at: int | NDArray[np.int64]) -> Bars:
    """The same bars without one, or without several."""
    names = ("closed_at", "open", "high", "low", "close", "volume")
    return Bars(bars.symbol, bars.seconds, *(np.delete(getattr(bars, name), at) for name in names))
