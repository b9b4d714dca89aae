"""Requests accepted with `Prefer: respond-async`: durable work, taken by whichever replica is
free."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import structlog
from redis.exceptions import RedisError

from app.domain.canonical import DEFAULT_PRINCIPAL
from app.journal.consumer import Consumer, Entry
from app.journal.keys import DEAD_REQUESTS, REQUESTS
from app.journal.stream import (
    KEY_TTL_S,
    AcceptedRequest,
    GroupCommit,
    asked,
    bury_command,
    connect,
    unavailable,
)
from app.telemetry import UNOBSERVED, LossCause, Refusal, Telemetry

log = structlog.get_logger()

GROUP = "advisors"
BLOCK_MS = 1000
IDLE_MS = 60_000
TAKE = 8

PUT_ALL = """
local length, seen, known = redis.call('XLEN', KEYS[1]), {}, {}
for i = 2, #KEYS do
    known[i - 1] = redis.call('GET', KEYS[i])
    if not known[i - 1] and not seen[KEYS[i]] then
        length, seen[KEYS[i]] = length + 1, true
    end
end
if next(seen) and length > tonumber(ARGV[2]) then return length - ARGV[2] end
for i = 2, #KEYS do
    local claim = ARGV[4 * i - 4]
    known[i - 1] = redis.call('GET', KEYS[i])
    if not known[i - 1] then
        redis.call('XADD', KEYS[1], '*', 'id', ARGV[4 * i - 5], 'claim', claim,
            'payload', ARGV[4 * i - 3], 'principal', ARGV[4 * i - 2])
        redis.call('SET', KEYS[i], claim, 'EX', ARGV[1])
        known[i - 1] = claim
    end
end
return known
"""
"""Keys: the stream, then one of each request. Arguments: seconds to remember, how many may wait,
then id, claim, payload and principal of each. Returns the claims that wait under the keys now; or
a number, how many too many they would be, when none was taken."""
MAX_PENDING = 2048


class QueueFull(Exception):
    """As many accepted requests wait as may."""

    def __init__(self, excess: int, message: str) -> None:
        super().__init__(message)
        self.excess = excess


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
        most: int = MAX_PENDING,
        idle_ms: int = IDLE_MS,
        block_ms: int = BLOCK_MS,
    ) -> None:
        self._telemetry = telemetry
        self._most = most
        timeout_s = block_ms / 1000 + 1
        self._redis = connect(url, timeout_s)
        self._send = GroupCommit(self._redis, timeout_s, telemetry)
        self._consumer = Consumer(self._redis, REQUESTS, GROUP, idle_ms=idle_ms, block_ms=block_ms)

    async def put_all(self, requests: Sequence[AcceptedRequest]) -> list[str]:
        """Make requests durable, each once, in one step; the claims that wait under their ids then,
        which are others' where the id was taken. Raises `QueueFull`: none was taken."""
        keys = (_key(request.decision_id) for request in requests)
        values = (value for request in requests for value in request)
        known = await self._run(
            "EVAL", PUT_ALL, 1 + len(requests), REQUESTS, *keys, KEY_TTL_S, self._most, *values
        )
        if isinstance(known, int):
            self._telemetry.refused(Refusal.PENDING)
            raise QueueFull(known, f"{self._most} accepted requests may wait, and do")
        return [claim.decode() for claim in known]

    async def claim_of(self, decision_id: str) -> str | None:
        """Claim of the request that waits under this id, None when none does."""
        claim = await self._run("GET", _key(decision_id))
        return None if claim is None else claim.decode()

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
        await self._send.aclose()
        await self._redis.aclose()

    async def _run(self, *command: Any) -> Any:
        return await asked(self._send, *command)


def _request(stream_id: bytes, fields: dict[bytes, bytes]) -> QueuedRequest:
    decision_id, claim = fields[b"id"].decode(), fields[b"claim"].decode()
    principal = fields.get(b"principal", DEFAULT_PRINCIPAL.encode()).decode()
    return QueuedRequest(stream_id.decode(), decision_id, claim, fields[b"payload"], principal)


def _key(decision_id: str) -> str:
    return f"advisor:request:{decision_id}"
