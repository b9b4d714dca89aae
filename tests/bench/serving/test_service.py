"""The bench of the service measures one whose events are taken, as a writer takes them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import redis

from app.domain.record.event import Event
from app.journal.keys import EVENTS
from app.journal.stream import StreamJournal
from bench.serving.service import taken
from tests import builders as build


async def until_empty(stream: redis.Redis) -> bool:
    """Whether the stream of events is empty within half a minute."""
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while stream.xlen(EVENTS):
                await asyncio.sleep(0)
    return not stream.xlen(EVENTS)


async def test_events_do_not_wait_while_a_service_is_measured(valkey_url: str) -> None:
    journal = StreamJournal(valkey_url)
    with redis.Redis.from_url(valkey_url) as stream, taken(valkey_url):
        await journal.append(Event.of_decision(build.decision("r-1")))
        assert await until_empty(stream), "nobody took the event"
    await journal.aclose()
