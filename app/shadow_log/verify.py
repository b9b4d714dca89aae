"""Verification: every stored decision hashes and replays to what was recorded, and nothing is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.domain.canonical import canonical_json, digest
from app.domain.errors import InvalidRecord
from app.shadow_log import tables
from app.shadow_log.log import async_url, translated_errors
from app.shadow_log.rows import Row, advice_rows, assemble, decision_row

CHUNK = 500


class Fault(StrEnum):
    """What can be wrong with a stored decision."""

    UNREADABLE = "unreadable"
    HASH = "hash differs from the content"
    COLUMNS = "columns differ from the record"
    REPLAY = "replay gives another record"
    NO_ADVICE = "no advice rows"
    KEY_WITHOUT_ROW = "answered, but its row is missing"
    ROW_WITHOUT_KEY = "its idempotency key is missing"
    ORPHAN_ADVICE = "advice of a decision that is missing"


@dataclass
class VerifyReport:
    """What was looked at, and every fault found."""

    decisions: int = 0
    findings: list[str] = field(default_factory=list)
    counts: Counter[Fault] = field(default_factory=Counter)

    def add(self, fault: Fault, decision_id: UUID, detail: str = "") -> None:
        self.counts[fault] += 1
        self.findings.append(f"{decision_id}: {fault.value}" + (f" ({detail})" if detail else ""))

    def summary(self) -> str:
        """One line."""
        if not self.findings:
            return f"{self.decisions} decisions: every hash matches, every decision replays, no gaps"
        faults = ", ".join(f"{count} x {fault.value}" for fault, count in self.counts.items())
        return f"{self.decisions} decisions, {len(self.findings)} faults: {faults}"


async def verify_log(url: str, progress: Callable[[int, int], None] = lambda done, total: None) -> VerifyReport:
    """Check the whole log. Raises `ShadowLogUnavailable`."""
    report = VerifyReport()
    engine = create_async_engine(async_url(url), connect_args={"connect_timeout": 5})
    try:
        with translated_errors():
            async with engine.connect() as connection:
                total = await connection.scalar(select(func.count()).select_from(tables.decisions)) or 0
                async for decision, advices in _stored(connection):
                    _check(decision, advices, report)
                    report.decisions += 1
                    progress(report.decisions, total)
                await _check_gaps(connection, report)
    finally:
        await engine.dispose()
    return report


async def _stored(connection: AsyncConnection) -> AsyncIterator[tuple[Row, list[Row]]]:
    """Decisions with their advices, in order of time and id, a chunk at a time."""
    decisions, advices = tables.decisions, tables.advices
    last: tuple[Any, UUID] | None = None
    while True:
        query = select(decisions).order_by(decisions.c.as_of, decisions.c.decision_id).limit(CHUNK)
        if last is not None:
            query = query.where(func.row(decisions.c.as_of, decisions.c.decision_id) > func.row(*last))
        chunk = [dict(row._mapping) for row in await connection.execute(query)]
        if not chunk:
            return
        ids = [row["decision_id"] for row in chunk]
        found: dict[UUID, list[Row]] = {}
        for row in await connection.execute(
            select(advices).where(advices.c.decision_id.in_(ids)).order_by(advices.c.decision_id, advices.c.ordinal)
        ):
            found.setdefault(row.decision_id, []).append(dict(row._mapping))
        for decision in chunk:
            yield decision, found.get(decision["decision_id"], [])
        last = chunk[-1]["as_of"], chunk[-1]["decision_id"]


def _check(row: Row, advices: list[Row], report: VerifyReport) -> None:
    known = row["decision_id"]
    if not advices:
        report.add(Fault.NO_ADVICE, known)
        return
    try:
        decision = assemble(row, advices)
    except InvalidRecord as error:
        report.add(Fault.UNREADABLE, known, str(error)[:200])
        return
    payload = canonical_json(decision.as_json())
    if digest(payload) != row["record_hash"]:
        report.add(Fault.HASH, known)
    expected, stored = decision_row(decision, payload), dict(row)
    expected["record_hash"] = stored["record_hash"]
    wrong = _differences(expected, stored)
    for each, kept in zip(advice_rows(decision), advices, strict=False):
        wrong += [f"advice {each['ordinal']} {name}" for name in _differences(each, kept)]
    if wrong:
        report.add(Fault.COLUMNS, known, ", ".join(wrong))
    replayed = decision.replayed().as_json()
    document = decision.as_json()
    changed = [name for name in document if document[name] != replayed[name]]
    if changed:
        report.add(Fault.REPLAY, known, ", ".join(changed))


def _differences(expected: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Columns whose stored value is not what the record says; the JSON columns are covered by the hash."""
    return [
        name
        for name, value in expected.items()
        if name not in ("scenario", "record") and stored[name] != value
    ]


async def _check_gaps(connection: AsyncConnection, report: VerifyReport) -> None:
    """Keys without rows (but for dropped months), rows without keys, advices without decisions."""
    keys, decisions, advices = tables.decision_keys, tables.decisions, tables.advices
    oldest = select(func.date_trunc("month", func.min(decisions.c.as_of), "UTC")).scalar_subquery()
    row_of_key = exists().where(decisions.c.decision_id == keys.c.decision_id)
    key_of_row = exists().where(keys.c.decision_id == decisions.c.decision_id)
    row_of_advice = exists().where(decisions.c.decision_id == advices.c.decision_id)
    queries = {
        Fault.KEY_WITHOUT_ROW: select(keys.c.decision_id).where(~row_of_key, keys.c.as_of >= oldest),
        Fault.ROW_WITHOUT_KEY: select(decisions.c.decision_id).where(~key_of_row),
        Fault.ORPHAN_ADVICE: select(advices.c.decision_id).where(~row_of_advice).distinct(),
    }
    for fault, query in queries.items():
        for known in await connection.scalars(query):
            report.add(fault, known)
