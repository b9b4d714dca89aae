"""What is asked over and over, on a connection that stays open for it: which ids are taken, by
every request, and whether something was changed, every half second.

A transaction of the pool's is four round trips and as many turns of the event loop: a ping, BEGIN,
the question, COMMIT. This is the question alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_CLAIMS = (
    "SELECT decision_id, advisor_hash_text(request_hash) FROM decision_keys"
    " WHERE decision_id = ANY(%s::uuid[])"
)
"""Ids are sent as one text: as a list each would be converted by itself, in twice the time."""


_STAMP = "SELECT count(*), coalesce(max(id), 0) FROM {}"
"""Of a table that is only added to: another one whenever a row is. Of two rows the later may be
seen first."""


class Kept:
    """Asks one question at a time. Errors are those of psycopg and SQLAlchemy."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._kept: AsyncConnection | None = None

    async def claims(self, decision_ids: Sequence[UUID]) -> dict[UUID, str]:
        """Claims of ids, without those that nothing is stored under."""
        ids = ",".join(map(str, decision_ids))
        return dict(await self._ask(_CLAIMS, [f"{{{ids}}}"]))

    async def stamp(self, table: LiteralString) -> tuple[int, int]:
        """Rows of a table that is only added to, and the id of the newest."""
        [(rows, newest)] = await self._ask(_STAMP.format(table), ())
        return rows, newest

    async def _ask(self, query: LiteralString, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        async with self._turn:
            if self._kept is not None:
                try:
                    return await _asked(self._kept, query, values)
                except psycopg.OperationalError:
                    await self._drop()  # The server was restarted: its next connection may work.
                except BaseException:
                    await self._drop()
                    raise
            self._kept = await self._engine.execution_options(
                isolation_level="AUTOCOMMIT"
            ).connect()
            try:
                return await _asked(self._kept, query, values)
            except BaseException:
                await self._drop()
                raise

    async def aclose(self) -> None:
        """Close the connection."""
        async with self._turn:
            await self._drop()

    async def _drop(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.invalidate()
            await kept.close()


async def _asked(
    kept: AsyncConnection, query: LiteralString, values: Sequence[Any]
) -> list[tuple[Any, ...]]:
    raw = (await kept.get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    return await (await raw.execute(query, values)).fetchall()
