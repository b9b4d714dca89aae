"""Agents that ask, report, repeat and contradict themselves while faults happen, and remember what
they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

import httpx

from app.domain.canonical import decision_id
from tests.service.processes import bearer
from tests.service.running import request, until

AGENTS = 6
PATIENCE_S = 3.0
"""After which an agent tries the other replica."""
PAUSE_S = 0.04
GIVE_UP_S = 90.0


@dataclass
class Told:
    """What one request id was answered, and what was reported on it."""

    document: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)
    accepted: bool = False
    actions: list[bool] = field(default_factory=list)
    outcomes: list[float] = field(default_factory=list)
    gone: bool = False
    """An answer that the record lost: 410 for a repeat, 404 for a report."""

    @property
    def fresh(self) -> int:
        """Answers that were decided for this request, not found."""
        return sum(not answer["repeated"] for answer in self.answers)


class Load:
    """All agents of one life. What contradicts a promise is a line of `violations`."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = list(urls)
        self._random = random.Random(seed)
        self._http = httpx.AsyncClient(timeout=PATIENCE_S, headers=bearer())
        self._numbers = count()
        self._stop = True
        self._agents: list[asyncio.Task[None]] = []
        self.told: dict[str, Told] = {}
        self.violations: list[str] = []
        self.ended = 0
        """Requests that came to an end, answered or not."""
        self.refused = 0
        """503 with a problem document and Retry-After: the honest refusal."""
        self.unanswered = 0
        """Requests of which nobody can tell whether they took effect."""
        self.marks = 0
        """Replies that found an id known, which is a numbered mark in the queue and no event."""
        self.fresh = 0
        """Events that were answered as recorded."""
        self.halted_at: float | None = None
        self.obeyed_s: list[float] = []
        """How long after HALTED was acknowledged a request was sent that still was approved."""

    def begin(self) -> None:
        self._stop = False
        self._agents = [asyncio.create_task(self._agent()) for _ in range(AGENTS)]

    async def finish(self) -> None:
        """Let every agent get its last answer."""
        self._stop = True
        for ended in await asyncio.gather(*self._agents, return_exceptions=True):
            if isinstance(ended, BaseException):
                self.violations.append(f"an agent ended with {ended!r}")

    async def aclose(self) -> None:
        for agent in self._agents:
            agent.cancel()
        await asyncio.gather(*self._agents, return_exceptions=True)
        await self._http.aclose()

    async def go_on(self, requests: int) -> None:
        """Wait until so many further requests have ended."""
        target = self.ended + requests

        async def so_many() -> bool:
            return self.ended >= target

        await until(so_many, GIVE_UP_S)

    async def _agent(self) -> None:
        while not self._stop:
            work = self._random.choices(
                (self._ask, self._ask_many, self._ask_later, self._repeat, self._contradict),
                (60, 8, 8, 14, 10),
            )[0]
            await work()
            await asyncio.sleep(PAUSE_S)

    def _new(self) -> tuple[str, Told]:
        key = f"r-{next(self._numbers)}"
        rsi = self._random.randrange(1000) / 10
        told = self.told[key] = Told(request(key, candidate__rsi=rsi, candidate__score=rsi % 10))
        return key, told

    async def _ask(self) -> None:
        key, told = self._new()
        reply = await self._insist("POST", "/advise", told.document)
        if reply is not None:
            self._answered(told, reply.json())
            await self._report(key, told)

    async def _ask_many(self) -> None:
        asked = [self._new()[1] for _ in range(3)]
        reply = await self._insist("POST", "/advise", [told.document for told in asked])
        for told, element in zip(asked, reply.json() if reply else [], strict=reply is not None):
            if "decision" in element:
                self._answered(told, element["decision"])
            elif element["problem"]["status"] == 503:
                self.refused += 1
            else:
                self.violations.append(f"a list was answered {element['problem']}")

    async def _ask_later(self) -> None:
        _, told = self._new()
        reply = await self._insist("POST", "/advise", told.document, {"Prefer": "respond-async"})
        told.accepted = reply is not None

    async def _report(self, key: str, told: Told) -> None:
        where = f"/decisions/{decision_id(key)}"
        if self._random.random() < 0.5:
            traded = self._random.random() < 0.5
            reply = await self._insist(
                "PUT", f"{where}/agent-action", {"decision": traded}, told=told
            )
            if reply is not None:
                told.actions.append(traded)
                self.fresh += not reply.json()["repeated"]
        if self._random.random() < 0.3:
            earned = round(self._random.uniform(-1, 2), 2)
            body = {"arm": "agent", "outcome": "time_exit", "r_multiple": earned}
            reply = await self._insist("PUT", f"{where}/outcome", body, told=told)
            if reply is not None:
                told.outcomes.append(earned)
                self.fresh += not reply.json()["repeated"]

    async def _repeat(self) -> None:
        told = self._earlier()
        if told is not None:
            reply = await self._insist("POST", "/advise", told.document, told=told)
            if reply is not None:
                self._answered(told, reply.json())

    async def _contradict(self) -> None:
        """A known id with other content: 409, or no answer, but never an answer."""
        told = self._earlier()
        if told is None:
            return
        other = told.document | {"plan": told.document["plan"] | {"quantity": 0.009}}
        for url in self._random.sample(self._urls, 2):
            try:
                reply = await self._http.post(f"{url}/advise", json=other)
            except httpx.TransportError:
                continue
            if reply.status_code == 409:
                self.marks += 1
                return
            if reply.is_success:
                # Lost with its key, an id is new to everybody: the record has to tell both.
                told.answers.append(reply.json() | {"other": True})
                self.fresh += 1

    def _earlier(self) -> Told | None:
        """What was answered some time ago."""
        key = f"r-{self._random.randrange(len(self.told) + 1)}"
        told = self.told.get(key)
        return told if told is not None and told.answers else None

    def _answered(self, told: Told, answer: dict[str, Any]) -> None:
        told.answers.append(answer)
        self.fresh += not answer["repeated"]
        self.marks += answer["repeated"]

    async def _insist(
        self,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, str] | None = None,
        told: Told | None = None,
    ) -> httpx.Response | None:
        """Ask one replica, then the other, until there is an answer; only an outage may refuse.
        None when what is asked about is gone, or nobody answers for too long."""
        give_up = monotonic() + GIVE_UP_S
        for turn in count(self._random.randrange(2)):
            reply = await self._once(method, self._urls[turn % 2] + path, body, headers)
            if reply is not None and reply.is_success:
                return reply
            if reply is not None and not self._refusal(reply):
                self._other(reply, told, f"{method} {path}")
                return None
            if monotonic() > give_up:
                self.violations.append(f"{method} {path}: nobody answered for {GIVE_UP_S:g} s")
                return None
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("count() does not end")

    async def _once(
        self, method: str, url: str, body: Any, headers: dict[str, str] | None
    ) -> httpx.Response | None:
        """Ask; None when there was no answer."""
        sent = monotonic()
        try:
            reply = await self._http.request(method, url, json=body, headers=headers)
        except httpx.ConnectError:
            return None
        except httpx.TransportError:
            self.unanswered += 1
            return None
        else:
            self._obeyed(reply, sent)
            return reply
        finally:
            self.ended += 1

    def _refusal(self, reply: httpx.Response) -> bool:
        """Whether it is what an outage may answer."""
        problem = reply.headers.get("content-type") == "application/problem+json"
        honest = reply.status_code == 503 and problem and "retry-after" in reply.headers
        self.refused += honest
        return honest

    def _other(self, reply: httpx.Response, told: Told | None, what: str) -> None:
        """Neither an answer nor an outage: what was lost is gone, or its id has another answer."""
        lost = told is not None and any(answer.get("other") for answer in told.answers)
        if told is not None and reply.status_code in (404, 410):
            told.gone = True
            self.marks += 1
        elif reply.status_code != 409 or not lost:
            self.violations.append(f"{what}: {reply.status_code} {reply.text[:300]}")

    def _obeyed(self, reply: httpx.Response, sent: float) -> None:
        """How long after HALTED somebody was still approved."""
        if self.halted_at is None or sent < self.halted_at or reply.status_code != 200:
            return
        answer = reply.json()
        if isinstance(answer, dict) and answer.get("approve") and not answer["repeated"]:
            self.obeyed_s.append(sent - self.halted_at)
