"""News and fear & greed as they were known at a decision: the reference agent's `Context`.

News joins on `available_at`, the earliest moment at which a headline may be used, and never on the
time at which it was published: where only a day is known, that would look ahead by up to a day. A
day's fear & greed value is published shortly after that day's 00:00 UTC; here it counts as known
three hours after it, and as not known once it is older than two days, so that a gap in the index is
a gap here.

Not used: `sentiment`, since others computed it after the fact, by models that have seen what came
later. Not derived: `news_severity` and `time_to_news_minutes` need a judgement and a calendar that
no source here has; they stay null. No headline in the window is null too, not "no news": the
sources are thin in places. Headlines are other people's text: they go into fields that the prompt
treats as untrusted, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.canonical import content_hash
from app.domain.text import parts_of
from training.arrays import DAY_S, Times
from training.market.bars import MarketDataError

NEWS_WINDOW_S = 12 * 3600
"""Market headlines older than this are no news."""
SYMBOL_WINDOW_S = 24 * 3600
MOST_HEADLINES = 3
HEADLINE_CHARACTERS = 300
SEPARATOR = " / "
"""Between headlines of one summary, newest first."""
FEAR_GREED_DELAY_S = 3 * 3600
FEAR_GREED_MAX_AGE_S = 2 * DAY_S


@dataclass(frozen=True, eq=False)
class Headlines:
    """Headlines by the second from which they may be used, oldest first."""

    available_at: Times
    titles: tuple[str, ...]

    def newest(self, as_of: float, window_s: int, without: Sequence[str] = ()) -> list[str]:
        """At most three headlines that were known at `as_of` and not older than the window, newest
        first."""
        end = int(np.searchsorted(self.available_at, as_of, side="right"))
        begin = int(np.searchsorted(self.available_at, as_of - window_s, side="left"))
        fresh = dict.fromkeys(
            title for title in reversed(self.titles[begin:end]) if title not in without
        )
        return list(fresh)[:MOST_HEADLINES]


@dataclass(frozen=True, eq=False)
class FearGreed:
    """The daily index: midnights (seconds since 1970 UTC) and values 0-100."""

    days: Times
    values: NDArray[np.int64]

    def at(self, as_of: float) -> tuple[int, float] | None:
        """Value and age (s since that day's midnight) as known at `as_of`; None when there is none,
        or an old one."""
        last = int(np.searchsorted(self.days + FEAR_GREED_DELAY_S, as_of, side="right")) - 1
        if last < 0 or as_of - self.days[last] > FEAR_GREED_MAX_AGE_S:
            return None
        return int(self.values[last]), float(as_of - self.days[last])


@dataclass(frozen=True, eq=False)
class KnownContext:
    """Candidate fields from news and fear & greed, for a symbol at a time. A source that is absent
    adds no field."""

    market: Headlines | None = None
    by_coin: Mapping[str, Headlines] = field(default_factory=dict)
    fear_greed: FearGreed | None = None

    def __call__(self, symbol: str, as_of: datetime) -> Mapping[str, Any]:
        """Fields known at `as_of`."""
        moment = as_of.timestamp()
        fields: dict[str, Any] = {}
        coin = self.by_coin.get(parts_of(symbol)[0])
        own = coin.newest(moment, SYMBOL_WINDOW_S) if coin else []
        # A headline is said once: every token of the prompt costs time.
        market = self.market.newest(moment, NEWS_WINDOW_S, without=own) if self.market else []
        for name, headlines in (("symbol_news_summary", own), ("news_summary", market)):
            if headlines:
                fields[name] = SEPARATOR.join(headlines)
        reading = self.fear_greed.at(moment) if self.fear_greed else None
        if reading is not None:
            fields["fear_greed"], fields["fear_greed_age_s"] = reading
        return fields

    def fingerprint(self) -> str:
        """Hash of all that it knows."""
        coins = {
            coin: [news.available_at.tolist(), news.titles]
            for coin, news in sorted(self.by_coin.items())
        }
        market = [self.market.available_at.tolist(), self.market.titles] if self.market else None
        index = (
            [self.fear_greed.days.tolist(), self.fear_greed.values.tolist()]
            if self.fear_greed
            else None
        )
        return content_hash([market, coins, index])


def load_context(news: Path | None, fear_greed: Path | None) -> KnownContext:
    """Of Parquet files: news with `available_at`, `title`, `symbols`; fear & greed with `date`,
    `value`.

    Raises
    ------
    MarketDataError : a file cannot be read, lacks a column, or holds what cannot be right.
    """
    market, by_coin = _news(news) if news else (None, {})
    return KnownContext(market, by_coin, _fear_greed(fear_greed) if fear_greed else None)


def _news(path: Path) -> tuple[Headlines, dict[str, Headlines]]:
    table = _read(path, {"available_at": pl.Datetime, "title": pl.String, "symbols": pl.List})
    available = table["available_at"]
    if available.null_count() or available.dtype != pl.Datetime("us", "UTC"):
        raise MarketDataError(
            f"{path.name}: available_at must be a UTC time in every row, it is {available.dtype}"
        )
    if "ts" in table.columns and (table["ts"] > available).any():
        raise MarketDataError(
            f"{path.name}: a headline is available before it was published: mend available_at"
        )
    # Rounded up to whole seconds: never early.
    table = table.select(
        second=-(-available.dt.timestamp("us") // 1_000_000),
        title=pl.col("title")
        .str.slice(0, HEADLINE_CHARACTERS)
        .str.replace_all(r"\s+", " ")
        .str.strip_chars(),
        symbols="symbols",
    )
    table = table.filter(pl.col("title").str.len_chars() > 0).sort("second", "title")
    coins = (
        table.explode("symbols")
        .drop_nulls("symbols")
        .partition_by("symbols", as_dict=True, maintain_order=True)
    )
    return _headlines(table), {str(key[0]): _headlines(part) for key, part in coins.items()}


def _headlines(table: pl.DataFrame) -> Headlines:
    return Headlines(table["second"].to_numpy(), tuple(table["title"]))


def _fear_greed(path: Path) -> FearGreed:
    table = _read(path, {"date": pl.Date, "value": None}).sort("date")
    values = table["value"]
    if not values.dtype.is_integer() or values.null_count() or not values.is_between(0, 100).all():
        raise MarketDataError(f"{path.name}: value must be a whole number 0-100 in every row")
    if table["date"].null_count() or table["date"].n_unique() != len(table):
        raise MarketDataError(f"{path.name}: a date is missing or repeated")
    return FearGreed(_midnights(table["date"].to_list()), values.cast(pl.Int64).to_numpy())


def _midnights(days: Sequence[date]) -> Times:
    return np.array(
        [int(datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp()) for d in days],
        dtype=np.int64,
    )


def _read(path: Path, needed: Mapping[str, type[pl.DataType] | None]) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MarketDataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    for name, kind in needed.items():
        if name not in table.columns or (
            kind is not None and table.schema[name].base_type() is not kind
        ):
            wanted = "" if kind is None else f" of type {kind.__name__}"
            raise MarketDataError(
                f"{path.name}: needs a column {name}{wanted} (it has {dict(table.schema)})"[:400]
            )
    return table
