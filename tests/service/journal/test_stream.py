"""The stream: atomic, idempotent, durable, on a real Valkey."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection

from app.domain.errors import InvalidRecord, JournalUnavailable, RequestConflict
from app.domain.record.event import Event, EventKind, StateChange
from app.domain.record.link import Link
from app.domain.rules.case import TradingState
from app.journal.keys import EVENTS, MisplacedKey
from app.journal.stream import (
    NOTHING_YET,
    GroupCommit,
    MemoryReplaced,
    Packing,
    Place,
    Receipt,
    StreamJournal,
    connect,
    entry_of,
    state_change,
)
from app.local.servers import EmbeddedValkey
from app.telemetry import Task
from tests.service.journal.journal_events import cancel_the, client, event, keys_in_stream
from tests.service.running import until
from tests.telemetry import Told

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
async def stream(valkey_url: str) -> AsyncIterator[StreamJournal]:
    journal = StreamJournal(valkey_url, timeout_s=5)
    yield journal
    await journal.aclose()


def state(name: TradingState, at: datetime) -> StateChange:
    return StateChange(recorded_at=at, state=name, reason="test", changed_by="ops")


@pytest.mark.parametrize(
    "command",
    [
        ("EVALSHA", "ä", 4, -1, 0.5, b"\x00\r\n", "", b"p" * 7000),
        ("CONFIG GET", "*append*"),
        (b"PING",),
    ],
)
def test_a_command_is_written_as_redis_py_writes_it(command: tuple[Any, ...]) -> None:
    written = b"".join(Packing().pack_command(*command))
    assert written == b"".join(Connection().pack_command(*command))


def test_a_queue_behind_tls_or_a_socket_is_reached_that_way() -> None:
    for url, kind in (
        ("redis://queue:6379/0", Packing),
        ("rediss://queue:6379/0", SSLConnection),
        ("unix:///run/queue.sock", UnixDomainSocketConnection),
    ):
        assert connect(url, None).connection_pool.connection_class is kind


async def test_while_many_events_wait_what_is_appended_is_packed_and_read_as_it_was(
    stream: StreamJournal, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.journal.stream.MANY", 2)
    events = [event(f"key-{number}", text="x" * 4000) for number in range(4)]
    for each in events:
        assert (await stream.append(each)).repeated is False
    with client(valkey_url) as connection:
        entries: Any = connection.xrange(EVENTS)
    sizes = [len(fields[b"payload"]) for _, fields in entries]
    assert sizes[:2] == [len(events[0].payload)] * 2
    assert max(sizes[2:]) < 100
    assert [entry_of(fields) for _, fields in entries] == events
    assert await stream.find(EventKind.DECISION, "key-3") == events[3].payload
    assert (await stream.append(events[3])).repeated


async def test_an_event_appended_32_times_at_once_is_in_the_stream_once(
    stream: StreamJournal, valkey_url: str
) -> None:
    receipts = await asyncio.gather(*(stream.append(event("one")) for _ in range(32)))
    assert Counter(receipt.repeated for receipt in receipts) == {False: 1, True: 31}
    assert {receipt.target for receipt in receipts} == {"stream"}
    assert keys_in_stream(valkey_url) == ["one"]


async def test_two_clients_at_once_append_an_event_once(
    stream: StreamJournal, valkey_url: str
) -> None:
    other = StreamJournal(valkey_url, timeout_s=5)
    receipts = await asyncio.gather(
        *(journal.append(event("one")) for journal in (stream, other) * 16)
    )
    await other.aclose()
    assert [receipt.repeated for receipt in receipts].count(False) == 1
    assert keys_in_stream(valkey_url) == ["one"]


async def test_the_same_key_with_another_claim_is_a_conflict_and_changes_nothing(
    stream: StreamJournal, valkey_url: str
) -> None:
    await stream.append(event("one", claim="sha256:a"))
    with pytest.raises(RequestConflict, match="decision one"):
        await stream.append(event("one", claim="sha256:b"))
    assert keys_in_stream(valkey_url) == ["one"]
    known = await stream.known(EventKind.DECISION, "one")
    assert known is not None
    assert known.claim == "sha256:a"


async def test_a_key_belongs_to_its_kind(stream: StreamJournal, valkey_url: str) -> None:
    await stream.append(event("one", claim="sha256:a"))
    receipt = await stream.append(event("one", claim="sha256:b", kind=EventKind.OUTCOME))
    assert not receipt.repeated
    assert keys_in_stream(valkey_url) == ["one", "one"]


async def test_in_one_round_trip_each_caller_gets_its_own_result_or_error(
    stream: StreamJournal, valkey_url: str
) -> None:
    await stream.append(event("taken", claim="sha256:a", text="first"))
    with client(valkey_url) as connection:
        connection.lpush("advisor:key:decision:broken", "not a string")
    fresh = [event() for _ in range(30)]
    results = await asyncio.gather(
        *(stream.append(each) for each in fresh[:15]),
        stream.append(event("taken", claim="sha256:b")),
        stream.append(event("broken")),
        stream.find(EventKind.DECISION, "taken"),
        *(stream.append(each) for each in fresh[15:]),
        return_exceptions=True,
    )
    assert isinstance(results[15], RequestConflict)
    assert isinstance(results[16], MisplacedKey)
    assert "advisor:key:decision:broken in Valkey is a list" in str(results[16])
    assert results[17] == b'{"text":"first"}'
    receipts = [result for result in (*results[:15], *results[18:]) if isinstance(result, Receipt)]
    assert [receipt.repeated for receipt in receipts] == [False] * 30
    assert sorted(keys_in_stream(valkey_url)) == sorted(["taken", *(each.key for each in fresh)])


async def test_commands_that_wait_share_a_round_trip(
    stream: StreamJournal, valkey_url: str
) -> None:
    await stream.append(event())
    with client(valkey_url) as connection:
        before = connection.info("stats")["total_reads_processed"]
        await asyncio.gather(*(stream.append(event()) for _ in range(100)))
        reads = connection.info("stats")["total_reads_processed"] - before
    assert reads < 20  # One for INFO, one for the first append, and very few for the 99 behind it.


async def test_a_payload_is_found_until_the_writer_has_moved_it(
    stream: StreamJournal, valkey_url: str
) -> None:
    await stream.append(event("one", claim="sha256:a", text="é\\n" * 1000))
    assert await stream.find(EventKind.DECISION, "one") == event("one", text="é\\n" * 1000).payload
    assert await stream.find(EventKind.DECISION, "two") is None
    with client(valkey_url) as connection:
        connection.xtrim(EVENTS, maxlen=0)
    assert await stream.find(EventKind.DECISION, "one") is None
    known = await stream.known(EventKind.DECISION, "one")
    assert known is not None
    assert known.claim == "sha256:a"
    assert (await stream.append(event("one", claim="sha256:a"))).repeated
    assert keys_in_stream(valkey_url) == []


async def test_the_backlog_is_what_lies_in_the_stream_and_the_age_of_its_oldest(
    stream: StreamJournal, valkey_url: str
) -> None:
    assert await stream.backlog() == (0, 0.0)
    with client(valkey_url) as connection:
        seconds = connection.time()[0]
        connection.xadd(EVENTS, {"kind": "decision"}, id=f"{(seconds - 100) * 1000}-0")
    await stream.append(event())
    entries, oldest = await stream.backlog()
    assert entries == 2
    assert 100 <= oldest < 160


async def test_every_confirmed_append_survives_kill_9(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    stream = StreamJournal(server.url, timeout_s=5)
    confirmed: list[str] = []
    enough = asyncio.Event()

    async def agent() -> None:
        while True:
            mine = event(text="x" * 2000)
            await stream.append(mine)
            confirmed.append(mine.key)
            if len(confirmed) >= 200:
                enough.set()

    agents = [asyncio.create_task(agent()) for _ in range(8)]
    await enough.wait()
    await asyncio.to_thread(server.kill)
    outcomes = await asyncio.gather(*agents, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {JournalUnavailable}
    await asyncio.to_thread(server.start)
    found = Counter(keys_in_stream(server.url))
    assert set(confirmed) <= set(found)
    assert len(found) <= len(confirmed) + 8  # At most what was under way.
    assert set(found.values()) == {1}
    assert (await stream.append(event(confirmed[0]))).repeated
    await stream.aclose()
    server.stop()


async def test_a_reply_that_comes_too_late_is_never_taken_for_another_commands_reply(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path) as server:
        assert server.pid is not None
        stream = StreamJournal(server.url, timeout_s=0.2)
        await stream.append(event("before"))
        os.kill(server.pid, signal.SIGSTOP)
        late = [event(f"late-{n}", claim=f"sha256:late-{n}") for n in range(5)]
        outcomes = await asyncio.gather(
            *(stream.append(each) for each in late), return_exceptions=True
        )
        os.kill(server.pid, signal.SIGCONT)
        assert {type(outcome) for outcome in outcomes} == {JournalUnavailable}
        for n in range(20):
            await stream.append(event(f"after-{n}", claim=f"sha256:after-{n}"))
            known = await stream.known(EventKind.DECISION, f"after-{n}")
            assert known is not None
            assert known.claim == f"sha256:after-{n}"
        for each in late:  # Unknown became known: once, whether or not the server had received it.
            await stream.append(each)
        assert sorted(Counter(keys_in_stream(server.url)).values()) == [1] * 26
        await stream.aclose()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("appendonly", "no", "appendonly is no: set it to yes"),
        ("appendfsync", "everysec", "appendfsync is everysec: set it to always"),
        ("no-appendfsync-on-rewrite", "yes", "no-appendfsync-on-rewrite is yes: set it to no"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is allkeys-lru: set it to noevict"),
    ],
)
async def test_each_setting_that_forgets_is_seen_while_it_runs_and_its_mending_too(
    setting: str, value: str, says: str, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path) as server, client(server.url) as connection:
        stream = StreamJournal(server.url)
        assert await stream.look() == (True, (), 0.0, 0)
        right = str(connection.config_get(setting)[setting])
        connection.config_set(setting, value)
        seen = await stream.look()
        assert seen.durable is False
        assert [fault.startswith(says) for fault in seen.faults] == [True]
        connection.config_set(setting, right)

        async def mended() -> bool:
            return (await stream.look()).durable is True

        await until(mended)
        await stream.aclose()


async def test_little_memory_is_told_before_it_is_gone(valkey_url: str) -> None:
    with client(valkey_url) as connection:
        stream = StreamJournal(valkey_url)
        used = int(connection.info("memory")["used_memory"])
        connection.config_set("maxmemory", int(used * 1.05))
        try:
            seen = await stream.look()
        finally:
            connection.config_set("maxmemory", 0)
        assert seen.durable is True, "what does not fit is refused, and goes to the spool"
        assert 0.9 < seen.memory < 1.1
        assert "of maxmemory is used" in seen.faults[0]
        await stream.aclose()


async def test_a_stream_that_was_emptied_takes_nothing_from_who_knew_it_before(
    valkey_url: str,
) -> None:
    noon = NOON
    stream, other = StreamJournal(valkey_url), StreamJournal(valkey_url)
    memory = await stream.join(noon)
    assert memory.since == noon
    assert await other.join(noon + timedelta(hours=1)) == memory, "begun once, then shared"
    assert memory.covers(noon + timedelta(days=10)) == noon
    assert memory.covers(noon + timedelta(days=40)) == noon + timedelta(days=10), "keys expire"
    await stream.append(event("one"))
    with client(valkey_url) as connection:
        connection.flushall()
    with pytest.raises(MemoryReplaced):
        await stream.append(event("two"))
    anew = await stream.join(noon + timedelta(hours=2))
    assert anew.identity != memory.identity
    await stream.append(event("two"))
    with pytest.raises(MemoryReplaced):
        await other.append(event("three"))
    assert keys_in_stream(valkey_url) == ["two"]
    await stream.aclose()
    await other.aclose()


async def test_a_stream_that_threw_keys_away_remembers_from_now_on_only(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server, client(server.url) as connection:
        stream, other = StreamJournal(server.url), StreamJournal(server.url)
        await stream.look()
        memory = await stream.join(NOON)
        used: Any = connection.info("memory")
        connection.config_set("maxmemory-policy", "allkeys-lru")
        connection.config_set("maxmemory", used["used_memory"] + 100_000)
        for number in range(100):
            connection.set(f"filler-{number}", bytes(4_000))
        later = NOON + timedelta(hours=1)
        connection.config_set("maxmemory", 0)
        for each in (stream, other):
            assert (await each.look()).evicted > 0
        anew = await stream.join(later)
        assert anew.identity != memory.identity
        assert anew.since == later
        assert await other.join(later) == anew, "once for all replicas"
        await stream.look()
        assert await stream.join(later) == anew, "what was seen is not seen again"
        await stream.aclose()
        await other.aclose()


async def test_a_server_that_does_not_tell_its_settings_is_not_called_durable(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path) as server, client(server.url) as connection:
        connection.execute_command(
            "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config"
        )
        managed = StreamJournal(f"redis://app:secret@127.0.0.1:{server.port}/0")
        assert (await managed.look()).durable is None
        connection.config_set("maxmemory-policy", "allkeys-lru")
        assert (await managed.look()).durable is False, "INFO tells this much"
        await managed.append(event("one"))
        assert keys_in_stream(server.url) == ["one"]
        await managed.aclose()


async def test_without_a_server_or_with_a_wrong_password_the_error_says_what_to_check(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path) as server:
        wrong = StreamJournal(f"redis://:wrong@127.0.0.1:{server.port}/0")
        with pytest.raises(
            JournalUnavailable, match=r"invalid username-password pair.*check REDIS_URL"
        ):
            await wrong.append(event())
        await wrong.aclose()
    absent = StreamJournal(server.url)
    with pytest.raises(JournalUnavailable, match="check REDIS_URL"):
        await absent.append(event())
    await absent.aclose()


async def test_setting_the_state_records_it_and_makes_it_live(
    stream: StreamJournal, valkey_url: str
) -> None:
    assert await stream.get_state() is None
    halted, active = (
        state(TradingState.HALTED, NOON),
        state(TradingState.ACTIVE, NOON - timedelta(hours=1)),
    )
    await stream.set_state(halted)
    assert await stream.get_state() == halted
    await stream.set_state(active)  # Who sets it makes it newer than what it knows.
    assert await stream.get_state() == halted
    reducing = state(TradingState.REDUCING, NOON - timedelta(hours=2))
    await stream.set_state(reducing, whatever_lives=True)
    assert await stream.get_state() == reducing
    assert keys_in_stream(valkey_url) == [
        Event.of_state_change(each).key for each in (halted, active, reducing)
    ]


async def test_a_restored_state_is_live_only_when_it_is_newer(
    stream: StreamJournal, valkey_url: str
) -> None:
    live = state(TradingState.HALTED, NOON)
    older = state(TradingState.ACTIVE, NOON - timedelta(microseconds=1))
    newer = state(TradingState.REDUCING, NOON + timedelta(microseconds=1))
    await stream.set_state(live)
    await stream.restore(Event.of_state_change(older))
    assert await stream.get_state() == live
    await stream.restore(Event.of_state_change(newer))
    assert await stream.get_state() == newer
    assert len(keys_in_stream(valkey_url)) == 3


async def test_restoring_what_the_stream_has_already_changes_nothing(
    stream: StreamJournal, valkey_url: str
) -> None:
    await stream.append(event("one", text="answer"))
    await stream.restore(event("one", text="answer"))
    await stream.append(event("two", text="reported at 12:00", kind=EventKind.OUTCOME))
    await stream.restore(event("two", text="reported at 12:01", kind=EventKind.OUTCOME))
    assert keys_in_stream(valkey_url) == ["one", "two"]


async def test_restoring_another_answer_to_a_recorded_decision_is_a_conflict(
    stream: StreamJournal, valkey_url: str
) -> None:
    await stream.append(event("one", text="approve"))
    with pytest.raises(RequestConflict, match="answered twice"):
        await stream.restore(event("one", text="reject"))
    assert keys_in_stream(valkey_url) == ["one"]


def test_an_address_that_is_none_says_how_to_write_one() -> None:
    with pytest.raises(JournalUnavailable, match="write redis://:password@host:6379/0"):
        StreamJournal("postgres://somewhere")


async def test_a_command_that_cannot_be_encoded_fails_alone_and_the_next_ones_pass(
    stream: StreamJournal, valkey_url: str
) -> None:
    with pytest.raises(JournalUnavailable, match="sending was abandoned: UnicodeEncodeError"):
        await stream.append(event("\ud800"))
    assert (await stream.append(event("one"))).repeated is False
    assert keys_in_stream(valkey_url) == ["one"]


async def test_restoring_brings_back_an_event_whose_entry_was_thrown_away(
    stream: StreamJournal, valkey_url: str
) -> None:
    numbered = event("one", text="answer")._replace(link=Link("p", 1, ""))
    await stream.append(numbered)
    with client(valkey_url) as connection:
        connection.delete(EVENTS)  # As eviction does, which left the key of the event.
    await stream.append(numbered)
    assert keys_in_stream(valkey_url) == [], "whoever repeats it leaves a link only"
    await stream.restore(numbered)
    assert keys_in_stream(valkey_url) == ["one"]


@pytest.mark.parametrize("document", [b"", b"{", b"7", b"null"])
def test_a_state_that_is_no_document_cannot_be_read(document: bytes) -> None:
    with pytest.raises(InvalidRecord, match="the trading state cannot be read"):
        state_change(document)


def test_a_state_of_a_newer_release_is_obeyed_without_the_fields_that_only_it_knows() -> None:
    halted = state(TradingState.HALTED, NOON)
    newer = halted.as_json() | {"until": "2027-01-01"}
    assert state_change(orjson.dumps(newer)) == halted
    with pytest.raises(InvalidRecord, match="StateChange: state"):
        state_change(orjson.dumps(newer | {"state": "PANIC"}))


async def test_the_newest_report_on_a_subject_has_its_place_and_one_from_elsewhere_moves_it(
    stream: StreamJournal,
) -> None:
    assert await stream.place("s", "yes", "d", None) is None, "nothing is remembered, nobody told"
    assert await stream.place("s", "yes", "d", NOTHING_YET) == (1, "yes")
    assert await stream.place("s", "no", "d", None) == (2, "no")
    await stream.lift("s", Place(5, "yes"))
    assert await stream.place("s", "yes", "d", None) == (5, "yes")
    await stream.lift("s", Place(3, "no"))
    assert await stream.place("s", "no", "d", None) == (6, "no"), "what is earlier lifts nothing"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fate": "repeat", "digest": "d"}, "a link without its number"),
        ({"fate": "gone"}, "'gone' is not a valid Fate"),
        ({"producer": "p", "seq": "x", "previous": ""}, "invalid literal for int"),
        ({"producer": "p", "previous": ""}, "KeyError.*seq"),
        ({"fate": "aside", "payload": "{}"}, "KeyError.*reason"),
    ],
)
def test_an_entry_that_says_nothing_that_anybody_knows_is_no_event(
    fields: dict[str, str], says: str
) -> None:
    known = {"kind": "decision", "key": "k", "claim": "c"} | fields
    with pytest.raises(InvalidRecord, match=f"not an event: .*{says}"):
        entry_of({name.encode(): value.encode() for name, value in known.items()})


async def test_a_sender_that_is_cancelled_fails_those_who_wait_and_the_next_command_begins_anew(
    valkey_url: str,
) -> None:
    told = Told()
    stream = StreamJournal(valkey_url, 5, told)
    with client(valkey_url) as connection:
        connection.client_pause(60_000, all=False)
        try:
            waiting = asyncio.create_task(stream.append(event("one")))
            await cancel_the(GroupCommit._send)
            with pytest.raises(JournalUnavailable, match=r"abandoned: CancelledError"):
                await waiting
        finally:
            connection.client_unpause()
    assert told.failures == {Task.STREAM_SENDER: 1}
    await stream.append(event("two"))
    assert "two" in keys_in_stream(valkey_url)
    await stream.aclose()
