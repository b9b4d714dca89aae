"""One decision model elsewhere: asked over HTTP, within bounds, and never trusted.

The server may be slow, broken or hostile. A question has one deadline for all of it, an answer at
most `MOST_BYTES`, uncompressed; nobody is followed to another address; of a failed answer nothing
is quoted, since it may repeat the key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson

from app.domain.canonical import digest
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.brief import brief_of
from app.domain.model.inquiry import Exchange, Inquiry
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario
from app.policy.deciders.protocols import SPOKEN, Told, odd
from app.policy.deciders.spent import Budget
from app.policy.deciders.table import Declared

MOST_BYTES = 262_144
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class Decider:
    """A decision model behind somebody's server.

    Parameters
    ----------
    declared : its table. key : sent as a bearer token; never shown.
    home : folder in which its budget is kept.
    now : the wall clock, by which days are told apart.
    """

    def __init__(
        self, declared: Declared, key: str | None, home: Path, now: Callable[[], datetime]
    ) -> None:
        self.declared = declared
        self.manifest: ModelManifest = declared.manifest()
        self.inquiry: Inquiry = declared.inquiry()
        self._spoken = SPOKEN[declared.protocol]
        self._budget = Budget(
            home / f"{declared.name}.json", declared.per_day, declared.cost_per_day
        )
        self._now = now
        self._url = declared.url + self._spoken.path
        secret = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(
            max_connections=declared.at_once, max_keepalive_connections=declared.at_once
        )
        # No time-out of its own: every question runs under its deadline. What the environment says
        # of proxies and passwords is not asked.
        self._client = httpx.AsyncClient(
            headers=_HEADERS | secret,
            limits=limits,
            timeout=None,
            follow_redirects=False,
            trust_env=False,
            proxy=declared.proxy,
        )

    def affords(self) -> bool:
        """Whether one more question fits the day's budget; it is counted."""
        return self._budget.take(self._now())

    async def ask(self, scenario: Scenario, inquiry: Inquiry, deadline: float) -> Reading:
        """What it says to one question about a scenario.

        Parameters
        ----------
        inquiry : its own, or that with its options in another order.
        deadline : `time.monotonic()` value.

        Raises
        ------
        PolicyAbstained : no answer by then, or none that can be used; the reason names no secret.
        """
        brief = brief_of(scenario, masked=inquiry.masked)
        # Keys stay in their order: in System One it is the order of the options.
        body = orjson.dumps(self._spoken.body(self.declared.model, inquiry, brief))
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline - began):
                answer = await self._post(body)
        except TimeoutError:
            raise PolicyAbstained(
                AbstainReason.DEADLINE, f"no answer within {self.declared.timeout_s:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PolicyAbstained(
                AbstainReason.BACKEND_UNAVAILABLE, f"{self._url}: {type(error).__name__}"
            ) from None
        told = self._spoken.read(_document(answer), inquiry)
        cost = told.cost if told.cost is not None else self._price(told)
        if cost:
            self._budget.add(cost)
        exchange = Exchange(
            question=digest(body),
            order=inquiry.order,
            seconds=time.monotonic() - began,
            model=told.model,
            label_mass=told.label_mass,
            input_tokens=told.input_tokens,
            output_tokens=told.output_tokens,
            cost=cost,
        )
        return Reading.told(
            {
                inquiry.action_of(label, scenario).label: probability
                for label, probability in told.probabilities.items()
            },
            exchange,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _price(self, told: Told) -> float | None:
        """By the declared prices, where both prices and tokens are known."""
        counted = (
            (self.declared.price_in, told.input_tokens),
            (self.declared.price_out, told.output_tokens),
        )
        known = [
            price * tokens / 1e6
            for price, tokens in counted
            if price is not None and tokens is not None
        ]
        return sum(known) if known else None

    async def _post(self, body: bytes) -> bytes:
        """The answer's bytes. Raises `PolicyAbstained`, `httpx.HTTPError`."""
        async with self._client.stream("POST", self._url, content=body) as response:
            if response.status_code != httpx.codes.OK:
                raise _refusal(response.status_code)
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise odd("the answer is compressed, which was not asked for")
            answer = bytearray()
            async for part in response.aiter_raw():
                answer += part
                if len(answer) > MOST_BYTES:
                    raise odd(f"the answer is larger than {MOST_BYTES} bytes")
            return bytes(answer)


def _refusal(status: int) -> PolicyAbstained:
    """Why an answer with this status is none."""
    if 300 <= status < 400:
        return odd(f"HTTP {status}: it leads elsewhere; write its address as `url`")
    if status in (401, 403):
        return odd(f"HTTP {status}: the key is refused, or may not ask this model")
    if status == 404:
        return odd("HTTP 404: there is no such path or model")
    if status == 501:
        return odd("HTTP 501: the server does not answer this protocol for this model; is it chat?")
    if status == 429 or status >= 500:
        return PolicyAbstained(AbstainReason.BACKEND_UNAVAILABLE, f"HTTP {status}")
    return odd(f"HTTP {status}")


def _document(answer: bytes) -> dict[str, Any]:
    """The JSON object of an answer; NaN and infinity are no JSON."""
    try:
        document = orjson.loads(answer)
    except ValueError:
        raise odd("the answer is not JSON") from None
    if not isinstance(document, dict):
        raise odd("the answer is no JSON object")
    return document
