"""Requests accepted with `Prefer: respond-async`: durable work, taken by whichever replica is
free."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple

import structlog
from redis.exceptions import RedisError

from app.domain.canonical import DEFAULT_PRINCIPAL
from app.domain.errors import RequestConflict
from app.journal.consumer import Consumer, Entry
from app.journal.stream import KEY_TTL_S, bury_command, connect, run, unavailable
from app.telemetry import UNOBSERVED, LossCause, Telemetry

log = structlog.get_logger()

REQUESTS = "advisor:requests"
GROUP = "advisors"
BLOCK_MS = 1000
IDLE_MS = 60_000
TAKE = 8
DEAD_REQUESTS = "advisor:dead-requests"
"""Accepted requests that cannot be decided, with the reason."""

PUT = """
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('XADD', KEYS[2], '*', 'id', ARGV[1], 'claim', ARGV[2], 'payload', ARGV[3],
    'principal', ARGV[5])
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[4])
return ARGV[2]
"""


class QueuedRequest(NamedTuple):
    """An accepted request."""

    stream_id: str
    decision_id: str
    claim: str
    payload: bytes
    principal: str = DEFAULT_PRINCIPAL


class RequestQueue:
    """A stream with a consumer group: an entry taken by a replica that died is taken again by
    another.

    There is no spool behind it: a promise to work needs a stream that somebody reads. Every failure
    is `JournalUnavailable`.
    """

    def __init__(
        self,
        url: str,
        telemetry: Telemetry = UNOBSERVED,
        *,
        idle_ms: int = IDLE_MS,
        block_ms: int = BLOCK_MS,
    ) -> None:
        self._telemetry = telemetry
        self._redis = connect(url, timeout_s=block_ms / 1000 + 1)
        self._consumer = Consumer(self._redis, REQUESTS, GROUP, idle_ms=idle_ms, block_ms=block_ms)

    async def put(
        self, decision_id: str, claim: str, payload: bytes, principal: str = DEFAULT_PRINCIPAL
    ) -> None:
        """Make a request durable, once. Raises `RequestConflict` when the id waits with another
        claim."""
        values = (decision_id, claim, payload, KEY_TTL_S, principal)
        known = await self._run("EVAL", PUT, 2, _key(decision_id), REQUESTS, *values)
        if known.decode() != claim:
            raise RequestConflict(f"decision {decision_id} was requested before with other content")

    async def pending(self, decision_id: str) -> bool:
        """Whether a request waits under this id."""
        return bool(await self._run("EXISTS", _key(decision_id)))

    async def take(self) -> list[QueuedRequest]:
        """The next requests, those of dead replicas first; empty after a second without any.

        A request that is not `done` after `idle_ms` is handed out again, to this replica or
        another. What is no request at all is put aside, and told to `telemetry` as lost.
        """
        return await self._requests(self._consumer.take(TAKE))

    async def unfinished(self) -> list[QueuedRequest]:
        """What this replica took and has not done, without waiting for `idle_ms`."""
        return await self._requests(self._consumer.unfinished(TAKE))

    async def _requests(self, reading: Coroutine[Any, Any, list[Entry]]) -> list[QueuedRequest]:
        try:
            entries = await reading
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        requests = []
        for stream_id, fields in entries:
            if not fields:  # Somebody deleted it by hand.
                continue
            try:
                requests.append(_request(stream_id, fields))
            except (KeyError, ValueError) as error:
                await self._bury(stream_id, fields, f"not a request: {error!r}")
        return requests

    async def put_aside(self, request: QueuedRequest, reason: str) -> None:
        """Keep a request that cannot be decided for people to look at; nobody waits for it any
        more."""
        fields = {
            b"id": request.decision_id.encode(),
            b"claim": request.claim.encode(),
            b"payload": request.payload,
            b"principal": request.principal.encode(),
        }
        await self._bury(request.stream_id.encode(), fields, reason)
        await self._run("DEL", _key(request.decision_id))

    async def _bury(self, stream_id: bytes, fields: dict[bytes, bytes], reason: str) -> None:
        log.error("accepted request put aside", stream=DEAD_REQUESTS, error=reason)
        command = bury_command(fields, reason, DEAD_REQUESTS)
        try:
            await self._consumer.done([stream_id], *command)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
        self._telemetry.lost(LossCause.REJECTED_REQUEST)

    async def done(self, request: QueuedRequest) -> None:
        """Forget a request whose decision is durable."""
        try:
            await self._consumer.done(
                [request.stream_id.encode()], "DEL", _key(request.decision_id)
            )
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _run(self, *command: Any) -> Any:
        try:
            return await run(self._redis, *command)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error


def _request(stream_id: bytes, fields: dict[bytes, bytes]) -> QueuedRequest:
    decision_id, claim = fields[b"id"].decode(), fields[b"claim"].decode()
    principal = fields.get(b"principal", DEFAULT_PRINCIPAL.encode()).decode()
    return QueuedRequest(stream_id.decode(), decision_id, claim, fields[b"payload"], principal)


def _key(decision_id: str) -> str:
    return f"advisor:request:{decision_id}"
