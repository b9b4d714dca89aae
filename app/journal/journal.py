"""The journal: the stream, or the spool while the stream is away; what it confirms is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import structlog

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.event import Event, EventKind, StateChange
from app.journal.spool import Spool
from app.journal.stream import Receipt, StreamJournal

log = structlog.get_logger()
RETRY_S = 1.0


class Journal:
    """Durable append with one idempotency key space over stream and spool."""

    def __init__(self, stream: StreamJournal, spool: Spool, lose: Callable[[str, int], None]) -> None:
        self._stream = stream
        self._spool = spool
        self._lose = lose
        self._retry_at = 0.0
        self._drainer: asyncio.Task[None] | None = None
        self.durable: bool | None = None
        """Whether the stream fsyncs every write; None while not known."""

    async def start(self) -> None:
        """Open the spool and start draining it. Raises `JournalUnavailable` when the spool cannot be used."""
        await self._spool.open()
        self.durable = await self._stream.durability()
        if self.durable is False:
            log.error("Valkey may lose confirmed writes: set appendonly yes and appendfsync always")
        self._drainer = asyncio.create_task(self._drain_forever())

    async def append(self, event: Event) -> Receipt:
        """Make an event durable, once.

        A failed append to the stream has an unknown effect; the event then goes to the spool as well, and draining,
        which is idempotent, sorts it out.

        Raises
        ------
        RequestConflict : the key is known with another claim.
        JournalUnavailable : neither stream nor spool took it.
        """
        return await self._append(event, lambda: self._stream.append(event))

    async def set_state(self, change: StateChange) -> Receipt:
        """Record a change of state and make it the live one for all replicas."""
        return await self._append(Event.of_state_change(change), lambda: self._stream.set_state(change))

    async def _append(self, event: Event, to_stream: Callable[[], Coroutine[Any, Any, Receipt]]) -> Receipt:
        if self._spool.claim(event.kind, event.key) is not None:
            return Receipt("spool", await self._spool.append(event))
        if monotonic() >= self._retry_at:
            try:
                return await to_stream()
            except JournalUnavailable as error:
                self._pause(error)
        return Receipt("spool", await self._spool.append(event))

    async def get_state(self) -> StateChange | None:
        """The live state. Raises `JournalUnavailable`."""
        return await self._stream.get_state()

    async def claim_of(self, decision_id: str) -> str | None:
        """Claim of a decision, while the journal remembers it; None also when the stream is away."""
        claim = self._spool.claim(EventKind.DECISION, decision_id)
        if claim is not None or monotonic() < self._retry_at:
            return claim
        try:
            known = await self._stream.known(EventKind.DECISION, decision_id)
        except JournalUnavailable as error:
            self._pause(error)
            return None
        return None if known is None else known.claim

    async def find(self, decision_id: str) -> bytes | None:
        """Payload of a decision that is not in Postgres yet; None also when the stream is away."""
        payload = await self._spool.find(EventKind.DECISION, decision_id)
        if payload is not None or monotonic() < self._retry_at:
            return payload
        try:
            return await self._stream.find(EventKind.DECISION, decision_id)
        except JournalUnavailable as error:
            self._pause(error)
            return None

    async def backlog(self) -> tuple[int, float]:
        """Events in the stream that are not in Postgres yet, and the age (s) of the oldest."""
        return await self._stream.backlog()

    def spool_depth(self) -> int:
        """Events that wait on disk."""
        return len(self._spool)

    async def ping(self) -> None:
        """Raise `JournalUnavailable` unless the stream answers."""
        await self._stream.ping()

    async def ping_spool(self) -> None:
        """Raise `JournalUnavailable` unless the spool can be written."""
        await self._spool.probe()

    async def aclose(self) -> None:
        """Stop draining; what is on disk stays."""
        if self._drainer is not None:
            self._drainer.cancel()
            await asyncio.gather(self._drainer, return_exceptions=True)
        await self._stream.aclose()
        await self._spool.aclose()

    def _pause(self, error: JournalUnavailable) -> None:
        """Spare the next requests the wait for a stream that is away."""
        if monotonic() >= self._retry_at:
            log.error("stream is away, spooling to disk", error=str(error))
        self._retry_at = monotonic() + RETRY_S

    async def _drain_forever(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            if len(self._spool):
                try:
                    await self.drain()
                except JournalUnavailable as error:
                    log.info("spool waits", events=len(self._spool), error=str(error))

    async def drain(self) -> None:
        """Move everything from the spool into the stream, in order; a segment goes when all of it is there."""
        await self._stream.ping()
        if self.durable is None:
            self.durable = await self._stream.durability()
        for segment in await self._spool.segments():
            events = await self._spool.events(segment)
            for event in events:
                await self._move(event)
            await self._spool.remove(segment)
            log.info("spool drained", events=len(events))

    async def _move(self, event: Event) -> None:
        if event.kind is EventKind.STATE_CHANGE:
            change = event.record()
            assert isinstance(change, StateChange)
            live = await self._stream.get_state()
            if live is None or live.recorded_at < change.recorded_at:
                await self._stream.set_state(change)
                return
        try:
            await self._stream.append(event)
        except RequestConflict as conflict:
            # Two replicas answered one id differently while the stream was away: the first in the stream counts.
            self._lose("duplicate_conflict", 1)
            log.error("spooled event dropped", error=str(conflict), payload=event.payload.decode())
