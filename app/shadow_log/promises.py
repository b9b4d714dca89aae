"""Accepted requests (202) and what became of them: each is a link with fate `accepted`, kept when
a link with fate `event` has the same key and claim, broken when one with fate `forgotten` has."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.shadow_log.links import LINK_LOCK


class Promise(NamedTuple):
    """An accepted request. `id` is that of its link."""

    id: int
    kind: str
    key: str
    claim: str
    payload: str

    @property
    def said(self) -> tuple[str, str, str, str]:
        """What its link says of it."""
        return self[1:]


_DECIDED = """
EXISTS (SELECT FROM event_links e WHERE e.key = l.key AND e.kind = l.kind AND e.claim = l.claim
        AND e.fate = 'event')
"""
_FORGOTTEN = f"""
SELECT DISTINCT l.kind, l.key, l.claim FROM event_links l
WHERE fate = 'forgotten' AND NOT {_DECIDED} ORDER BY l.key
"""
_UNDECIDED = f"""
SELECT l.id, l.kind, l.key, l.claim, l.payload FROM event_links l
WHERE fate = 'accepted' AND (id > :mark OR id = ANY(:open)) AND NOT {_DECIDED}
AND NOT EXISTS (SELECT FROM event_links w WHERE w.producer = l.producer AND w.seq = l.seq
                AND w.fate = 'withdrawn')
AND NOT EXISTS (SELECT FROM event_links f WHERE f.key = l.key AND f.kind = l.kind
                AND f.claim = l.claim AND f.fate = 'forgotten')
ORDER BY l.id
"""
_NEWEST = """
SELECT CASE WHEN pg_try_advisory_xact_lock(:lock) THEN (SELECT max(id) FROM event_links) END
"""


class Promises:
    """Follows accepted requests without reading again those that are decided."""

    def __init__(self) -> None:
        self._mark = 0
        """Up to this id every link was looked at."""
        self._open: list[int] = []

    async def undecided(self, connection: AsyncConnection, newest: int | None) -> list[Promise]:
        """Those that are neither decided nor forgotten, the oldest first. One whose number was
        withdrawn was promised to nobody. `newest` is what `newest_link` said before."""
        if newest is not None and newest < self._mark:
            self._mark = 0  # An older backup was restored.
        rows = await connection.execute(text(_UNDECIDED), {"mark": self._mark, "open": self._open})
        promises = [Promise(*row) for row in rows]
        self._open = [promise.id for promise in promises]
        if newest is not None:
            self._mark = newest
        return promises


async def newest_link(connection: AsyncConnection) -> int | None:
    """The id of the newest link when every one before it is there, or never comes; None while
    somebody is appending. Nobody can append until the transaction ends."""
    newest: int | None = await connection.scalar(text(_NEWEST), {"lock": LINK_LOCK})
    return newest


async def forgotten(connection: AsyncConnection) -> list[tuple[str, str]]:
    """Kind and key of those that were lost and are not decided since."""
    return [(row.kind, row.key) for row in await connection.execute(text(_FORGOTTEN))]
