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

LEDGER = "advisor:ledger"
TTL_S = 30 * 86_400
MOST = 512
"""Notes of one principal, from which on those that are not open are forgotten, the oldest first."""
MOST_FIELDS, LOOK_EVERY = 4 * MOST, 64
"""Above which each so many of a principal's fields are looked at for what can be forgotten: also of
one that never asks for what is in them."""
NOTE = """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if not there or string.sub(there, 1, 20) <= string.sub(ARGV[2], 1, 20) then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('HLEN', KEYS[1])
"""
"""Key: a principal's ledger. Arguments: a field, a value that begins with its time in microseconds,
of fixed width, so that the newer of two stays; seconds to keep it. Returns how many fields there
are."""

Run = Callable[..., Awaitable[Any]]


class Entry(NamedTuple):
    """One report of a principal on a decision: that it opened a trade, or none, or how it ended."""

    principal: str
    decision_id: str
    told_at: datetime
    what: Opened | Closed | None

    @property
    def field(self) -> str:
        """Where it stands: what opens and what closes are told apart, in either order."""
        return f"{self.decision_id}:{'closed' if isinstance(self.what, Closed) else 'opened'}"

    @property
    def value(self) -> bytes:
        """As it is kept."""
        micros = int(self.told_at.timestamp() * 1_000_000)
        document = None if self.what is None else self.what.as_json()
        return f"{micros:020d} ".encode() + orjson.dumps(document)


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
        """A principal's notes by decision; None while the ledger is not whole."""
        return await self._notes(principal) if await self.whole() else None

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

    def _key(self, principal: str) -> str:
        return f"{LEDGER}:{self._memory}:{principal}"


def _add(notes: dict[str, Note], field: str, value: bytes) -> None:
    decision, _, kind = field.rpartition(":")
    micros, _, document = value.partition(b" ")
    told_at = datetime.fromtimestamp(int(micros) / 1_000_000, UTC)
    try:
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
