"""The shadow log in Postgres: append once, read back. All the SQL of the service is in this package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.domain.decision import Decision
from app.domain.errors import ManifestMismatch, ShadowLogUnavailable
from app.domain.event import Event, EventKind, StateChange
from app.domain.manifest import ModelManifest
from app.shadow_log import tables
from app.shadow_log.rows import Row, advice_rows, assemble, control_row, decision_row, report_row

REPORTS: dict[EventKind, Table] = {
    EventKind.AGENT_ACTION: tables.agent_actions,
    EventKind.OUTCOME: tables.outcomes,
    EventKind.RATIONALE: tables.rationales,
    EventKind.STATE_CHANGE: tables.state_changes,
}
PARTITION_LOCK = 0x5AD0
CONNECT_TIMEOUT_S = 5


@dataclass
class Appended:
    """What one batch did. `conflicts` are decisions that are stored under another request."""

    inserted: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)

    def add(self, table: Table, rows: int) -> None:
        if rows:
            self.inserted[table.name] = self.inserted.get(table.name, 0) + rows


class ShadowLog:
    """Append-only store of decisions; the authority."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._months: set[str] = set()

    @classmethod
    def connect(cls, url: str) -> Self:
        """A log at a SQLAlchemy or libpq URL. Connects when first used."""
        return cls(create_async_engine(async_url(url), pool_size=5, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}))

    async def append(self, events: Sequence[Event]) -> Appended:
        """Write a batch in one transaction; what is there already stays as it is.

        Raises
        ------
        ShadowLogUnavailable : nothing was written; try again later.
        InvalidRecord, or another error : an event of the batch can never be written.
        """
        decisions, reports = [], {kind: [] for kind in REPORTS}  # type: ignore[var-annotated]
        for event in events:
            record = event.record()
            if isinstance(record, Decision):
                decisions.append((event, record))
            else:
                reports[event.kind].append(report_row(event, record))
        appended = Appended()
        await self._ensure_months({record.scenario.as_of for _, record in decisions})
        async with self._transaction() as connection:
            if decisions:
                await _append_decisions(connection, decisions, appended)
            for kind, rows in reports.items():
                if rows:
                    await _append_reports(connection, REPORTS[kind], rows, appended)
        return appended

    async def decision(self, decision_id: UUID) -> Decision | None:
        """A decision as it was recorded."""
        async with self._transaction() as connection:
            found = await _decision_rows(connection, decision_id)
        return None if found is None else assemble(*found)

    async def get(self, decision_id: UUID) -> dict[str, Any] | None:
        """Everything known of a decision: record, hash, agent's actions, outcomes, rationales, oldest first."""
        async with self._transaction() as connection:
            found = await _decision_rows(connection, decision_id)
            if found is None:
                return None
            reports = {
                table.name: await _reports_of(connection, table, decision_id)
                for table in (tables.agent_actions, tables.outcomes, tables.rationales)
            }
        return {"decision": assemble(*found).as_json(), "record_hash": found[0]["record_hash"], **reports}

    async def latest_state(self) -> StateChange | None:
        """The newest change of the trading state."""
        changes = tables.state_changes.c
        columns = (changes.recorded_at, changes.state, changes.reason, changes.changed_by)
        async with self._transaction() as connection:
            row = (await connection.execute(select(*columns).order_by(changes.recorded_at.desc()).limit(1))).first()
        return None if row is None else StateChange.from_json(dict(row._mapping))

    async def register_model(self, manifest: ModelManifest) -> None:
        """Make a version known. Raises `ManifestMismatch` when its name is taken by another manifest."""
        row = {
            "model_version": manifest.model_version,
            "manifest_hash": manifest.hash(),
            "manifest": manifest.as_json(),
        }
        async with self._transaction() as connection:
            await connection.execute(upsert(tables.model_versions).values(row).on_conflict_do_nothing())
            versions = tables.model_versions.c
            known = await connection.scalar(
                select(versions.manifest_hash).where(versions.model_version == manifest.model_version)
            )
        if known != row["manifest_hash"]:
            raise ManifestMismatch(
                f"model version {manifest.model_version} is registered with manifest {known}, this one is "
                f"{row['manifest_hash']}: versions are immutable, give the new one a new name"
            )

    async def models(self) -> list[dict[str, Any]]:
        """Registered versions, oldest first."""
        return await self._rows(select(tables.model_versions).order_by(tables.model_versions.c.registered_at))

    async def aliases(self) -> dict[str, str]:
        """Where each alias points."""
        moves = tables.aliases.c
        rows = await self._rows(select(moves.alias, moves.model_version).order_by(moves.id))
        return {row["alias"]: row["model_version"] for row in rows}

    async def set_alias(self, alias: str, model_version: str, *, reason: str, by: str) -> None:
        """Move an alias; every move is kept."""
        row = {"alias": alias, "model_version": model_version, "reason": reason, "changed_by": by}
        async with self._transaction() as connection:
            await connection.execute(insert(tables.aliases).values(row))

    async def counts(self) -> dict[str, int]:
        """Rows by table."""
        async with self._transaction() as connection:
            return {
                table.name: await connection.scalar(select(func.count()).select_from(table)) or 0
                for table in (tables.decisions, tables.advices, *REPORTS.values())
            }

    async def ping(self) -> None:
        """Raise `ShadowLogUnavailable` unless Postgres answers and has the schema."""
        async with self._transaction() as connection:
            await connection.execute(select(tables.decision_keys.c.decision_id).limit(1))

    async def drop_months_before(self, moment: datetime) -> list[str]:
        """Retention: drop the partitions that end at or before the month of `moment`; their names."""
        keep = f"{moment:%Y%m}"
        async with self._transaction() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PARTITION_LOCK})
            children = await connection.execute(
                text("SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid ORDER BY 1")
            )
            old = [n for n in children.scalars() if n.startswith(tables.PARTITIONED) and n[-6:].isdigit() and n[-6:] < keep]
            for name in old:
                await connection.execute(text(f"DROP TABLE {name}"))
        self._months.clear()
        return old

    async def aclose(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def _rows(self, query: Any) -> list[dict[str, Any]]:
        async with self._transaction() as connection:
            return [dict(row._mapping) for row in await connection.execute(query)]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        with translated_errors():
            async with self._engine.begin() as connection:
                yield connection

    async def _ensure_months(self, moments: Iterable[datetime]) -> None:
        """Create missing partitions. Attaching locks writers out of nothing but this function."""
        missing = {f"{moment:%Y%m}" for moment in moments} - self._months
        for month in sorted(missing):
            async with self._transaction() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PARTITION_LOCK})
                for table in tables.PARTITIONED:
                    if await connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"{table}_{month}"}) is None:
                        await _create_partition(connection, table, month)
            self._months.add(month)


class translated_errors:  # noqa: N801
    """Outages and a missing schema become `ShadowLogUnavailable`; anything else passes."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn) and isinstance(
            error, ProgrammingError
        ):
            raise ShadowLogUnavailable("the database lacks the schema: run `advisor migrate`") from error
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if lost or isinstance(cause, psycopg.OperationalError | OSError | OperationalError | InterfaceError):
            first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            raise ShadowLogUnavailable(f"Postgres: {first}; check DATABASE_URL and the server") from error


def async_url(url: str) -> str:
    """The URL with the psycopg driver, which speaks both ways."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


async def _create_partition(connection: AsyncConnection, table: str, month: str) -> None:
    year, number = int(month[:4]), int(month[4:])
    after = f"{year + number // 12}-{number % 12 + 1:02d}-01"
    await connection.execute(text(f"CREATE TABLE {table}_{month} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"))
    await connection.execute(
        text(
            f"ALTER TABLE {table} ATTACH PARTITION {table}_{month} "
            f"FOR VALUES FROM ('{year}-{number:02d}-01 00:00:00+00') TO ('{after} 00:00:00+00')"
        )
    )


async def _append_decisions(
    connection: AsyncConnection, decisions: Sequence[tuple[Event, Decision]], appended: Appended
) -> None:
    """Claim the ids, then copy the rows of those that were free."""
    first = {record.decision_id: (event, record) for event, record in reversed(decisions)}
    keys = [
        {"decision_id": known, "request_hash": event.claim, "as_of": record.scenario.as_of}
        for known, (event, record) in sorted(first.items())
    ]
    claimed = upsert(tables.decision_keys).on_conflict_do_nothing().returning(tables.decision_keys.c.decision_id)
    fresh = set((await connection.scalars(claimed, keys)).all())
    await _count_repeats(connection, decisions, fresh, appended)
    new = [pair for known, pair in first.items() if known in fresh]
    advices = [row for _, record in new for row in advice_rows(record)]
    controls = [row for _, record in new if (row := control_row(record)) is not None]
    await _copy(connection, tables.decisions, [decision_row(record, event.payload) for event, record in new], appended)
    await _copy(connection, tables.advices, advices, appended)
    if controls:
        await _append_reports(connection, tables.agent_actions, controls, appended)


async def _count_repeats(
    connection: AsyncConnection, decisions: Sequence[tuple[Event, Decision]], fresh: set[UUID], appended: Appended
) -> None:
    repeated = [(event, record) for event, record in decisions if record.decision_id not in fresh]
    appended.duplicates += len(decisions) - len(fresh)
    if not repeated:
        return
    keys = tables.decision_keys.c
    ids = [record.decision_id for _, record in repeated]
    rows = await connection.execute(select(keys.decision_id, keys.request_hash).where(keys.decision_id.in_(ids)))
    stored = {row.decision_id: row.request_hash for row in rows}
    appended.conflicts += [str(r.decision_id) for e, r in repeated if stored.get(r.decision_id) != e.claim]


async def _append_reports(connection: AsyncConnection, table: Table, rows: list[Row], appended: Appended) -> None:
    statement = upsert(table).on_conflict_do_nothing().returning(table.c.event_key)
    added = len((await connection.scalars(statement, rows)).all())
    appended.add(table, added)
    appended.duplicates += len(rows) - added


async def _copy(connection: AsyncConnection, table: Table, rows: list[Row], appended: Appended) -> None:
    """COPY rows into a table, on the transaction's own connection."""
    if not rows:
        return
    names = list(rows[0])
    wrapped = {name for name in names if isinstance(table.c[name].type, JSONB)}
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    columns = ", ".join(f'"{name}"' for name in names)
    async with raw.cursor() as cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
        for row in rows:
            await copy.write_row([Jsonb(row[name]) if name in wrapped else row[name] for name in names])
    appended.add(table, len(rows))


async def _decision_rows(connection: AsyncConnection, decision_id: UUID) -> tuple[Row, list[Row]] | None:
    keys = tables.decision_keys.c
    as_of = await connection.scalar(select(keys.as_of).where(keys.decision_id == decision_id))
    if as_of is None:
        return None
    found = []
    for table in (tables.decisions, tables.advices):
        query = select(table).where(table.c.decision_id == decision_id, table.c.as_of == as_of)
        if table is tables.advices:
            query = query.order_by(table.c.ordinal)
        found.append([dict(row._mapping) for row in await connection.execute(query)])
    decision, advices = found
    return (decision[0], advices) if decision else None


async def _reports_of(connection: AsyncConnection, table: Table, decision_id: UUID) -> list[dict[str, Any]]:
    query = select(table).where(table.c.decision_id == decision_id).order_by(table.c.recorded_at)
    rows = []
    for row in await connection.execute(query):
        values = row._mapping
        content = values.get("record") or {"model_version": values["model_version"], "text": values["text"]}
        rows.append({"recorded_at": values["recorded_at"].isoformat(), **content})
    return rows
