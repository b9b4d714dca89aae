"""Rows of a file that another program wrote: CSV, Parquet, JSON, SQLite."""

from __future__ import annotations

import csv
import json
import sqlite3
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from app.domain.errors import AdvisorError

EMPTY = frozenset({"", "n/a", "na", "nan", "none", "null", "error"})
"""What programs write where they have no value, in small letters."""
DELIMITERS = ",;\t|"
"""Of columns: the one that stands most often in the header, the first of equals."""
SQLITE = ("sqlite", "db", "sqlite3")
Row = Mapping[str, Any]


class ImportFault(AdvisorError):
    """A file cannot be imported; the message names it and says what would help."""


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Every row of a file of records, by its ending; values that say "nothing" are None."""
    ending = path.suffix.lstrip(".").lower()
    if not path.exists():
        raise ImportFault(f"{path}: no such file")
    if ending == "csv":
        source = _csv(path)
    elif ending == "parquet":
        source = frame_of(path).iter_rows(named=True)
    elif ending == "json":
        source = iter(_records(json.loads(path.read_text()), path))
    else:
        raise ImportFault(f"{path}: .{ending} is not read; csv, parquet and json are")
    for row in source:
        if not isinstance(row, dict):
            raise ImportFault(f"{path}: {str(row)[:40]!r} is no record with names")
        yield {name: None if _is_empty(value) else value for name, value in row.items()}


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in EMPTY
    return value is None or value != value


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header = stream.readline()
        stream.seek(0)
        delimiter = max(DELIMITERS, key=header.count)
        for row in csv.DictReader(stream, delimiter=delimiter):
            # What goes beyond the header has no name.
            yield {name: value for name, value in row.items() if name is not None}


def _records(document: Any, path: Path) -> list[dict[str, Any]]:
    records = document.get("trades") if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise ImportFault(f"{path}: neither a list of records nor an object with `trades`")
    return records


def frame_of(path: Path) -> Any:
    """A table of polars'."""
    try:
        import polars
    except ImportError as error:
        raise ImportFault(f"{path}: needs polars: pip install 'shadow-advisor[market]'") from error
    if path.suffix == ".csv":
        return polars.read_csv(path, try_parse_dates=True, infer_schema_length=None, glob=False)
    return polars.read_parquet(path)


def sqlite_rows(path: Path, query: str) -> Iterator[dict[str, Any]]:
    """Rows of a query on a database that is only read, also while its program runs."""
    if not path.exists():
        raise ImportFault(f"{path}: no such file")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        try:
            for row in connection.execute(query):
                yield dict(row)
        except sqlite3.DatabaseError as error:
            raise ImportFault(f"{path}: {error}") from error


def document_in(path: Path) -> Any:
    """A JSON document, also inside an archive that has one of the archive's own name."""
    if path.suffix != ".zip":
        return json.loads(path.read_text())
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{path.stem}.json"))
