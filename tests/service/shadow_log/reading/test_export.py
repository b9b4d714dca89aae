"""The record as Parquet: the same rows in Polars, in DuckDB and in Postgres; interrupted, taken up
again."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import psycopg
import pytest

from app.shadow_log.log import ShadowLog
from app.shadow_log.reading.export import HIVES_NULL, Exported, ExportFault, _alone, export
from app.shadow_log.schema.migrate import upgrade
from tests import builders as build
from tests.service.processes import advisor, environment
from tests.service.running import ROOT

DAYS = 10
FIRST = build.AS_OF.date()
ODD = ("ä" * 64, "🚀" * 64, "🚀" * 63 + "b", "/" * 64, HIVES_NULL, "%2F", "_a=b")
"""Symbols that the service takes, and that no folder can be named after as they are."""
SYMBOLS = ("BTCUSDT", "1000PEPE/USDT:USDT")


@pytest.fixture
async def url(database_url: str) -> str:
    """A decision a day of each symbol; the agent lost one R with each of the first symbol."""
    log = ShadowLog.connect(database_url)
    events = []
    for day in range(DAYS):
        for symbol in SYMBOLS:
            name, at = f"{symbol}-{day}", build.AS_OF + timedelta(days=day)
            events.append(build.decision_event(name, at=at, control=True, candidate__symbol=symbol))
        lost = build.outcome("agent", net_pnl=-build.PLAN_RISK)
        events.append(build.outcome_event(f"{SYMBOLS[0]}-{day}", lost))
    try:
        await log.append(events)
    finally:
        await log.aclose()
    return database_url


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "**/*.parquet", hive_partitioning=True)


async def test_decisions_of_any_time_are_written(database_url: str, tmp_path: Path) -> None:
    """An agent may say any time; what is on record is in the export."""
    log = ShadowLog.connect(database_url)
    edges = [edge.replace(tzinfo=UTC) for edge in (datetime.min, datetime.max)]
    try:
        await log.append([build.decision_event(f"d{at.year}", at=at) for at in edges])
    finally:
        await log.aclose()
    assert await export(database_url, tmp_path / "out") == Exported(2, 2, 0)
    assert sorted(read(tmp_path / "out")["as_of"]) == edges


async def test_polars_duckdb_and_postgres_agree(url: str, tmp_path: Path) -> None:
    assert await export(url, tmp_path / "out") == Exported(DAYS, 2 * DAYS, 0)
    table = read(tmp_path / "out")
    assert set(table["symbol"]) == set(SYMBOLS), "also of a symbol that is no name of a folder"
    lost = table.filter(pl.col("agent_r") == -1.0)
    assert lost["symbol"].to_list() == [SYMBOLS[0]] * DAYS
    assert table["control_veto_codes"].dtype == pl.List(pl.String)
    assert table["abstain_reason"].dtype == pl.String, "also where nobody abstained"
    query = (
        "SELECT symbol, count(*) AS n, sum(agent_r) AS r FROM {} GROUP BY symbol ORDER BY symbol"
    )
    there = duckdb.execute(query.format(f"'{tmp_path}/out/**/*.parquet'")).fetchall()
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        assert there == connection.execute(query.format("shadow_comparison")).fetchall()


async def test_days_stay_that_the_record_says_nothing_new_of_and_what_was_interrupted_goes_on(
    url: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    half = await export(url, out, until=FIRST + timedelta(days=4))
    assert half.days == 4
    (out / ".day=2001-01-01").mkdir()
    (out / ".day=2001-01-01" / "half.parquet").write_bytes(b"PAR1")
    assert await export(url, out) == Exported(DAYS - 4, 2 * (DAYS - 4), 4)
    assert len(read(out)) == 2 * DAYS
    told: list[tuple[int, int]] = []
    await export(url, out, since=FIRST + timedelta(days=9), progress=lambda *at: told.append(at))
    assert told == [(2, 2)]


async def test_no_symbol_keeps_the_rest_from_being_written(
    database_url: str, tmp_path: Path
) -> None:
    log = ShadowLog.connect(database_url)
    await log.append(
        [build.decision_event(f"odd-{at}", candidate__symbol=odd) for at, odd in enumerate(ODD)]
    )
    await log.aclose()
    assert await export(database_url, tmp_path) == Exported(1, len(ODD), 0)
    table = read(tmp_path)
    assert len(table) == table["symbol"].n_unique() == len(ODD)
    short = {odd for odd in ODD if "🚀" not in odd and odd != HIVES_NULL}
    assert short < set(table["symbol"])
    assert all(symbol is not None for symbol in table["symbol"])
    there = duckdb.execute(f"SELECT DISTINCT symbol FROM '{tmp_path}/**/*.parquet'").fetchall()
    assert {symbol for (symbol,) in there} == set(table["symbol"])


async def test_what_an_interrupted_export_left_is_read_by_nobody(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    await export(url, out, until=FIRST + timedelta(days=2))
    write, left = pl.DataFrame.write_parquet, [2]

    def until_the_disk_is_full(table: pl.DataFrame, path: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        write(table, path)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", until_the_disk_is_full)
    with pytest.raises(ExportFault, match="No space left"):
        await export(url, out)
    assert len(read(out)) == 2 * len(SYMBOLS)


async def test_a_report_that_came_late_is_in_the_next_export_however_late(
    url: str, tmp_path: Path
) -> None:
    await export(url, tmp_path)
    log = ShadowLog.connect(url)
    first = f"{SYMBOLS[1]}-0"
    await log.append([build.outcome_event(first, build.outcome("agent", net_pnl=build.PLAN_RISK))])
    assert await export(url, tmp_path) == Exported(1, 2, DAYS - 1)
    assert read(tmp_path).filter(pl.col("request_id") == first)["agent_r"].to_list() == [1.0]
    await log.append([build.decision_event("forgotten", at=build.AS_OF + timedelta(days=1))])
    await log.aclose()
    assert await export(url, tmp_path) == Exported(1, 3, DAYS - 1)
    assert await export(url, tmp_path) == Exported(0, 0, DAYS)


async def test_an_empty_span_and_a_place_that_is_none(url: str, tmp_path: Path) -> None:
    assert await export(url, tmp_path, since=date(2099, 1, 1)) == Exported(0, 0, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportFault, match="cannot be written"):
        await export(url, tmp_path / "file")


async def test_the_command_and_the_notebook(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cell of docs/analysts.ipynb runs on what the command wrote."""
    variables = environment(tmp_path / "home", database_url=url)
    done = advisor(variables, "export", str(tmp_path / "record"), "--since", f"{FIRST}")
    assert done.returncode == 0, done.stderr
    assert f"{2 * DAYS} rows of {DAYS} days written" in done.stderr
    backwards = ("--since", f"{FIRST}", "--until", f"{FIRST}")
    assert "not after --since" in advisor(variables, "export", "x", *backwards).stderr
    notebook = json.loads((ROOT / "docs" / "analysts.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in cells:
        source = "".join(cell["source"]).replace('"record"', repr(str(tmp_path / "record")))
        exec(compile(source, "cell", "exec"), names)
    assert len(cells) >= 4
    assert "BTCUSDT" in capsys.readouterr().out


async def test_a_folder_holds_one_record_and_one_export_at_a_time(
    url: str, empty_database_url: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await export(url, out)
    upgrade(empty_database_url)
    log = ShadowLog.connect(empty_database_url)
    await log.append([build.decision_event("other")])
    await log.aclose()
    with pytest.raises(ExportFault, match="holds an export of another record"):
        await export(empty_database_url, out)
    assert len(read(out)) == 2 * DAYS
    with _alone(out), pytest.raises(ExportFault, match="another export writes to"):
        await export(url, out)
    assert (await export(url, out)).kept == DAYS
