"""The flat table that people's questions read: one row per advice, kept in step with what is
appended.

What a row says follows from decisions, advices and the reports that count (the view
`comparison_source`). Whoever appends has the rows of every decision that it touched made anew by
`advisor_compare`, in the same transaction. Two that touch one decision, with a report on it or by
bringing it, must not both miss what the other is about to commit: at the end of its transaction,
before it makes the rows, each takes a lock for the decision and keeps it until it commits. So the
second makes them from what the first committed. Nobody appends while holding such a lock: it is
held for as long as making the rows takes, and who waits for it is waited for by nobody that has it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from datetime import datetime
from uuid import UUID

from sqlalchemy import Table, TextClause, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.shadow_log.database import connect, translated_errors
from app.shadow_log.schema import tables
from app.shadow_log.schema.partitions import PARTITION_LOCK
from app.shadow_log.stored import chunks, within

COMPARE_LOCK = 0x5AD2
Progress = Callable[[int, int], None]
PLACES = 4096
"""How many locks all decisions share, by their ids: Postgres has room for some thousands."""
_ALONE = text(
    "SELECT pg_advisory_xact_lock(:lock, place) FROM unnest(CAST(:places AS int[])) AS place"
)
_NO_MONTH_IS_DROPPED = select(func.pg_advisory_xact_lock_shared(PARTITION_LOCK))
_COMPARE = text("SELECT advisor_compare(CAST(:ids AS uuid[]))")
_SURPLUS = text(
    """
    DELETE FROM comparisons c
    WHERE NOT EXISTS (
        SELECT FROM advices a WHERE a.decision_id = c.decision_id AND a.as_of = c.as_of
            AND a.ordinal = c.ordinal AND a.model_version = c.model_version
    ) AND NOT EXISTS (
        SELECT FROM late_advices a WHERE a.decision_id = c.decision_id AND a.as_of = c.as_of
            AND c.ordinal = -1 AND a.model_version = c.model_version
    )
    """
)
_DIFFERING = text(
    """
    SELECT decision_id, model_version
    FROM (SELECT * FROM comparison_source
          WHERE as_of BETWEEN :first AND :last AND decision_id = ANY (:ids)) s
    FULL JOIN (SELECT * FROM comparisons
               WHERE as_of BETWEEN :first AND :last AND decision_id = ANY (:ids)) c
        USING (decision_id, as_of, ordinal, model_version)
    WHERE to_jsonb(s) IS DISTINCT FROM to_jsonb(c)
    """
)


async def compare(connection: AsyncConnection, decision_ids: Collection[UUID]) -> int:
    """After everything is appended: make the rows of these decisions anew. How many changed."""
    if not decision_ids:
        return 0
    # In one order: nobody waits for somebody who waits for it.
    places = sorted({decision_id.int % PLACES for decision_id in decision_ids})
    await connection.execute(_ALONE, {"lock": COMPARE_LOCK, "places": places})
    return await connection.scalar(_COMPARE, {"ids": list(decision_ids)}) or 0


async def compare_all(url: str, progress: Progress = lambda done, total: None) -> tuple[int, int]:
    """Make the whole table anew, beside whoever appends. Decisions looked at, rows that were not
    what they should be. Raises `ShadowLogUnavailable`."""
    engine = connect(url, patience_s=None)
    c, decisions, changed = tables.decisions.c, 0, 0
    try:
        with translated_errors():
            async with engine.connect() as reading:
                # Else months could neither be made nor dropped until the end.
                await reading.execution_options(isolation_level="AUTOCOMMIT")
                total = (
                    await reading.scalar(select(func.count()).select_from(tables.decisions)) or 0
                )
                everything = select(c.as_of, c.decision_id)
                async for chunk in chunks(reading, everything, c.as_of, c.decision_id):
                    async with engine.begin() as connection:
                        await connection.execute(_NO_MONTH_IS_DROPPED)
                        ids = [row["decision_id"] for row in chunk]
                        changed += await compare(connection, ids)
                    decisions += len(chunk)
                    progress(decisions, total)
            async with engine.begin() as connection:
                await connection.execute(_NO_MONTH_IS_DROPPED)
                changed += (await connection.execute(_SURPLUS)).rowcount
                await _add_up(connection)
    finally:
        await engine.dispose()
    return decisions, changed


async def differing_days(connection: AsyncConnection) -> AsyncIterator[str]:
    """Sums of days that are not those of the flat table."""
    for days in tables.DAYS:
        for row in await connection.execute(_wrong_sums(days)):
            yield f"{days.name} of {', '.join(map(str, row))}"


async def _add_up(connection: AsyncConnection) -> None:
    """Make the sums of days anew where they are wrong. Nobody appends meanwhile."""
    await connection.execute(text("LOCK TABLE comparisons IN SHARE ROW EXCLUSIVE MODE"))
    for days in tables.DAYS:
        if (await connection.execute(_wrong_sums(days))).first() is not None:
            await connection.execute(delete(days))
            await connection.execute(sums_anew(days))


def _wrong_sums(days: Table) -> TextClause:
    key, names, sums = _summed(days)
    some = " OR ".join(f"sum({name}) <> 0" for name in names)
    return text(
        f"""
        SELECT day, {key} FROM (
            SELECT day, {key}, {sums} FROM {source(days)} GROUP BY day, {key}
        ) s FULL JOIN (
            SELECT day, {key}, {sums} FROM {days.name} GROUP BY day, {key} HAVING {some}
        ) d USING (day, {key})
        WHERE to_jsonb(s) IS DISTINCT FROM to_jsonb(d)
        """
    )


def sums_anew(days: Table) -> TextClause:
    """The statement that fills an empty table of days."""
    key, names, sums = _summed(days)
    return text(
        f"INSERT INTO {days.name} (day, {key}, slot, {', '.join(names)})"
        f" SELECT day, {key}, 0, {sums} FROM {source(days)} GROUP BY day, {key}"
    )


def _summed(days: Table) -> tuple[str, list[str], str]:
    """What is summed up beside the day, the names of the sums, and how they are asked for."""
    keys = [column.name for column in days.primary_key if column.name not in ("day", "slot")]
    names = [column.name for column in days.c if not column.primary_key]
    return ", ".join(keys), names, ", ".join(f"sum({name}) AS {name}" for name in names)


def source(days: Table) -> str:
    """The view of what a table of days adds up, with `as_of` beside it."""
    return days.name.replace("_days", "_source")


async def differing(
    connection: AsyncConnection, since: datetime | None, until: datetime | None
) -> AsyncIterator[str]:
    """Rows that are not what the tables say, or that should not be there."""
    c = tables.decisions.c
    span = select(c.as_of, c.decision_id).where(within(tables.decisions, since, until))
    async for chunk in chunks(connection, span, c.as_of, c.decision_id):
        times = {"first": chunk[0]["as_of"], "last": chunk[-1]["as_of"]}
        ids = [row["decision_id"] for row in chunk]
        for row in await connection.execute(_DIFFERING, times | {"ids": ids}):
            yield f"{row.decision_id}, {row.model_version}"
    kept = tables.comparisons
    same = (c.decision_id == kept.c.decision_id) & (c.as_of == kept.c.as_of)
    alone = select(kept.c.decision_id, kept.c.model_version).where(
        within(kept, since, until), ~select(c.decision_id).where(same).exists()
    )
    for row in await connection.execute(alone):
        yield f"{row.decision_id}, {row.model_version}"
