"""Writing one batch of events: keys first, then COPY of what they claimed, all in one
transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord
from app.domain.record.decision import Decision
from app.domain.record.event import Aside, Entry, Event, EventKind
from app.domain.record.link import Linked, Producer
from app.domain.rules.limits import Limits
from app.shadow_log import comparisons
from app.shadow_log.appending import links
from app.shadow_log.appending.bulk import copy, insert_new
from app.shadow_log.lean import Lean, lean
from app.shadow_log.rows import Row, advice_rows, control_row, decision_row, report_row
from app.shadow_log.schema import tables
from app.shadow_log.schema.partitions import month_of

REPORTS: dict[EventKind, Table] = {
    EventKind.AGENT_ACTION: tables.agent_actions,
    EventKind.OUTCOME: tables.outcomes,
    EventKind.RATIONALE: tables.rationales,
    EventKind.STATE_CHANGE: tables.state_changes,
    EventKind.LATE_ADVICE: tables.late_advices,
    EventKind.REPETITION: tables.repetitions,
}
COMPARED = (tables.agent_actions, tables.outcomes, tables.late_advices)
"""Reports that say something of what is compared."""

MOST_LIMITS = 64
_LIMITS: dict[str, Limits] = {}
"""Limits by the hash of their JSON."""


@dataclass
class Appended:
    """What one batch did. `conflicts` are the ids of decisions that were answered before with
    another answer: the second is put aside."""

    inserted: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    conflicts: list[str] = field(default_factory=list)

    def add(self, table: Table, rows: int) -> None:
        """Count rows written."""
        if rows:
            name = str(table.name)
            self.inserted[name] = self.inserted.get(name, 0) + rows


class Decided(NamedTuple):
    """A decision as an event, as a record and as the JSON that was written, taken apart."""

    event: Event
    record: Decision
    lean: Lean


class Batch(NamedTuple):
    """Events as rows. Everything that can be wrong with an event shows before a transaction
    begins."""

    decisions: list[Decided]
    reports: dict[Table, list[tuple[Event, Row]]]
    links: list[Linked]
    asides: list[Aside]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Batch:
        """Raises `InvalidRecord` when an event does not fit its schema."""
        batch = cls([], {}, [], [])
        for entry in entries:
            if isinstance(entry, Linked):
                batch.links.append(entry)
                continue
            if isinstance(entry, Aside):
                batch.asides.append(entry)
                continue
            try:
                batch._add(entry)
            except InvalidRecord:
                raise
            except Exception as error:  # Nothing but this event's own bytes was looked at.
                raise InvalidRecord(f"{entry.kind.value} {entry.key}: {error!r}") from error
        return batch

    def _add(self, event: Event) -> None:
        document = event.document()
        if event.kind is EventKind.DECISION:
            known, limits_hash = _with_known_limits(document)
            record = Decision.from_json(known)
            self.decisions.append(Decided(event, record, lean(document, limits_hash)))
            return
        report = event.read(document)
        assert not isinstance(report, Decision)
        row = report_row(event, report, document)
        self.reports.setdefault(REPORTS[event.kind], []).append((event, row))

    @property
    def all_linked(self) -> bool:
        """Whether the log has to number none of its events."""
        asides = (aside.event for aside in self.asides)
        return all(event.link is not None for event in (*self.events, *asides))

    @property
    def events(self) -> list[Event]:
        """All that claim a key."""
        reports = (event for pairs in self.reports.values() for event, _ in pairs)
        return [*(decided.event for decided in self.decisions), *reports]

    @property
    def brought(self) -> set[UUID]:
        """Decisions that are in it."""
        return {decided.record.decision_id for decided in self.decisions}

    @property
    def reported_on(self) -> set[UUID]:
        """Decisions whose comparison its reports change."""
        pairs = (pair for table in COMPARED for pair in self.reports.get(table, []))
        return {row["decision_id"] for _, row in pairs}

    @property
    def months(self) -> set[str]:
        """The partitions that it needs."""
        return {month_of(decided.record.scenario.as_of) for decided in self.decisions}


def _with_known_limits(document: Any) -> tuple[Any, str]:
    """A decision's JSON with its limits as a record where the same ones were read before: they are
    half of what there is to validate, and thousands of decisions share them. And their hash, empty
    where they are not even an object."""
    limits = document.get("limits") if isinstance(document, dict) else None
    if not isinstance(limits, dict):
        return document, ""
    name = content_hash(limits)
    if name not in _LIMITS:
        try:
            read = Limits.from_json(limits)
        except InvalidRecord:
            return document, name  # The decision's own refusal says where in it.
        if len(_LIMITS) >= MOST_LIMITS:
            _LIMITS.clear()
        _LIMITS[name] = read
    return {**document, "limits": _LIMITS[name]}, name


async def append(connection: AsyncConnection, batch: Batch, own: Producer) -> Appended:
    """Write a batch in the connection's transaction; what is there already stays as it is. `own`
    numbers the events that come without a number."""
    await links.shared(connection)
    appended = Appended()
    written: list[Event] = []
    if batch.decisions:
        written += await _append_decisions(connection, batch.decisions, appended)
    # A fixed order of tables and keys: two writers cannot wait for each other.
    for table in REPORTS.values():
        if table in batch.reports:
            written += await _append_reports(connection, table, batch.reports[table], appended)
    await links.link_events(connection, written, own)
    await links.append_links(connection, batch.links)
    asides = list(batch.asides)
    if others := _without(batch.events, written):
        repeats = await links.link_repeats(connection, others)
        appended.duplicates = repeats.repeated
        appended.conflicts = [event.key for event, _ in repeats.second]
        asides += repeats.second
    if asides:
        kept = await links.put_aside(connection, asides, own)
        appended.add(tables.put_aside, len(kept))
    await comparisons.compare(connection, batch.brought | batch.reported_on)
    return appended


def _without(events: Sequence[Event], written: Sequence[Event]) -> list[Event]:
    """Those that were not written; of one that stands twice in a batch, the second."""
    left = Counter(map(id, written))
    others = []
    for event in events:
        if left[id(event)]:
            left[id(event)] -= 1
        else:
            others.append(event)
    return others


async def _append_decisions(
    connection: AsyncConnection, decisions: Sequence[Decided], appended: Appended
) -> list[Event]:
    """Claim the ids, then copy the rows of those that were free. The first of a batch's repeats
    counts. The events that were written."""
    first = {decided.record.decision_id: decided for decided in reversed(decisions)}
    keys = [
        {
            "decision_id": decision_id,
            "request_hash": decided.event.claim,
            "as_of": decided.record.scenario.as_of,
        }
        for decision_id, decided in sorted(first.items())
    ]
    fresh = await insert_new(connection, tables.decision_keys, keys, "decision_id")
    new = [first[decision_id] for decision_id in sorted(fresh)]
    shared = {name: part for decided in new for name, part in decided.lean.shared.items()}
    parts = [{"hash": name, "content": part} for name, part in sorted(shared.items())]
    await insert_new(connection, tables.shared_parts, parts, "hash")
    controls = (control_row(decided.record) for decided in new)
    for table, rows in (
        (tables.decisions, [decision_row(d.record, d.lean, d.event.payload) for d in new]),
        (tables.advices, [row for d in new for row in advice_rows(d.record, d.lean)]),
        (tables.agent_actions, [row for row in controls if row is not None]),
    ):
        await copy(connection, table, rows)
        appended.add(table, len(rows))
    return [decided.event for decided in new]


async def _append_reports(
    connection: AsyncConnection,
    table: Table,
    reports: Sequence[tuple[Event, Row]],
    appended: Appended,
) -> list[Event]:
    first = {event.key: (event, row) for event, row in reversed(reports)}
    rows = [row for _, (_, row) in sorted(first.items())]
    fresh = await insert_new(connection, table, rows, "event_key")
    appended.add(table, len(fresh))
    return [first[key][0] for key in fresh]
