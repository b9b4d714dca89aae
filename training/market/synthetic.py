"""A market whose truth is known: what can be learned in it, and how much it is worth.

Volume rises and falls in ramps of some hours to days. That is all that foretells prices: over every
bar the price drifts by `edge` x strength x the range that it would have without, where strength is
in -1..1 and follows from the `volume_ratio` of the bar before, as the indicator computes it and the
prompt shows it. Ramps outlast a trade, so that the ratio at a decision tells most of the drift of
the six hours after it. With edge 0 the price is a martingale: whatever a policy claims to earn
there before costs is an error.

Realistic otherwise: volatility wanders (a lognormal first-order autoregression) with a daily cycle,
shocks have fat tails (Student's t, 4 degrees of freedom, its mixing scale cut), each hour is made
of twelve 5-minute steps of a continuous path, so that highs, lows and finer bars agree. Symbols are
independent of each other, which real ones are not.
"""

from __future__ import annotations

import numpy as np
import talib

from training.arrays import Floats, instant
from training.config.data import SyntheticConfig
from training.market.bars import Bars, MarketDataError

HOUR = 3600
STEPS = 12
STEP_S = HOUR // STEPS
MOST_SCALE = 4.0
_SCALE = 1.3711
"""Root mean square of 1 / sqrt(Gamma(2, 1/2)), which makes a normal variate t(4), cut at
`MOST_SCALE`."""
# fmt: off
COINS = (
    "BTC", "ETH", "BNB", "SOL", "XRP", "ADA", "DOGE", "LINK", "AVAX", "DOT",
    "BCH", "LTC", "TRX", "UNI", "ATOM", "NEAR", "FIL", "ETC", "XLM", "ALGO",
)
# fmt: on
PRICES = (20_000.0, 1_500.0, 300.0, 100.0, 0.5)
VOLUME = 5e8
"""Quote units per hour at the first price: so much that the agent's volume floor is far, wherever
prices wander."""
VOLATILITY = 0.009
"""Standard deviation of an hour's return in the middle of its range."""
RANGE = 1.48
"""Mean true range of an hour over its standard deviation; a test measures it."""
FULL_STRENGTH = 0.3
"""`volume_ratio` at which the drift is full."""
RATIO_BARS = 20
STATE_EDGES = np.array([-0.25, -0.15, -0.05, 0.05, 0.15, 0.25])
"""Between the states that `states` tells apart, in volume_ratio: what the prompt's rounding
shows."""


def synthetic_bars(config: SyntheticConfig, seconds: int = HOUR) -> list[Bars]:
    """Bars of every symbol. The same configuration gives the same prices whatever the length of
    bars.

    Raises
    ------
    MarketDataError : a length that five minutes do not divide.
    """
    if seconds % STEP_S:
        raise MarketDataError(
            f"a synthetic market has no bars of {seconds} s: choose a multiple of 5m"
        )
    seeds = np.random.SeedSequence(config.seed).spawn(config.symbols)
    return [
        _steps(number, config, np.random.default_rng(seed)).resampled(seconds)
        for number, seed in enumerate(seeds)
    ]


def _steps(number: int, config: SyntheticConfig, source: np.random.Generator) -> Bars:
    """Five-minute bars of one symbol."""
    hours = config.bars
    volume = _hourly_volume(hours, source)
    deviation = _volatility(hours, source)
    # The ratio that a decision sees when a bar closes moves the next bar.
    before = np.concatenate([[0.0], strength(volume_ratio(volume))[:-1]])
    drift = config.edge * before * RANGE * deviation
    tails = np.minimum(1 / np.sqrt(source.gamma(2.0, 0.5, (hours, STEPS))), MOST_SCALE) / _SCALE
    scale = (deviation[:, None] * tails / np.sqrt(STEPS)).ravel()
    returns = np.repeat(drift / STEPS, STEPS) + scale * source.normal(size=hours * STEPS)
    price = PRICES[number % len(PRICES)]
    close = price * np.cumprod(1 + returns)
    opened = np.concatenate([[price], close[:-1]])
    high, low = _extremes(opened, close, opened * scale, source)
    parts = source.uniform(0.5, 1.5, (hours, STEPS))
    traded = (volume[:, None] * parts / parts.sum(axis=1, keepdims=True)).ravel() / price
    closed_at = instant(config.begins) + STEP_S * np.arange(1, hours * STEPS + 1, dtype=np.int64)
    return Bars(f"{COINS[number]}USDT", STEP_S, closed_at, opened, high, low, close, traded)


def _extremes(
    opened: Floats, close: Floats, deviation: Floats, source: np.random.Generator
) -> tuple[Floats, Floats]:
    """Highest and lowest price of a Brownian path between two prices, each drawn from its law.

    P(max > m) = exp(-2 (m - a) (m - b) / s^2) for a path from a to b (Karatzas & Shreve 1991,
    section 4.3.C). So a stop is crossed at its price: paths that only jumped would let a simulator
    sell above what the market paid.
    """
    spread = close - opened
    up, down = (
        np.sqrt(spread**2 - 2 * deviation**2 * np.log(source.uniform(size=len(opened))))
        for _ in range(2)
    )
    middle = opened + close
    return np.maximum((middle + up) / 2, np.maximum(opened, close)), np.minimum(
        (middle - down) / 2, np.minimum(opened, close)
    )


def _hourly_volume(hours: int, source: np.random.Generator) -> Floats:
    """Quote volume: log volume climbs and falls in ramps of 12 to 48 hours that turn back to its
    mean, with noise."""
    slopes = np.empty(0)
    level, up = 0.0, bool(source.integers(2))
    while len(slopes) < hours:
        length = int(source.integers(12, 49))
        slope = source.uniform(0.02, 0.07) * (1 if up else -1) - 0.02 * level
        slopes = np.concatenate([slopes, np.full(length, slope)])
        level += slope * length
        up = not up
    log_volume = np.cumsum(slopes[:hours]) + source.normal(0, 0.08, hours)
    return VOLUME * np.exp(log_volume)


def _volatility(hours: int, source: np.random.Generator) -> Floats:
    """Standard deviation of each hour's return: exp of an autoregression (half-life two days) and a
    daily cycle."""
    keep = 0.5 ** (1 / 48)
    noise = source.normal(0, 0.35 * np.sqrt(1 - keep**2), hours)
    log = np.empty(hours)
    value = 0.0
    for hour, shock in enumerate(noise):
        value = keep * value + shock
        log[hour] = value
    cycle = 0.15 * np.sin(2 * np.pi * (np.arange(hours) - 9) / 24)
    return VOLATILITY * np.exp(log + cycle)


def volume_ratio(volume: Floats) -> Floats:
    """As `training.market.indicators` has it: (volume - mean) / (volume + mean) over 20 bars; 0
    until the mean is known."""
    mean = talib.SMA(volume, RATIO_BARS)
    return np.asarray(np.nan_to_num((volume - mean) / (volume + mean)))


def strength(ratio: Floats) -> Floats:
    """Share of the full drift, -1..1."""
    return np.clip(ratio / FULL_STRENGTH, -1.0, 1.0)
