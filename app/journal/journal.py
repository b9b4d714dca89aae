"""The journal: the stream, or the spool while the stream is away; what it confirms is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.event import Event, EventKind, StateChange
from app.journal.spool import Spool
from app.journal.stream import Receipt, StreamJournal
from app.tasks import end
from app.telemetry import UNOBSERVED, LossCause, Telemetry

__all__ = ["Journal", "Receipt"]

log = structlog.get_logger()
RETRY_S = 1.0
DRAIN_BATCH = 64


class Journal:
    """Durable append with one idempotency key space over stream and spool.

    After a failure of the stream everything goes to the spool at once, until a background task,
    which tries every `retry_s`, reaches the stream again: no request waits for a server that is
    away. Spooled events that met others in the stream are told to `telemetry` as lost.
    """

    def __init__(
        self,
        stream: StreamJournal,
        spool: Spool,
        telemetry: Telemetry = UNOBSERVED,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._stream = stream
        self._spool = spool
        self._telemetry = telemetry
        self._retry_s = retry_s
        self._background: asyncio.Task[None] | None = None
        self.reachable = True
        """Whether the stream answered last. While it does not, what was written to it cannot be
        found."""
        self.durable: bool | None = None
        """Whether the stream fsyncs every write; None while it did not tell."""

    async def start(self) -> None:
        """Open the spool and start draining it. Raises `JournalUnavailable` when the spool cannot
        be used."""
        await self._spool.open()
        try:
            await self._meet()
        except JournalUnavailable as error:
            self._leave(error)
        self._background = asyncio.create_task(self._look_after())

    async def append(self, event: Event) -> Receipt:
        """Make an event durable, once.

        A failed append to the stream has an unknown effect; the event then goes to the spool as
        well, and draining, which is idempotent, sorts it out.

        Raises
        ------
        RequestConflict : the key is known with another claim.
        JournalUnavailable : neither stream nor spool took it.
        """
        return await self._append(event, lambda: self._stream.append(event))

    async def set_state(self, change: StateChange) -> Receipt:
        """Record a change of state and make it the live one for all replicas (when drained, if
        spooled)."""
        return await self._append(
            Event.of_state_change(change), lambda: self._stream.set_state(change)
        )

    async def get_state(self) -> StateChange | None:
        """The live state. Raises `JournalUnavailable`."""
        return await self._stream.get_state()

    async def claim_of(self, decision_id: str) -> str | None:
        """Claim of a decision, while the journal remembers it; None also when the stream is
        away."""
        claim = self._spool.claim(EventKind.DECISION, decision_id)
        if claim is not None or not self.reachable:
            return claim
        try:
            known = await self._stream.known(EventKind.DECISION, decision_id)
        except JournalUnavailable as error:
            self._leave(error)
            return None
        return None if known is None else known.claim

    async def find(self, decision_id: str) -> bytes | None:
        """Payload of a decision that is not in Postgres yet; None also while not `reachable`."""
        payload = await self._spool.find(EventKind.DECISION, decision_id)
        if payload is not None or not self.reachable:
            return payload
        try:
            return await self._stream.find(EventKind.DECISION, decision_id)
        except JournalUnavailable as error:
            self._leave(error)
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

    async def drain(self) -> None:
        """Move the spool into the stream, in order; a segment goes when all of it is there."""
        for segment in await self._spool.segments():
            events = await self._spool.events(segment)
            for first in range(0, len(events), DRAIN_BATCH):
                moves = (self._move(event) for event in events[first : first + DRAIN_BATCH])
                for outcome in await asyncio.gather(*moves, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
            await self._spool.remove(segment)
            log.info("spool drained", events=len(events))

    async def aclose(self) -> None:
        """Stop draining; what is on disk stays."""
        if self._background is not None:
            await end([self._background])
        await self._stream.aclose()
        await self._spool.aclose()

    async def _append(
        self, event: Event, to_stream: Callable[[], Coroutine[Any, Any, Receipt]]
    ) -> Receipt:
        if self.reachable and self._spool.claim(event.kind, event.key) is None:
            try:
                return await to_stream()
            except JournalUnavailable as error:
                self._leave(error)
        return Receipt("spool", await self._spool.append(event))

    def _leave(self, error: JournalUnavailable) -> None:
        if self.reachable:
            log.error("stream is away, spooling to disk", error=str(error))
        self.reachable = False

    async def _meet(self) -> None:
        """Reach the stream, for the first time or again."""
        await self._stream.ping()
        self.durable = await self._stream.durability()
        if self.durable is False:
            log.error("Valkey may lose confirmed writes: set appendonly yes and appendfsync always")
        self.reachable = True

    async def _look_after(self) -> None:
        """Reach the stream again when it was away, and drain, until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                if not self.reachable:
                    await self._meet()
                    log.info("stream is back")
                await self.drain()
                told = ""
            except JournalUnavailable as error:
                reason = str(error)
                if reason != told:  # Once for each reason, not for each attempt.
                    log.warning("spool waits", events=len(self._spool), error=reason)
                told = reason
            except Exception:
                log.exception("draining failed, it is tried again", events=len(self._spool))

    async def _move(self, event: Event) -> None:
        try:
            await self._stream.restore(event)
        except RequestConflict as conflict:
            log.error(
                "spooled event kept in the dead-letter stream", key=event.key, error=str(conflict)
            )
            await self._stream.bury(event, str(conflict))
            self._telemetry.lost(LossCause.DUPLICATE_CONFLICT)
