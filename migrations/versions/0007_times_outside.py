"""Partitions of decisions that no market can have had: before 2010, and from 2040 on. Months are
made between the two only, so that times somebody made up cannot make thousands of them.

Months that exist outside are moved into them. A database with thousands takes a lock for each:
raise `max_locks_per_transaction` for this migration.

Revision: 0007, after 0006
"""

from __future__ import annotations

import re

from alembic import op
from sqlalchemy import text

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FIRST, END = "201001", "204001"
BOUNDS = {
    "before": "FROM (MINVALUE) TO ('2010-01-01 00:00:00+00')",
    "after": "FROM ('2040-01-01 00:00:00+00') TO (MAXVALUE)",
}
TABLES = ("decisions", "advices")


def upgrade() -> None:
    for table in TABLES:
        for name, bounds in BOUNDS.items():
            months = [month for month in _months(table) if _outside(month) == name]
            for month in months:
                op.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_{month}")
            _make(table, name, bounds)
            for month in months:
                op.execute(f"INSERT INTO {table}_{name} SELECT * FROM {table}_{month}")
                op.execute(f"DROP TABLE {table}_{month}")


def downgrade() -> None:
    for table in TABLES:
        for name in BOUNDS:
            op.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_{name}")
            for year, number in op.get_bind().execute(
                text(
                    "SELECT DISTINCT extract(year FROM at)::int, extract(month FROM at)::int"
                    f" FROM (SELECT as_of AT TIME ZONE 'UTC' AS at FROM {table}_{name}) times"
                )
            ):
                begin = f"{year:04d}-{number:02d}-01 00:00:00+00"
                end = f"{year + number // 12:04d}-{number % 12 + 1:02d}-01 00:00:00+00"
                month = f"{year:04d}{number:02d}"
                _make(table, month, f"FROM ('{begin}') TO ('{end}')")
                op.execute(
                    f"INSERT INTO {table}_{month} SELECT * FROM {table}_{name}"
                    f" WHERE as_of >= '{begin}' AND as_of < '{end}'"
                )
            op.execute(f"DROP TABLE {table}_{name}")


def _months(table: str) -> list[str]:
    names = op.get_bind().scalars(
        text(
            "SELECT inhrelid::regclass::text FROM pg_inherits"
            f" WHERE inhparent = '{table}'::regclass"
        )
    )
    found = (re.fullmatch(rf"{table}_(\d{{6}})", name) for name in names)
    return sorted(match[1] for match in found if match)


def _outside(month: str) -> str | None:
    if month < FIRST:
        return "before"
    return "after" if month >= END else None


def _make(table: str, name: str, bounds: str) -> None:
    partition = f"{table}_{name}"
    for statement in (
        f"CREATE TABLE {partition} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
        f"ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES {bounds}",
        f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {partition} "
        "FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()",
    ):
        op.execute(statement)
