"""`advisor import` on a real Postgres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.progress import Progress

from app.shadow_log.importing.imports import add, exits_told, source_named
from tests.service.processes import advisor, environment
from tests.service.shadow_log.importing.test_sources import (
    CLOSED,
    HEADER,
    bars_folder,
    freqtrade_database,
    mine,
)

SHARED = Path(__file__).parents[5] / "shared" / "data"


def rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


def test_the_command_adds_once_and_counts_nowhere_as_a_decision(
    database_url: str, tmp_path: Path
) -> None:
    database = freqtrade_database(tmp_path / "tradesv3.sqlite")
    bars = bars_folder(tmp_path / "bars")
    told = ["import", str(database), "--from", "freqtrade", "--bars", str(bars)]
    told += ["--stoploss", "-0.05", "--roi", "0.04"]
    variables = environment(tmp_path / "home", database_url=database_url)

    looked = advisor(variables, *told, "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert "1: usable for training" in looked.stdout
    assert rows(database_url, "SELECT count(*) FROM imported_trades") == [(0,)]

    assert "1; the others were there" in advisor(variables, *told).stdout
    assert "0; the others were there" in advisor(variables, *told).stdout
    # 18.98 on a plan that risked 5 units of 5.
    assert rows(database_url, "SELECT source, symbol, r FROM imported") == [
        ("freqtrade", "BTCUSDT", pytest.approx(0.7592))
    ]
    for view in ("decisions", "shadow_comparison", "latest_outcomes", "veto_value"):
        assert rows(database_url, f"SELECT count(*) FROM {view}") == [(0,)]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = advisor(
        environment(tmp_path), "import", "nothing.csv", "--from", "spot-ai-agent", "--dry-run"
    )
    assert done.returncode != 0
    assert "nothing.csv: no such file" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_trade_without_an_atr_has_its_r_and_one_whose_stop_trailed_has_none(
    database_url: str, tmp_path: Path
) -> None:
    """8 over 2 units of 2; a stop above the entry risked nothing."""
    trailed = CLOSED.replace("2024-03-02 07", "2024-03-01 07").replace(",95,", ",101,")
    told, table = mine(
        tmp_path,
        HEADER,
        CLOSED.replace(",4,100,95,", ",,100,98,").replace(",19.5,", ",8,"),
        trailed,
    )
    with Progress(disable=True) as progress:
        await add(database_url, source_named(told), [table], None, progress)
    assert rows(database_url, "SELECT r, complete FROM imported ORDER BY as_of DESC") == [
        (2.0, False),
        (None, False),
    ]


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
async def test_a_year_of_freqtrade_s_trades(database_url: str) -> None:
    path = SHARED / "agent_logs" / "freqtrade_backtest_2024.parquet"
    source = source_named("freqtrade", exits_told(-0.1, 0.04))
    with Progress(disable=True) as progress:
        coverage, new = await add(database_url, source, [path], SHARED / "ohlcv", progress)
        assert (coverage.rows, coverage.passed_over, coverage.unreadable) == (2804, 0, {})
        assert coverage.with_outcome == 2804
        assert coverage.complete == 2804, coverage.missing
        assert new == len({row[0] for row in rows(database_url, "SELECT import_id FROM imported")})
        _, again = await add(database_url, source, [path], None, progress)
    assert again == 0
