"""What is stored, read in order of time without holding it all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Table,
    Uuid,
    and_,
    any_,
    literal,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.shadow_log.lean import parts
from app.shadow_log.rows import Row, plain
from app.shadow_log.schema import tables

CHUNK = 500


class Chunk(NamedTuple):
    """Decisions by time and id, the advices of each, and what the rows share by hash."""

    decisions: list[Row]
    advices: defaultdict[Any, list[Row]]
    shared: Row


class Beside(NamedTuple):
    """The rows that belong to one decision: its advices, the control that came along, advice that
    came later; and what they share with others."""

    advices: list[Row]
    controls: list[Row]
    late: list[Row]
    shared: Row


def within(table: Table, since: datetime | None, until: datetime | None) -> ColumnElement[bool]:
    """Rows of a span of time; None is an open end."""
    begin = true() if since is None else table.c.as_of >= since
    return and_(begin, true() if until is None else table.c.as_of < until)


async def stored_chunks(
    connection: AsyncConnection, wanted: ColumnElement[bool]
) -> AsyncIterator[Chunk]:
    """The decisions that are wanted by time and id, a chunk at a time."""
    c, advices = tables.decisions.c, tables.advices.c
    everything = select(tables.decisions).where(wanted)
    async for chunk in chunks(connection, everything, c.as_of, c.decision_id):
        ids = [row["decision_id"] for row in chunk]
        times = chunk[0]["as_of"], chunk[-1]["as_of"]
        theirs = (
            select(tables.advices)
            .where(advices.decision_id == any_(literal(ids, ARRAY(Uuid))))
            .where(advices.as_of.between(*times))
            .order_by(advices.ordinal)
        )
        of_each = await grouped(connection, theirs)
        every = [row for rows in of_each.values() for row in rows]
        yield Chunk(chunk, of_each, await parts(connection, chunk, every))


async def stored(
    connection: AsyncConnection, since: datetime | None, until: datetime | None
) -> AsyncIterator[tuple[Row, Beside]]:
    """Decisions with what belongs to them, by time and id."""
    wanted = within(tables.decisions, since, until)
    async for chunk, advices, shared in stored_chunks(connection, wanted):
        ids = [row["decision_id"] for row in chunk]
        actions, late = tables.agent_actions.c, tables.late_advices.c
        keys = [f"control:{decision_id}" for decision_id in ids]
        controls = await grouped(
            connection, select(tables.agent_actions).where(actions.event_key.in_(keys))
        )
        added = await grouped(
            connection, select(tables.late_advices).where(late.decision_id.in_(ids))
        )
        for row in chunk:
            decision_id = row["decision_id"]
            own = advices[decision_id], controls[decision_id], added[decision_id]
            yield row, Beside(*own, shared)


async def grouped(connection: AsyncConnection, query: Select[Any]) -> defaultdict[Any, list[Row]]:
    """Rows by the decision that they belong to."""
    groups: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in await connection.execute(query):
        groups[row.decision_id].append(plain(row))
    return groups


async def chunks(
    connection: AsyncConnection, query: Select[Any], *key: ColumnElement[Any]
) -> AsyncIterator[list[Row]]:
    """The query's rows in order of `key`, which must be unique, without holding them all."""
    query = query.order_by(*key).limit(CHUNK)
    chunk = [plain(row) for row in await connection.execute(query)]
    while chunk:
        yield chunk
        last = tuple(chunk[-1][column.key or ""] for column in key)
        following = query.where(tuple_(*key) > tuple_(*last))
        chunk = [plain(row) for row in await connection.execute(following)]
