"""Valkey's clock is another machine's: set back by an hour, the dead are still found and ages still
true."""

from __future__ import annotations

from time import time
from typing import Any

import pytest
from redis.asyncio import Redis

from app.journal.consumer import Consumer
from app.journal.keys import EVENTS
from app.journal.stream import StreamJournal, connect
from tests.service.journal.journal_events import client

HOUR_S = 3600.0
IDLE_S = 30.0


class Clock:
    """A monotonic clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def consumer(redis: Redis, clock: Clock) -> Consumer:
    return Consumer(redis, "s", "g", idle_ms=int(IDLE_S * 1000), block_ms=10, clock=clock)


def set_back(url: str, owner: Consumer) -> None:
    """As if Valkey's clock had been an hour ahead when these entries were handed out."""
    with client(url) as connection:
        entries: Any = connection.xpending_range("s", "g", "-", "+", 100)
        for entry in entries:
            if entry["consumer"].decode() == owner._name:
                connection.execute_command(
                    *("XCLAIM", "s", "g", owner._name, 0, entry["message_id"]),
                    *(
                        "TIME",
                        int((time() + HOUR_S) * 1000),
                        "RETRYCOUNT",
                        entry["times_delivered"],
                    ),
                )


async def test_what_the_dead_left_is_taken_over_although_the_clock_was_set_back(
    valkey_url: str,
) -> None:
    redis, clock = connect(valkey_url, 5), Clock()
    dead, heir = consumer(redis, clock), consumer(redis, clock)
    with client(valkey_url) as connection:
        ids: list[Any] = [connection.xadd("s", {"n": n}) for n in range(3)]
    taken = await dead.take(10)
    assert [stream_id for stream_id, _ in taken] == ids
    set_back(valkey_url, dead)
    assert await heir.take(10) == []
    clock.seconds += IDLE_S - 1
    assert await heir.take(10) == [], "it may be at work"
    clock.seconds += 5
    assert await heir.take(2) == taken[:2]
    clock.seconds += 5
    assert await heir.take(2) == taken[2:]
    await heir.done(ids)
    clock.seconds += 10 * IDLE_S
    assert await heir.take(10) == []
    await redis.aclose()


async def test_who_reads_its_entries_again_keeps_them(valkey_url: str) -> None:
    redis, clock = connect(valkey_url, 5), Clock()
    slow, other = consumer(redis, clock), consumer(redis, clock)
    with client(valkey_url) as connection:
        connection.xadd("s", {"n": 1})
    taken = await slow.take(10)
    for _ in range(5):
        set_back(valkey_url, slow)
        clock.seconds += IDLE_S - 1
        assert await slow.unfinished(10) == taken
        assert await other.take(10) == []
    await redis.aclose()


async def test_the_oldest_event_ages_by_our_own_clock(valkey_url: str) -> None:
    clock = Clock()
    stream = StreamJournal(valkey_url, timeout_s=5, clock=clock)
    assert await stream.backlog() == (0, 0.0)
    ahead = int((time() + HOUR_S) * 1000)
    with client(valkey_url) as connection:
        connection.xadd(EVENTS, {"kind": "x"}, id=f"{ahead}-0")
    assert await stream.backlog() == (1, 0.0)
    clock.seconds += 300
    assert await stream.backlog() == (1, 300.0)
    with client(valkey_url) as connection:
        connection.xadd(EVENTS, {"kind": "y"}, id=f"{ahead + 1}-0")
        connection.xdel(EVENTS, f"{ahead}-0")
    assert await stream.backlog() == (1, 0.0)
    await stream.aclose()


async def test_an_age_that_the_stream_knows_already_counts(valkey_url: str) -> None:
    clock = Clock()
    with client(valkey_url) as connection:
        connection.xadd(EVENTS, {"kind": "x"}, id=f"{int((time() - 120) * 1000)}-0")
    stream = StreamJournal(valkey_url, timeout_s=5, clock=clock)
    events, age = await stream.backlog()
    assert events == 1
    assert 120 <= age < 180
    clock.seconds += 60
    assert (await stream.backlog())[1] == pytest.approx(age + 60)
    await stream.aclose()
