"""What a request may cost: whatever exceeds its budget is refused before it is paid for, and
counted."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from app.api.budget import Buckets, values
from app.domain.canonical import decision_id
from app.domain.record.outcome import Outcome
from tests.service.running import Running, drained, request, running, settings_for, until


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


def refusals(api: Running, budget: str) -> float:
    return api.metric("advisor_refusals_total", budget=budget)


async def raw(api: Running, *pieces: bytes) -> bytes:
    """What comes back for bytes on a connection of their own, until the server closes it."""
    parts = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def json_of(seed: int) -> object:
    """Random JSON with everything in its strings that a careless count would stumble over."""
    chance = random.Random(seed)

    def value(depth: int) -> object:
        kind = chance.randrange(5 if depth else 3)
        if kind < 3:
            text = "".join(chance.choices('{[,"\\]}' + string.ascii_letters, k=8))
            return (text, chance.random(), None)[kind]
        items = [value(depth - 1) for _ in range(chance.randrange(4))]
        return items if kind == 3 else {f'k{n},"[': item for n, item in enumerate(items)}

    return value(4)


def count(value: object) -> int:
    """Values in a document, one too many for each list and object that is empty."""
    if isinstance(value, dict | list):
        items = list(value.values()) if isinstance(value, dict) else value
        return 1 + max(1, sum(map(count, items)))
    return 1


@pytest.mark.parametrize("seed", range(50))
def test_values_are_counted_outside_strings(seed: int) -> None:
    document = json_of(seed)
    assert values(json.dumps(document).encode(), enough=0) == count(document)


def test_a_string_that_never_ends_holds_no_value() -> None:
    assert values(b'["' + b'\\"' * 300_000 + b",[{" * 1000, enough=100) == 2


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    buckets = Buckets(rate=2, burst=3, most=2)
    assert [buckets.wait("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.wait("b", 0.0) == 0
    assert buckets.wait("a", 0.5) == 0
    assert buckets.wait("a", 0.5) == 0.5
    buckets.wait("c", 0.5)  # Of three callers, the one that came first is forgotten.
    assert [buckets.wait("b", 0.5) for _ in range(4)] == [0, 0, 0, 0.5]


async def test_a_body_of_many_values_or_candidates_is_refused_before_it_is_validated(
    api: Running,
) -> None:
    many = b"[" + b"{}," * 340_000 + b"{}]"
    reply = await api.client.post("/advise", content=many)
    assert reply.status_code == 422
    assert "more than 32768 JSON values" in reply.json()["detail"]
    reply = await api.client.post("/advise", content=b"[" + b"{}," * 32 + b"{}]")
    assert reply.status_code == 422
    assert reply.json()["detail"] == "33 candidates in one call; at most 32"
    assert (refusals(api, "values"), refusals(api, "items")) == (1, 1)
    assert await drained(api.settings) == 0


async def test_a_body_that_says_it_is_too_large_is_not_read(api: Running) -> None:
    answer = await raw(
        api,
        b"POST /advise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9999999\r\n\r\n",
        b"",
        b"{",
    )
    assert answer.startswith(b"HTTP/1.1 413")
    assert refusals(api, "body") == 1


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_a_body_with_an_upgrade_is_refused_with_what_to_send(
    api: Running, protocol: str
) -> None:
    """Java's client asks for HTTP/2 with every plain request: the parser drops the body."""
    upgrade = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n".encode()
    head = b"Host: localhost\r\nContent-Type: application/json\r\n" + upgrade
    answer = await raw(api, b"POST /advise HTTP/1.1\r\n" + head + b"Content-Length: 2\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"send HTTP/1.1 alone" in answer
    assert (await raw(api, b"GET /healthz HTTP/1.1\r\n" + head + b"\r\n")).startswith(
        b"HTTP/1.1 200 "
    )


async def test_keys_outside_the_schema_have_a_size(api: Running) -> None:
    reply = await api.advise(request("r-1", candidate__mine="x" * 40_000))
    assert reply.status_code == 422
    assert "candidate.extra" in reply.json()["detail"]
    decided = (await api.advise(request("r-2", candidate__mine="x" * 30_000))).json()
    path = f"/decisions/{decided['decision_id']}"
    for route, report in (
        ("agent-action", {"decision": True}),
        ("outcome", {"arm": "agent", "outcome": "sl"}),
    ):
        reply = await api.client.put(
            f"{path}/{route}", json={**report, "extra": {"mine": "x" * 40_000}}
        )
        assert reply.status_code == 422
        assert "extra" in reply.json()["detail"]
    assert refusals(api, "extra") == 3


NUMBERS = ("1e400", "1" + "0" * 400, str(2**64), str(2**70), "1e30", str(-(2**63) - 1))


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:9])
async def test_a_number_beyond_64_bits_is_left_out_of_its_own_element(
    api: Running, number: str
) -> None:
    for section, field, named in (
        ("candidate", "social", "candidate.social.posts"),
        ("account", "consecutive_losses", "account.consecutive_losses"),
    ):
        value = {"posts": "@"} if field == "social" else "@"
        bad = json.dumps(request(f"bad-{field}", **{f"{section}__{field}": value}))
        bad = bad.replace('"@"', number)
        alone = (await api.client.post("/advise", content=bad)).json()
        assert [gone["field"] for gone in alone["left_out"]] == [named]
        good = json.dumps(request(f"good-{field}"))
        reply = await api.client.post("/advise", content=f"[{good}, {bad}, {good}]")
        first, second, third = (element["decision"] for element in reply.json())
        assert first["request_id"] == third["request_id"]
        assert (first["left_out"], second["left_out"]) == ([], alone["left_out"])
        assert second["repeated"]


@pytest.mark.parametrize("number", ["1e25", "1e308", "-1e25", "12345678901234567890", "1e-300"])
async def test_whatever_number_an_outcome_holds_its_decision_can_be_read(
    api: Running, number: str
) -> None:
    decided = (await api.advise(request("r-1"))).json()
    path = f"/decisions/{decided['decision_id']}"
    body = f'{{"arm": "agent", "outcome": "sl", "net_pnl": {number}}}'
    # As before reports had to be plausible.
    outcome = Outcome.model_validate_json(body)
    await api.service.records.report_outcome(UUID(decided["decision_id"]), outcome)
    assert await drained(api.settings) == 2
    document = (await api.client.get(path)).json()
    assert float(document["outcomes"][0]["net_pnl"]) == float(number)


async def test_a_header_has_a_size_and_a_number_of_fields(api: Running) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    long = head + b"X-Long: " + b"x" * 10_000_000
    many = head + b"".join(b"X-%d: x\r\n" % number for number in range(100)) + b"\r\n"
    for sent in (long, many, b"GET /" + b"x" * 100_000):
        answer = await raw(api, sent)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431"), answer[:100]
    assert refusals(api, "header") == 3
    answer = await raw(api, head + b"Connection: close\r\nX-Long: " + b"x" * 16_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /advise HT",
        b"POST /advise HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /advise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"a',
    ],
    ids=["nothing", "half a line", "half a header", "half a body"],
)
async def test_a_request_has_a_time_to_arrive(
    database_url: str, valkey_url: str, tmp_path: Path, sent: bytes
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, request_s=0.2)
    async with running(settings) as api:
        answer = await raw(api, sent)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
        assert refusals(api, "slow") == 1
        assert (await api.advise(request("r-1"))).status_code == 200


async def test_who_hangs_up_within_a_body_is_no_defect_and_a_defect_is_counted(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, request_s=0.2)
    async with running(settings) as api:
        head = b"POST /advise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert await raw(api, head + b"Content-Length: 100\r\n\r\n", b'{"a') == b""

        async def noticed() -> bool:
            return answers(api, "/advise", 400) == 1

        await until(noticed)
        assert answers(api, "/advise", 500) == 0

        async def broken(_: UUID) -> dict[str, Any]:
            raise RuntimeError("a defect")

        monkeypatch.setattr(api.service.records, "document", broken)
        reply = await api.client.get(f"/decisions/{decision_id('r-1')}")
        assert reply.status_code == 500
        assert answers(api, "/decisions/{id}", 500) == 1


def answers(api: Running, route: str, code: int) -> float:
    labels = {"route": route, "code": str(code)}
    return api.metrics.registry.get_sample_value("advisor_requests_total", labels) or 0.0


async def test_connections_are_bounded_and_the_others_go_on(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, max_connections=8)
    async with running(settings) as api:
        assert (await api.advise(request("r-1"))).status_code == 200
        parts = urlsplit(api.url)
        held = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(7)]
        answer = await raw(api, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer == b"" or answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in answer or answer == b""
        assert refusals(api, "connections") == 1
        assert (await api.advise(request("r-2"))).status_code == 200
        for _, writer in held:
            writer.close()


async def test_who_asks_too_often_is_told_to_wait_but_may_always_halt(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, rate_per_s=0.5)
    async with running(settings) as api:
        assert (await api.advise(request("r-1"))).status_code == 200
        reply = await api.advise(request("r-2"))
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 2
        halt = {"state": "HALTED", "reason": "test", "changed_by": "test"}
        assert (await api.client.put("/state", json=halt)).status_code < 300
        assert refusals(api, "rate") == 1


async def test_what_is_remembered_of_a_decision_does_not_grow_with_its_texts(api: Running) -> None:
    texts = {"candidate__news_summary": "x" * 2000, "candidate__mine": "x" * 30_000}
    await api.advise(request("small"))
    await api.advise(request("large", **texts))
    small, large = (
        len(recent.candidate.model_dump_json()) for recent in api.service.records._recent.values()
    )
    assert abs(large - small) < 100
