"""The commands `query` and `psql`: questions to the shadow log."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.options import DRIVER, WIDE, AsJson, console, database_url, for_programs, tell
from app.domain.text import counted
from app.settings import SettingsError, read_settings

if TYPE_CHECKING:
    from psycopg import Connection

ASKED_FOR_S = 60
_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def query(
    sql: Annotated[str, typer.Argument(help="One statement; it can change nothing.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a line of names.")] = False,
) -> None:
    """Ask the shadow log one question in SQL, within a minute; docs/shadow_log.md has examples."""
    import psycopg

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    if not sql.strip():
        raise typer.BadParameter("there is no question")
    url = database_url(read_settings()).replace(DRIVER, "", 1)
    wait = f"-c statement_timeout={ASKED_FOR_S}s -c default_transaction_read_only=on"
    try:
        with psycopg.connect(url, connect_timeout=5, options=wait) as connection:
            _tell_every_time(connection)
            connection.read_only = True
            cursor = connection.execute(sql.encode(), prepare=True)  # Then it is one statement.
            names = [column.name for column in cursor.description or ()]
            rows = cursor.fetchall() if names else []
    except psycopg.Error as error:
        raise SettingsError(f"Postgres says: {' '.join(str(error).split())}") from error
    if as_json:
        tell([_record(names, row) for row in rows])
    elif as_csv:
        written = csv.writer(sys.stdout)
        written.writerows([names, *rows])
    else:
        _print(names, rows)


def _tell_every_time(connection: Connection) -> None:
    """Have times that Python has none of (`infinity`, the year 10000, 24:00) told as Postgres tells
    them."""
    from psycopg import DataError
    from psycopg.types import datetime

    for name in ("date", "time", "timetz", "timestamp", "timestamptz", "interval"):
        kind: Any = getattr(datetime, f"{name.capitalize()}Loader")

        class AsTold(kind):  # type: ignore[misc]
            def load(self, data: Any) -> Any:
                try:
                    return super().load(data)
                except DataError:
                    return bytes(data).decode()

        connection.adapters.register_loader(name, AsTold)


def _record(names: list[str], row: tuple[Any, ...]) -> dict[str, Any]:
    """A row as JSON can hold it: what is no number in JSON is told as Postgres tells it."""
    if len(set(names)) < len(names):
        raise SettingsError(
            "two columns have one name: give each its own with AS, or ask for --csv"
        )
    return {name: _as_json(value) for name, value in zip(names, row, strict=True)}


def _as_json(value: Any) -> Any:
    """A value as JSON can hold it, wherever it stands in lists and documents."""
    if isinstance(value, float):
        return _WORDS.get(str(value), value)
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    return value


def psql(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="What psql gets, such as `-c 'select 1'`.")
    ] = None,
) -> None:
    """Open psql on the shadow log: the password is in no argument that others can see."""
    program = shutil.which("psql")
    if program is None:
        raise SettingsError(
            "psql is not installed (Debian: postgresql-client); `advisor query` needs none"
        )
    target, environment = for_programs(database_url(read_settings()))
    os.execve(program, [program, target, *(arguments or ())], environment)


def _print(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    table = Table(*map(escape, names), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    Console(width=max(WIDE, console.width)).print(table)
    console.print(counted(len(rows), "row"), highlight=False)
