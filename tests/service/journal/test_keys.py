"""Keys of ours that hold something else: named, with what to do, and never taken for an outage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from app.domain.errors import InvalidRecord
from app.domain.record.event import EventKind
from app.journal.consumer import Consumer
from app.journal.keys import (
    DEAD,
    EVENTS,
    MEMORY,
    STATE,
    MisplacedKey,
    misplaced,
    of_other_type,
    type_of,
)
from app.journal.ledger import LACKS, LEDGER
from app.journal.stream import StreamJournal, connect, idempotency_key, run
from tests.service.journal.journal_events import client, event
from tests.service.journal.test_places import NOON, started

WRONG = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")


def occupy(url: str, key: str) -> None:
    with client(url) as connection:
        connection.delete(key)
        connection.rpush(key, "of somebody else")


def test_what_each_key_is_and_what_to_do_when_it_is_something_else() -> None:
    ledgers = [
        f"{name}{of}" for name in ("advisor:ledger", LEDGER, LACKS) for of in (":m", ":m:desk")
    ]
    assert [type_of(key) for key in (EVENTS, STATE)] == ["stream", "string"]
    assert [type_of(key) for key in ledgers] == ["string", "hash"] * 2 + ["string"] * 2
    assert "set the state anew (`advisor state`)" in str(MisplacedKey(STATE, "a list"))
    told = str(MisplacedKey(EVENTS, "a list"))
    assert told == (
        "advisor:events in Valkey is a list, not a stream of this service: look at it, then take"
        " it away (`RENAME advisor:events advisor:events.other`)"
    )


async def test_a_refused_command_is_told_by_its_key(valkey_url: str) -> None:
    redis = connect(valkey_url, 5)

    async def asking(*command: Any) -> Any:
        return await run(redis, *command)

    assert await misplaced(asking, [EVENTS, STATE]) == []
    occupy(valkey_url, EVENTS)
    assert [other.key for other in await misplaced(asking, [EVENTS, STATE])] == [EVENTS]
    for command in (
        ("XLEN", EVENTS),
        ("EVAL", "return 1", 2, STATE, EVENTS),
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", EVENTS, ">"),
    ):
        other = await of_other_type(asking, command, WRONG)
        assert other is not None
        assert other.key == EVENTS
    assert await of_other_type(asking, ("GET", STATE), WRONG) is None
    assert await of_other_type(asking, ("XLEN", EVENTS), ResponseError("OOM")) is None
    assert await of_other_type(asking, ("XLEN", EVENTS), ValueError("WRONGTYPE")) is None

    async def away(*command: Any) -> Any:
        raise ConnectionError

    assert await of_other_type(away, ("XLEN", EVENTS), WRONG) is None
    await redis.aclose()


async def test_a_consumer_names_the_stream_that_is_none_and_loses_nothing_to_a_place_that_is_none(
    valkey_url: str,
) -> None:
    redis = connect(valkey_url, 5)
    consumer = Consumer(redis, "advisor:requests", "g", idle_ms=1000, block_ms=10)
    with client(valkey_url) as connection:
        connection.xadd("advisor:requests", {"n": 1})
    [(stream_id, _)] = await consumer.take(1)
    occupy(valkey_url, DEAD)
    with pytest.raises(MisplacedKey, match="advisor:dead in Valkey is a list"):
        await consumer.done([stream_id], "XADD", DEAD, "*", "n", 1)
    with client(valkey_url) as connection:
        assert connection.xlen("advisor:requests") == 1
    occupy(valkey_url, "advisor:requests")
    with pytest.raises(MisplacedKey, match="advisor:requests in Valkey is a list"):
        await consumer.unfinished(1)
    with pytest.raises(MisplacedKey, match="advisor:requests in Valkey is a list"):
        await consumer.take(1)
    await redis.aclose()


async def test_without_its_own_stream_events_go_to_the_disk_until_it_is_mended(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        occupy(valkey_url, EVENTS)
        assert (await journal.append(event("one"))).target == "spool"
        await journal._look_after()
        assert not journal.reachable
        with client(valkey_url) as connection:
            connection.rename(EVENTS, f"{EVENTS}.other")
        await journal._look_after()
        assert journal.reachable
        assert journal.spool_depth() == 0


async def test_a_stream_that_becomes_none_is_left_by_the_next_look(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        occupy(valkey_url, EVENTS)
        await journal._look_after()
        assert not journal.reachable


async def test_of_an_event_whose_key_is_somebody_elses_nobody_can_tell_whether_it_is_known(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        occupy(valkey_url, idempotency_key(EventKind.DECISION, "one"))
        with pytest.raises(MisplacedKey):
            await journal.append(event("one"))
        assert (await journal.append(event("two"))).target == "stream"
        assert journal.spool_depth() == 0


async def test_what_cannot_be_read_of_memory_state_and_ids_is_named(valkey_url: str) -> None:
    stream = StreamJournal(valkey_url, timeout_s=5)
    with client(valkey_url) as connection:
        connection.set(MEMORY, "no memory of ours")
        connection.set(idempotency_key(EventKind.DECISION, "one"), "no claim")
    with pytest.raises(MisplacedKey, match="advisor:memory in Valkey is 'no memory of ours'"):
        await stream.join(NOON)
    with pytest.raises(MisplacedKey):
        await stream.known(EventKind.DECISION, "one")
    occupy(valkey_url, STATE)
    with pytest.raises(InvalidRecord, match="the trading state cannot be read: advisor:state"):
        await stream.get_state()
    seen = await stream.look()
    assert any("advisor:state in Valkey is a list" in fault for fault in seen.faults)
    await stream.aclose()
