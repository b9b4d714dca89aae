"""What a candidate's own bars say of it: one code for the service, which is sent the last of them,
and for training, which has them all.

Indicators remember: one of fewer bars is another number. So a field is computed from as many bars
as make it the same to about one part in 10^4, whatever came before them; else it is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.charts.indicators import PATTERNS, SUPPORT_BARS, TREND_BARS, Indicators, indicators
from app.domain.charts.movements import OWN, movements
from app.domain.charts.series import DAY_S, Floats, Times
from app.domain.scenario import Bar

NEAR_ATR = 0.3
"""Nearer than this to the 48-bar high counts as at resistance, to the low as at support."""
SETTLED_BARS = 300
"""After which Wilder's means of 14 bars and the MACD have forgotten where they began."""
SETTLED_TREND_BARS = 5 * TREND_BARS
ENOUGH_BARS = 1500
"""With so many hourly bars every field is known that bars tell; more change nothing."""
WHOLE = 0.9
"""Share of bars that must be there, as of the day's volume."""
_MEMORY = {
    "htf_trend_pct": SETTLED_TREND_BARS,
    "near_support": SETTLED_BARS + SUPPORT_BARS,
    "near_resistance": SETTLED_BARS + SUPPORT_BARS,
}
OF_MOVES = ("rsi", "adx", "di_plus", "di_minus", "volatility_pct")
"""Fields that say nothing of a market that does not move."""


@dataclass(frozen=True, eq=False)
class Chart:
    """A `Series` of bars that were sent."""

    seconds: int
    closed_at: Times
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    @classmethod
    def of(cls, bars: Sequence[Bar], seconds: int) -> Chart:
        """Of sound bars, oldest first."""
        closed_at = np.array([int(bar.closed_at.timestamp()) for bar in bars], dtype=np.int64)
        names = ("open", "high", "low", "close", "volume")
        columns = {name: np.array([getattr(bar, name) for bar in bars]) for name in names}
        return cls(seconds, closed_at, **columns)


def fault_of(bars: Sequence[Bar]) -> str | None:
    """What is wrong with bars, of which everything would be computed; None when nothing is."""
    times = [bar.closed_at.timestamp() for bar in bars]
    steps = np.diff(times)
    if len(bars) < 2:
        return "one bar is too few"
    if not (steps > 0).all():
        return "they are not in order of time, or one comes twice"
    seconds = steps.min()
    if seconds > DAY_S:
        return "they are longer than a day"
    if seconds % 1 or (steps % seconds).any():
        return "they are not of one length"
    if missing := hole(times, seconds):
        return f"{missing}: indicators would take them for one step"
    if any(not b.low <= min(b.open, b.close) <= max(b.open, b.close) <= b.high for b in bars):
        return "a high or low does not enclose its bar"
    return None


def hole(times: Sequence[float] | Times, seconds: float) -> str | None:
    """What is missing of the last day, or of the bars that most fields remember; None where at
    least `WHOLE` of them are there. What is older weighs little."""
    for span in (DAY_S, SETTLED_BARS * seconds):
        asked = round(min(span, times[-1] - times[0] + seconds) / seconds)
        there = sum(moment > times[-1] - span for moment in times)
        if there < WHOLE * asked:
            return f"{asked - there} of the last {asked} bars are missing"
    return None


def length_of(bars: Sequence[Bar]) -> int:
    """Seconds of each of sound bars: the shortest step from one to the next."""
    return min(
        int((later.closed_at - earlier.closed_at).total_seconds())
        for earlier, later in pairwise(bars)
    )


def candidate_fields(signs: Indicators, at: int) -> dict[str, Any]:
    """Fields of a candidate that bars tell, at one of them; null where it is not known."""
    pattern = int(signs.pattern[at])
    numbers = {
        "rsi": signs.rsi,
        "macd": signs.macd,
        "macd_signal": signs.macd_signal,
        "adx": signs.adx,
        "di_plus": signs.di_plus,
        "di_minus": signs.di_minus,
        "atr": signs.atr,
        "volatility_pct": signs.atr_percentile,
        "htf_trend_pct": signs.htf_trend_pct,
        "volume_ratio": signs.volume_ratio,
        "price_change_pct": signs.price_change,
    }
    unknown = () if signs.atr[at] > 0 else OF_MOVES
    gaps = {"near_support": signs.support_gap, "near_resistance": signs.resistance_gap}
    return {
        "pattern": list(PATTERNS)[pattern] if pattern >= 0 else None,
        **{
            name: None if name in unknown else _number(values[at])
            for name, values in numbers.items()
        },
        **{
            name: bool(gap[at] < NEAR_ATR) if np.isfinite(gap[at]) else None
            for name, gap in gaps.items()
        },
    }


def of_bars(bars: Sequence[Bar]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the candidate and of the market that sound bars tell when the last of them has
    closed; what they are too few for is left out."""
    chart = Chart.of(bars, length_of(bars))
    last = len(bars) - 1
    market: dict[str, Any] = {
        "last_close": bars[-1].close,
        "bar_closed_at": datetime.fromtimestamp(int(chart.closed_at[-1]), UTC),
        "bar_seconds": float(chart.seconds),
    }
    if len(bars) < SETTLED_BARS:
        return {}, market
    signs = indicators(chart)
    candidate = {
        name: value
        for name, value in candidate_fields(signs, last).items()
        if value is not None and len(bars) >= _MEMORY.get(name, SETTLED_BARS)
    }
    moved = movements(chart)
    around = {name: number for name in OWN if (number := _number(moved[name][last])) is not None}
    volume = _number(signs.volume_24h[last])
    return candidate, market | ({} if volume is None else {"volume_24h": volume}) | (
        {"surroundings": around} if around else {}
    )


def _number(value: np.float64 | NDArray[np.float64]) -> float | None:
    return float(value) if np.isfinite(value) else None
