"""From the stream to the sink: read a batch, write it, acknowledge and delete it after the commit.

A batch may come twice (a writer may die between commit and acknowledgement): the sink is idempotent. An event that the sink
refuses by itself goes to the dead-letter stream with the reason, and the others go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

import structlog
from redis.exceptions import RedisError, ResponseError

from app.domain.errors import ShadowLogUnavailable
from app.domain.event import Event, EventKind
from app.journal.stream import EVENTS, GROUP, StreamJournal, connect

log = structlog.get_logger()
DEAD = "advisor:dead"
BATCH = 256
BLOCK_MS = 500
IDLE_MS = 30_000
MAX_PAUSE_S = 10.0

Entry = tuple[bytes, dict[bytes, bytes]]
Sink = Callable[[Sequence[Event]], Awaitable[None]]


class StreamDrain:
    """One consumer of the group. As many may run as are needed."""

    def __init__(
        self,
        url: str,
        sink: Sink,
        observe: Callable[[str, float], None],
        *,
        idle_ms: int = IDLE_MS,
        block_ms: int = BLOCK_MS,
    ) -> None:
        self._redis = connect(url, timeout_s=block_ms / 1000 + 5)
        self._stream = StreamJournal(url, timeout_s=5)
        self._sink = sink
        self._observe = observe
        self._consumer = str(uuid4())
        self._idle_ms = idle_ms
        self._block_ms = block_ms
        self._grouped = False
        self._failures = 0

    async def run(self) -> None:
        """Drain until cancelled, through outages of either server."""
        while True:
            try:
                await self.step()
                self._failures = 0
            except (RedisError, OSError, ShadowLogUnavailable) as error:
                self._failures += 1
                self._grouped = self._grouped and not isinstance(error, ResponseError)
                pause = min(0.1 * 2 ** min(self._failures, 10), MAX_PAUSE_S) * random.uniform(0.5, 1.0)
                log.warning("writer waits", error=str(error), seconds=round(pause, 2))
                await asyncio.sleep(pause)

    async def step(self) -> int:
        """Move one batch; the number of events moved. Nothing is acknowledged when the sink is away."""
        await self._ensure_group()
        entries = await self._next()
        if entries:
            await self._deliver(entries)
        length, oldest = await self._stream.backlog()
        self._observe("backlog", length)
        self._observe("oldest_seconds", oldest)
        return len(entries)

    async def aclose(self) -> None:
        """Close the connections; unacknowledged entries go to another writer."""
        await self._redis.aclose()
        await self._stream.aclose()

    async def _ensure_group(self) -> None:
        if self._grouped:
            return
        try:
            await self._redis.xgroup_create(EVENTS, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._grouped = True

    async def _next(self) -> list[Entry]:
        """What this consumer left pending, then what dead consumers left, then what is new."""
        reply = await self._redis.xreadgroup(GROUP, self._consumer, {EVENTS: "0"}, count=BATCH)
        entries: list[Entry] = reply[0][1] if reply else []
        if entries:
            return entries
        reclaimed = await self._redis.xautoclaim(EVENTS, GROUP, self._consumer, min_idle_time=self._idle_ms, count=BATCH)
        if reclaimed[1]:
            return list(reclaimed[1])
        reply = await self._redis.xreadgroup(GROUP, self._consumer, {EVENTS: ">"}, count=BATCH, block=self._block_ms)
        return reply[0][1] if reply else []

    async def _deliver(self, entries: Sequence[Entry]) -> None:
        """Write a batch; when the sink refuses it, halve it until the event at fault stands alone."""
        try:
            await self._sink([_event(fields) for _, fields in entries])
        except (ShadowLogUnavailable, asyncio.CancelledError):
            raise
        except Exception as error:
            if len(entries) == 1:
                await self._bury(entries[0], error)
                return
            middle = len(entries) // 2
            await self._deliver(entries[:middle])
            await self._deliver(entries[middle:])
            return
        await self._acknowledge([stream_id for stream_id, _ in entries])

    async def _bury(self, entry: Entry, error: Exception) -> None:
        """Keep an event that cannot be written for people to look at."""
        stream_id, fields = entry
        reason = f"{type(error).__name__}: {error}"[:2000]
        log.error("event refused, kept in the dead-letter stream", stream=DEAD, key=fields.get(b"key"), error=reason)
        await self._redis.xadd(DEAD, {**fields, b"error": reason.encode(), b"origin": stream_id})  # type: ignore[dict-item]
        self._observe("rejected_by_database", 1)
        await self._acknowledge([stream_id])

    async def _acknowledge(self, ids: Sequence[bytes]) -> None:
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xack(EVENTS, GROUP, *ids)
            pipeline.xdel(EVENTS, *ids)
            await pipeline.execute()


def _event(fields: dict[bytes, bytes]) -> Event:
    return Event(
        EventKind(fields[b"kind"].decode()), fields[b"key"].decode(), fields[b"claim"].decode(), fields[b"payload"]
    )
