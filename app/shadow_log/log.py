"""The shadow log in Postgres: append once, read back. All the SQL of the service is in this
package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, LiteralString, NamedTuple, Self
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Select,
    Table,
    Text,
    TextClause,
    Uuid,
    any_,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy import Row as SqlRow
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.errors import (
    AliasRefused,
    DamagedRecord,
    InvalidRecord,
    ManifestMismatch,
    ShadowLogRefused,
    ShadowLogUnavailable,
)
from app.domain.model.aliases import NOTHING
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Decision
from app.domain.record.event import CorrectableReport, Entry, Event, EventKind, StateChange
from app.domain.record.link import Fate, Producer
from app.shadow_log.appending import links
from app.shadow_log.appending.batch import REPORTS, Appended, Batch, append
from app.shadow_log.appending.kept import Kept
from app.shadow_log.appending.promises import Promise, Promises, forgotten, lost, newest_link
from app.shadow_log.database import (
    APPLICATION,
    NO_SCHEMA,
    PATIENCE_S,
    SERVER_SHARE,
    connect,
    faults_of_values,
    translated_errors,
)
from app.shadow_log.lean import REPORTED, parts, whole_report, with_defaults
from app.shadow_log.rows import Row, assemble, plain, report_of, row_hash
from app.shadow_log.schema import partitions, tables

_REPORTED_TRADES = """
WITH reports AS (
    SELECT d.principal, d.decision_id, d.as_of, d.received_at, a.record AS action,
           a.recorded_at AS acted_at, o.record AS outcome, o.recorded_at AS ended_at,
           (SELECT max(arrival) FROM agent_actions
            WHERE decision_id = told.decision_id) AS action_arrival,
           (SELECT max(arrival) FROM outcomes
            WHERE decision_id = told.decision_id
              AND arm = 'agent' AND source = 'reported') AS outcome_arrival,
           a.decision OR o.decision_id IS NOT NULL AS traded,
           d.received_at - d.as_of <= :open_for AS live
    FROM (SELECT decision_id FROM agent_actions
          WHERE recorded_at >= :since AND recorded_at < :until
          UNION
          SELECT decision_id FROM outcomes
          WHERE recorded_at >= :since AND recorded_at < :until
            AND arm = 'agent' AND source = 'reported') told
    JOIN decision_keys k ON k.decision_id = told.decision_id
    JOIN decisions d ON d.decision_id = told.decision_id AND d.as_of = k.as_of
    LEFT JOIN latest_actions a ON a.decision_id = told.decision_id
    LEFT JOIN latest_outcomes o
      ON o.decision_id = told.decision_id AND o.arm = 'agent' AND o.source = 'reported'
), wanted AS (
    SELECT * FROM reports WHERE traded
    UNION ALL
    (SELECT DISTINCT ON (principal) * FROM reports WHERE NOT traded AND live
     ORDER BY principal, acted_at DESC)
)
SELECT wanted.*, d.scenario FROM wanted
JOIN whole_decisions d ON d.decision_id = wanted.decision_id AND d.as_of = wanted.as_of
"""
"""What is wide, the scenario, is read of those that are wanted alone: there may be many more."""


ALIAS_LOCK = 0x5AD4
DAY, END = timedelta(days=1), datetime.max.replace(tzinfo=UTC)
FROZEN_S = PATIENCE_S * SERVER_SHARE
"""After which a session is ended that waits for the rest of a statement of ours."""
_END_FROZEN = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = :application
    AND state = 'active' AND wait_event = 'ClientRead' AND pid <> pg_backend_pid()
    AND query_start < clock_timestamp() - make_interval(secs => :silent_s)
"""


class Registered(NamedTuple):
    """A version in the registry: its manifest as it was written, and the hash that it had then."""

    manifest_hash: str
    document: dict[str, Any]


class ShadowLog:
    """Append-only store of decisions; the authority. Every method raises `ShadowLogUnavailable` in
    an outage."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._own = Producer()
        self._linking_one = asyncio.Lock()
        self._watch = links.Watch()
        self._promises = Promises()
        self._claims, self._looks = Kept(engine), Kept(engine)
        self._aliases: tuple[tuple[int, int], dict[str, str]] | None = None
        """Where each pointed, and how many moves there were then."""

    @classmethod
    def connect(cls, url: str, *, patience_s: float | None = PATIENCE_S) -> Self:
        """A log at a SQLAlchemy or libpq URL. Connects when first used. A server that is silent for
        `patience_s` counts as away; None waits for as long as the connection lives."""
        return cls(connect(url, patience_s=patience_s))

    @property
    def url(self) -> str:
        """Where it is, password included: for a process of our own."""
        return self.engine.url.render_as_string(hide_password=False)

    async def append(self, events: Sequence[Entry]) -> Appended:
        """Write a batch in one transaction; what is there already stays as it is.

        Raises
        ------
        ShadowLogUnavailable : nothing was written; try again later.
        InvalidRecord : an event of the batch can never be written, so nothing was.
        """
        batch = Batch.of(events)
        while True:
            # Who has to number events takes turns; others may be under way beside each other.
            begun = self._transaction() if batch.all_linked else self._linking()
            async with begun as connection:
                with faults_of_values():
                    missing = await partitions.missing_months(connection, batch.months)
                    if not missing:
                        return await append(connection, batch, self._own)
            for month in missing:
                async with self._transaction() as connection:
                    with faults_of_values():
                        await partitions.make_month(connection, month)

    async def claim(self, decision_id: UUID) -> str | None:
        """Hash of the request that is stored under this id, also after its month was dropped."""
        keys = tables.decision_keys.c
        async with self._transaction() as connection:
            claim: str | None = await connection.scalar(
                select(keys.request_hash).where(keys.decision_id == decision_id)
            )
        return claim

    async def claims(self, decision_ids: Sequence[UUID]) -> dict[UUID, str]:
        """`claim` of many at once, without those that nothing is stored under."""
        with translated_errors():
            return await self._claims.claims(decision_ids)

    async def holds(self, events: Sequence[Event]) -> bool:
        """Whether all of them are stored."""
        wanted: dict[EventKind, set[str]] = {}
        for event in events:
            wanted.setdefault(event.kind, set()).add(event.key)
        async with self._transaction() as connection:
            for kind, found in wanted.items():
                if kind is EventKind.DECISION:
                    column, values = tables.decision_keys.c.decision_id, _uuids(found)
                else:
                    column, values = REPORTS[kind].c.event_key, literal(list(found), ARRAY(Text))
                stored = await connection.scalar(
                    select(func.count()).select_from(column.table).where(column == any_(values))
                )
                if stored != len(found):
                    return False
        return True

    async def decision(self, decision_id: UUID) -> Decision | None:
        """A decision as it was recorded. Raises `DamagedRecord`."""
        async with self._transaction() as connection:
            rows = await _decision_rows(connection, decision_id)
        return None if rows is None else _assembled(decision_id, *rows)

    async def get(self, decision_id: UUID) -> dict[str, Any] | None:
        """Everything known of a decision: record, hash, agent's actions, outcomes, rationales,
        advice that came later and what was asked again, oldest first. Raises `DamagedRecord`."""
        async with self._transaction() as connection:
            rows = await _decision_rows(connection, decision_id)
            if rows is None:
                return None
            reports = {
                str(each.name): await _reports_of(connection, each, decision_id)
                for each in _OF_A_DECISION
            }
        return {
            "decision": _assembled(decision_id, *rows).as_json(),
            "record_hash": rows[0]["record_hash"],
            **reports,
        }

    async def newest_report(
        self, kind: EventKind, about: CorrectableReport
    ) -> CorrectableReport | None:
        """The report on the subject of `about` that came last, of those that are stored. Raises
        `DamagedRecord`."""
        reports = REPORTS[kind]
        query = select(reports).where(
            reports.c.decision_id == about.decision_id, ~reports.c.event_key.like("control:%")
        )
        rows = await self._rows(query.order_by(*oldest(reports)))
        try:
            stored = [report_of(kind, row) for row in rows]
        except InvalidRecord as error:
            raise _damaged(about.decision_id, error) from error
        same = [
            report
            for report in stored
            if isinstance(report, CorrectableReport) and report.subject == about.subject
        ]
        return same[-1] if same else None

    async def reported_trades(self, now: datetime, open_for: timedelta) -> list[Row]:
        """Trades that agents reported in the time before now for which one can be open, each with
        the newest end that was reported; of one whose end alone was, there is no action. And of
        each principal the newest report of a day that it did not trade, of no replay (older than
        `open_for` when it arrived): who reports holds what it says, and be it nothing."""
        found: dict[UUID, Row] = {}
        days = [now - open_for + number * DAY for number in range(open_for // DAY + 1)]
        for since, until in pairwise([*days, END]):  # A statement has seconds, a month has many.
            span = {"since": since, "until": until, "open_for": open_for}
            rows = await self._rows(text(_REPORTED_TRADES).bindparams(**span))
            found |= {row["decision_id"]: row for row in rows}
        return list(found.values())

    async def latest_state(self) -> StateChange | None:
        """The newest change of the trading state."""
        newest = await self.state_changes(1)
        return newest[0] if newest else None

    async def state_changes(self, most: int) -> list[StateChange]:
        """The newest changes of the trading state, the newest first."""
        changes = tables.state_changes.c
        columns = (changes.recorded_at, changes.state, changes.reason, changes.changed_by)
        rows = await self._rows(select(*columns).order_by(changes.recorded_at.desc()).limit(most))
        return [StateChange.from_json(row) for row in rows]

    async def holds_decisions(self) -> bool:
        """Whether any decision was ever recorded."""
        async with self._transaction() as connection:
            return await connection.scalar(select(exists(tables.decision_keys.select()))) or False

    async def register_model(self, manifest: ModelManifest) -> None:
        """Make a version known. Raises `ManifestMismatch` when its name is taken by another
        manifest."""
        row = {
            "model_version": manifest.model_version,
            "manifest_hash": manifest.hash(),
            "manifest": manifest.as_json(),
        }
        async with self._linking() as connection:
            added = await connection.execute(
                upsert(tables.model_versions)
                .values(row)
                .on_conflict_do_nothing()
                .returning(tables.model_versions)
            )
            await self._link_rows(connection, "model", added.all())
            registered = await _manifest_hash(connection, manifest.model_version)
        if registered != row["manifest_hash"]:
            raise ManifestMismatch(
                f"model version {manifest.model_version} is registered with manifest {registered},"
                f" this one is {row['manifest_hash']}: versions are immutable, give the new one a"
                " new name"
            )

    async def registered(self, model_version: str) -> Registered | None:
        """What is registered under this name; None when nothing is."""
        versions = tables.model_versions.c
        rows = await self._rows(
            select(versions.manifest_hash, versions.manifest).where(
                versions.model_version == model_version
            )
        )
        return Registered(rows[0]["manifest_hash"], rows[0]["manifest"]) if rows else None

    async def models(self) -> list[dict[str, Any]]:
        """Registered versions, oldest first."""
        rows = await self._rows(
            select(tables.model_versions).order_by(tables.model_versions.c.registered_at)
        )
        return [{**row, "registered_at": row["registered_at"].isoformat()} for row in rows]

    async def aliases(self) -> dict[str, str]:
        """Where each alias points; `NOTHING` when it names no version any more. Asked every half
        second: moves are read when there are others than before."""
        stamp = await self.stamp("aliases")
        if self._aliases is None or self._aliases[0] != stamp:
            moves = await self.alias_moves()
            self._aliases = stamp, {move["alias"]: move["model_version"] for move in moves}
        return dict(self._aliases[1])

    async def stamp(self, table: LiteralString) -> tuple[int, int]:
        """Rows of a table that is only added to, and the id of the newest: whoever looks often
        whether something was changed looks at this."""
        with translated_errors():
            return await self._looks.stamp(table)

    async def alias_moves(self) -> list[dict[str, Any]]:
        """Every move of an alias, oldest first: alias, model_version, reason, changed_by,
        changed_at."""
        moves = tables.aliases.c
        columns = (
            moves.alias,
            moves.model_version,
            moves.reason,
            moves.changed_by,
            moves.changed_at,
        )
        rows = await self._rows(select(*columns).order_by(moves.id))
        return [{**row, "changed_at": row["changed_at"].isoformat()} for row in rows]

    async def set_alias(
        self, alias: str, model_version: str, *, reason: str, by: str, seen: str | None = None
    ) -> str:
        """Move an alias, to a version or to `NOTHING`; every move is kept. When it was moved.

        Parameters
        ----------
        seen : when the alias was moved last, as whoever moves it knows; empty when it never was.

        Raises
        ------
        ManifestMismatch : the version is not registered.
        AliasRefused : somebody else was faster than who says what was `seen`.
        """
        row = {"alias": alias, "model_version": model_version, "reason": reason, "changed_by": by}
        async with self._linking() as connection:
            await _require_as_seen(connection, alias, seen)
            if model_version != NOTHING and await _manifest_hash(connection, model_version) is None:
                raise ManifestMismatch(
                    f"model version {model_version} is not registered: serve or publish it first"
                )
            added = await connection.execute(
                insert(tables.aliases).values(row).returning(tables.aliases)
            )
            rows = added.all()
            await self._link_rows(connection, "alias", rows)
        return str(rows[0].changed_at.isoformat())

    async def add_own(self, kind: str, row: Row) -> Row:
        """Add a row to a table of the log's own, and its link; the row as it stands. What the
        table's constraints refuse passes as it came."""
        own = tables.OWN_TABLES[kind]
        async with self._linking() as connection:
            added = await connection.execute(insert(own).values(row).returning(own))
            rows = added.all()
            await self._link_rows(connection, kind, rows)
        return plain(rows[0])

    async def add_once(self, kind: str, rows: Sequence[Row]) -> int:
        """Add rows to a table of the log's own, and their links; those that are there stay as they
        are. How many were new."""
        if not rows:
            return 0
        own = tables.OWN_TABLES[kind]
        async with self._linking() as connection:
            statement = upsert(own).on_conflict_do_nothing().returning(own)
            added = (await connection.execute(statement, list(rows))).all()
            await self._link_rows(connection, kind, added)
        return len(added)

    async def counts(self) -> dict[str, int]:
        """Rows by table."""
        async with self._transaction() as connection:
            return {
                str(each.name): await connection.scalar(select(func.count()).select_from(each)) or 0
                for each in (tables.decisions, tables.advices, *REPORTS.values())
            }

    async def ping(self) -> None:
        """Raise `ShadowLogUnavailable` unless Postgres answers and has this release's schema."""
        revision = select(literal_column("version_num", Text)).select_from(table("alembic_version"))
        async with self._transaction() as connection:
            schema = await connection.scalar(revision)
        if schema != tables.REVISION:
            raise ShadowLogUnavailable(
                f"{NO_SCHEMA} (it is at {schema or 'none'}, this release needs {tables.REVISION})"
            )

    async def is_away(self, error: ShadowLogUnavailable) -> bool:
        """Whether an error is that of an outage, or of another release's schema, which `ping` tells
        as well; and not of what Postgres refuses beside, which nobody else tells."""
        if not isinstance(error, ShadowLogRefused):
            return True
        try:
            await self.ping()
        except ShadowLogUnavailable:
            return True
        return False

    @asynccontextmanager
    async def outages(self) -> AsyncIterator[None]:
        """What fails in the block while Postgres `is_away` waits for the next round."""
        try:
            yield
        except ShadowLogUnavailable as error:
            if not await self.is_away(error):
                raise

    async def months_before(self, moment: datetime) -> dict[str, int]:
        """Decisions by month, such as `202611`, over the months that ended before the month of
        `moment`."""
        async with self._transaction() as connection:
            return await partitions.months_before(connection, moment)

    async def drop_months_before(self, moment: datetime) -> dict[str, int]:
        """Retention: drop those months; what was dropped, as `months_before` tells it."""
        async with self._linking() as connection:
            dropped, noted = await partitions.drop_months_before(connection, moment)
            await self._link_rows(connection, "month", noted)
        return dropped

    async def note_head(self, producer: str, seq: int) -> None:
        """A producer tells up to which number its events are durable."""
        async with self._transaction() as connection:
            await links.note_head(connection, producer, seq)

    async def head(self, producer: str) -> int:
        """Up to which number a producer told that its events are durable; 0 when it is not there
        any more."""
        async with self._transaction() as connection:
            return await links.head(connection, producer)

    async def heads(self) -> dict[str, int]:
        """Up to which number each producer told that its events are durable."""
        async with self._transaction() as connection:
            return await links.heads(connection)

    async def end_frozen(self, silent_s: float = FROZEN_S) -> int:
        """End sessions of this service in which Postgres has waited for so long for the rest of a
        statement: the process behind is frozen in a COPY, and none of Postgres' own time-outs ends
        that, so it would keep others from the rows it holds for ever. How many."""
        question = {"application": APPLICATION, "silent_s": silent_s}
        async with self._transaction() as connection:
            return len((await connection.scalars(text(_END_FROZEN), question)).all())

    async def missing_events(self, told: Mapping[str, int], *, moving: bool = False) -> int:
        """Numbered events that are not in the log and should be: see `Watch`."""
        async with self._transaction() as connection:
            return await self._watch.missing(connection, told, moving=moving)

    async def undecided(self) -> list[Promise]:
        """Accepted requests whose decisions are not in the log: see `Promises`."""
        async with self._transaction() as connection:
            newest = await newest_link(connection)
        async with self._transaction() as connection:
            return await self._promises.undecided(connection, newest)

    async def forget(self, promises: Sequence[Promise]) -> None:
        """Record that accepted requests were lost before they were decided."""
        async with self._linking() as connection:
            await links.shared(connection)
            await links.append_links(
                connection,
                [self._own.link(*each.said)._replace(fate=Fate.FORGOTTEN) for each in promises],
            )

    async def promise_lost(self, decision_id: UUID) -> bool | None:
        """Whether the request that was accepted under this id is named as lost; None when none was
        accepted, or it was decided."""
        async with self._transaction() as connection:
            return await lost(connection, str(decision_id))

    async def forgotten(self) -> int:
        """Accepted requests that were lost, and are not decided since."""
        async with self._transaction() as connection:
            return len(await forgotten(connection))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._claims.aclose()
        await self._looks.aclose()
        await self.engine.dispose()

    async def _rows(self, query: Select[Any] | TextClause) -> list[dict[str, Any]]:
        async with self._transaction() as connection:
            return [plain(row) for row in await connection.execute(query)]

    @asynccontextmanager
    async def _linking(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may add links of the log's own. After a failure nobody knows whether
        they were committed: the next ones begin a chain of their own."""
        async with self._linking_one:
            try:
                async with self._transaction() as connection:
                    yield connection
            except BaseException:
                self._own = Producer()
                raise

    async def _link_rows(
        self, connection: AsyncConnection, kind: str, rows: Sequence[SqlRow[Any]]
    ) -> None:
        """Link rows that were added without the journal."""
        if rows:
            await links.shared(connection)
        new = []
        for row in rows:
            key, claim = (str(row._mapping[name]) for name in tables.OWN_KEYS[kind])
            new.append(self._own.link(kind, key, claim, row_hash(plain(row))))
        await links.append_links(connection, new)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        with translated_errors():
            async with self.engine.begin() as connection:
                yield connection


_OF_A_DECISION = (
    tables.agent_actions,
    tables.outcomes,
    tables.rationales,
    tables.late_advices,
    tables.repetitions,
)


def _uuids(values: Iterable[UUID | str]) -> BindParameter[list[UUID]]:
    return literal([UUID(str(value)) for value in values], ARRAY(Uuid))


async def _manifest_hash(connection: AsyncConnection, model_version: str) -> str | None:
    versions = tables.model_versions.c
    registered: str | None = await connection.scalar(
        select(versions.manifest_hash).where(versions.model_version == model_version)
    )
    return registered


async def _require_as_seen(connection: AsyncConnection, alias: str, seen: str | None) -> None:
    """Nobody else moves an alias until the transaction ends; refuses when somebody did already."""
    await connection.execute(select(func.pg_advisory_xact_lock(ALIAS_LOCK)))
    moves = tables.aliases.c
    newest = select(moves.changed_at).where(moves.alias == alias).order_by(moves.id.desc())
    moved_at = await connection.scalar(newest.limit(1))
    stands = "" if moved_at is None else moved_at.isoformat()
    if seen not in (None, stands):
        raise AliasRefused(
            f"somebody moved the alias {alias} since it was looked at"
            f" ({stands or 'it stands nowhere now'}): look again; nothing was changed"
        )


async def _decision_rows(
    connection: AsyncConnection, decision_id: UUID
) -> tuple[Row, list[Row], Row] | None:
    """The rows of a decision, and what they share with others; its key names the month, so that one
    partition is read."""
    keys = tables.decision_keys.c
    as_of = await connection.scalar(select(keys.as_of).where(keys.decision_id == decision_id))
    if as_of is None:
        return None
    found = []
    for part in (tables.decisions, tables.advices):
        query = select(part).where(part.c.decision_id == decision_id, part.c.as_of == as_of)
        if part is tables.advices:
            query = query.order_by(part.c.ordinal)
        found.append([plain(row) for row in await connection.execute(query)])
    decision, advices = found
    return (decision[0], advices, await parts(connection, *found)) if decision else None


def _assembled(decision_id: UUID, decision: Row, advices: list[Row], shared: Row) -> Decision:
    """A decision of its rows. What is wrong with them is the record's fault, not the caller's."""
    try:
        return assemble(decision, advices, shared)
    except InvalidRecord as error:
        raise _damaged(decision_id, error) from error


def _damaged(decision_id: UUID, error: InvalidRecord) -> DamagedRecord:
    return DamagedRecord(
        f"what is stored of decision {decision_id} cannot be read ({error}): `advisor verify` names"
        " all that cannot"
    )


async def _reports_of(
    connection: AsyncConnection, reports: Table, decision_id: UUID
) -> list[dict[str, Any]]:
    query = select(reports).where(reports.c.decision_id == decision_id)
    rows = []
    for row in await connection.execute(query.order_by(*oldest(reports))):
        values = plain(row)
        content = _content(reports, values) or {
            "model_version": values["model_version"],
            "text": values["text"],
        }
        told = {
            name: values[name]
            for name in ("reported_by", "arrival")
            if values.get(name) is not None
        }
        rows.append({"recorded_at": values["recorded_at"].isoformat(), **told, **content})
    return rows


def _content(reports: Table, values: Mapping[str, Any]) -> Row | None:
    """What was reported, with what is not stored of it; None where there is no record."""
    shape = REPORTED.get(str(reports.name))
    if shape is None:
        return values.get("record")
    return with_defaults(shape, whole_report(reports, values))


def oldest(reports: Table) -> list[ColumnElement[Any]]:
    """The order of reports on one subject, the newest last, as in the views `latest_...`."""
    by_clock: list[ColumnElement[Any]] = [reports.c.recorded_at, reports.c.event_key]
    if "arrival" not in reports.c:
        return by_clock
    return [func.coalesce(reports.c.arrival, 0), *by_clock]
