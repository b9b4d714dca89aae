"""Accepted requests: durable once, done once, handed on when a replica dies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from app.domain.errors import JournalUnavailable
from app.domain.record.event import Entry
from app.journal.drain import StreamDrain
from app.journal.keys import DEAD_REQUESTS, REQUESTS
from app.journal.later import (
    GROUP,
    QueuedRequest,
    QueueFull,
    RequestQueue,
)
from app.journal.stream import AcceptedRequest, StreamJournal
from app.local.servers import EmbeddedValkey
from app.telemetry import Refusal
from tests.service.journal.journal_events import client, dead_letters, event, put
from tests.telemetry import Told


def queue(url: str, idle_ms: int = 60_000) -> RequestQueue:
    return RequestQueue(url, idle_ms=idle_ms, block_ms=20)


async def test_a_request_is_taken_done_and_forgotten_and_a_repeat_changes_nothing(
    valkey_url: str,
) -> None:
    requests = queue(valkey_url)
    assert await requests.claim_of("one") is None
    await put(requests, "one", "sha256:a", b"payload")
    await put(requests, "one", "sha256:a", b"payload")
    assert await put(requests, "one", "sha256:b", b"other") == "sha256:a", "another request has it"
    assert await requests.claim_of("one")
    (taken,) = await requests.take()
    assert taken == QueuedRequest(taken.stream_id, "one", "sha256:a", b"payload")
    assert await requests.take() == []
    await requests.done(taken)
    assert await requests.claim_of("one") is None
    with client(valkey_url) as connection:
        assert connection.xlen(REQUESTS) == 0
        assert connection.xpending(REQUESTS, GROUP)["pending"] == 0
    await requests.aclose()


async def test_what_a_dead_replica_took_is_taken_again_by_another(valkey_url: str) -> None:
    dead, patient, heir = queue(valkey_url), queue(valkey_url), queue(valkey_url, idle_ms=0)
    await put(dead, "one", "sha256:a", b"payload")
    (taken,) = await dead.take()
    assert await patient.take() == []
    assert await heir.take() == [taken]
    for each in (dead, patient, heir):
        await each.aclose()


async def test_a_request_deleted_by_hand_is_not_handed_out(valkey_url: str) -> None:
    dead, heir = queue(valkey_url), queue(valkey_url, idle_ms=0)
    await put(dead, "one", "sha256:a", b"payload")
    await put(dead, "two", "sha256:a", b"payload")
    assert len(await dead.take()) == 2
    with client(valkey_url) as connection:
        connection.xtrim(REQUESTS, maxlen=1, approximate=False)
    assert [each.decision_id for each in await heir.take()] == ["two"]
    for each in (dead, heir):
        await each.aclose()


async def test_a_request_deleted_by_hand_is_not_handed_out_again_either(valkey_url: str) -> None:
    requests = queue(valkey_url)
    await put(requests, "one", "sha256:a", b"payload")
    await put(requests, "two", "sha256:a", b"payload")
    taken = await requests.take()
    assert await requests.unfinished() == taken
    with client(valkey_url) as connection:
        connection.xdel(REQUESTS, taken[0].stream_id)
    assert await requests.unfinished() == taken[1:]
    await requests.aclose()


async def test_what_is_no_request_is_put_aside_and_counted_and_the_others_are_handed_out(
    valkey_url: str,
) -> None:
    told = Told()
    requests = RequestQueue(valkey_url, told, block_ms=20)
    with client(valkey_url) as connection:
        connection.xadd(REQUESTS, {"gossip": "x"})
        connection.xadd(REQUESTS, {"id": b"\xff", "claim": "c", "payload": "p"})
    await put(requests, "one", "sha256:a", b"payload")
    assert [each.decision_id for each in await requests.take()] == ["one"]
    aside = dead_letters(valkey_url, DEAD_REQUESTS)
    assert aside[0] == {"gossip": "x", "error": "not a request: KeyError(b'id')"}
    assert "UnicodeDecodeError" in aside[1]["error"]
    assert told.losses == {"rejected_request": 2}
    with client(valkey_url) as connection:
        assert connection.xpending(REQUESTS, GROUP)["pending"] == 1, "they are done with"
    await requests.aclose()


async def test_a_request_that_cannot_be_decided_is_kept_with_its_reason_and_nobody_waits_for_it(
    valkey_url: str,
) -> None:
    told = Told()
    requests = RequestQueue(valkey_url, told, block_ms=20)
    await requests.put_all([AcceptedRequest("one", "sha256:a", b"payload", "desk")])
    (taken,) = await requests.take()
    await requests.put_aside(taken, "RequestConflict: decided otherwise")
    assert await requests.claim_of("one") is None
    assert await requests.take() == await requests.unfinished() == []
    assert dead_letters(valkey_url, DEAD_REQUESTS) == [
        {
            "id": "one",
            "claim": "sha256:a",
            "payload": "payload",
            "principal": "desk",
            "error": "RequestConflict: decided otherwise",
        }
    ]
    assert told.losses == {"rejected_request": 1}
    await requests.aclose()


async def test_without_a_server_each_call_says_what_to_check(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        requests = queue(server.url)
        await put(requests, "one", "sha256:a", b"payload")
        (taken,) = await requests.take()
    for call in (
        put(requests, "two", "sha256:a", b""),
        requests.claim_of("one"),
        requests.take(),
        requests.done(taken),
        requests.put_aside(taken, "no reason"),
    ):
        with pytest.raises(JournalUnavailable, match="check REDIS_URL"):
            await call
    await requests.aclose()


def accepted(*names: str) -> list[AcceptedRequest]:
    return [AcceptedRequest(name, f"sha256:{name}", b"payload") for name in names]


async def test_a_list_is_accepted_whole_or_not_at_all(valkey_url: str) -> None:
    told = Told()
    requests = RequestQueue(valkey_url, told, most=3, block_ms=20)
    assert await requests.put_all(accepted("one", "two")) == ["sha256:one", "sha256:two"]
    with pytest.raises(QueueFull) as full:
        await requests.put_all(accepted("three", "four"))
    assert full.value.excess == 1
    assert await requests.claim_of("three") is None
    # What waits already, and what stands twice in one list, takes no room of its own.
    again = await requests.put_all(accepted("one", "two", "three", "three"))
    assert again == ["sha256:one", "sha256:two", "sha256:three", "sha256:three"]
    assert await requests.put_all(accepted("one", "three")) == ["sha256:one", "sha256:three"]
    assert [each.decision_id for each in await requests.take()] == ["one", "two", "three"]
    assert told.seen["refused"] == [Refusal.PENDING]
    await requests.aclose()


async def test_of_what_was_accepted_is_gone_what_neither_waits_nor_was_decided(
    valkey_url: str,
) -> None:
    requests, stream = queue(valkey_url), StreamJournal(valkey_url)

    async def writes_nothing(entries: Sequence[Entry]) -> None:
        raise AssertionError(entries)

    drain = StreamDrain(valkey_url, writes_nothing)
    await put(requests, "waits", "sha256:a", b"payload")
    await put(requests, "taken", "sha256:a", b"payload")
    await requests.take()
    await stream.append(event("decided", claim="sha256:a"))
    asked = [(key, "sha256:a") for key in ("waits", "taken", "decided", "never")]
    others = [(key, "sha256:b") for key in ("waits", "decided")]
    assert await drain.forgot([*asked, *others]) == [3, 4, 5]
    with client(valkey_url) as connection:
        connection.flushall()
    assert await drain.forgot(asked) == [0, 1, 2, 3]
    for each in (requests, stream, drain):
        await each.aclose()
