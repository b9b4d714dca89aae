"""Verification: every stored record hashes and replays to what was recorded, and nothing is
missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Table, and_, exists, func, or_, select, true
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.canonical import canonical_json, content_hash, digest
from app.domain.errors import InvalidRecord
from app.domain.fields import FIRST, LAST
from app.domain.model.manifest import ModelManifest
from app.domain.record.control import AgentAction
from app.domain.record.decision import Advice, Decision
from app.domain.record.event import CORRECTABLE, Event, EventKind
from app.domain.text import counted
from app.shadow_log.appending.batch import REPORTS
from app.shadow_log.comparisons import differing, differing_days
from app.shadow_log.database import connect, translated_errors
from app.shadow_log.lean import (
    LATER,
    forms_of,
    forms_of_report,
    is_whole,
    lean,
    of_before,
    whole_report,
)
from app.shadow_log.proof.chain import check_chain, check_links, check_promises, payloads_of
from app.shadow_log.proof.findings import Fault, VerifyReport
from app.shadow_log.rows import (
    Row,
    advice_rows,
    as_written,
    assemble,
    control_row,
    decision_row,
    report_event,
    report_of,
    report_row,
)
from app.shadow_log.schema import tables
from app.shadow_log.schema.partitions import month_of
from app.shadow_log.stored import Beside, chunks, stored, within

JSON_COLUMNS = ("scenario", "record")
"""Held against the hash, not column by column; and as a whole where they are stored lean."""

ADDED = ("log_probabilities", "probabilities")
"""Columns of advices that came later, and are null in rows of before."""
EXACT = 2**53
"""No integer of ours is larger; a float is written as one by JSONB."""
BEHIND = "outside the years 1 to 9999; rows behind such a time were not looked at"
Progress = Callable[[int, int], None]


async def verify_log(url: str, progress: Progress = lambda done, total: None) -> VerifyReport:
    """Check the whole log at a URL. Raises `ShadowLogUnavailable`."""
    engine = connect(url, patience_s=None)
    try:
        return await verify(engine, progress)
    finally:
        await engine.dispose()


async def verify(
    engine: AsyncEngine,
    progress: Progress = lambda done, total: None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> VerifyReport:
    """Check decisions with `since` <= as_of < `until`, and, when no range is given, everything else
    too.

    One snapshot: what a writer adds meanwhile is not looked at. A row with a time that no calendar
    of ours has ends the look, and is named. Raises `ShadowLogUnavailable`.
    """
    report = VerifyReport()
    try:
        await _look(engine, report, progress, since, until)
    except DataError:
        if not await _add_times_outside(engine, report):
            raise
    return report


async def _add_times_outside(engine: AsyncEngine, report: VerifyReport) -> bool:
    """Whether rows hold times outside the years 1 to 9999, which the driver does not read."""
    columns = [
        column
        for table in tables.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, DateTime)
    ]
    found = False
    with translated_errors():
        async with engine.connect() as connection:
            for column in columns:
                outside = or_(column < FIRST, column > LAST)
                count = await connection.scalar(
                    select(func.count()).select_from(column.table).where(outside)
                )
                if count:
                    found = True
                    what = f"{column.table.name}.{column.name}, {counted(count, 'time')}"
                    report.add(Fault.UNREADABLE, what, BEHIND)
    return found


async def _look(
    engine: AsyncEngine,
    report: VerifyReport,
    progress: Progress,
    since: datetime | None,
    until: datetime | None,
) -> None:
    with translated_errors():
        async with engine.connect() as connection:
            await connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            total = await connection.scalar(
                select(func.count())
                .select_from(tables.decisions)
                .where(within(tables.decisions, since, until))
            )
            async for decision, rows in stored(connection, since, until):
                _check_decision(decision, rows, report)
                report.decisions += 1
                progress(report.decisions, total or 0)
            await _check_gaps(connection, report, since, until)
            async for row in differing(connection, since, until):
                report.add(Fault.COMPARISON, row)
            if since is None and until is None:
                async for day in differing_days(connection):
                    report.add(Fault.COMPARISON, day)
                await _check_reports(connection, report)
                await _check_models(connection, report)
                await _check_parts(connection, report)
                await check_chain(connection, report)
                await check_links(connection, report)
                await check_promises(connection, report)


def _check_decision(row: Row, beside: Beside, report: VerifyReport) -> None:
    decision_id, advices = row["decision_id"], beside.advices
    if not advices:
        report.add(Fault.NO_ADVICE, decision_id)
        return
    try:
        decision = assemble(row, advices, beside.shared)
        document, replayed = decision.as_json(), decision.replayed().as_json()
        payload = canonical_json(document)
        wrong = _wrong_columns(decision, document, payload, row, advices)
    except (InvalidRecord, ValueError, ArithmeticError, StopIteration) as error:
        # A tampered record may break any of the assumptions that a decision meets.
        report.add(Fault.UNREADABLE, decision_id, str(error)[:200])
        return
    if digest(payload) != row["record_hash"]:
        report.add(Fault.HASH, decision_id)
    if wrong:
        report.add(Fault.COLUMNS, decision_id, ", ".join(wrong))
    changed = [name for name in document if document[name] != replayed[name]]
    if changed:
        report.add(Fault.REPLAY, decision_id, ", ".join(changed))
    if not _is_control_of(decision, beside.controls):
        report.add(Fault.CONTROL, decision_id)
    for late in beside.late:
        _check_late(decision, late, report)


def _check_late(decision: Decision, row: Row, report: VerifyReport) -> None:
    """Advice that came later follows from its reading and the decision's own limits, state and
    time. What a model elsewhere said cannot be had again: it is counted, and taken as told."""
    what = f"{row['decision_id']}, late advice of {row['model_version']}"
    try:
        advice = Advice.from_json(row["record"])
        replayed = decision.replayed_advice(advice)
    except (InvalidRecord, ValueError, ArithmeticError) as error:
        report.add(Fault.UNREADABLE, what, str(error)[:200])
        return
    if replayed != advice:
        report.add(Fault.REPLAY, what)
    if advice.reading is not None and advice.reading.exchange is not None:
        report.told[advice.model_version] += 1


def _is_control_of(decision: Decision, stored: list[Row]) -> bool:
    """Whether the control that came with the request is stored, once, as it came. Records are
    compared as records: JSONB gives 1e150 back with all its digits."""
    control = control_row(decision)
    if control is None or len(stored) != 1:
        return control is None and not stored
    try:
        kept = AgentAction.from_json(whole_report(tables.agent_actions, stored[0]))
    except InvalidRecord:
        return False
    control = _as_of_before(tables.agent_actions, control, stored[0])
    return kept == decision.control and not _differences(control, stored[0])


def _as_of_before(table: Table, expected: Row, stored: Row) -> Row:
    """What the columns of a report are expected to say; of a row of before some say nothing."""
    if table.name not in LATER or not of_before(table, stored):
        return expected
    return expected | dict.fromkeys(LATER[table.name])


def _wrong_columns(
    decision: Decision, document: Row, payload: bytes, row: Row, advices: list[Row]
) -> list[str]:
    """Columns whose stored value is not what the record says."""
    written = [lean(document, decision.limits_hash, form=form) for form in forms_of(row)]
    apart = written[-1]
    expected = decision_row(decision, apart, payload) | {"record_hash": row["record_hash"]}
    wrong = _differences(expected, row)
    is_lean = not is_whole(row)
    if is_lean:
        for name in JSON_COLUMNS:
            if not any(_given_back(row[name], getattr(form, name)) for form in written):
                wrong.append(name)
    for advice, kept in zip(advice_rows(decision, apart), advices, strict=True):
        ordinal, forms = advice["ordinal"], written
        if len(written) > 1 and all(kept[name] is None for name in ADDED):
            # Of a release of before: what it read stands in the JSON alone.
            advice, forms = advice | dict.fromkeys(ADDED), written[:-1]
        names = _differences(advice, kept)
        records = [form.advices[ordinal] for form in forms]
        if is_lean and not any(_given_back(kept["record"], record) for record in records):
            names.append("record")
        wrong += [f"advice {ordinal} {name}" for name in names]
    return wrong


def _given_back(stored: Any, expected: Any) -> bool:
    """Whether JSONB gives this back of what was written: 2.164036440412353e16 comes as the integer
    21640364404123530, which is another number."""
    if isinstance(expected, float):
        return isinstance(stored, int | float) and float(stored) == expected
    if isinstance(expected, dict):
        return (
            isinstance(stored, dict)
            and stored.keys() == expected.keys()
            and all(_given_back(stored[name], value) for name, value in expected.items())
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(stored, list)
            and len(stored) == len(expected)
            and all(map(_given_back, stored, expected))
        )
    return bool(stored == expected)


def _differences(expected: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, value in expected.items()
        if name not in JSON_COLUMNS and stored[name] != value
    ]


async def _check_gaps(
    connection: AsyncConnection,
    report: VerifyReport,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Keys without rows, but for months that retention dropped; rows without keys; advices without
    decisions."""
    keys, decisions, advices = tables.decision_keys, tables.decisions, tables.advices
    dropped = set(await connection.scalars(select(tables.dropped_months.c.month)))
    in_json = func.advisor_hash_bytes(decisions.c.record["request_hash"].astext)
    same_claim = func.coalesce(decisions.c.request_hash, in_json) == keys.c.request_hash
    for fault, table, other, matches in (
        (Fault.KEY_WITHOUT_ROW, keys, decisions, true()),
        (Fault.ROW_WITHOUT_KEY, decisions, keys, same_claim),
        (Fault.ORPHAN_ADVICE, advices, decisions, true()),
    ):
        same = and_(other.c.decision_id == table.c.decision_id, other.c.as_of == table.c.as_of)
        alone = select(table.c.decision_id, table.c.as_of).distinct()
        alone = alone.where(within(table, since, until), ~exists().where(same, matches))
        for row in await connection.execute(alone):
            if fault is not Fault.KEY_WITHOUT_ROW or month_of(row.as_of) not in dropped:
                report.add(fault, row.decision_id)


async def _check_reports(connection: AsyncConnection, report: VerifyReport) -> None:
    """A report's key is the hash of its content; its columns follow from it; its decision is
    known."""
    for kind, table in REPORTS.items():
        # Those that came with a request are checked with their decision.
        own = ~table.c.event_key.like("control:%")
        async for chunk in chunks(connection, select(table).where(own), table.c.event_key):
            decided = await _decided(connection, chunk)
            payloads = await payloads_of(connection, kind.value, [r["event_key"] for r in chunk])
            for row in chunk:
                report.reports += 1
                what = f"{table.name} {row['event_key']}"
                try:
                    event = report_event(kind, row)
                except InvalidRecord as error:
                    report.add(Fault.UNREADABLE, what, str(error)[:200])
                    continue
                if event.key != row["event_key"]:
                    report.add(Fault.HASH, what)
                elif wrong := _wrong_in_report(event, kind, row):
                    report.add(Fault.COLUMNS, what, ", ".join(wrong))
                elif payloads.get(event.key) not in (None, "", digest(event.payload)):
                    report.add(Fault.OTHER_THAN_LINKED, what)
                if "decision_id" in row and row["decision_id"] not in decided:
                    report.add(Fault.ORPHAN_REPORT, what)


def _wrong_in_report(event: Event, kind: EventKind, row: Row) -> list[str]:
    """Columns of a stored report that are not as they would be written now; its JSON may stand
    there as a release of before wrote it."""
    document = event.document()
    expected = report_row(event, report_of(kind, row), document)
    wrong = _differences(_as_of_before(REPORTS[kind], expected, row), row)
    if kind in CORRECTABLE:
        said = document["action" if kind is EventKind.AGENT_ACTION else "outcome"]
        newest, *earlier = forms_of_report(REPORTS[kind], said)
        forms = earlier if of_before(REPORTS[kind], row) else [newest]
        if not any(_given_back(row["record"], form) for form in forms):
            wrong.append("record")
    return wrong


async def _decided(connection: AsyncConnection, rows: Iterable[Row]) -> set[Any]:
    """Of the decisions that rows are about, those that there are."""
    keys = tables.decision_keys.c.decision_id
    ids = [row["decision_id"] for row in rows if "decision_id" in row]
    return set(await connection.scalars(select(keys).where(keys.in_(ids)))) if ids else set()


async def _check_models(connection: AsyncConnection, report: VerifyReport) -> None:
    """A registered manifest hashes to what it was registered under."""
    for row in await connection.execute(select(tables.model_versions)):
        what = f"model_versions {row.model_version}"
        try:
            manifest = ModelManifest.from_json(row.manifest)
        except InvalidRecord as error:
            report.add(Fault.UNREADABLE, what, str(error)[:200])
            continue
        if (manifest.hash(), manifest.model_version) != (row.manifest_hash, row.model_version):
            report.add(Fault.HASH, what)


async def _check_parts(connection: AsyncConnection, report: VerifyReport) -> None:
    """What decisions share is kept under the hash of its content, whether one needs it or not."""
    parts = tables.shared_parts
    async for chunk in chunks(connection, select(parts), parts.c.hash):
        for row in chunk:
            if content_hash(as_written(row["content"], EXACT)) != row["hash"]:
                report.add(Fault.HASH, f"shared_parts {row['hash']}")
