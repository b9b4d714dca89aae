"""Consumer groups on streams in Valkey: who reads an entry owns it until it is done, or seems
dead."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.journal.keys import misplaced, of_other_type
from app.journal.stream import run

FORGET_AFTER_MS = 3_600_000

FORGET_IDLE = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local of = {}
    for i = 1, #consumer, 2 do of[consumer[i]] = consumer[i + 1] end
    if of['pending'] == 0 and of['idle'] > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], of['name'])
    end
end
"""
"""Each process is a consumer of its own: those long gone, with nothing left to take over, are
forgotten."""

PENDING = "return redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])"
LOOK_AT = 2_000
"""Pending entries that are watched at once, the oldest ones."""

TAKE_OVER = """
local ids = {}
for i = 3, #ARGV, 3 do
    local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
    if p and p[2] == ARGV[i + 1] and p[4] == tonumber(ARGV[i + 2]) then ids[#ids + 1] = ARGV[i] end
end
if #ids == 0 then return {} end
return redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
"""
"""Of entries, each with its owner and the number of its deliveries, those for which both still
hold."""

LOOKS = 8
"""At the entries of others, within the time after which they seem abandoned."""

Entry = tuple[bytes, dict[bytes, bytes]]


class _Watched(NamedTuple):
    """An entry of another consumer, and since when nothing happened to it."""

    owner: bytes
    deliveries: int
    since: float


class Consumer:
    """One member of a group. Errors are those of redis-py, and `MisplacedKey`."""

    def __init__(
        self,
        redis: Redis,
        stream: str,
        group: str,
        *,
        idle_ms: int,
        block_ms: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._redis = redis
        self._stream = stream
        self._group = group
        self._name = str(uuid4())
        self._idle_ms = idle_ms
        self._block_ms = block_ms
        self._cursor: bytes = b"0-0"
        self._joined = False
        self._watched: dict[bytes, _Watched] = {}
        self._look_at = 0.0

    async def unfinished(self, count: int) -> list[Entry]:
        """What this consumer took and did not finish; reading it again keeps others from taking it
        over."""
        return await self._read("0", count, block_ms=None)

    async def take(self, count: int) -> list[Entry]:
        """What dead consumers left, else what is new; empty after `block_ms` without any."""
        await self._join()
        reply = await self._call(
            "XAUTOCLAIM",
            *(self._stream, self._group, self._name, self._idle_ms, self._cursor, "COUNT", count),
        )
        self._cursor = reply[0]
        left = list(reply[1]) or await self._abandoned(count)
        return left or await self._read(">", count, self._block_ms)

    async def _abandoned(self, count: int) -> list[Entry]:
        """What others took and, by the clock of this process, have not touched for as long as a
        dead one would. Valkey's own clock, by which XAUTOCLAIM goes, may have been set back."""
        now = self._clock()
        if now < self._look_at:
            return []
        self._look_at = now + self._idle_ms / 1000 / LOOKS
        pending = await self._call("EVAL", PENDING, 1, self._stream, self._group, LOOK_AT)
        before, self._watched = self._watched, {}
        for stream_id, owner, _, deliveries in pending:
            seen = _Watched(owner, deliveries, now)
            known = before.get(stream_id)
            if known is not None and known[:2] == seen[:2]:
                seen = known
            if owner != self._name.encode():
                self._watched[stream_id] = seen
        stale = [
            (stream_id, seen.owner, seen.deliveries)
            for stream_id, seen in self._watched.items()
            if (now - seen.since) * 1000 >= self._idle_ms
        ][:count]
        if not stale:
            return []
        flat = (part for triple in stale for part in triple)
        claimed = await self._call(
            "EVAL", TAKE_OVER, 1, self._stream, self._group, self._name, *flat
        )
        return [
            (stream_id, dict(zip(fields[::2], fields[1::2], strict=True)))
            for stream_id, fields in claimed
        ]

    async def done(self, ids: list[bytes], *alongside: Any) -> None:
        """Acknowledge and delete entries, together with one more command, in one step."""
        if alongside:  # Else the entries would be gone before this command is refused.
            for other in await misplaced(self._run, alongside[1:2]):
                raise other
        async with self._redis.pipeline(transaction=True) as pipeline:
            if alongside:
                pipeline.execute_command(*alongside)
            pipeline.execute_command("XACK", self._stream, self._group, *ids)
            pipeline.execute_command("XDEL", self._stream, *ids)
            await pipeline.execute()

    async def _read(self, after: str, count: int, block_ms: int | None) -> list[Entry]:
        await self._join()
        block = () if block_ms is None else ("BLOCK", block_ms)
        reply = await self._call(
            "XREADGROUP",
            *(
                "GROUP",
                self._group,
                self._name,
                "COUNT",
                count,
                *block,
                "STREAMS",
                self._stream,
                after,
            ),
        )
        return list(reply[0][1]) if reply else []

    async def _call(self, *command: Any) -> Any:
        try:
            return await self._run(*command)
        except ResponseError as error:
            # Most likely the data was flushed and the group with it: make it anew.
            self._joined = False
            raise await of_other_type(self._run, command, error) or error from None

    async def _run(self, *command: Any) -> Any:
        return await run(self._redis, *command)

    async def _join(self) -> None:
        if self._joined:
            return
        try:
            await run(self._redis, "XGROUP CREATE", self._stream, self._group, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                command = ("XGROUP", self._stream)
                raise await of_other_type(self._run, command, error) or error from None
        await run(self._redis, "EVAL", FORGET_IDLE, 1, self._stream, self._group, FORGET_AFTER_MS)
        self._joined = True
