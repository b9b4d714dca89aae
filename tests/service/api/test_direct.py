"""`POST /advise` is answered past the router and FastAPI's own steps: whatever comes, the answer is
what its route would have given."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app import main
from app.advising.serving import Models
from app.api import routes
from app.domain.model.prompt import Prompt
from app.policy.scripted import ScriptedPolicy
from tests.service.running import request, settings_for

JSON = ("content-type", "application/json")
UNLIKE = re.compile(r'"(decision_id|location)":"[^"]*"|r-(direct|described)')
"""What differs between two requests whatever road they take."""


class Sent(NamedTuple):
    """A request; `r-ROAD` in a body stands for its id."""

    method: str
    body: bytes
    path: str = "/advise"
    headers: tuple[tuple[str, str], ...] = (JSON,)


def _body(**changes: Any) -> bytes:
    return json.dumps(request("r-ROAD", **changes)).encode()


def _sent() -> list[Sent]:
    whole, many = _body(), b"[" + _body() + b', {"candidate": 1}]'
    post = "POST"
    bodies = (b"", b"{", b"null", b"[]", b"{}", b'"x"', b"[1]", b"[[]]", b"\xff", b"{}" * 9, many)
    fields = {"candidate__rsi": 140, "plan__entry": "x", "account": None, "deadline_ms": 1}
    return [
        *(Sent(method, b"") for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")),
        *(Sent(post, body) for body in (whole, *bodies)),
        *(Sent(post, _body(**{name: value})) for name, value in fields.items()),
        Sent(post, _body(candidate__symbol="DOGE/USDT")),
        Sent(post, whole, headers=()),
        Sent(post, whole, headers=(("content-type", "text/plain"),)),
        Sent(post, b"[" + b"0," * 40_000 + b"0]"),
        Sent(post, b'{"x": "' + b"y" * 3_000_000 + b'"}'),
        *(Sent(post, whole, f"/advise?dry_run={said}") for said in ("true", "0", "maybe")),
        Sent(post, many, "/advise?dry_run=1"),
        Sent(post, whole, "/advise/"),
        Sent(post, whole, "/advise?other=1"),
        *(
            Sent(post, whole, headers=(JSON, (name, value)))
            for name, value in (
                ("idempotency-key", "r-ROAD"),
                ("idempotency-key", "another"),
                ("idempotency-key", "white space"),
                ("x-deadline-ms", "1"),
                ("x-deadline-ms", "soon"),
                ("prefer", "respond-async"),
                ("prefer", "wait=10"),
                ("content-length", "99999999"),
                ("origin", "https://elsewhere.example"),
            )
        ),
        Sent(post, whole, headers=(JSON, ("prefer", "x"), ("prefer", "y"))),
    ]


def failing_on_doge(prompt: Prompt) -> str:
    """A model with a defect."""
    if prompt.user.startswith("DOGE"):
        raise ZeroDivisionError
    return "H"


class Road:
    """An application on the parts of a running service, asked without a socket."""

    def __init__(self, app: Any, name: str) -> None:
        async def with_state(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            await app({**scope, "state": {}}, receive, send)

        self._name = name
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(with_state, raise_app_exceptions=False),
            base_url="http://127.0.0.1",
        )

    async def answer(self, number: int, sent: Sent) -> tuple[int, dict[str, str], str]:
        """Status, headers and body, without what differs anyhow."""
        name = f"{number}-r-{self._name}".encode()
        reply = await self._client.request(
            sent.method,
            sent.path,
            content=sent.body.replace(b"r-ROAD", name),
            headers=[(key, value.replace("r-ROAD", name.decode())) for key, value in sent.headers],
        )
        headers = {key: value for key, value in reply.headers.items() if key != "content-length"}
        return reply.status_code, headers, UNLIKE.sub("", reply.text)


@pytest.fixture
async def roads(
    database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncIterator[tuple[Road, Road]]:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with main.running(settings, Models(ScriptedPolicy(failing_on_doge))) as served:
        direct: Any = served.server.config.app
        described = main.create_app()
        described.state = direct.state
        described.user_middleware = [
            layer for layer in described.user_middleware if layer.cls is not routes.Straight
        ]
        assert len(described.user_middleware) == len(direct.user_middleware) - 1
        yield Road(direct, "direct"), Road(described, "described")


async def test_both_roads_give_the_same_answers(roads: tuple[Road, Road]) -> None:
    statuses = set()
    for number, sent in enumerate(_sent()):
        first, second = [await road.answer(number, sent) for road in roads]
        assert first == second, sent
        statuses.add(first[0])
    assert statuses >= {200, 202, 307, 400, 403, 405, 413, 415, 422, 500}
