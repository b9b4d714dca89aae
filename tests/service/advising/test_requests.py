"""Accepted requests: durable work, done once, by whichever replica lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.domain.errors import JournalUnavailable
from app.journal.consumer import FORGET_IDLE
from app.journal.keys import REQUESTS
from app.journal.later import GROUP, RequestQueue
from app.local.servers import EmbeddedValkey
from tests.service.journal.journal_events import client, put


@asynccontextmanager
async def queue(url: str, *, idle_ms: int = 60_000) -> AsyncIterator[RequestQueue]:
    requests = RequestQueue(url, idle_ms=idle_ms, block_ms=20)
    try:
        yield requests
    finally:
        await requests.aclose()


async def test_a_request_is_pending_until_it_is_done(valkey_url: str) -> None:
    async with queue(valkey_url) as requests:
        assert await requests.take() == []
        await put(requests, "one", "sha256:a", b"body")
        assert await requests.claim_of("one")
        assert await requests.claim_of("two") is None
        [request] = await requests.take()
        assert (request.decision_id, request.claim, request.payload) == ("one", "sha256:a", b"body")
        assert await requests.take() == []
        assert await requests.claim_of("one")
        await requests.done(request)
        assert await requests.claim_of("one") is None
        with client(valkey_url) as connection:
            assert connection.xlen(REQUESTS) == 0


async def test_a_repeat_is_accepted_once_and_other_content_is_a_conflict(valkey_url: str) -> None:
    async with queue(valkey_url) as requests:
        await asyncio.gather(*(put(requests, "one", "sha256:a", b"body") for _ in range(16)))
        assert await put(requests, "one", "sha256:b", b"other body") == "sha256:a"
        assert [request.payload for request in await requests.take()] == [b"body"]


async def test_each_request_goes_to_one_replica(valkey_url: str) -> None:
    async with queue(valkey_url) as first, queue(valkey_url) as second:
        for n in range(20):
            await put(first, str(n), "sha256:a", b"body")
        taken = [await replica.take() for replica in (first, second, first, second)]
        assert [request.decision_id for batch in taken for request in batch] == [
            str(n) for n in range(20)
        ]


async def test_what_a_dead_replica_took_is_taken_again(valkey_url: str) -> None:
    async with queue(valkey_url) as dead:
        await put(dead, "one", "sha256:a", b"body")
        await put(dead, "two", "sha256:a", b"body")
        first, _ = await dead.take()
        await dead.done(first)
    async with queue(valkey_url, idle_ms=60_000) as patient:
        assert await patient.take() == []
    async with queue(valkey_url, idle_ms=0) as heir:
        [request] = await heir.take()
        assert request.decision_id == "two"
        await heir.done(request)
        assert await heir.take() == []
        assert await heir.claim_of("two") is None


async def test_an_accepted_request_survives_kill_9_of_the_server(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    async with queue(server.url) as requests:
        await put(requests, "one", "sha256:a", b"body")
        await asyncio.to_thread(server.kill)
        with pytest.raises(JournalUnavailable, match="check REDIS_URL"):
            await put(requests, "two", "sha256:a", b"body")
        with pytest.raises(JournalUnavailable):
            await requests.claim_of("one")
        with pytest.raises(JournalUnavailable):
            await requests.take()
        await asyncio.to_thread(server.start)
        assert [request.decision_id for request in await requests.take()] == ["one"]
    server.stop()


async def test_after_a_flush_the_group_is_made_anew(valkey_url: str) -> None:
    async with queue(valkey_url) as requests:
        assert await requests.take() == []
        with client(valkey_url) as connection:
            connection.flushall()
        with pytest.raises(JournalUnavailable, match="NOGROUP"):
            await requests.take()
        await put(requests, "one", "sha256:a", b"body")
        assert [request.decision_id for request in await requests.take()] == ["one"]


async def test_a_request_deleted_by_hand_is_not_handed_out(valkey_url: str) -> None:
    async with queue(valkey_url, idle_ms=0) as requests:
        await put(requests, "one", "sha256:a", b"body")
        await requests.take()
        with client(valkey_url) as connection:
            connection.xtrim(REQUESTS, maxlen=0)
        assert await requests.take() == []


async def test_long_gone_consumers_are_forgotten_unless_they_left_something(
    valkey_url: str,
) -> None:
    async with queue(valkey_url) as idle, queue(valkey_url) as busy:
        await idle.take()
        await put(busy, "one", "sha256:a", b"body")
        assert len(await busy.take()) == 1
        with client(valkey_url) as connection:
            assert len(connection.xinfo_consumers(REQUESTS, GROUP)) == 2
            connection.eval(FORGET_IDLE, 1, REQUESTS, GROUP, -1)
            [left] = connection.xinfo_consumers(REQUESTS, GROUP)
        assert left["pending"] == 1
