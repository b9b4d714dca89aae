"""The comparing view as Parquet for analysts: a folder a day, a file a symbol, which Polars, DuckDB
and pandas read as one table.

A day is written whole and then named, so an interrupted export goes on where it stopped, and its
half is no Parquet to whoever reads meanwhile. A day is written again when the record says anything
else of it than what was written: a report that came late, a correction, a new column.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError
from app.domain.fields import moved
from app.shadow_log.database import connect, translated_errors
from app.shadow_log.rows import Row, plain

Progress = Callable[[int, int], None]
SAID = "_said"
"""File in a day's folder: what the record said of the day, as a hash."""
OF_RECORD = "_record"
"""File in the folder: which record it is an export of."""
MOST_NAME_BYTES = 255
"""Of a folder, on every file system in use."""
HIVES_NULL = "__HIVE_DEFAULT_PARTITION__"
_DAYS = text(
    """
    SELECT (as_of AT TIME ZONE 'UTC')::date AS day, count(*) AS rows,
           sum(hashtextextended(compared::text, 0)) AS said
    FROM shadow_comparison compared
    WHERE as_of >= :since AND as_of <= :last
    GROUP BY day
    ORDER BY day
    """
)
_RECORD = text("SELECT payload FROM event_links ORDER BY id LIMIT 1")
_ROWS = text(
    """
    SELECT * FROM shadow_comparison
    WHERE as_of >= :begin AND as_of <= :last
    ORDER BY symbol, as_of, decision_id, model_version
    """
)
_COLUMNS = text(
    """
    SELECT column_name, data_type FROM information_schema.columns
    WHERE table_name = 'shadow_comparison' AND table_schema = current_schema()
    ORDER BY ordinal_position
    """
)


class ExportFault(AdvisorError):
    """The export cannot be written; the message says why."""


class Exported(NamedTuple):
    """Days and rows written, and days that were there already."""

    days: int
    rows: int
    kept: int


async def export(
    url: str,
    folder: Path,
    since: date = date.min,
    until: date | None = None,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write decisions of whole days, UTC, from `since` to before `until`; None is to the last one.
    Raises `ShadowLogUnavailable` and `ExportFault`."""
    engine = connect(url, patience_s=None)
    written, rows, done = 0, 0, 0
    try:
        with _alone(folder), translated_errors():
            async with engine.connect() as connection:
                await connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                _require_of(folder, await connection.scalar(_RECORD))
                _clear(folder)
                schema = await _schema(connection)
                last = datetime.max.replace(tzinfo=UTC) if until is None else _before(until)
                span = {"since": _begin(since), "last": last}
                days = (await connection.execute(_DAYS, span)).all()
                total = sum(each.rows for each in days)
                for each in days:
                    to = folder / f"day={each.day}"
                    said = content_hash([each.rows, str(each.said), list(schema)])
                    if _said(to) != said:
                        _write(await _rows(connection, each.day), schema, to, said)
                        written, rows = written + 1, rows + each.rows
                    done += each.rows
                    progress(done, total)
    finally:
        await engine.dispose()
    return Exported(written, rows, len(days) - written)


def _begin(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _before(day: date) -> datetime:
    """The last moment before a day, in the microseconds in which Postgres counts."""
    return moved(_begin(day), -timedelta(microseconds=1))


async def _rows(connection: AsyncConnection, day: date) -> list[Row]:
    span = {"begin": _begin(day), "last": datetime.combine(day, time.max, UTC)}
    return [
        {**plain(row), "decision_id": str(row.decision_id)}
        for row in await connection.execute(_ROWS, span)
    ]


async def _schema(connection: AsyncConnection) -> dict[str, Any]:
    """The view's columns as Polars has them, so that every file has the same."""
    try:
        import polars
    except ImportError as error:
        raise ExportFault("needs polars: pip install 'shadow-advisor[market]'") from error
    kinds = {
        "uuid": polars.String,
        "text": polars.String,
        "timestamp with time zone": polars.Datetime("us", "UTC"),
        "double precision": polars.Float64,
        "boolean": polars.Boolean,
        "integer": polars.Int64,
        "ARRAY": polars.List(polars.String),
    }
    return {row.column_name: kinds[row.data_type] for row in await connection.execute(_COLUMNS)}


@contextmanager
def _faults_of(folder: Path) -> Iterator[None]:
    """What the disk refuses is no outage of Postgres."""
    try:
        yield
    except OSError as error:
        raise ExportFault(f"{folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, while no other export writes to it."""
    with ExitStack() as open_folder:
        with _faults_of(folder):
            folder.mkdir(parents=True, exist_ok=True)
            here = os.open(folder, os.O_RDONLY)
            open_folder.callback(os.close, here)
            try:
                fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportFault(f"another export writes to {folder} now: wait for it") from None
        yield


def _require_of(folder: Path, record: str | None) -> None:
    """Raises `ExportFault` where the folder holds what another record says. The hash of its first
    event names a record: no other has it, and a backup keeps it."""
    named = folder / OF_RECORD
    with _faults_of(folder):
        if named.is_file() and named.read_text() != (record or ""):
            raise ExportFault(f"{folder} holds an export of another record: choose another folder")
        if record is not None:
            named.write_text(record)


def _clear(folder: Path) -> None:
    """Take away what was interrupted."""
    with _faults_of(folder):
        for interrupted in folder.glob(".day=*"):
            shutil.rmtree(interrupted)


def _said(day: Path) -> str | None:
    """What the record said when a day was written; None where it was not."""
    with _faults_of(day):
        try:
            return (day / SAID).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _write(rows: list[Row], schema: dict[str, Any], to: Path, said: str) -> None:
    """A day beside its place, then in it."""
    import polars

    beside = to.with_name(f".{to.name}")
    with _faults_of(to.parent):
        for symbol, own in groupby(rows, key=lambda row: str(row["symbol"])):
            place = beside / _folder_of(symbol)
            place.mkdir(parents=True, exist_ok=True)
            table = polars.DataFrame(list(own), schema=schema, orient="row")
            table.write_parquet(place / "half")
        (beside / SAID).write_text(said)
        for half in beside.glob("*/half"):
            half.rename(half.with_name("rows.parquet"))
        if to.exists():
            shutil.rmtree(to)
        beside.rename(to)


def _folder_of(symbol: str) -> str:
    """`symbol=...` as Hive's readers take it, what is no letter escaped. What is longer than a name
    may be, and what they read as null, which no market's symbol is, is told apart by its hash."""
    escaped = (letter if not letter.isascii() else quote(letter, safe="") for letter in symbol)
    name = f"symbol={''.join(escaped)}"
    if len(name.encode()) <= MOST_NAME_BYTES and symbol != HIVES_NULL:
        return name
    digest = hashlib.sha256(symbol.encode()).hexdigest()[:16]
    return name.encode()[: MOST_NAME_BYTES - 17].decode(errors="ignore") + f"~{digest}"
