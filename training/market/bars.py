"""OHLCV bars: check, stamp at close. Corrupt data is worse than no data: what is wrong is named and
refused.

A time column's name says what it means: `closed_at` is a bar's close; `ts`, `timestamp`, `date`,
`opened_at` and `open_time` are its open, and the bar is stamped at open + length. Times without a
zone are UTC. Numbers count from 1970 in seconds or in thousandths, millionths or billionths of one:
which, each number's own size says, since exchanges have changed their unit within one series.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.errors import AdvisorError
from training.arrays import Floats, Times

PRICES = ("open", "high", "low", "close")
OPENED = ("ts", "timestamp", "date", "opened_at", "open_time")
CLOSED = "closed_at"
UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
MAX_BAD_FRACTION = 0.02
FROM_MILLISECONDS, FROM_MICROSECONDS, FROM_NANOSECONDS = 10**11, 10**14, 10**17
"""What times are counted in from such numbers on; below, in seconds (10^11 s is the year 5138)."""


class MarketDataError(AdvisorError):
    """Bars cannot be used; the message names the source, the row and the fault."""


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars of one symbol, oldest first. Arrays of shape (N,).

    `closed_at` is in seconds since 1970 UTC; prices in quote currency; volume in base units.
    Exchange outages leave gaps: a bar is absent, never invented.
    """

    symbol: str
    seconds: int
    closed_at: Times
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.closed_at)

    @property
    def missing(self) -> int:
        """Bars that outages left out between the first and the last."""
        if not len(self):
            return 0
        return int((self.closed_at[-1] - self.closed_at[0]) // self.seconds) + 1 - len(self)

    def known_at(self, as_of: datetime | float) -> Bars:
        """The bars that were complete at `as_of`."""
        moment = as_of.timestamp() if isinstance(as_of, datetime) else as_of
        return self.part(0, int(np.searchsorted(self.closed_at, moment, side="right")))

    def resampled(self, seconds: int) -> Bars:
        """Longer bars, of which only those are kept that are complete. Raises `MarketDataError`:
        not a multiple."""
        if seconds == self.seconds:
            return self
        if seconds % self.seconds or seconds < self.seconds:
            raise MarketDataError(
                f"{self.symbol}: bars of {self.seconds} s cannot be joined into bars of {seconds} s"
            )
        closes = -(-self.closed_at // seconds) * seconds
        ends, begins, counts = np.unique(closes, return_index=True, return_counts=True)
        whole = counts == seconds // self.seconds
        lasts = begins + counts - 1
        return Bars(
            self.symbol,
            seconds,
            ends[whole],
            self.open[begins][whole],
            np.maximum.reduceat(self.high, begins)[whole],
            np.minimum.reduceat(self.low, begins)[whole],
            self.close[lasts][whole],
            np.add.reduceat(self.volume, begins)[whole],
        )

    def part(self, begin: int, end: int) -> Bars:
        """Bars `begin` to `end`, without the last."""
        columns = (getattr(self, name)[begin:end] for name in ("closed_at", *PRICES, "volume"))
        return Bars(self.symbol, self.seconds, *columns)


def length_seconds(length: str) -> int:
    """Seconds of `30m`, `1h`, `1d`. Raises `MarketDataError`."""
    if not re.fullmatch(r"[1-9]\d*[mhd]", length):
        raise MarketDataError(
            f"bar length {length!r}: write a number and m, h or d, for example 30m or 1h"
        )
    return int(length[:-1]) * UNIT_SECONDS[length[-1]]


def bars_from_frame(frame: pl.DataFrame, symbol: str, seconds: int, source: str) -> Bars:
    """Checked bars of a table with a time column, `open`, `high`, `low`, `close` and `volume`, in
    any order.

    Raises
    ------
    MarketDataError : a column is missing, there twice or not numeric, a value is not finite, a
        price is not positive, a high or low does not enclose its bar, times are unsorted, repeated
        or off the grid, bars are of another length, or more than 2 % of them are missing or without
        volume.
    """

    def fail(what: str) -> MarketDataError:
        return MarketDataError(f"{source}: {what}")

    names = {name.lower(): name for name in frame.columns}
    twice = [name for name in frame.columns if names[name.lower()] != name]
    if twice:
        raise fail(f"column {', '.join(twice)} is there twice, but for capitals: leave one out")
    absent = [name for name in (*PRICES, "volume") if name not in names]
    if absent:
        raise fail(f"no column {', '.join(absent)} (it has {', '.join(frame.columns)})")
    closed_at = _closed_at(frame, names, seconds, fail)
    columns: dict[str, Floats] = {}
    for name in (*PRICES, "volume"):
        series = frame[names[name]]
        if not series.dtype.is_numeric():
            raise fail(f"column {name} is {series.dtype}, not a number")
        columns[name] = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    bars = Bars(symbol, seconds, closed_at, *(columns[name] for name in (*PRICES, "volume")))
    _check(bars, fail)
    return bars


def _closed_at(
    frame: pl.DataFrame, names: dict[str, str], seconds: int, fail: Callable[[str], MarketDataError]
) -> Times:
    columns = [name for name in (CLOSED, *OPENED) if name in names]
    if len(columns) != 1:
        raise fail(
            f"one time column is needed, {CLOSED} (close) or one of {', '.join(OPENED)} (open); it"
            f" has {columns}"
        )
    column = columns[0]
    series = frame[names[column]]
    try:
        if series.dtype == pl.String:
            series = series.str.to_datetime(time_unit="us", time_zone="UTC")
        elif series.dtype.is_numeric():
            series = _microseconds(series)
        stamps = series.cast(
            pl.Datetime(
                "us", series.dtype.time_zone if isinstance(series.dtype, pl.Datetime) else None
            )
        )
        microseconds = stamps.dt.timestamp("us")
    except (pl.exceptions.PolarsError, AttributeError) as error:
        raise fail(f"column {column} holds no times: {str(error).splitlines()[0]}") from error
    if microseconds.null_count():
        raise fail(f"column {column} has {microseconds.null_count()} empty times")
    moments = microseconds.to_numpy() // 1_000_000
    return moments + (0 if column == CLOSED else seconds)


def _microseconds(numbers: pl.Series) -> pl.Series:
    """Numbers of any unit, each by its own size. Raises `PolarsError`: not finite."""
    whole = numbers.cast(pl.Int64)
    counts = whole.fill_null(0).to_numpy()
    size = np.abs(counts)
    parts = [size >= FROM_MICROSECONDS, size >= FROM_MILLISECONDS]
    each = counts * np.select(parts, [1, 1000], 1_000_000)
    told = np.where(size >= FROM_NANOSECONDS, counts // 1000, each)
    return pl.Series(told).set(whole.is_null(), None).cast(pl.Datetime("us"))


def _check(bars: Bars, fail: Callable[[str], MarketDataError]) -> None:
    """Refuse what no exchange reports."""

    def first(wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            when = datetime.fromtimestamp(int(bars.closed_at[row]), UTC)
            raise fail(
                f"{what} in the bar that closed at {when:%Y-%m-%d %H:%M} (row {row},"
                f" {int(wrong.sum())} such rows)"
            )

    if not len(bars):
        raise fail("no bars")
    steps = np.diff(bars.closed_at, prepend=bars.closed_at[0] - bars.seconds)
    first(steps == 0, "a repeated time")
    first(steps < 0, "a time before the one above it; sort the rows by time")
    usual = int(np.median(steps[1:])) if len(bars) > 1 else bars.seconds
    if usual != bars.seconds:
        raise fail(f"most bars are {usual} s long, not {bars.seconds} s: name the file by its bars")
    first(bars.closed_at % bars.seconds != 0, f"a time off the grid of {bars.seconds} s")
    for name in PRICES:
        values = getattr(bars, name)
        first(~np.isfinite(values), f"{name} is not a number")
        first(values <= 0, f"{name} is not positive")
    first(~np.isfinite(bars.volume) | (bars.volume < 0), "volume is not a number >= 0")
    first(bars.high < np.maximum(bars.open, bars.close), "high is below open or close")
    first(bars.low > np.minimum(bars.open, bars.close), "low is above open or close")
    for count, what in (
        (bars.missing, "missing"),
        (int((bars.volume == 0).sum()), "without volume"),
    ):
        if count > max(MAX_BAD_FRACTION * len(bars), 1):
            raise fail(
                f"{count} of {len(bars)} bars are {what}, more than {MAX_BAD_FRACTION:.0%}: find a"
                " better source"
            )
