"""How one symbol moved, at every bar from that bar and earlier ones only: volatility at several
horizons, returns.

The names and definitions are those of `app.domain.scenario.Surroundings`. Horizons count bars, so
that an outage lengthens them. NaN where the history is too short.
"""

from __future__ import annotations

import numpy as np

from app.domain.charts.series import DAY_S, Floats, Series

_HOUR_S = 3600
_DAYS = 14
_NEXT_HOURS = 6
_VOLATILITY_HOURS = {
    "volatility_1h": 1,
    "volatility_6h": 6,
    "volatility_24h": 24,
    "volatility_7d": 168,
}
_RETURN_HOURS = {
    "return_1h": 1,
    "return_6h": 6,
    "return_24h": 24,
    "return_7d": 168,
    "return_30d": 720,
}
OWN = (
    *_VOLATILITY_HOURS,
    "volatility_same_hours",
    "return_6h",
    "return_24h",
    "return_7d",
    "return_30d",
)
"""What `Surroundings` tells of the symbol itself."""


def movements(bars: Series) -> dict[str, Floats]:
    """Volatilities and returns of one symbol, each of shape (N,)."""
    per_hour = _HOUR_S / bars.seconds
    variance = np.log(bars.high / bars.low) ** 2 / (4 * np.log(2)) * per_hour
    moved = {
        name: np.sqrt(trailing_mean(variance, round(hours * per_hour)))
        for name, hours in _VOLATILITY_HOURS.items()
    }
    moved["volatility_same_hours"] = np.sqrt(_same_hours(variance, bars.seconds))
    close = np.log(bars.close)
    for name, hours in _RETURN_HOURS.items():
        moved[name] = close - _before(close, round(hours * per_hour))
    return moved


def trailing_mean(values: Floats, window: int) -> Floats:
    """Mean of the last `window` values at each; NaN until there are so many, or with a window of
    0."""
    means = np.full(len(values), np.nan)
    if 0 < window <= len(values):
        total = np.concatenate([[0.0], np.cumsum(values)])
        means[window - 1 :] = np.maximum(total[window:] - total[:-window], 0.0) / window
    return means


def _same_hours(variance: Floats, seconds: int) -> Floats:
    """Mean variance of the bars that closed in the six hours after this one's time of day, on each
    of the last 14 days."""
    per_day, ahead = DAY_S // seconds, _NEXT_HOURS * _HOUR_S // seconds
    window = trailing_mean(variance, ahead)
    days = [_before(window, day * per_day - ahead) for day in range(1, _DAYS + 1)]
    return np.asarray(np.mean(days, axis=0))


def _before(values: Floats, steps: int) -> Floats:
    """The values so many bars ago; NaN where there is none, or for 0 steps."""
    shifted = np.full(len(values), np.nan)
    if 0 < steps < len(values):
        shifted[steps:] = values[:-steps]
    return shifted
