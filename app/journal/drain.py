"""From the stream to the sink: read a batch, write it, acknowledge and delete it after the commit.

A batch may come twice (a writer may die between commit and acknowledgement): the sink is
idempotent. An event that the sink refuses by itself goes to the dead-letter stream with the reason,
and the others go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import structlog
from redis.exceptions import RedisError

from app.domain.errors import JournalUnavailable, ShadowLogUnavailable
from app.domain.event import Event, EventKind
from app.journal.batch import Consumer, Entry
from app.journal.stream import DEAD, EVENTS, StreamJournal, bury_command, connect
from app.telemetry import UNOBSERVED, LossCause, Telemetry

log = structlog.get_logger()
GROUP = "writers"
BATCH = 256
BLOCK_MS = 500
IDLE_MS = 30_000
MAX_PAUSE_S = 10.0

Sink = Callable[[Sequence[Event]], Awaitable[None]]


class StreamDrain:
    """One consumer of the group. As many may run as are needed.

    The sink writes a batch in one transaction and is idempotent by (kind, key). It raises
    `ShadowLogUnavailable` or OSError when it is away; any other exception means that the batch
    holds an event that can never be written: it is put aside, and told to `telemetry` as lost.
    """

    def __init__(
        self,
        url: str,
        sink: Sink,
        telemetry: Telemetry = UNOBSERVED,
        *,
        idle_ms: int = IDLE_MS,
        block_ms: int = BLOCK_MS,
    ) -> None:
        timeout_s = block_ms / 1000 + 5
        self._redis = connect(url, timeout_s)
        self._stream = StreamJournal(url, timeout_s)
        self._consumer = Consumer(self._redis, EVENTS, GROUP, idle_ms=idle_ms, block_ms=block_ms)
        self._sink = sink
        self._telemetry = telemetry

    async def run(self) -> None:
        """Drain until cancelled, through outages of either server."""
        failures = 0
        while True:
            try:
                await self.step()
                failures = 0
            except (RedisError, OSError, JournalUnavailable, ShadowLogUnavailable) as error:
                failures += 1
                pause = min(0.1 * 2 ** min(failures, 10), MAX_PAUSE_S) * random.uniform(0.5, 1.0)
                log.warning("writer waits", error=str(error), seconds=round(pause, 2))
                await asyncio.sleep(pause)

    async def step(self) -> int:
        """Move one batch; the number of events moved. Nothing is acknowledged when the sink is
        away.

        Raises
        ------
        ShadowLogUnavailable : the sink is away.
        RedisError, OSError, JournalUnavailable : the stream is away.
        """
        entries = await self._consumer.unfinished(BATCH) or await self._consumer.take(BATCH)
        if entries:
            await self._deliver(entries)
        self._telemetry.stream_holds(*await self._stream.backlog())
        return len(entries)

    async def aclose(self) -> None:
        """Close the connections; unacknowledged entries go to another writer."""
        await self._redis.aclose()
        await self._stream.aclose()

    async def _deliver(self, entries: Sequence[Entry]) -> None:
        """Write a batch; when the sink refuses it, halve it until the event at fault stands
        alone."""
        try:
            # An entry that somebody deleted by hand comes without fields, and only needs to be
            # acknowledged.
            await self._sink([_event(fields) for _, fields in entries if fields])
        except (ShadowLogUnavailable, OSError):
            raise
        except Exception as error:
            if len(entries) == 1:
                await self._bury(entries[0], error)
                return
            middle = len(entries) // 2
            await self._deliver(entries[:middle])
            await self._deliver(entries[middle:])
            return
        await self._consumer.done([stream_id for stream_id, _ in entries])

    async def _bury(self, entry: Entry, error: Exception) -> None:
        """Keep an event that cannot be written for people to look at."""
        stream_id, fields = entry
        reason = f"{type(error).__name__}: {error}"
        log.error(
            "event refused, kept in the dead-letter stream",
            stream=DEAD,
            key=fields.get(b"key"),
            error=reason,
        )
        await self._consumer.done([stream_id], *bury_command(fields, reason))
        self._telemetry.lost(LossCause.REJECTED_BY_DATABASE)


def _event(fields: dict[bytes, bytes]) -> Event:
    kind, key, claim = (fields[name].decode() for name in (b"kind", b"key", b"claim"))
    return Event(EventKind(kind), key, claim, fields[b"payload"])
