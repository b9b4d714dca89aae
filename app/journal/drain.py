"""The journal's end: a batch is read, written to a sink, acknowledged and deleted after the commit.

A batch may come twice (a writer may die between commit and acknowledgement): the sink is
idempotent. An event that the sink refuses by itself goes to the dead-letter stream with the reason,
and the others go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from app.domain.errors import InvalidRecord, JournalUnavailable, ShadowLogUnavailable
from app.domain.record.event import Aside, Entry, Event
from app.journal import consumer
from app.journal.consumer import Consumer
from app.journal.keys import DEAD, EVENTS
from app.journal.packing import unpacked
from app.journal.stream import StreamJournal, bury_command, connect, entry_of
from app.tasks import Supervisor
from app.telemetry import UNOBSERVED, LossCause, Task, Telemetry

log = structlog.get_logger()
GROUP = "writers"
BATCH = 512
LANES = 2
"""Batches that one writer moves at once while it lies behind: one is read while Postgres works on
the other."""
BATCHES = 8
"""After which the lanes wait for each other, so that a round ends."""
BLOCK_MS = 500
IDLE_MS = 5_000
"""After which a writer seems dead to the others. One that was only slow writes what is there
already, which changes nothing."""
MAX_PAUSE_S = 10.0

Sink = Callable[[Sequence[Entry]], Awaitable[None]]


class StreamDrain:
    """One consumer of the group. As many may run as are needed.

    The sink writes a batch in one transaction and is idempotent by (kind, key). It raises
    `InvalidRecord` when the batch holds an event that can never be written: that one is put aside,
    and told to `telemetry` as lost. Whatever else it raises is no event's fault: all of them wait.
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
        self._stream = StreamJournal(url, timeout_s, telemetry)
        self._consumers = [
            Consumer(self._redis, EVENTS, GROUP, idle_ms=idle_ms, block_ms=block_ms)
            for _ in range(LANES)
        ]
        self._behind = False
        """Whether more than a batch was waiting, or a lane may have left something undone."""
        self._sink = sink
        self._telemetry = telemetry
        self._outages = 0

    async def run(self) -> None:
        """Drain until cancelled, through outages of either server."""
        supervisor = Supervisor(self._telemetry)
        supervisor.start(Task.WRITER, self._step_or_wait)
        try:
            await supervisor.wait()
        finally:
            await supervisor.aclose()

    async def _step_or_wait(self) -> None:
        try:
            await self._round()
            self._outages = 0
        except (RedisError, OSError, JournalUnavailable, ShadowLogUnavailable) as error:
            self._outages += 1
            pause = min(0.1 * 2 ** min(self._outages, 10), MAX_PAUSE_S) * random.uniform(0.5, 1.0)
            log.warning("writer waits", error=str(error), seconds=round(pause, 2))
            await asyncio.sleep(pause)

    async def _round(self) -> None:
        """A few batches: one after the other, or some at once while it lies behind. Raises as
        `step`, when every lane has ended."""
        lanes, batches = (self._consumers, BATCHES) if self._behind else (self._consumers[:1], 1)
        self._behind = True
        moving = (self._lane(owner, batches) for owner in lanes)
        ended = await asyncio.gather(*moving, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error
        self._behind = any(ended)

    async def _lane(self, owner: Consumer, batches: int) -> bool:
        """Batches of one consumer. Whether more are waiting."""
        for _ in range(batches):
            if await self._move(owner) < BATCH:
                return False
        return True

    async def step(self) -> int:
        """Move one batch; the number of events moved. Nothing is acknowledged when the sink is
        away.

        Raises
        ------
        ShadowLogUnavailable : the sink is away.
        RedisError, OSError, JournalUnavailable : the stream is away.
        """
        return await self._move(self._consumers[0])

    async def _move(self, owner: Consumer) -> int:
        entries = await owner.unfinished(BATCH) or await owner.take(BATCH)
        if entries:
            await self._deliver(owner, entries)
        self._telemetry.stream_holds(*await self._stream.backlog())
        return len(entries)

    async def backlog(self) -> int:
        """Events in the stream."""
        return (await self._stream.backlog())[0]

    async def forgot(self, asked: Sequence[tuple[str, str]]) -> list[int]:
        """Which of these accepted requests (decision id and claim) the queue server holds nothing
        of any more, neither of the request nor of its decision. Raises `JournalUnavailable`."""
        return await self._stream.forgot(asked)

    async def aclose(self) -> None:
        """Close the connections; unacknowledged entries go to another writer."""
        await self._redis.aclose()
        await self._stream.aclose()

    async def _deliver(self, owner: Consumer, entries: Sequence[consumer.Entry]) -> None:
        """Write a batch; when the sink refuses it, halve it until the event at fault stands
        alone."""
        try:
            # An entry that somebody deleted by hand comes without fields, and only needs to be
            # acknowledged.
            await self._sink([entry_of(fields) for _, fields in entries if fields])
        except InvalidRecord as error:
            if len(entries) == 1:
                await self._bury(owner, entries[0], error)
                return
            middle = len(entries) // 2
            await self._deliver(owner, entries[:middle])
            await self._deliver(owner, entries[middle:])
            return
        await owner.done([stream_id for stream_id, _ in entries])

    async def _bury(self, owner: Consumer, entry: consumer.Entry, error: InvalidRecord) -> None:
        """Keep an event that cannot be written for people to look at, in the log's `put_aside`
        where the log takes it."""
        stream_id, fields = entry
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}"
        try:
            event = entry_of(fields)
            if isinstance(event, Event):
                await self._sink([Aside(event, reason)])
        except InvalidRecord as refusal:
            log.warning("not even put aside", error=str(refusal))
        log.error(
            "event refused, kept in the dead-letter stream",
            stream=DEAD,
            key=fields.get(b"key"),
            error=reason,
        )
        with suppress(KeyError, InvalidRecord):  # People are to read it.
            fields = fields | {b"payload": unpacked(fields[b"payload"])}
        await owner.done([stream_id], *bury_command(fields, reason))
        self._telemetry.lost(LossCause.REJECTED_BY_DATABASE)
