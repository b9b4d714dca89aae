"""What cannot be answered within its deadline is refused at once, as a whole, and costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from app.advising.serving import Models
from app.api.admission import is_asynchronous
from app.journal.keys import REQUESTS
from app.policy.scripted import ScriptedPolicy
from app.shadow_log.log import ShadowLog
from tests.service.journal.journal_events import client
from tests.service.running import Running, drained, request, running, settings_for, until


@asynccontextmanager
async def busy(
    database_url: str, valkey_url: str, home: Path, **more: Any
) -> AsyncIterator[tuple[Running, ScriptedPolicy, asyncio.Event]]:
    """A service that knows that a decision takes a second, with one under way until the event."""
    gate = asyncio.Event()
    policy = ScriptedPolicy(["H"], gate=gate, parallel=1)
    settings = settings_for(database_url, valkey_url, home, **more)
    async with running(settings, Models(policy)) as api:
        door = api.service.door
        for _ in range(100):
            ticket = door.enter(monotonic() - 1.0, inf)
            ticket.answered = True
            door.leave(ticket)
        first = asyncio.create_task(api.advise(request("first", deadline_ms=30_000)))
        await until(lambda: _asked(policy, 1))
        yield api, policy, gate
        gate.set()
        assert (await first).json()["status"] == "advised"


async def _asked(policy: ScriptedPolicy, prompts: int) -> bool:
    return len(policy.prompts) >= prompts


def require_refused(reply: httpx.Response) -> None:
    assert reply.status_code == 503, reply.text
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["content-type"] == "application/problem+json"
    assert "after its deadline" in reply.json()["detail"]


async def test_who_would_come_late_is_refused_at_once_and_nothing_is_read_or_recorded(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with busy(database_url, valkey_url, tmp_path) as (api, policy, gate):
        require_refused(await api.advise(request("late"), **{"X-Deadline-Ms": "1500"}))
        # Where the header says nothing, the body's deadline counts once it is known, or ours.
        require_refused(await api.advise(request("late", deadline_ms=1500)))
        require_refused(await api.advise(request("late")))
        assert api.metric("advisor_refusals_total", budget="wait") == 3
        in_time = asyncio.create_task(api.advise(request("in-time"), **{"X-Deadline-Ms": "20000"}))
        await until(lambda: _asked(policy, 2))
        await api.client.get("/metrics")
        assert api.metric("advisor_items_under_way") == 2
        assert api.metric("advisor_estimated_wait_seconds") == pytest.approx(3.0, abs=0.01)
        gate.set()
        assert (await in_time).json()["status"] == "advised"
        assert (await api.advise(request("late"))).json()["repeated"] is False
        assert len(policy.prompts) == 3
    assert await drained(api.settings) == 3


async def test_a_refusal_does_not_wait_for_the_body_and_keeps_the_connection(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with busy(database_url, valkey_url, tmp_path, idle_s=1) as (api, _, _):
        parts = urlsplit(api.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        host = f"Host: {parts.netloc}\r\n".encode()
        head = b"POST /advise HTTP/1.1\r\n" + host + b"X-Deadline-Ms: 900\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\n"
        writer.write(head)
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
        assert answer.startswith(b"HTTP/1.1 503")
        writer.write(b"12345GET /healthz HTTP/1.1\r\n" + host + b"\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
        assert answer.startswith(b"HTTP/1.1 200"), "the body was not taken for a request"
        writer.write(head + b"12345")
        rest = await asyncio.wait_for(reader.read(), 10)
        assert rest.startswith(b"HTTP/1.1 503"), "and an idle connection still ends"
        writer.close()


async def test_probes_reports_and_changes_of_state_are_never_refused(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with busy(database_url, valkey_url, tmp_path) as (api, _, gate):
        gate.set()
        await until(lambda: _nothing_under_way(api))
        decision = (await api.advise(request("r-1"))).json()["decision_id"]
        gate.clear()
        waiting = asyncio.create_task(api.advise(request("r-2", deadline_ms=30_000)))
        await until(lambda: _under_way(api, 1))
        require_refused(await api.advise(request("late"), **{"X-Deadline-Ms": "900"}))
        path = f"/decisions/{decision}"
        halt = {"state": "HALTED", "reason": "test", "changed_by": "test"}
        replies = [
            await api.client.get("/healthz"),
            await api.client.get("/readyz"),
            await api.client.get(path),
            await api.client.put(f"{path}/agent-action", json={"decision": True}),
            await api.client.put(f"{path}/outcome", json={"arm": "agent", "outcome": "sl"}),
            await api.client.put("/state", json=halt),
            await api.advise(request("later"), Prefer="respond-async"),
        ]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 202, 202, 200, 202]
        gate.set()
        await waiting


async def _nothing_under_way(api: Running) -> bool:
    return await _under_way(api, 0)


async def _under_way(api: Running, items: int) -> bool:
    return api.service.door.under_way == items


async def test_a_list_is_let_in_whole_or_refused_whole(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with busy(database_url, valkey_url, tmp_path) as (api, policy, gate):
        require_refused(await api.advise([request(f"l-{n}", deadline_ms=5000) for n in range(8)]))
        assert len(policy.prompts) == 1
        few = [request(f"l-{n}", deadline_ms=5000) for n in range(3)]
        let_in = asyncio.create_task(api.advise(few))
        await until(lambda: _asked(policy, 4))
        gate.set()
        assert [each["decision"]["status"] for each in (await let_in).json()] == ["advised"] * 3


async def test_asynchronous_lists_are_accepted_whole_or_refused_whole_and_decided_once(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """384 items at once, where 256 may wait."""
    settings = settings_for(database_url, valkey_url, tmp_path, max_pending=256)
    gate = asyncio.Event()
    async with running(settings, Models(ScriptedPolicy(["H"], gate=gate))) as api:
        lists = [[request(f"r-{n}-{k}") for k in range(32)] for n in range(12)]
        replies = await asyncio.gather(
            *(api.advise(items, Prefer="respond-async") for items in lists)
        )
        accepted = [reply for reply in replies if reply.status_code == 202]
        refused = [reply for reply in replies if reply.status_code == 503]
        assert (len(accepted), len(refused)) == (8, 4)
        for reply in accepted:
            assert [set(element) for element in reply.json()] == [{"decision"}] * 32
        for reply in refused:
            assert int(reply.headers["retry-after"]) >= 1
            assert "nothing of this call was accepted" in reply.json()["detail"]
        assert api.metric("advisor_refusals_total", budget="pending") == 4
        with client(valkey_url) as connection:
            assert connection.xlen(REQUESTS) == 256
            gate.set()

            async def all_decided() -> bool:
                return connection.xlen(REQUESTS) == 0

            await until(all_decided)
    assert await drained(settings) == 256


async def test_in_an_accepted_list_a_used_id_is_that_elements_problem(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as api:
        await api.advise(request("used"))
        used = request("used", candidate__rsi=11)
        reply = await api.advise([request("new"), used, {"bad": 1}], Prefer="respond-async")
        assert reply.status_code == 202
        new, conflict, bad = reply.json()
        assert new["decision"]["status"] == "pending"
        assert conflict["problem"]["status"] == 409
        assert bad["problem"]["status"] == 422


async def test_an_accepted_request_that_was_lost_is_told_with_how_to_ask_again(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    log = ShadowLog.connect(database_url)
    async with running(settings, Models(ScriptedPolicy(["H"], gate=asyncio.Event()))) as api:
        document = request("r-1")
        accepted = await api.advise(document, Prefer="respond-async")
    path = f"/decisions/{accepted.json()['decision_id']}"
    await drained(settings)
    with client(valkey_url) as connection:
        connection.flushall()
    async with running(settings) as api:
        assert (await api.client.get(path)).status_code == 202, "it may lie in a spool"
        assert (
            await api.client.put(f"{path}/agent-action", json={"decision": True})
        ).status_code == 503
        await log.forget(await log.undecided())
        for reply in (
            await api.client.get(path),
            await api.client.put(f"{path}/agent-action", json={"decision": True}),
        ):
            told = reply.json()
            assert (reply.status_code, told["title"]) == (
                410,
                "It was accepted, and lost before it was decided",
            )
            assert "send it again under the same id" in told["detail"]
        assert (await api.advise(document)).status_code == 200
        assert (await api.client.get(path)).status_code == 200
        assert (
            await api.client.put(f"{path}/agent-action", json={"decision": True})
        ).status_code == 202
        await drained(settings)
        assert await log.promise_lost(UUID(path.removeprefix("/decisions/"))) is None
    await log.aclose()


async def test_a_report_on_what_is_not_decided_yet_is_to_come_again_and_is_not_unknown(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings, Models(ScriptedPolicy(["H"], gate=gate))) as api:
        accepted = await api.advise(request("r"), Prefer="respond-async")
        path = f"/decisions/{accepted.json()['decision_id']}"
        outcome = {"arm": "agent", "outcome": "tp1", "net_pnl": 1.0}
        reports = {"agent-action": {"decision": True}, "outcome": outcome}
        for what, body in reports.items():
            early = await api.client.put(f"{path}/{what}", json=body)
            assert (early.status_code, early.headers["retry-after"]) == (503, "1")
            assert "not decided yet" in early.json()["detail"]
        gate.set()

        async def decided() -> bool:
            return (await api.client.get(path)).status_code == 200

        await until(decided)
        for what, body in reports.items():
            assert (await api.client.put(f"{path}/{what}", json=body)).status_code == 202


@pytest.mark.parametrize(
    ("prefer", "asynchronous"),
    [
        ("respond-async", True),
        ("Respond-Async", True),
        ("respond-async, wait=5", True),
        ("wait=5, respond-async", True),
        ("wait=5,respond-async;expires=9", True),
        (' respond-async ="" ; a="b, c"', True),
        ("respond-async; wait=5, handling=lenient", True),
        ("", False),
        ("wait=5", False),
        ("x=respond-async", False),
        ("respond-asynchronously", False),
        ("no-respond-async", False),
        ("respond-async=no", False),
        ('x="a, respond-async"', False),
        ('x="a \\", respond-async"', False),
        ("handling=lenient; respond-async", False),
        ('x="never closed, respond-async', False),
    ],
)
def test_prefer_is_read_as_rfc_7240_says(prefer: str, asynchronous: bool) -> None:
    assert is_asynchronous(prefer) is asynchronous
