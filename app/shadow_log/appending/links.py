"""Links in Postgres: written with the rows they link, counted, and missed.

Whoever appends links holds `LINK_LOCK` shared until it commits; who holds it alone knows that every
link up to the newest `id` is there, or never comes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import Row, func, insert, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.canonical import digest
from app.domain.record.event import Aside, Event, EventKind
from app.domain.record.link import BEFORE, Fate, Linked, Producer
from app.shadow_log.schema import tables

LINK_LOCK = 0x5AD1
COLUMNS = ("producer", "seq", "previous", "kind", "key", "claim", "payload", "fate")
SECOND = "answered before with another answer"
_ADD_PRODUCERS = text(
    """
    INSERT INTO link_producers (name)
    SELECT name FROM unnest(CAST(:names AS text[])) WITH ORDINALITY given (name, place)
    WHERE NOT EXISTS (SELECT FROM link_producers p WHERE p.name = given.name) ORDER BY place
    ON CONFLICT DO NOTHING
    """
)
# In order of their numbers, so that the index of these fills its pages.
_ADD_LINKS = text(
    """
    INSERT INTO links (seq, producer_id, fate, kind, previous, key, other_claim, payload)
    SELECT l.seq, p.id, l.fate, l.kind, l.previous, l.key, l.other_claim, l.payload
    FROM json_to_recordset(CAST(:rows AS json)) AS l (
        producer text, seq bigint, fate text, kind text, previous bytea, key text,
        other_claim text, payload bytea
    )
    JOIN link_producers p ON p.name = l.producer ORDER BY p.id, l.seq
    ON CONFLICT DO NOTHING
    """
)
_HASH = re.compile("sha256:[0-9a-f]{64}")


async def append_links(connection: AsyncConnection, links: Sequence[Linked]) -> None:
    """Write links; those that are there already stay."""
    if not links:
        return
    names = sorted({link.producer for link in links})
    await connection.execute(_ADD_PRODUCERS, {"names": names})
    sent = orjson.dumps([_row(link) for link in links]).decode()
    await connection.execute(_ADD_LINKS, {"rows": sent})


def _row(link: Linked) -> dict[str, str | int]:
    """A link as `links` keeps it, but for its producer's number."""
    return {
        "producer": link.producer,
        "seq": link.seq,
        "fate": link.fate.value,
        "kind": link.kind,
        "previous": _bytes_of(link.previous),
        "key": link.key,
        "other_claim": "" if link.claim == link.key else link.claim,
        "payload": _bytes_of(link.payload),
    }


def _bytes_of(said: str) -> str:
    """What Postgres reads as the bytes of a hash; of what is none, as `advisor_hash_bytes` makes
    them."""
    return "\\x" + (said[7:] if _HASH.fullmatch(said) else said.encode().hex())


async def link_events(connection: AsyncConnection, written: Sequence[Event], own: Producer) -> None:
    """Links of events whose rows were written just now. One that came without, from an earlier
    release, is linked by the log itself."""
    await append_links(
        connection,
        [
            event.linked()
            if event.link
            else own.link(event.kind.value, event.key, event.claim, digest(event.payload))
            for event in written
        ],
    )


class Repeats(NamedTuple):
    """Events whose key was there before: how many repeat it, and which answer it otherwise."""

    repeated: int
    second: list[Aside]


async def link_repeats(connection: AsyncConnection, events: Sequence[Event]) -> Repeats:
    """Leave a link for each repeat, but for one that is only delivered again."""
    events_of = tables.event_links.c
    places = [(event.link.producer, event.link.seq) for event in events if event.link]
    rows = await connection.execute(
        select(events_of.producer, events_of.seq).where(
            tuple_(events_of.producer, events_of.seq).in_(places), events_of.fate == Fate.EVENT
        )
    )
    delivered = {(row.producer, row.seq) for row in rows}
    stored = await _answers(connection, [e.key for e in events if e.kind is EventKind.DECISION])
    repeats, second = [], []
    for event in events:
        if event.link and (event.link.producer, event.link.seq) in delivered:
            continue
        claim, payload = stored.get(event.key, (event.claim, ""))
        other = payload not in ("", digest(event.payload)) or claim != event.claim
        if event.kind is EventKind.DECISION and other:
            second.append(Aside(event, SECOND))
        else:
            repeats.append(event)
    await append_links(connection, [e.linked(Fate.REPEAT) for e in repeats if e.link])
    return Repeats(len(events) - len(second), second)


async def put_aside(
    connection: AsyncConnection, asides: Sequence[Aside], own: Producer
) -> list[Event]:
    """Keep events that have no place elsewhere, once each; those that were not there yet."""
    new = []
    for event, reason in asides:
        hashes = (event.kind.value, event.key, event.claim, digest(event.payload))
        names = ("kind", "key", "claim", "payload_hash")
        row: dict[str, str | bytes] = dict(zip(names, hashes, strict=True))
        content = {"payload": event.payload, "reason": reason[:2000]}
        table = tables.put_aside
        statement = (
            upsert(table).values(row | content).on_conflict_do_nothing().returning(table.c.id)
        )
        fresh = await connection.scalar(statement) is not None
        if fresh:
            new.append(event)
        if event.link:
            await append_links(connection, [event.linked(Fate.ASIDE)])
        elif fresh:
            await append_links(connection, [own.link(*hashes)._replace(fate=Fate.ASIDE)])
    return new


async def _answers(connection: AsyncConnection, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Claim and hash of the answers that stand under these decision ids; the hash is empty where
    it is not known any more."""
    if not keys:
        return {}
    c, keys_of = tables.event_links.c, tables.decision_keys.c
    claims = await connection.execute(
        select(keys_of.decision_id, keys_of.request_hash).where(
            keys_of.decision_id.in_([UUID(key) for key in keys])
        )
    )
    answers = {str(row.decision_id): (row.request_hash, "") for row in claims}
    links = await connection.execute(
        select(c.key, c.payload).where(
            c.key.in_(keys), c.kind == EventKind.DECISION.value, c.fate == Fate.EVENT
        )
    )
    for row in links:
        answers[row.key] = (answers[row.key][0], row.payload)
    return answers


async def note_head(connection: AsyncConnection, producer: str, seq: int) -> None:
    """A producer tells, past the queue server, up to which number its events are durable."""
    await connection.execute(insert(tables.chain_heads).values(producer=producer, seq=seq))


class Hole(NamedTuple):
    """Numbers of a producer that are missing, both ends included."""

    producer: str
    first: int
    last: int

    @property
    def size(self) -> int:
        """How many."""
        return self.last - self.first + 1


_TOLD = """
WITH RECURSIVE told AS (
    (SELECT producer FROM chain_heads ORDER BY producer LIMIT 1)
    UNION ALL
    SELECT (SELECT producer FROM chain_heads h WHERE h.producer > told.producer
            ORDER BY producer LIMIT 1)
    FROM told WHERE told.producer IS NOT NULL
)
SELECT producer, (SELECT max(seq) FROM chain_heads h WHERE h.producer = t.producer) AS head
FROM told t WHERE producer IS NOT NULL
"""
MOST_NUMBERS = 500_000
"""Numbers of one producer that are looked at in one go: a statement has seconds, and whoever looks
for the first time goes through all of them."""
_PRODUCERS = """
WITH seen AS (
    SELECT * FROM unnest(CAST(:producers AS text[]), CAST(:newest AS bigint[])) s (producer, seq)
)
SELECT p.id, p.name AS producer, seen.seq IS NULL
           OR EXISTS (SELECT FROM links l WHERE l.producer_id = p.id AND l.seq = seen.seq) AS there,
       (SELECT max(seq) FROM links l WHERE l.producer_id = p.id) AS newest
FROM link_producers p LEFT JOIN seen ON seen.producer = p.name
WHERE p.name <> :before AND EXISTS (SELECT FROM links l WHERE l.producer_id = p.id)
"""
_PAGE = """
SELECT max(seq) AS until, count(*) AS arrived
FROM (SELECT DISTINCT seq FROM links
      WHERE producer_id = :id AND seq > :mark AND seq <= :newest ORDER BY seq LIMIT :most) page
"""
_HOLES = """
SELECT below + 1 AS first, seq - 1 AS last
FROM (
    SELECT seq, lag(seq, 1, CAST(:mark AS bigint)) OVER (ORDER BY seq) AS below
    FROM (SELECT DISTINCT seq FROM links
          WHERE producer_id = :id AND seq > :mark AND seq <= :until) numbers
) neighbours
WHERE seq > below + 1 ORDER BY seq
"""


class Watch:
    """Counts what is missing, each number once, without reading again what is complete.

    A log that lacks the newest link that was seen of a producer has gone back, as when an older
    backup was restored: of that producer everything is counted anew.
    """

    def __init__(self, most: int = MOST_NUMBERS) -> None:
        self._most = most
        self._marks: dict[str, int] = {}
        """Up to which number each is accounted for: stored, or among the holes."""
        self._newest: dict[str, int] = {}
        """The newest link that was there."""
        self._holes: list[Hole] = []

    async def missing(
        self, connection: AsyncConnection, told: Mapping[str, int], *, moving: bool = False
    ) -> int:
        """Numbers that are not in the log although later ones of their producer are, or were, or
        although the producer `told` that they are durable.

        What waits in a spool is missing until it arrives. While events are `moving`, a batch may be
        written before an earlier one: what was not missing at the last look does not count yet.
        """
        open_holes = []
        for hole in self._holes:
            open_holes += await _open_parts(connection, hole)
        self._holes = open_holes
        before = sum(hole.size for hole in open_holes)
        seen = {"producers": list(self._newest), "newest": list(self._newest.values())}
        rows = await connection.execute(text(_PRODUCERS), {**seen, "before": BEFORE})
        stored = {row.producer: row for row in rows}
        for producer in set(self._marks) - set(stored):
            self._count_anew(producer, [], 0)
        for producer, row in stored.items():
            mark = self._marks.get(producer, 0) if row.there else 0
            holes = await self._behind(connection, row, mark)
            if row.there:
                self._holes += holes
                self._marks[producer] = max(row.newest, mark)
            else:
                self._count_anew(producer, holes, row.newest)
            self._newest[producer] = row.newest
        tails = (max(seq - self._marks.get(producer, 0), 0) for producer, seq in told.items())
        return sum(tails) + (before if moving else sum(hole.size for hole in self._holes))

    async def _behind(self, connection: AsyncConnection, row: Row[Any], mark: int) -> list[Hole]:
        """Numbers of a producer behind a mark that are missing before its newest, page by page."""
        holes: list[Hole] = []
        while mark < row.newest:
            asked = {"id": row.id, "mark": mark, "newest": row.newest, "most": self._most}
            page = (await connection.execute(text(_PAGE), asked)).one()
            if page.until is None:
                break  # The log went back meanwhile: the next look sees it.
            if page.arrived < page.until - mark:
                within = {"id": row.id, "mark": mark, "until": page.until}
                found = await connection.execute(text(_HOLES), within)
                holes += [Hole(row.producer, each.first, each.last) for each in found]
            mark = page.until
        return holes

    def _count_anew(self, producer: str, holes: Sequence[Hole], newest: int) -> None:
        """`holes` and what is behind `newest` are missing, of all that was ever seen."""
        self._holes = [hole for hole in self._holes if hole.producer != producer] + list(holes)
        if self._marks[producer] > newest:
            self._holes.append(Hole(producer, newest + 1, self._marks[producer]))
        self._marks[producer] = max(self._marks[producer], newest)
        self._newest[producer] = newest


async def head(connection: AsyncConnection, producer: str) -> int:
    """What one producer told last; 0 when the log holds nothing that it told."""
    c = tables.chain_heads.c
    told = await connection.scalar(select(func.max(c.seq)).where(c.producer == producer))
    return told or 0


async def heads(connection: AsyncConnection) -> dict[str, int]:
    """What each producer told last."""
    return {row.producer: row.head for row in await connection.execute(text(_TOLD))}


async def _open_parts(connection: AsyncConnection, hole: Hole) -> list[Hole]:
    """What of a hole is still missing."""
    c = tables.event_links.c
    arrived = await connection.scalars(
        select(c.seq)
        .distinct()
        .where(c.producer == hole.producer, c.seq.between(hole.first, hole.last))
        .order_by(c.seq)
    )
    parts, first = [], hole.first
    for seq in (*arrived, hole.last + 1):
        if seq > first:
            parts.append(Hole(hole.producer, first, seq - 1))
        first = seq + 1
    return parts


async def exclusive(connection: AsyncConnection) -> None:
    """Wait until no append is under way, and keep others out until the transaction ends."""
    await connection.execute(select(func.pg_advisory_xact_lock(LINK_LOCK)))


async def shared(connection: AsyncConnection) -> None:
    """An append is under way until the transaction ends."""
    await connection.execute(select(func.pg_advisory_xact_lock_shared(LINK_LOCK)))
