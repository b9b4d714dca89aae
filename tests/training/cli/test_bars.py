"""What `advisor-train bars` writes is what pages draw."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from app.shadow_log.bar_files import candles
from training.cli.bars import bars
from training.market.sources import load_market, market_named


def test_a_market_that_was_written_is_drawn_again(tmp_path: Path) -> None:
    bars(tmp_path, source="synthetic", symbols="", length="1h")
    made = load_market(market_named("synthetic", (), "1h")).by_length["1h"][0]
    middle = int(made.closed_at[500])
    at = datetime.fromtimestamp(middle, UTC)
    shown = candles(tmp_path, made.symbol, at, at)
    assert shown.where == f"{made.symbol}_1h.parquet"
    drawn = {bar.opened_at.timestamp() + 3600: bar.close for bar in shown.bars}
    assert drawn[middle] == float(made.close[500])
