"""A key of ours in Valkey that holds something else is no outage: it is named, what needs it is
refused, and who mends it is told how."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.domain.canonical import decision_id
from app.domain.record.event import Event, EventKind, StateChange
from app.domain.rules.case import TradingState
from app.journal.drain import StreamDrain
from app.journal.keys import (
    DEAD,
    EVENTS,
    EVICTED,
    MEMORY,
    REQUESTS,
    SHARED,
    STATE,
    STREAMS,
    MisplacedKey,
)
from app.journal.later import RequestQueue
from app.journal.stream import StreamJournal, idempotency_key
from tests.service.journal.journal_events import client, put
from tests.service.running import Running, drained, request, running, settings_for, until

HALTED = StateChange(
    recorded_at=datetime(2026, 11, 1, tzinfo=UTC),
    state=TradingState.HALTED,
    reason="r",
    changed_by="b",
)


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


def occupy(url: str, key: str) -> None:
    """Somebody else's data under our key."""
    with client(url) as connection:
        connection.delete(key)
        connection.rpush(key, "of somebody else")


async def report(api: Running) -> Any:
    return (await api.client.get("/readyz")).json()


async def codes(api: Running, request_id: str) -> list[str]:
    reply = (await api.advise(request(request_id))).json()
    return [veto["code"] for veto in reply["vetoes"]]


@pytest.mark.parametrize("key", SHARED)
async def test_each_is_named_with_its_mending(api: Running, valkey_url: str, key: str) -> None:
    occupy(valkey_url, key)

    async def named() -> bool:
        found = await report(api)
        kind = "stream" if key in STREAMS else "string"
        says = f"{key} in Valkey is a list, not a {kind}"
        return found["status"] != "ready" and any(
            f.startswith(says) for f in found["valkey_faults"]
        )

    await until(named)
    assert (await report(api))["valkey"] == "up"
    with client(valkey_url) as connection:
        connection.rename(key, f"{key}.other")

    async def ready() -> bool:
        found = await report(api)
        return (found["status"], found["valkey_faults"]) == ("ready", [])

    await until(ready)
    assert (await api.advise(request("after"))).json()["recorded"] == "stream"


async def test_a_state_of_another_type_refuses_until_it_is_set_anew(
    api: Running, valkey_url: str
) -> None:
    assert await codes(api, "before") == []
    occupy(valkey_url, STATE)

    async def refuses() -> bool:
        return (await report(api))["status"] == "unready"

    await until(refuses)
    assert await codes(api, "meanwhile") == ["STATE_HALTED"]
    assert "advisor state" in (await report(api))["tasks"]["controls"]
    body = {"state": "ACTIVE", "reason": "looked at", "changed_by": "ops"}
    assert (await api.client.put("/state", json=body)).status_code == 200

    async def ready() -> bool:
        return bool((await report(api))["status"] == "ready")

    await until(ready)
    assert await codes(api, "after") == []


@pytest.mark.parametrize("key", [EVENTS, MEMORY, EVICTED])
async def test_what_events_need_sends_them_to_the_disk_and_back(
    api: Running, valkey_url: str, key: str
) -> None:
    occupy(valkey_url, key)

    numbers = count()

    async def spooled() -> bool:
        reply = (await api.advise(request(f"r-{next(numbers)}"))).json()
        return bool(reply.get("recorded") == "spool")

    await until(spooled)
    with client(valkey_url) as connection:
        connection.delete(key)

    async def moved() -> bool:
        return api.service.journal.spool_depth() == 0

    await until(moved)
    assert await drained(api.settings) >= 1


async def test_an_id_whose_key_is_occupied_is_refused_by_name_and_no_other(
    api: Running, valkey_url: str
) -> None:
    key = idempotency_key(EventKind.DECISION, str(decision_id("r-1")))
    for number, other in enumerate((b"what is this", b"")):
        with client(valkey_url) as connection:
            connection.set(key, other)
        if not other:
            occupy(valkey_url, key)
        reply = await api.advise(request("r-1"))
        assert reply.status_code == 503
        assert key in reply.json()["detail"]
        assert "RENAME" in reply.json()["detail"]
        assert (await api.advise(request(f"s-{number}"))).json()["recorded"] == "stream"
    with client(valkey_url) as connection:
        connection.delete(key)
    assert (await api.advise(request("r-1"))).json()["recorded"] == "stream"


async def test_garbage_for_a_memory_is_named(valkey_url: str) -> None:
    stream = StreamJournal(valkey_url)
    with client(valkey_url) as connection:
        connection.set(MEMORY, "what is this")
        connection.set(EVICTED, "and this")
    with pytest.raises(MisplacedKey, match=f"{MEMORY} in Valkey is 'what is this', not a string"):
        await stream.join(HALTED.recorded_at)
    await stream.aclose()


async def test_a_spooled_state_takes_the_place_of_what_is_no_state(valkey_url: str) -> None:
    stream = StreamJournal(valkey_url)
    occupy(valkey_url, STATE)
    await stream.restore(Event.of_state_change(HALTED))
    assert await stream.get_state() == HALTED
    await stream.aclose()


async def test_a_writer_and_a_queue_name_what_they_cannot_use(valkey_url: str) -> None:
    async def sink(entries: object) -> None:
        """Takes everything."""

    drain, requests = StreamDrain(valkey_url, sink, block_ms=10), RequestQueue(valkey_url)
    occupy(valkey_url, EVENTS)
    occupy(valkey_url, REQUESTS)
    with pytest.raises(MisplacedKey, match=EVENTS):
        await drain.step()
    with pytest.raises(MisplacedKey, match=REQUESTS):
        await put(requests, "one", "sha256:a", b"payload")
    with pytest.raises(MisplacedKey, match=REQUESTS):
        await requests.take()
    await drain.aclose()
    await requests.aclose()


async def test_what_cannot_be_put_aside_stays(valkey_url: str) -> None:
    """An entry that is no event leaves the stream only once the dead-letter stream has it."""

    async def sink(entries: object) -> None:
        """Takes everything."""

    drain = StreamDrain(valkey_url, sink, block_ms=10)
    occupy(valkey_url, DEAD)
    with client(valkey_url) as connection:
        connection.xadd(EVENTS, {"garbage": "1"})
        with pytest.raises(MisplacedKey, match=DEAD):
            await drain.step()
        assert connection.xlen(EVENTS) == 1
        connection.delete(DEAD)
        await drain.step()
        assert (connection.xlen(EVENTS), connection.xlen(DEAD)) == (0, 1)
    await drain.aclose()
