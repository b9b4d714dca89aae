"""Decisions of the record with what came of them, in order of time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select, text, true
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.errors import InvalidRecord
from app.domain.what_if import By, Judge, Past, Tally
from app.shadow_log.database import connect, translated_errors
from app.shadow_log.rows import Row, assemble
from app.shadow_log.schema import tables
from app.shadow_log.stored import stored_chunks, within

Progress = Callable[[int, int], None]


class Asked(NamedTuple):
    """Which decisions: `since` <= as_of < `until`; of the principal `of`, or of all but `without`,
    who have limits of their own."""

    since: datetime | None = None
    until: datetime | None = None
    of: str | None = None
    without: tuple[str, ...] = ()

    def condition(self) -> ColumnElement[bool]:
        """SQL over `decisions`."""
        principal = tables.decisions.c.principal
        whose = true() if self.of is None else principal == self.of
        if self.without:
            whose = and_(whose, or_(principal.is_(None), principal.not_in(self.without)))
        return and_(within(tables.decisions, self.since, self.until), whose)


_FATES = text(
    """
    SELECT s.decision_id, s.model_version, s.agent_approve, s.agent_r, s.advice_r,
           o.exit_time, o.net_pnl
    FROM shadow_comparison s
    LEFT JOIN latest_outcomes o ON o.decision_id = s.decision_id AND o.arm = 'agent'
         AND NOT o.exogenous_skip
    WHERE s.as_of BETWEEN :first AND :last AND s.decision_id = ANY (:ids)
    """
)


async def tallied(
    url: str,
    judge: Judge,
    asked: Asked,
    progress: Progress = lambda done, total: None,
    by: By = By.SYMBOL,
) -> Tally:
    """What `judge` makes of the decisions that are asked for. Raises as `pasts`."""
    tally = Tally(by)
    async for past in pasts(url, asked, progress):
        for judged in judge.arms(past):
            tally.add(judged)
    return tally


async def pasts(
    url: str, asked: Asked, progress: Progress = lambda done, total: None
) -> AsyncIterator[Past]:
    """The decisions that are asked for, oldest first. Raises `ShadowLogUnavailable`, and
    `InvalidRecord` for a row that is no decision: `advisor verify` says what is wrong with it."""
    engine = connect(url, patience_s=None)
    try:
        with translated_errors():
            async with engine.connect() as connection:
                await connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                wanted = asked.condition()
                counted = select(func.count()).select_from(tables.decisions).where(wanted)
                total, done = await connection.scalar(counted) or 0, 0
                async for chunk, advices, shared in stored_chunks(connection, wanted):
                    fates = await _fates(connection, chunk)
                    for row in chunk:
                        done += 1
                        progress(done, total)
                        own = advices[row["decision_id"]]
                        if not own:
                            raise InvalidRecord(f"{row['decision_id']} has no advices")
                        yield _past(row, own, shared, fates.get(row["decision_id"], []))
    finally:
        await engine.dispose()


async def _fates(connection: AsyncConnection, chunk: list[Row]) -> dict[Any, list[Any]]:
    span = {"first": chunk[0]["as_of"], "last": chunk[-1]["as_of"]}
    ids = [row["decision_id"] for row in chunk]
    fates: dict[Any, list[Any]] = {}
    for fate in await connection.execute(_FATES, span | {"ids": ids}):
        fates.setdefault(fate.decision_id, []).append(fate)
    return fates


def _past(row: Row, advices: list[Row], shared: Row, fates: list[Any]) -> Past:
    [first, *_] = fates
    try:
        decision = assemble(row, advices, shared)
    except InvalidRecord as error:
        raise InvalidRecord(f"decision {row['decision_id']} cannot be read: {error}") from error
    return Past(
        decision,
        first.agent_approve,
        first.agent_r,
        {fate.model_version: fate.advice_r for fate in fates},
        first.exit_time,
        first.net_pnl,
    )
