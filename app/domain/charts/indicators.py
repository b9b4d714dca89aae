"""Indicators at every bar from that bar and earlier ones only, by TA-Lib where it has them.

NaN where the history is too short. A value at bar i never depends on a bar after i: a test cuts and
corrupts the future and expects the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.charts.series import DAY_S, Floats, Series


@contextmanager
def _as_if_absent(*modules: str) -> Iterator[None]:
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# TA-Lib imports both to take their series too; ours are arrays, and it is a quarter of a start.
with _as_if_absent("pandas", "polars"):
    import talib

PERCENTILE_DAYS = 7
SUPPORT_BARS = 48
TREND_BARS = 200
PATTERNS = {
    "bullish_engulfing": talib.CDLENGULFING,
    "hammer": talib.CDLHAMMER,
    "morning_star": talib.CDLMORNINGSTAR,
    "piercing": talib.CDLPIERCING,
}
"""Bullish candle patterns, by the name the agent gives them; the first that shows is reported."""


@dataclass(frozen=True, eq=False)
class Indicators:
    """Arrays of shape (N,), one value per bar."""

    rsi: Floats
    """RSI, 14; 0-100."""
    macd: Floats
    """MACD histogram, 12/26/9; price units."""
    macd_signal: Floats
    """MACD signal line; price units."""
    adx: Floats
    """ADX, 14; 0-100."""
    di_plus: Floats
    di_minus: Floats
    """+DI and -DI, 14; 0-100."""
    atr: Floats
    """ATR, 14 (Wilder); price units."""
    atr_percentile: Floats
    """Share of the last 7 days' ATR / close below this bar's; 0-1."""
    htf_trend_pct: Floats
    """Close above its 200-bar EMA; percent of the EMA."""
    volume_ratio: Floats
    """(volume - mean) / (volume + mean) over 20 bars; -1..1."""
    price_change: Floats
    """Change over 5 bars; fraction."""
    volume_24h: Floats
    """Traded in the last 24 hours; quote currency. NaN when an outage left less than 90 % of the
    bars."""
    support_gap: Floats
    """Close above the lowest low of 48 bars; ATR."""
    resistance_gap: Floats
    """Highest high of 48 bars above the close; ATR."""
    trend: NDArray[np.int8]
    """1 when close and a rising 20-bar EMA stand above the 50-bar EMA, -1 when below and falling,
    else 0."""
    pattern: NDArray[np.int8]
    """Position in `PATTERNS` of the pattern that completes with this bar, or -1."""


def indicators(bars: Series) -> Indicators:
    """All indicators of a symbol. Cost: about 50 ms for 60,000 bars."""
    high, low, close, volume = bars.high, bars.low, bars.close, bars.volume
    _, signal, histogram = talib.MACD(close, 12, 26, 9)
    atr = talib.ATR(high, low, close, 14)
    fast, slow, long = (talib.EMA(close, n) for n in (20, 50, TREND_BARS))
    mean_volume = talib.SMA(volume, 20)
    rising = np.sign(np.diff(fast, prepend=np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        trend = np.where((close > slow) & (fast > slow) & (rising > 0), 1, 0)
        trend = np.where((close < slow) & (fast < slow) & (rising < 0), -1, trend)
        support_gap = (close - talib.MIN(low, SUPPORT_BARS)) / atr
        resistance_gap = (talib.MAX(high, SUPPORT_BARS) - close) / atr
        volume_ratio = (volume - mean_volume) / (volume + mean_volume)
    return Indicators(
        rsi=talib.RSI(close, 14),
        macd=histogram,
        macd_signal=signal,
        adx=talib.ADX(high, low, close, 14),
        di_plus=talib.PLUS_DI(high, low, close, 14),
        di_minus=talib.MINUS_DI(high, low, close, 14),
        atr=atr,
        atr_percentile=_percentile(atr / close, PERCENTILE_DAYS * DAY_S // bars.seconds),
        htf_trend_pct=100 * (close / long - 1),
        volume_ratio=volume_ratio,
        price_change=talib.ROCP(close, 5),
        volume_24h=_last_day(bars),
        support_gap=support_gap,
        resistance_gap=resistance_gap,
        trend=trend.astype(np.int8),
        pattern=_patterns(bars),
    )


def _percentile(values: Floats, window: int) -> Floats:
    """Share of the `window` values up to each one that lie strictly below it; NaN until the window
    is full."""
    ranks = np.full(len(values), np.nan)
    if len(values) < window:
        return ranks
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    complete = ~np.isnan(windows[:, 0])
    with np.errstate(invalid="ignore"):
        below = (windows < windows[:, -1:]).sum(axis=1) / (window - 1)
    ranks[window - 1 :] = np.where(complete, below, np.nan)
    return ranks


def _last_day(bars: Series) -> Floats:
    """Quote volume of the bars that closed within 24 hours, by the clock and not by count: outages
    leave gaps."""
    total = np.concatenate([[0.0], np.cumsum(bars.volume * bars.close)])
    begin = np.searchsorted(bars.closed_at, bars.closed_at - DAY_S, side="right")
    end = np.arange(1, len(bars.close) + 1)
    enough = end - begin >= 0.9 * DAY_S / bars.seconds
    return np.where(enough, total[end] - total[begin], np.nan)


def _patterns(bars: Series) -> NDArray[np.int8]:
    pattern = np.full(len(bars.close), -1, dtype=np.int8)
    for number, recognise in reversed(list(enumerate(PATTERNS.values()))):
        pattern[recognise(bars.open, bars.high, bars.low, bars.close) > 0] = number
    return pattern
