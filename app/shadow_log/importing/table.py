"""Trades that other programs recorded. A table of its own: no decision was made here, so that no
view, metric or gate can count one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from app.shadow_log.database import translated_errors
from app.shadow_log.schema.tables import imported_trades


async def add_imported(engine: AsyncEngine, rows: Sequence[dict[str, Any]]) -> int:
    """Add rows; those that are there stay as they are. How many were new."""
    if not rows:
        return 0
    statement = (
        insert(imported_trades).on_conflict_do_nothing().returning(imported_trades.c.import_id)
    )
    with translated_errors():
        async with engine.begin() as connection:
            added = await connection.execute(statement, list(rows))
            return len(added.all())
