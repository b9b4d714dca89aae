"""Months of `decisions` and `advices`: made by the writer when first needed, dropped as a whole by
retention.

Months are made for times that a market can have had, 2010 to 2039: a candidate's time is whatever
its sender says, and thousands of partitions would be more than a query can lock. Everything else
lies in the partitions `before` and `after` of migration 0007.

Appends hold the partition lock shared, and whoever makes or drops a month holds it alone, so that a
month cannot vanish under an append. A month is made in a transaction of its own, by ATTACH: this
never waits for another writer's rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.fields import utc
from app.shadow_log.schema import tables

PARTITION_LOCK = 0x5AD0
DROP_LOCK_TIMEOUT = "10s"
FIRST_MONTH, END_MONTH = "201001", "204001"
BEFORE = "before"
_BEFORE_BOUNDS = "FROM (MINVALUE) TO ('2010-01-01 00:00:00+00')"


def month_of(moment: datetime) -> str:
    """`202611` for any moment of November 2026, UTC."""
    moment = utc(moment)
    return f"{moment.year:04d}{moment.month:02d}"  # `%Y` does not pad the year on every platform.


async def missing_months(connection: AsyncConnection, months: Iterable[str]) -> list[str]:
    """Which months need a partition that is not there. Until the transaction ends, no month is made
    or dropped."""
    await connection.execute(select(func.pg_advisory_xact_lock_shared(PARTITION_LOCK)))
    return [
        month
        for month in sorted(months)
        if FIRST_MONTH <= month < END_MONTH
        and not await _exists(connection, f"{tables.PARTITIONED[-1]}_{month}")
    ]


async def make_month(connection: AsyncConnection, month: str) -> None:
    """Make the partitions of one month; does nothing when another writer was faster. A function of
    the schema's owner makes them: whoever writes may not make tables."""
    await connection.execute(select(func.advisor_make_month(month)))


async def months_before(connection: AsyncConnection, moment: datetime) -> dict[str, int]:
    """Every month that ended before the month of `moment`, with its number of decisions, oldest
    first. Those before `FIRST_MONTH` go together or not at all."""
    await connection.execute(select(func.pg_advisory_xact_lock_shared(PARTITION_LOCK)))
    months = await connection.scalars(
        text(
            "SELECT right(inhrelid::regclass::text, 6) FROM pg_inherits WHERE inhparent ="
            " 'decisions'::regclass AND inhrelid::regclass::text ~ '_[0-9]{6}$'"
        )
    )
    end = month_of(moment)
    old = await _months_in_before(connection) if end >= FIRST_MONTH else {}
    for month in sorted(months):
        if month < end:
            count = text(f"SELECT count(*) FROM decisions_{month}")
            old[month] = await connection.scalar(count) or 0
    return old


async def _months_in_before(connection: AsyncConnection) -> dict[str, int]:
    rows = await connection.execute(
        text(
            "SELECT to_char(as_of AT TIME ZONE 'UTC', 'YYYYMM') AS month, count(*) AS decisions"
            f" FROM decisions_{BEFORE} GROUP BY 1 ORDER BY 1"
        )
    )
    return {row.month: row.decisions for row in rows}


async def drop_months_before(
    connection: AsyncConnection, moment: datetime
) -> tuple[dict[str, int], list[Row[Any]]]:
    """Retention: drop the months that `months_before` names, and note each in `dropped_months`.
    What was dropped, and the notes."""
    # Behind an analyst's long query this would hold up everybody else: give up and be called again.
    await connection.execute(text(f"SET LOCAL lock_timeout = '{DROP_LOCK_TIMEOUT}'"))
    await connection.execute(select(func.pg_advisory_xact_lock(PARTITION_LOCK)))
    old = await months_before(connection, moment)
    notes: list[Row[Any]] = []
    for month, rows in old.items():
        for table in tables.PARTITIONED if month >= FIRST_MONTH else ():
            await connection.execute(text(f"DROP TABLE {table}_{month}"))
        months = tables.dropped_months
        note = insert(months).values(month=month, decisions=rows).returning(months)
        notes += (await connection.execute(note)).all()
    if old:
        for days in tables.DAYS:
            gone = days.c.day < func.to_date(min(month_of(moment), END_MONTH), "YYYYMM")
            await connection.execute(delete(days).where(gone))
    if any(month < FIRST_MONTH for month in old):
        for table in tables.PARTITIONED:
            await connection.execute(text(f"DROP TABLE {table}_{BEFORE}"))
            made = func.advisor_make_partition(table, BEFORE, _BEFORE_BOUNDS)
            await connection.execute(select(made))
    return old, notes


async def _exists(connection: AsyncConnection, name: str) -> bool:
    return await connection.scalar(select(func.to_regclass(name))) is not None
