"""Accepted requests (202) and what became of them: each is a link with fate `accepted`, kept when
a link with fate `event` has the same key and claim, broken when one with fate `forgotten` has."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.shadow_log.appending.links import LINK_LOCK


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


MOST = 50_000
"""Links that are looked at in one go: a writer that begins goes through all of them."""
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
WHERE fate = 'accepted' AND (id > :mark AND id <= :until OR id = ANY(:open)) AND NOT {_DECIDED}
AND NOT EXISTS (SELECT FROM event_links w WHERE w.producer = l.producer AND w.seq = l.seq
                AND w.fate = 'withdrawn')
AND NOT EXISTS (SELECT FROM event_links f WHERE f.key = l.key AND f.kind = l.kind
                AND f.claim = l.claim AND f.fate = 'forgotten')
ORDER BY l.id
"""
_NEXT = """
SELECT max(id) AS until, count(*) AS links
FROM (SELECT id FROM event_links WHERE fate = 'accepted' AND id > :mark ORDER BY id LIMIT :most) l
"""
_NEWEST = """
SELECT CASE WHEN pg_try_advisory_xact_lock(:lock) THEN (SELECT max(id) FROM links) END
"""


_LOST = f"""
SELECT count(*) FILTER (WHERE fate = 'forgotten') > 0 FROM event_links l
WHERE key = :key AND kind = 'decision' AND fate IN ('accepted', 'forgotten') AND NOT {_DECIDED}
AND NOT EXISTS (SELECT FROM event_links w WHERE w.producer = l.producer AND w.seq = l.seq
                AND w.fate = 'withdrawn')
HAVING count(*) > 0
"""


class Promises:
    """Follows accepted requests without reading again those that are decided."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._mark = 0
        """Up to this id every link was looked at."""
        self._open: list[int] = []

    async def undecided(self, connection: AsyncConnection, newest: int | None) -> list[Promise]:
        """Those that are neither decided nor forgotten, the oldest first, of so many as may be
        looked at in one go. One whose number was withdrawn was promised to nobody. `newest` is
        what `newest_link` said before."""
        if newest is not None and newest < self._mark:
            self._mark = 0  # An older backup was restored.
        next_ones = {"mark": self._mark, "most": self._most}
        page = (await connection.execute(text(_NEXT), next_ones)).one()
        until = page.until or self._mark
        seen = {"mark": self._mark, "until": until, "open": self._open}
        promises = [Promise(*row) for row in await connection.execute(text(_UNDECIDED), seen)]
        self._open = [promise.id for promise in promises]
        if page.links == self._most:  # It lies far behind what is being appended.
            self._mark = until
        elif newest is not None:  # What is below is there, or never comes.
            self._mark = max(self._mark, newest)
        return promises


async def newest_link(connection: AsyncConnection) -> int | None:
    """The id of the newest link when every one before it is there, or never comes; None while
    somebody is appending. Nobody can append until the transaction ends."""
    newest: int | None = await connection.scalar(text(_NEWEST), {"lock": LINK_LOCK})
    return newest


async def lost(connection: AsyncConnection, key: str) -> bool | None:
    """Whether an accepted request is named as lost; None when none was accepted under this id, or
    it was decided."""
    named: bool | None = await connection.scalar(text(_LOST), {"key": key})
    return named


async def forgotten(connection: AsyncConnection) -> list[tuple[str, str]]:
    """Kind and key of those that were lost and are not decided since."""
    return [(row.kind, row.key) for row in await connection.execute(text(_FORGOTTEN))]
