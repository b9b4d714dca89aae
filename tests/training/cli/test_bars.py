"""What `advisor-train bars` writes is what pages draw."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from app.shadow_log.bar_files import candles
from tests.training.support.candles import random_walk
from training.cli import bars as command
from training.cli.bars import bars
from training.market.bars import MarketDataError
from training.market.sources import Market, load_market, market_named


def test_a_market_that_was_written_is_drawn_again(tmp_path: Path) -> None:
    bars(tmp_path, source="synthetic", symbols="", length="1h")
    made = load_market(market_named("synthetic", (), "1h")).by_length["1h"][0]
    middle = int(made.closed_at[500])
    at = datetime.fromtimestamp(middle, UTC)
    shown = candles(tmp_path, made.symbol, at, at)
    assert shown.where == f"{made.symbol}_1h.parquet"
    drawn = {bar.opened_at.timestamp() + 3600: bar.close for bar in shown.bars}
    assert drawn[middle] == float(made.close[500])


def test_a_pair_with_a_slash_is_a_file_and_one_that_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = [random_walk(500, symbol="BTC/EUR:EUR")]
    monkeypatch.setattr(command, "load_market", lambda config: Market({"1h": series}))
    bars(tmp_path, source="anywhere", symbols="BTC/EUR:EUR", length="1h")
    written = (tmp_path / "BTC-EUR_1h.parquet").read_bytes()
    at = datetime.fromtimestamp(int(series[0].closed_at[100]), UTC)
    assert candles(tmp_path, "BTC/EUR:EUR", at, at).where == "BTC-EUR_1h.parquet"

    def full(table: pl.DataFrame, path: Path) -> None:
        path.write_text("half")
        raise pl.exceptions.ComputeError("No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(MarketDataError, match=r"1h\.parquet cannot be written: No space left"):
        bars(tmp_path, source="anywhere", symbols="BTC/EUR:EUR", length="1h")
    assert [path.name for path in tmp_path.iterdir()] == ["BTC-EUR_1h.parquet"]
    assert (tmp_path / "BTC-EUR_1h.parquet").read_bytes() == written
