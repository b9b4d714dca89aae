"""Many rows in one statement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import orjson
import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import (
    ARRAY,
    Boolean,
    DateTime,
    Double,
    Integer,
    Table,
    Text,
    TextClause,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from app.shadow_log.schema.tables import Digest, hash_bytes

_COPY_TYPES = {
    Uuid: "uuid",
    DateTime: "timestamptz",
    Text: "text",
    Double: "float8",
    Boolean: "bool",
}
_COPY_TYPES |= {Integer: "int4", JSONB: "jsonb", Digest: "bytea"}
_WRITTEN: dict[type[TypeEngine[Any]], Callable[[Any], Any]] = {
    JSONB: lambda value: Jsonb(value, orjson.dumps),
    Digest: hash_bytes,
}
"""How a value is sent whose type is not what Python has."""


def _copy_type(of: TypeEngine[Any]) -> str:
    if isinstance(of, ARRAY):
        return f"{_copy_type(of.item_type)}[]"
    return _COPY_TYPES[type(of)]


async def insert_new(
    connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]], key: str
) -> list[Any]:
    """Insert what is not there yet, in the order of the rows; the values of `key` of those that
    were. All of it goes as one JSON text, which Postgres takes apart faster than as many
    parameters as there are values."""
    if not rows:
        return []
    hashes = [name for name in rows[0] if isinstance(table.c[name].type, Digest)]
    if hashes:
        rows = [{**row, **{name: _in_json(row[name]) for name in hashes}} for row in rows]
    sent = {"rows": orjson.dumps(rows).decode()}
    inserted = await connection.execute(_insert(table, tuple(rows[0]), key), sent)
    return list(inserted.scalars())


def _in_json(said: str) -> str:
    """What Postgres reads in JSON as the bytes of a hash."""
    return f"\\x{hash_bytes(said).hex()}"


@cache
def _insert(table: Table, columns: tuple[str, ...], key: str) -> TextClause:
    names = ", ".join(columns)
    return text(
        f"INSERT INTO {table.name} ({names}) SELECT {names}"
        f" FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
        f" ON CONFLICT DO NOTHING RETURNING {key}"
    )


async def copy(
    connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """COPY rows into a table, in binary, on the transaction's own connection."""
    if not rows:
        return
    columns = [table.c[name] for name in rows[0]]
    written = [_WRITTEN.get(type(column.type)) for column in columns]
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    names = ", ".join(f'"{column.name}"' for column in columns)
    statement = f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)"
    async with raw.cursor() as cursor, cursor.copy(statement) as sent:
        sent.set_types([_copy_type(column.type) for column in columns])
        for row in rows:
            values = zip(row.values(), written, strict=True)
            await sent.write_row(
                [value if made is None or value is None else made(value) for value, made in values]
            )
