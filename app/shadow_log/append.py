"""Writing one batch of events: keys first, then COPY of what they claimed, all in one
transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

import orjson
import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import ARRAY, Boolean, DateTime, Double, Integer, Table, Text, Uuid, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.decision import Decision
from app.domain.errors import InvalidRecord
from app.domain.event import Event, EventKind
from app.shadow_log import tables
from app.shadow_log.partitions import month_of
from app.shadow_log.rows import Row, advice_rows, control_row, decision_row, report_row

REPORTS: dict[EventKind, Table] = {
    EventKind.AGENT_ACTION: tables.agent_actions,
    EventKind.OUTCOME: tables.outcomes,
    EventKind.RATIONALE: tables.rationales,
    EventKind.STATE_CHANGE: tables.state_changes,
}
_COPY_TYPES = {
    Uuid: "uuid",
    DateTime: "timestamptz",
    Text: "text",
    Double: "float8",
    Boolean: "bool",
}
_COPY_TYPES |= {Integer: "int4", ARRAY: "text[]", JSONB: "jsonb"}


@dataclass
class Appended:
    """What one batch did. `conflicts` are the ids of decisions that are stored under another
    request."""

    inserted: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)

    def add(self, table: Table, rows: int) -> None:
        """Count rows written."""
        if rows:
            name = str(table.name)
            self.inserted[name] = self.inserted.get(name, 0) + rows


class Batch(NamedTuple):
    """Events as rows. Everything that can be wrong with an event shows before a transaction
    begins."""

    decisions: list[tuple[Event, Decision]]
    reports: dict[Table, list[Row]]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Batch:
        """Raises `InvalidRecord` when an event does not fit its schema."""
        batch = cls([], {})
        for event in events:
            try:
                batch._add(event)
            except InvalidRecord:
                raise
            except Exception as error:  # Nothing but this event's own bytes was looked at.
                raise InvalidRecord(f"{event.kind.value} {event.key}: {error!r}") from error
        return batch

    def _add(self, event: Event) -> None:
        record = event.record()
        if isinstance(record, Decision):
            self.decisions.append((event, record))
        else:
            self.reports.setdefault(REPORTS[event.kind], []).append(report_row(event, record))

    @property
    def months(self) -> set[str]:
        """The partitions that it needs."""
        return {month_of(record.scenario.as_of) for _, record in self.decisions}


async def append(connection: AsyncConnection, batch: Batch) -> Appended:
    """Write a batch in the connection's transaction; what is there already stays as it is."""
    appended = Appended()
    if batch.decisions:
        await _append_decisions(connection, batch.decisions, appended)
    for table in (
        REPORTS.values()
    ):  # A fixed order of tables and keys: two writers cannot wait for each other.
        if table in batch.reports:
            await _append_reports(connection, table, batch.reports[table], appended)
    return appended


async def _append_decisions(
    connection: AsyncConnection, decisions: Sequence[tuple[Event, Decision]], appended: Appended
) -> None:
    """Claim the ids, then copy the rows of those that were free. The first of a batch's repeats
    counts."""
    first = {record.decision_id: (event, record) for event, record in reversed(decisions)}
    keys = [
        {"decision_id": known, "request_hash": event.claim, "as_of": record.scenario.as_of}
        for known, (event, record) in sorted(first.items())
    ]
    claim = (
        insert(tables.decision_keys)
        .on_conflict_do_nothing()
        .returning(tables.decision_keys.c.decision_id)
    )
    fresh = set((await connection.scalars(claim, keys)).all())
    if len(fresh) < len(decisions):
        await _count_repeats(connection, decisions, fresh, appended)
    new = [first[known] for known in sorted(fresh)]
    await _copy(
        connection,
        tables.decisions,
        [decision_row(record, event.payload) for event, record in new],
        appended,
    )
    await _copy(
        connection,
        tables.advices,
        [row for _, record in new for row in advice_rows(record)],
        appended,
    )
    controls = [row for _, record in new if (row := control_row(record)) is not None]
    await _copy(connection, tables.agent_actions, controls, appended)


async def _count_repeats(
    connection: AsyncConnection,
    decisions: Sequence[tuple[Event, Decision]],
    fresh: set[UUID],
    appended: Appended,
) -> None:
    """A repeat of the same request is a duplicate; of another request, a conflict."""
    keys = tables.decision_keys.c
    ids = {record.decision_id for _, record in decisions}
    rows = await connection.execute(
        select(keys.decision_id, keys.request_hash).where(keys.decision_id.in_(ids))
    )
    stored = {row.decision_id: row.request_hash for row in rows}
    written: set[UUID] = set()
    for event, record in decisions:
        known = record.decision_id
        if stored[known] != event.claim:
            appended.conflicts.append(str(known))
        elif known in fresh and known not in written:
            written.add(known)
        else:
            appended.duplicates += 1


async def _append_reports(
    connection: AsyncConnection, table: Table, rows: list[Row], appended: Appended
) -> None:
    statement = insert(table).on_conflict_do_nothing().returning(table.c.event_key)
    added = len(
        (await connection.scalars(statement, sorted(rows, key=lambda row: row["event_key"]))).all()
    )
    appended.add(table, added)
    appended.duplicates += len(rows) - added


async def _copy(
    connection: AsyncConnection, table: Table, rows: list[Row], appended: Appended
) -> None:
    """COPY rows into a table, in binary, on the transaction's own connection."""
    if not rows:
        return
    columns = [table.c[name] for name in rows[0]]
    documents = [isinstance(column.type, JSONB) for column in columns]
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    names = ", ".join(f'"{column.name}"' for column in columns)
    statement = f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)"
    async with raw.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([_COPY_TYPES[type(column.type)] for column in columns])
        for row in rows:
            values = zip(row.values(), documents, strict=True)
            await copy.write_row(
                [Jsonb(value, orjson.dumps) if document else value for value, document in values]
            )
    appended.add(table, len(rows))
