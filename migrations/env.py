"""Alembic's environment: one transaction, an advisory lock against other starters, and a lock
timeout.

`advisor migrate` passes the URL. Developers who write a migration pass it themselves, from the
repository's root: `alembic -x url=postgresql://... revision --autogenerate -m "what changes"`, or
`alembic -x url=... check`.
"""

from __future__ import annotations

import re

from alembic import context
from sqlalchemy import text

from app.shadow_log.database import async_url, connect_once
from app.shadow_log.schema.tables import metadata

MIGRATION_LOCK = 0x5AD3
LOCK_TIMEOUT = "10s"


def without_partitions(name: str | None, kind: str, parents: object) -> bool:
    """Months are made by the writer, not by migrations; the two beside them are no tables of their
    own."""
    return not (
        kind == "table" and name is not None and re.fullmatch(r"\w+_(\d{6}|before|after)", name)
    )


def run() -> None:
    """Migrate the database."""
    url = context.config.attributes.get("url") or async_url(
        context.get_x_argument(as_dictionary=True)["url"]
    )
    engine = connect_once(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_type=True,
            include_name=without_partitions,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
