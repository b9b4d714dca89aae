"""Months of `decisions` and `advices`: made by the writer when first needed, dropped as a whole by
retention.

Appends hold the partition lock shared, and whoever makes or drops a month holds it alone, so that a
month cannot vanish under an append. A month is made in a transaction of its own, by ATTACH: this
never waits for another writer's rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.fields import utc
from app.shadow_log import tables

PARTITION_LOCK = 0x5AD0
DROP_LOCK_TIMEOUT = "10s"


def month_of(moment: datetime) -> str:
    """`202611` for any moment of November 2026, UTC."""
    moment = utc(moment)
    return f"{moment.year:04d}{moment.month:02d}"  # `%Y` does not pad the year on every platform.


async def missing_months(connection: AsyncConnection, months: Iterable[str]) -> list[str]:
    """Which months have no partition. Until the transaction ends, no month is made or dropped."""
    await connection.execute(select(func.pg_advisory_xact_lock_shared(PARTITION_LOCK)))
    return [
        month
        for month in sorted(months)
        if not await _exists(connection, f"{tables.PARTITIONED[-1]}_{month}")
    ]


async def make_month(connection: AsyncConnection, month: str) -> None:
    """Make the partitions of one month; does nothing when another writer was faster."""
    await connection.execute(select(func.pg_advisory_xact_lock(PARTITION_LOCK)))
    for table in tables.PARTITIONED:
        if not await _exists(connection, f"{table}_{month}"):
            await _make_partition(connection, table, month)


async def months_before(connection: AsyncConnection, moment: datetime) -> dict[str, int]:
    """Every month that ended before the month of `moment`, with its number of decisions, oldest
    first."""
    await connection.execute(select(func.pg_advisory_xact_lock_shared(PARTITION_LOCK)))
    found = await connection.scalars(
        text(
            "SELECT right(inhrelid::regclass::text, 6) FROM pg_inherits WHERE inhparent ="
            " 'decisions'::regclass"
        )
    )
    return {
        month: await connection.scalar(text(f"SELECT count(*) FROM decisions_{month}")) or 0
        for month in sorted(found)
        if month < month_of(moment)
    }


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
        for table in tables.PARTITIONED:
            await connection.execute(text(f"DROP TABLE {table}_{month}"))
        months = tables.dropped_months
        note = insert(months).values(month=month, decisions=rows).returning(months)
        notes += (await connection.execute(note)).all()
    return old, notes


async def _exists(connection: AsyncConnection, name: str) -> bool:
    return await connection.scalar(select(func.to_regclass(name))) is not None


async def _make_partition(connection: AsyncConnection, table: str, month: str) -> None:
    year, number = int(month[:4]), int(month[4:])
    begin, end = (
        f"{year:04d}-{number:02d}-01",
        f"{year + number // 12:04d}-{number % 12 + 1:02d}-01",
    )
    partition = f"{table}_{month}"
    for statement in (
        f"CREATE TABLE {partition} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
        (
            f"ALTER TABLE {table} ATTACH PARTITION {partition} "
            f"FOR VALUES FROM ('{begin} 00:00:00+00') TO ('{end} 00:00:00+00')"
        ),
        # Attaching copies row triggers from the parent, but not this one.
        (
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {partition} "
            "FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()"
        ),
    ):
        await connection.execute(text(statement))
