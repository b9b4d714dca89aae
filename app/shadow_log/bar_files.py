"""Files of bars in a folder: `SYMBOL_1h.parquet` or `.csv`. A column `closed_at` is a bar's close,
`ts`, `timestamp`, `date`, `opened_at` or `open_time` its open; times without a zone are UTC, whole
numbers count from 1970 in seconds or parts of one: which, each number's size says."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from app.domain.fields import moved
from app.domain.scenario import pair_of

UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
FILE = re.compile(r"^(?P<symbol>\w[\w-]*?)[_-](?P<count>[1-9]\d*)(?P<unit>[mhd])\.(parquet|csv)$")
PRICES = ("open", "high", "low", "close")
OPENED = ("ts", "timestamp", "date", "opened_at", "open_time")
BEFORE, AFTER, MOST = 60, 40, 400
"""Bars shown before a decision and after its end, and at most."""


class Candle(NamedTuple):
    """One bar, by its open."""

    opened_at: datetime
    open: float
    high: float
    low: float
    close: float


class Candles(NamedTuple):
    """Bars of `seconds` each, oldest first; `where` says from which file they are, or why there are
    none."""

    bars: tuple[Candle, ...]
    seconds: int
    where: str


class BarFile(NamedTuple):
    """A file, and the length of its bars."""

    seconds: int
    path: Path


def files_in(folder: Path) -> dict[str, list[BarFile]]:
    """Files by pair, as `pair_of` writes it, the finest first. A folder that cannot be read holds
    none."""
    files: dict[str, list[BarFile]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return files
    for path in paths:
        if match := FILE.match(path.name):
            seconds = int(match["count"]) * UNIT_SECONDS[match["unit"]]
            files.setdefault(pair_of(match["symbol"]), []).append(BarFile(seconds, path))
    return {pair: sorted(those) for pair, those in files.items()}


def time_column(columns: list[str]) -> str | None:
    """The column that says when bars were."""
    return next((name for name in ("closed_at", *OPENED) if name in columns), None)


def candles(folder: Path | None, symbol: str, decided: datetime, ended: datetime) -> Candles:
    """Bars around a decision and its end: the finest that are few enough to be drawn."""
    if folder is None:
        return Candles((), 0, "no folder of bars is configured: set ADVISOR_BARS")
    files = files_in(folder).get(pair_of(symbol), [])
    if not files:
        return Candles((), 0, f"{folder} has no file of bars of {symbol}")
    span_s = (ended - decided).total_seconds()
    fine = [file for file in files if span_s / file.seconds + BEFORE + AFTER <= MOST]
    seconds, path = (fine or files[-1:])[0]
    begin = moved(decided, -timedelta(seconds=BEFORE * seconds))
    last = moved(ended, timedelta(seconds=AFTER * seconds))
    end = min(last, moved(begin, timedelta(seconds=MOST * seconds)))
    try:
        bars = tuple(_between(path, seconds, begin, end))
    except ImportError:
        return Candles(
            (), seconds, "reading bars needs polars: pip install 'shadow-advisor[market]'"
        )
    except Exception as error:  # Whatever is wrong with a file of somebody else's.
        return Candles((), seconds, f"{path.name} cannot be read: {error}"[:200])
    where = path.name if bars else f"{path.name} has no bars at that time"
    return Candles(bars, seconds, where)


def _between(path: Path, seconds: int, begin: datetime, end: datetime) -> list[Candle]:
    import polars

    scan: Any = (
        polars.scan_csv(
            path,
            try_parse_dates=True,
            schema_overrides=dict.fromkeys(PRICES, polars.Float64),
            glob=False,
        )
        if path.suffix == ".csv"
        else polars.scan_parquet(path, glob=False)
    )
    schema = scan.collect_schema()
    name = time_column(schema.names())
    if name is None:
        raise ValueError("it has no column of times")
    when, kind = polars.col(name), schema[name]
    if kind.is_integer():
        kind = polars.Datetime("us")
        when = (
            polars.when(when.abs() >= 10**17)
            .then(when // 1000)
            .when(when.abs() >= 10**14)
            .then(when)
            .when(when.abs() >= 10**11)
            .then(when * 1000)
            .otherwise(when * 1_000_000)
            .cast(kind)
        )
    if not isinstance(kind, polars.Datetime):
        raise ValueError(f"its column {name} holds no times")
    zone = kind.time_zone
    when = when.dt.replace_time_zone("UTC") if zone is None else when.dt.convert_time_zone("UTC")
    if name == "closed_at":
        when = when - timedelta(seconds=seconds)
    rows = (
        scan.select(when.alias("at"), *(polars.col(price).cast(float) for price in PRICES))
        .filter(polars.col("at").is_between(begin, end, closed="left"))
        .filter(*(polars.col(price).is_finite() for price in PRICES))
        .unique("at", keep="last")
        .sort("at")
        .collect()
    )
    return [Candle(*row) for row in rows.rows()]
