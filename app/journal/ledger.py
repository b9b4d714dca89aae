"""The ledger's place in Valkey: what each principal reported of its own trades, found in one step.

It is a copy of what the record holds: lost with the server's memory, and made again from Postgres.
Until it is whole it tells nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from app.domain.errors import InvalidRecord
from app.domain.record.ledger import Closed, Note, Opened

LEDGER, LACKS = "advisor:ledger-2", "advisor:ledger-2-lacks"
"""What a release before kept in `advisor:ledger` had no arrivals: it is made again from the
record."""
TTL_S = 30 * 86_400
MOST = 512
"""Notes of one principal, from which on those that are not open are forgotten, the oldest first."""
MOST_FIELDS, LOOK_EVERY = 4 * MOST, 64
"""Above which each so many of a principal's fields are looked at for what can be forgotten: also of
one that never asks for what is in them."""
NOTE = """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if not there or string.sub(there, 1, 31) <= string.sub(ARGV[2], 1, 31) then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('HLEN', KEYS[1])
"""
"""Key: a principal's ledger. Arguments: a field, a value that begins with its arrival and its time
in microseconds, of fixed width, so that the newer of two stays, and no clock decides where
arrivals do; seconds to keep it. Returns how many fields there are."""
LACK = """
local there = redis.call('GET', KEYS[1])
if not there or there < ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
"""
TOLD = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

Run = Callable[..., Awaitable[Any]]
StreamId = tuple[int, int]
"""An event's place in the stream: milliseconds of the stream's clock, and a number; they only
grow."""


class Entry(NamedTuple):
    """One report of a principal on a decision: that it opened a trade, or none, or how it ended.
    `arrival` is its place among those on the same subject; 0 where it has none."""

    principal: str
    decision_id: str
    told_at: datetime
    what: Opened | Closed | None
    arrival: int = 0

    @property
    def field(self) -> str:
        """Where it stands: what opens and what closes are told apart, in either order."""
        return f"{self.decision_id}:{'closed' if isinstance(self.what, Closed) else 'opened'}"

    @property
    def value(self) -> bytes:
        """As it is kept."""
        micros = int(self.told_at.timestamp() * 1_000_000)
        document = None if self.what is None else self.what.as_json()
        return f"{self.arrival:010d} {micros:020d} ".encode() + orjson.dumps(document)


class Ledger:
    """One memory's ledger.

    Parameters
    ----------
    run : sends a command; raises `JournalUnavailable`.
    memory : the identity of the memory that it lies in.
    """

    def __init__(self, run: Run, memory: str) -> None:
        self._run = run
        self._memory = memory

    async def note(self, entry: Entry) -> None:
        """Keep an entry, unless a newer one stands in its place."""
        key = self._key(entry.principal)
        fields = await self._run("EVAL", NOTE, 1, key, entry.field, entry.value, TTL_S)
        if fields > MOST_FIELDS and fields % LOOK_EVERY == 0:
            with suppress(InvalidRecord):  # Whoever asks for it is told.
                await self.forget(entry.principal, await self._notes(entry.principal))

    async def forget(self, principal: str, notes: dict[str, Note]) -> None:
        """Drop, of more than `MOST`, the oldest of those that are not open, and what is open for
        longer than the record is asked for."""
        newest = max(note.told_at for note in notes.values())
        old = newest - timedelta(seconds=TTL_S)
        done = [
            name
            for name, note in notes.items()
            if note.closed is not None or note.opened is None or note.told_at < old
        ]
        done.sort(key=lambda name: notes[name].told_at)
        gone = done[: max(len(notes) - MOST, 0)]
        fields = [f"{name}:{kind}" for name in gone for kind in ("opened", "closed")]
        if fields:
            await self._run("HDEL", self._key(principal), *fields)

    async def of(self, principal: str) -> dict[str, Note] | None:
        """A principal's notes by decision; None while the ledger is not whole, or lacks one."""
        whole = await self.whole() and await self.lacks() is None
        return await self._notes(principal) if whole else None

    async def _notes(self, principal: str) -> dict[str, Note]:
        """Those that are there. Raises `InvalidRecord`."""
        flat = await self._run("HGETALL", self._key(principal))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        notes: dict[str, Note] = {}
        for field, value in pairs:
            _add(notes, field.decode(), value)
        return notes

    async def whole(self) -> bool:
        """Whether everything that the record holds is in it."""
        return await self._run("GET", f"{LEDGER}:{self._memory}") is not None

    async def fill(self, entries: Iterable[Entry]) -> None:
        """Take in what the record holds; from then on it is whole."""
        for entry in entries:
            await self.note(entry)
        await self._run("SET", f"{LEDGER}:{self._memory}", "whole")

    async def lack(self, place: StreamId) -> None:
        """Of a report up to this place in the stream it has no entry: for nobody it is whole, until
        the record has told what came up to there."""
        await self._run("EVAL", LACK, 1, self._lacks, _written(place))

    async def lacks(self) -> StreamId | None:
        """Up to which place in the stream it lacks an entry; None where it lacks none."""
        place = await self._run("GET", self._lacks)
        if place is None:
            return None
        milliseconds, _, number = place.partition(b"-")
        return int(milliseconds), int(number)

    async def lacks_no_more(self, place: StreamId) -> None:
        """It has taken in from the record what came up to there."""
        await self._run("EVAL", TOLD, 1, self._lacks, _written(place))

    @property
    def _lacks(self) -> str:
        return f"{LACKS}:{self._memory}"

    def _key(self, principal: str) -> str:
        return f"{LEDGER}:{self._memory}:{principal}"


def _written(place: StreamId) -> str:
    """So that later ones are greater as text, too."""
    return "-".join(f"{part:020d}" for part in place)


def _add(notes: dict[str, Note], field: str, value: bytes) -> None:
    decision, _, kind = field.rpartition(":")
    try:
        _, micros, document = value.split(b" ", 2)
        told_at = datetime.fromtimestamp(int(micros) / 1_000_000, UTC)
        what = orjson.loads(document)
    except ValueError as error:
        raise InvalidRecord(f"the ledger cannot be read: {error}") from error
    note = notes.get(decision, Note(told_at))
    told_at = max(note.told_at, told_at)
    if kind == "closed":
        notes[decision] = note._replace(told_at=told_at, closed=Closed.from_json(what))
    else:
        opened = None if what is None else Opened.from_json(what)
        notes[decision] = note._replace(told_at=told_at, opened=opened)
