"""Several servers that hold the same model, asked as if they were one.

A request goes to the server with the least under way. When that fails the next one is asked at
once; when it takes longer than nearly all requests do, the next one is asked beside it and the
first good answer counts (a hedge: Dean and Barroso 2013, "The Tail at Scale"). Each server is asked
once for a request, all within its deadline. Hedges have a budget, so that servers which are slow
since they have too much to do are not given more. A server that failed, or was overtaken, rests for
a growing while; when all rest, the one that is ready first is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx
import orjson
import structlog

from app.domain.errors import AbstainReason, PolicyAbstained
from app.telemetry import Attempt, Telemetry

LEAST_HEDGE_S = 0.05
FIRST_HEDGE_S = 1.0
"""Until it is known how long requests take."""
KNOWN, REMEMBERED = 20, 200
"""Requests after which that is known, and how many of the latest count."""
USUAL = 0.95
"""Share of requests that are given the time they need."""
HEDGES_PER_REQUEST, MOST_HEDGES = 0.1, 10.0
REST_S, MOST_REST_S = 0.5, 30.0
DETAIL_CHARACTERS = 300
_T = TypeVar("_T")
log = structlog.get_logger()


def urls_of(text: str) -> tuple[str, ...]:
    """Servers of a setting, with commas between them; the same one counts once."""
    return tuple(dict.fromkeys(url.strip().rstrip("/") for url in text.split(",") if url.strip()))


class Replica:
    """One server: what is under way there, and since when it does not answer."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.under_way = 0
        self.failures = 0
        """In a row."""
        self.rests_until = 0.0
        self.reason = ""

    def answered(self) -> None:
        """It is well."""
        if self.failures:
            log.info("a model server answers again", url=self.url)
        self.failures, self.rests_until, self.reason = 0, 0.0, ""

    def failed(self, reason: str) -> None:
        """It is left alone for a while, longer each time."""
        if not self.failures:
            log.warning("a model server fails", url=self.url, reason=reason)
        rest = min(REST_S * 2**self.failures, MOST_REST_S)
        self.failures, self.rests_until = self.failures + 1, time.monotonic() + rest
        self.reason = reason


class Replicas:
    """The servers.

    Parameters
    ----------
    urls : at least one.
    client : makes the HTTP client of a server, without a timeout of its own.
    """

    def __init__(
        self,
        urls: Sequence[str],
        client: Callable[[str], httpx.AsyncClient],
        telemetry: Telemetry,
    ) -> None:
        self._replicas = [Replica(url, client(url)) for url in urls]
        self._telemetry = telemetry
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._hedges = MOST_HEDGES
        self._closed = False
        telemetry.replicas(urls)

    @property
    def health(self) -> str:
        """How many answer, and why the others do not."""
        away = [replica for replica in self._replicas if replica.failures]
        well = f"{len(self._replicas) - len(away)} of {len(self._replicas)} servers answer"
        return "; ".join([well, *(f"{replica.url}: {replica.reason}" for replica in away)])

    async def ask(
        self, path: str, body: dict[str, Any], deadline: float, read: Callable[[Any], _T]
    ) -> _T:
        """What `read` makes of the first good answer to `body`; it raises `PolicyAbstained` of one
        that is not good.

        Raises
        ------
        PolicyAbstained : BACKEND_UNAVAILABLE or BACKEND_PROTOCOL of the last server that was asked,
            DEADLINE, or SHUTTING_DOWN.
        """
        if self._closed:
            raise PolicyAbstained(AbstainReason.SHUTTING_DOWN)
        self._hedges = min(self._hedges + HEDGES_PER_REQUEST, MOST_HEDGES)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._race(path, body, read)
        except TimeoutError:
            raise PolicyAbstained(AbstainReason.DEADLINE) from None

    async def aclose(self) -> None:
        """Close the connections; requests from now on abstain."""
        self._closed = True
        for replica in self._replicas:
            await replica.client.aclose()

    async def _race(self, path: str, body: dict[str, Any], read: Callable[[Any], _T]) -> _T:
        """One server after the other, until one of those that were asked gives a good answer."""
        untried = self._in_order()
        running: dict[asyncio.Task[_T], Replica] = {}
        failure: PolicyAbstained | None = None
        more = True
        try:
            while True:
                if more and untried:
                    replica = untried.pop(0)
                    running[asyncio.create_task(self._attempt(replica, path, body, read))] = replica
                if not running:
                    assert failure is not None, "every server was asked, and each failed"
                    raise failure
                done, _ = await asyncio.wait(
                    running,
                    timeout=self._hedge_after() if untried else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    replica = running.pop(task)
                    failure = self._ended(replica, task)
                    if failure is None:
                        return task.result()
                more = bool(done) or self._may_hedge(bool(untried))
        finally:
            await self._overtaken(running)

    def _in_order(self) -> list[Replica]:
        """Those that do not rest first, with the least under way; then by when they will have
        rested."""
        now = time.monotonic()
        return sorted(
            self._replicas, key=lambda each: (max(each.rests_until - now, 0.0), each.under_way)
        )

    def _hedge_after(self) -> float:
        """Seconds after which an answer is unusually late."""
        if len(self._seconds) < KNOWN:
            return FIRST_HEDGE_S
        usual = sorted(self._seconds)[int(USUAL * len(self._seconds))]
        return max(usual, LEAST_HEDGE_S)

    def _may_hedge(self, somebody: bool) -> bool:
        if not somebody or self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    def _ended(self, replica: Replica, task: asyncio.Task[Any]) -> PolicyAbstained | None:
        """Note how an attempt ended; its failure, if it was one. A defect of ours propagates."""
        error = task.exception()
        if error is None:
            replica.answered()
            self._telemetry.replica_asked(replica.url, Attempt.ANSWERED)
            return None
        if not isinstance(error, PolicyAbstained):
            raise error
        if error.reason is not AbstainReason.SHUTTING_DOWN:
            replica.failed(str(error))
        self._telemetry.replica_asked(replica.url, Attempt.FAILED)
        return error

    async def _overtaken(self, running: dict[asyncio.Task[_T], Replica]) -> None:
        """Give up what nobody waits for any more. A server that was asked alone may just have been
        given too little time."""
        for task, replica in running.items():
            task.cancel()
            self._telemetry.replica_asked(replica.url, Attempt.OVERTAKEN)
            if len(self._replicas) > 1:
                replica.failed("slower than another, or than the deadline")
        await asyncio.gather(*running, return_exceptions=True)

    async def _attempt(
        self, replica: Replica, path: str, body: dict[str, Any], read: Callable[[Any], _T]
    ) -> _T:
        began = time.monotonic()
        replica.under_way += 1
        try:
            response = await replica.client.post(path, json=body)
        except httpx.RequestError as error:
            if self._closed:
                raise PolicyAbstained(AbstainReason.SHUTTING_DOWN) from error
            detail = f"{replica.url}: {type(error).__name__}: {error}"
            raise PolicyAbstained(
                AbstainReason.BACKEND_UNAVAILABLE, detail[:DETAIL_CHARACTERS]
            ) from error
        finally:
            replica.under_way -= 1
        if response.status_code != httpx.codes.OK:
            raise odd(f"HTTP {response.status_code}: {response.text}")
        try:
            answer = orjson.loads(response.content)
        except ValueError as error:
            raise odd(f"not JSON: {response.text}") from error
        found = read(answer)
        self._seconds.append(time.monotonic() - began)
        return found


def odd(detail: str) -> PolicyAbstained:
    """An answer that is none."""
    return PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, detail[:DETAIL_CHARACTERS])
