"""Requests accepted with `Prefer: respond-async`: durable work, taken by whichever replica is free."""

from __future__ import annotations

from typing import NamedTuple
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError

from app.domain.errors import JournalUnavailable, RequestConflict
from app.journal.stream import connect

REQUESTS = "advisor:requests"
GROUP = "advisors"
KEY_TTL_S = 86_400
BLOCK_MS = 1000
IDLE_MS = 60_000
TAKE = 8

PUT = """
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('XADD', KEYS[2], '*', 'id', ARGV[1], 'claim', ARGV[2], 'payload', ARGV[3])
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[4])
return ARGV[2]
"""
DONE = """
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
return redis.call('DEL', KEYS[1])
"""


class QueuedRequest(NamedTuple):
    """An accepted request."""

    stream_id: str
    decision_id: str
    claim: str
    payload: bytes


class RequestQueue:
    """A stream with a consumer group: an entry taken by a replica that died is taken again by another."""

    def __init__(self, url: str, *, idle_ms: int = IDLE_MS, block_ms: int = BLOCK_MS) -> None:
        self._redis = connect(url, timeout_s=block_ms / 1000 + 1)
        self._consumer = str(uuid4())
        self._idle_ms = idle_ms
        self._block_ms = block_ms
        self._grouped = False

    async def put(self, decision_id: str, claim: str, payload: bytes) -> None:
        """Make a request durable, once. Raises `RequestConflict` or `JournalUnavailable`."""
        try:
            known = await self._redis.eval(PUT, 2, _key(decision_id), REQUESTS, decision_id, claim, payload, KEY_TTL_S)  # type: ignore[arg-type,misc]
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        if known.decode() != claim:
            raise RequestConflict(f"decision {decision_id} was requested before with other content")

    async def pending(self, decision_id: str) -> bool:
        """Whether a request waits under this id. Raises `JournalUnavailable`."""
        try:
            return bool(await self._redis.exists(_key(decision_id)))
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def take(self) -> list[QueuedRequest]:
        """The next requests, those of dead replicas first; empty after a second without any."""
        try:
            await self._ensure_group()
            reclaimed = await self._redis.xautoclaim(
                REQUESTS, GROUP, self._consumer, min_idle_time=self._idle_ms, count=TAKE
            )
            entries = reclaimed[1]
            if not entries:
                reply = await self._redis.xreadgroup(
                    GROUP, self._consumer, {REQUESTS: ">"}, count=TAKE, block=self._block_ms
                )
                entries = reply[0][1] if reply else []
        except ResponseError as error:
            self._grouped = False  # The data was flushed: make the group anew.
            raise _unavailable(error) from error
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return [_request(stream_id, fields) for stream_id, fields in entries]

    async def done(self, request: QueuedRequest) -> None:
        """Forget a request whose decision is durable."""
        try:
            await self._redis.eval(DONE, 2, _key(request.decision_id), REQUESTS, GROUP, request.stream_id)  # type: ignore[misc]
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _ensure_group(self) -> None:
        if self._grouped:
            return
        try:
            await self._redis.xgroup_create(REQUESTS, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._grouped = True


def _request(stream_id: bytes, fields: dict[bytes, bytes]) -> QueuedRequest:
    return QueuedRequest(stream_id.decode(), fields[b"id"].decode(), fields[b"claim"].decode(), fields[b"payload"])


def _key(decision_id: str) -> str:
    return f"advisor:request:{decision_id}"


def _unavailable(error: Exception) -> JournalUnavailable:
    return JournalUnavailable(f"Valkey: {type(error).__name__}: {error}; check REDIS_URL and the server")
