"""The journal's stream in Valkey: one atomic step writes the event and its idempotency key.

With `appendfsync always` the reply comes after the write is on disk. Commands that arrive while a round trip is under way go
out together in the next one (group commit): one write and one fsync for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.asyncio.retry import Retry
from redis.exceptions import NoScriptError, RedisError

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.event import Event, EventKind, StateChange

EVENTS = "advisor:events"
GROUP = "writers"
STATE = "advisor:state"
KEY_TTL_S = 30 * 86_400
MAX_BATCH = 256

APPEND = """
local known = redis.call('GET', KEYS[1])
if known then return {0, known} end
local id = redis.call('XADD', KEYS[2], '*', 'kind', ARGV[1], 'key', ARGV[2], 'claim', ARGV[3], 'payload', ARGV[4])
redis.call('SET', KEYS[1], ARGV[3] .. '|' .. id, 'EX', ARGV[5])
if ARGV[6] ~= '' then redis.call('SET', KEYS[3], ARGV[6]) end
return {1, id}
"""
"""Keys: idempotency key, stream, state. Returns {1, stream id} when new, {0, "claim|stream id"} when known."""


class Receipt(NamedTuple):
    """Where an event is durable, and whether it had been appended before."""

    target: Literal["stream", "spool"]
    repeated: bool


class Known(NamedTuple):
    """What the stream remembers of a key."""

    claim: str
    stream_id: str


def connect(url: str, timeout_s: float) -> Redis:
    """A client that speaks RESP2, answers in bytes, fails within `timeout_s`, and leaves retries to its caller."""
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )


def idempotency_key(kind: str, key: str) -> str:
    """The key under which a kind of event is remembered."""
    return f"advisor:key:{kind}:{key}"


class GroupCommit:
    """Sends the commands that queued up during one round trip together in the next."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, *command: Any) -> Any:
        """One command's own reply, or its own error."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for command, _ in batch:
                        pipeline.execute_command(*command)
                    replies = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                replies = [error] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue  # Its caller was cancelled; the command may have run, and is idempotent.
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    async def aclose(self) -> None:
        """Wait for the round trip under way."""
        if self._sender is not None:
            await asyncio.gather(self._sender, return_exceptions=True)


class StreamJournal:
    """Append, find, and the live trading state. Every failure is `JournalUnavailable`, and its effect unknown."""

    def __init__(self, url: str, timeout_s: float = 0.5) -> None:
        self._redis = connect(url, timeout_s)
        self._send = GroupCommit(self._redis)
        self._sha: str | None = None

    async def append(self, event: Event, state: str = "") -> Receipt:
        """Append once. Raises `RequestConflict` when the key is known with another claim."""
        stream_keys = (idempotency_key(event.kind, event.key), EVENTS, STATE)
        values = (event.kind.value, event.key, event.claim, event.payload, KEY_TTL_S, state)
        new, known = await self._script(stream_keys, values)
        if new:
            return Receipt("stream", repeated=False)
        if _known(known).claim != event.claim:
            raise RequestConflict(f"{event.kind.value} {event.key} was recorded before with other content")
        return Receipt("stream", repeated=True)

    async def known(self, kind: EventKind, key: str) -> Known | None:
        """What is remembered under a key, or None."""
        reply = await self._run("GET", idempotency_key(kind, key))
        return None if reply is None else _known(reply)

    async def find(self, kind: EventKind, key: str) -> bytes | None:
        """Payload of an event that the writer has not moved yet."""
        known = await self.known(kind, key)
        if known is None:
            return None
        entries = await self._run("XRANGE", EVENTS, known.stream_id, known.stream_id)
        return entries[0][1][b"payload"] if entries else None

    async def set_state(self, change: StateChange) -> Receipt:
        """Record a change of state and make it the live one, in one step."""
        return await self.append(Event.of_state_change(change), change.model_dump_json())

    async def get_state(self) -> StateChange | None:
        """The live state, or None on a new installation."""
        reply = await self._run("GET", STATE)
        return None if reply is None else StateChange.model_validate_json(reply)

    async def backlog(self) -> tuple[int, float]:
        """Events that are not in Postgres yet, and the age (s) of the oldest by the stream's clock."""
        length = await self._run("XLEN", EVENTS)
        oldest = await self._run("XRANGE", EVENTS, "-", "+", "COUNT", 1)
        if not oldest:
            return length, 0.0
        seconds, micros = await self._run("TIME")
        born = int(oldest[0][0].split(b"-")[0]) / 1000
        return length, max(int(seconds) + int(micros) / 1e6 - born, 0.0)

    async def ping(self) -> None:
        """Raise `JournalUnavailable` unless it answers."""
        await self._run("PING")

    async def durability(self) -> bool | None:
        """Whether every write is on disk before its reply; None where the server does not tell."""
        try:
            settings = await self._run("CONFIG GET", "append*")
        except JournalUnavailable:
            return None
        return settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._send.aclose()
        await self._redis.aclose()

    async def _script(self, keys: Sequence[Any], values: Sequence[Any]) -> Any:
        if self._sha is None:
            self._sha = (await self._run("SCRIPT", "LOAD", APPEND)).decode()
        try:
            return await self._send("EVALSHA", self._sha, len(keys), *keys, *values)
        except NoScriptError:  # The server was restarted.
            return await self._run("EVAL", APPEND, len(keys), *keys, *values)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def _run(self, *command: Any) -> Any:
        try:
            return await self._send(*command)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> JournalUnavailable:
    return JournalUnavailable(f"Valkey: {type(error).__name__}: {error}; check REDIS_URL and the server")


def _known(reply: bytes) -> Known:
    claim, stream_id = reply.decode().rsplit("|", 1)
    return Known(claim, stream_id)

