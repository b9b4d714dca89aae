"""The journal: the stream, or the spool while it is away; whatever it confirmed arrives exactly
once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.domain.errors import JournalUnavailable, RequestConflict, ShadowLogUnavailable
from app.domain.record.event import Event, EventKind, StateChange
from app.domain.rules.case import TradingState
from app.journal.journal import Journal
from app.journal.segment import SUFFIX
from app.journal.spool import Spool
from app.journal.stream import Receipt, StreamJournal
from app.local.servers import EmbeddedValkey
from app.telemetry import UNOBSERVED, Task, Telemetry
from tests.service.journal.journal_events import client, dead_letters, event, keys_in_stream
from tests.service.running import until
from tests.telemetry import Told

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
NEVER_S = 3600.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server of the test's own, to be stopped and started."""
    server = EmbeddedValkey(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def started(
    url: str,
    directory: Path,
    *,
    timeout_s: float = 0.5,
    retry_s: float = 0.05,
    max_bytes: int = 1 << 26,
    telemetry: Telemetry = UNOBSERVED,
    **more: Any,
) -> AsyncIterator[Journal]:
    spool = Spool(directory, max_bytes, telemetry)
    journal = Journal(StreamJournal(url, timeout_s), spool, telemetry, retry_s=retry_s, **more)
    await journal.start()
    try:
        yield journal
    finally:
        await journal.aclose()


async def emptied(journal: Journal) -> None:
    """Wait until nothing is left in the spool."""

    async def empty() -> bool:
        return journal.spool_depth() == 0

    await until(empty)


async def test_with_a_stream_nothing_is_spooled(valkey_url: str, tmp_path: Path) -> None:
    async with started(valkey_url, tmp_path) as journal:
        assert journal.reachable
        assert journal.durable is True
        receipt = await journal.append(event("one", text="payload"))
        assert receipt == Receipt("stream", False)
        assert (await journal.append(event("one", text="payload"))).repeated
        assert await journal.claim_of("one") == "sha256:a"
        assert await journal.find("one") == b'{"text":"payload"}'
        assert await journal.claim_of("two") is None
        assert await journal.backlog() > (0, 0.0)
        assert journal.spool_depth() == 0
        assert list(tmp_path.iterdir()) == []


async def test_without_a_stream_the_spool_answers_for_it_and_drains_when_it_is_there(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    server.stop()
    events = [event(text=f"payload {n}") for n in range(10)]
    async with started(server.url, tmp_path / "spool") as journal:
        assert not journal.reachable
        assert journal.durable is None
        for each in events:
            assert await journal.append(each) == Receipt("spool", False)
        assert await journal.append(events[3]) == Receipt("spool", True)
        with pytest.raises(RequestConflict):
            await journal.append(event(events[3].key, claim="sha256:b"))
        assert await journal.find(events[3].key) == b'{"text":"payload 3"}'
        assert await journal.claim_of(events[3].key) == "sha256:a"
        assert await journal.find("unknown") is None
        with pytest.raises(JournalUnavailable):
            await journal.ping()
        await journal.ping_spool()
        assert journal.spool_depth() == 10
        await asyncio.to_thread(server.start)
        await emptied(journal)
        assert journal.reachable
        assert journal.durable is True
        assert keys_in_stream(server.url) == [each.key for each in events]
        assert await journal.find(events[3].key) == b'{"text":"payload 3"}'
        assert await journal.append(events[3]) == Receipt("stream", True)
        assert list((tmp_path / "spool").iterdir()) == []


async def test_a_server_killed_in_the_middle_of_a_load_costs_nothing(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    async with started(server.url, tmp_path / "spool") as journal:
        confirmed: Counter[str] = Counter()
        targets: Counter[str] = Counter()

        async def agent() -> None:
            while True:
                mine = event(text="x" * 2000)
                receipt = await journal.append(mine)
                confirmed[mine.key] += 1
                targets[receipt.target] += 1

        async def reached(target: str, number: int) -> None:
            async def enough() -> bool:
                return targets[target] >= number

            await until(enough)

        agents = [asyncio.create_task(agent()) for _ in range(8)]
        for outage in (1, 2):
            await reached("stream", 200 * outage)
            await asyncio.to_thread(server.kill)
            await reached("spool", targets["spool"] + 100)
            await asyncio.to_thread(server.start)
        await reached("stream", targets["stream"] + 200)
        for task in agents:
            task.cancel()
        outcomes = await asyncio.gather(*agents, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        await emptied(journal)
        found = Counter(keys_in_stream(server.url))
        assert set(confirmed) <= set(found)
        assert (
            len(found) <= len(confirmed) + 8
        )  # An agent cancelled in the middle may have been recorded.
        assert set(found.values()) == {1}


async def test_an_append_of_unknown_effect_is_spooled_and_arrives_once(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    async with started(server.url, tmp_path / "spool", timeout_s=0.2) as journal:
        await journal.append(event("before"))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        assert await journal.append(event("unknown")) == Receipt("spool", False)
        assert await journal.append(event("during")) == Receipt("spool", False)
        os.kill(server.pid, signal.SIGCONT)
        await emptied(journal)
        assert sorted(keys_in_stream(server.url)) == ["before", "during", "unknown"]
        assert await journal.append(event("unknown")) == Receipt("stream", True)


async def test_only_the_first_request_waits_for_a_server_that_does_not_answer(
    tmp_path: Path,
) -> None:
    connections = 0
    end = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await end.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as blackhole:
        url = f"redis://127.0.0.1:{blackhole.sockets[0].getsockname()[1]}/0"
        async with started(url, tmp_path, timeout_s=0.1, retry_s=NEVER_S) as journal:
            at_start = connections
            for _ in range(20):
                assert (await journal.append(event())).target == "spool"
                assert await journal.find("unknown") is None
                assert await journal.claim_of("unknown") is None
            assert connections == at_start == 1
        end.set()


async def test_where_neither_takes_it_nothing_is_confirmed(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    told = Told()
    async with started(server.url, tmp_path / "spool", max_bytes=5000, telemetry=told) as journal:
        await asyncio.to_thread(server.kill)
        assert (await journal.append(event("small"))).target == "spool"
        with pytest.raises(JournalUnavailable, match="the limit is 5000"):
            await journal.append(event("large", text="x" * 5000))
        assert told.losses == {"spool_full": 1}
        await asyncio.to_thread(server.start)
        await emptied(journal)
        assert keys_in_stream(server.url) == ["small"]


async def test_the_next_process_drains_what_the_last_one_spooled(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    await asyncio.to_thread(server.kill)
    async with started(server.url, tmp_path / "spool") as journal:
        await journal.append(event("one"))
    await asyncio.to_thread(server.start)
    async with started(server.url, tmp_path / "spool") as journal:
        await emptied(journal)
        assert keys_in_stream(server.url) == ["one"]


async def test_a_living_process_drains_what_a_dead_one_left(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path):
        dying = Spool(tmp_path, 1 << 20)
        await dying.open()
        await dying.append(event("one"))
        await dying.aclose()

        async def arrived() -> bool:
            return keys_in_stream(valkey_url) == ["one"]

        await until(arrived)
        assert keys_in_stream(valkey_url) == ["one"], "once"


async def test_when_two_replicas_answered_one_id_the_second_answer_is_put_aside_and_counted(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    told = Told()
    await asyncio.to_thread(server.kill)
    async with (
        started(server.url, tmp_path / "a", retry_s=NEVER_S) as first,
        started(server.url, tmp_path / "b", retry_s=NEVER_S, telemetry=told) as second,
    ):
        await first.append(event("one", claim="sha256:a", text="approve"))
        await second.append(event("one", claim="sha256:a", text="reject"))
        await second.append(event("two"))
        await asyncio.to_thread(server.start)
        await first.drain()
        await second.drain()
        assert told.losses == {"duplicate_conflict": 1}
        assert keys_in_stream(server.url) == ["one", "two"]
        assert second.spool_depth() == 0
        [letter] = dead_letters(server.url)
        assert (letter["key"], letter["payload"]) == ("one", '{"text":"reject"}')
        assert "answered twice" in letter["error"]


async def test_a_state_set_while_the_stream_is_away_is_live_when_it_is_back_unless_a_newer_one_is(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    def change(name: TradingState, minutes: int) -> StateChange:
        at = NOON + timedelta(minutes=minutes)
        return StateChange(recorded_at=at, state=name, reason="test", changed_by="ops")

    reducing, halted, active = (change(name, n) for n, name in enumerate(reversed(TradingState)))
    async with (
        started(server.url, tmp_path / "a", retry_s=NEVER_S) as first,
        started(server.url, tmp_path / "b", retry_s=NEVER_S) as second,
    ):
        assert await first.set_state(reducing) == Receipt("stream", False)
        await asyncio.to_thread(server.kill)
        assert await first.set_state(halted) == Receipt("spool", False)
        assert await second.set_state(active) == Receipt("spool", False)
        with pytest.raises(JournalUnavailable):
            await first.get_state()
        await asyncio.to_thread(server.start)
        assert await first.get_state() == reducing
        await second.drain()
        assert await first.get_state() == active
        await first.drain()
        assert await first.get_state() == active
        assert len(keys_in_stream(server.url)) == 3


async def test_an_interrupted_drain_starts_again_and_repeats_nothing(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    await asyncio.to_thread(server.kill)
    async with started(server.url, tmp_path / "spool", retry_s=NEVER_S) as journal:
        events = [event(text="x" * 2000) for _ in range(500)]
        await asyncio.gather(*(journal.append(each) for each in events))
        await asyncio.to_thread(server.start)
        draining = asyncio.create_task(journal.drain())

        async def begun() -> bool:
            return (await journal.backlog())[0] > 0

        await until(begun)
        await asyncio.to_thread(server.kill)
        with pytest.raises(JournalUnavailable):
            await draining
        assert journal.spool_depth() == 500
        await asyncio.to_thread(server.start)
        assert len(keys_in_stream(server.url)) < 500
        await journal.drain()
        assert keys_in_stream(server.url) == [each.key for each in events]
        assert journal.spool_depth() == 0


async def test_events_of_every_kind_pass_through_the_spool_unchanged(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    await asyncio.to_thread(server.kill)
    kinds = [kind for kind in EventKind if kind is not EventKind.STATE_CHANGE]
    async with started(server.url, tmp_path / "spool") as journal:
        for kind in kinds:
            await journal.append(event("same key", text=f'é \\" {kind}', kind=kind))
        await asyncio.to_thread(server.start)
        await emptied(journal)
        stream = StreamJournal(server.url)
        for kind in kinds:
            assert await stream.find(kind, "same key") == f'{{"text":"é \\" {kind}"}}'.encode()
        await stream.aclose()


async def test_a_stream_that_goes_away_during_a_look_knows_nothing(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    for name in ("claim_of", "find"):
        async with started(server.url, tmp_path / name, retry_s=NEVER_S) as journal:
            await journal.append(event("one"))
            await asyncio.to_thread(server.kill)
            assert await getattr(journal, name)("one") is None
            assert not journal.reachable
            await asyncio.to_thread(server.start)


async def test_a_stream_that_does_not_fsync_every_write_is_told(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    with client(server.url) as connection:
        connection.config_set("appendfsync", "everysec")
    with capture_logs() as logs:
        async with started(server.url, tmp_path / "spool") as journal:
            assert journal.reachable
            assert journal.durable is False
    assert logs[0]["faults"] == ["appendfsync is everysec: set it to always"]


async def test_what_a_forgetful_stream_takes_is_on_disk_until_the_shadow_log_has_it(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    stored: set[str] = set()

    async def holds(events: Sequence[Event]) -> bool:
        return {each.key for each in events} <= stored

    with client(server.url) as connection:
        async with started(server.url, tmp_path / "spool", holds=holds) as journal:
            assert await journal.append(event("before")) == Receipt("stream", False)
            connection.config_set("appendonly", "no")

            async def told() -> bool:
                return journal.durable is False

            await until(told)
            assert await journal.append(event("one", text="1")) == Receipt("spool", False)
            assert await journal.append(event("one", text="1")) == Receipt("spool", True)
            assert await journal.append(event("two", text="2")) == Receipt("spool", False)
            assert keys_in_stream(server.url) == ["before", "one", "two"], "for its one key space"
            connection.flushall()

            async def lent_again() -> bool:
                return sorted(keys_in_stream(server.url)) == ["one", "two"]

            await until(lent_again)
            assert journal.spool_depth() == 2
            stored |= {"one", "two"}
            await emptied(journal)
            assert await journal.append(event("three", text="3")) == Receipt("spool", False)
            connection.config_set("appendonly", "yes")
            await emptied(journal)
            assert journal.durable is True
            assert await journal.append(event("four")) == Receipt("stream", False)
    assert sorted(keys_in_stream(server.url)) == ["four", "one", "three", "two"]


async def test_an_event_that_cannot_be_read_again_keeps_its_segment_and_is_told(
    valkey_url: str, tmp_path: Path
) -> None:
    before = Spool(tmp_path, 1 << 20)
    await before.open()
    await before.append(event("broken", text="no change", kind=EventKind.STATE_CHANGE))
    await before.aclose()
    with capture_logs() as logs:
        async with started(valkey_url, tmp_path) as journal:

            async def told_twice() -> bool:
                return [log["event"] for log in logs].count(
                    "background task failed, it is tried again"
                ) >= 2

            await until(told_twice)
            assert "InvalidRecord" in journal.failing()[Task.SPOOL_DRAIN]
            assert journal.spool_depth() == 1
            assert (await journal.append(event("one"))).target == "stream"


async def test_a_journal_that_was_never_started_closes(valkey_url: str, tmp_path: Path) -> None:
    journal = Journal(StreamJournal(valkey_url), Spool(tmp_path, 1 << 20))
    await journal.aclose()
    assert list(tmp_path.iterdir()) == []


async def test_a_spool_that_cannot_be_used_keeps_nobody_from_starting_while_the_stream_is_up(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    orphan = tmp_path / "spool" / f"00000000000000000001-dead{SUFFIX}"
    orphan.mkdir(parents=True)  # Neither readable nor writable as a file, also for root.
    async with started(server.url, tmp_path / "spool") as journal:
        assert (await journal.append(event("one"))).target == "stream"
    server.kill()
    journal = Journal(StreamJournal(server.url), Spool(tmp_path / "spool", 1 << 20))
    with pytest.raises(JournalUnavailable, match="spool"):
        await journal.start()
    await journal.aclose()


async def test_without_a_shadow_log_to_ask_what_a_forgetful_stream_takes_stays_on_disk(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    async def away(events: Sequence[Event]) -> bool:
        raise ShadowLogUnavailable("Postgres is away")

    with client(server.url) as connection:
        connection.config_set("appendonly", "no")
        ways: dict[str, dict[str, Any]] = {"unasked": {}, "away": {"holds": away}}
        for name, more in ways.items():
            async with started(server.url, tmp_path / name, retry_s=NEVER_S, **more) as journal:
                assert journal.durable is False
                assert (await journal.append(event(name))).target == "spool"
                for _ in range(2):
                    await journal.drain()
                assert journal.spool_depth() == 1
    assert keys_in_stream(server.url) == ["unasked", "away"], "lent once, as long as it is there"


async def test_every_key_is_remembered_since_the_stream_began_or_while_it_is_away_since_the_start(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    first, now = NOON, NOON + timedelta(days=3)
    async with started(server.url, tmp_path / "a", retry_s=NEVER_S, now=lambda: first):
        pass
    async with started(server.url, tmp_path / "b", retry_s=NEVER_S, now=lambda: now) as journal:
        assert journal.remembers_since == first
        await asyncio.to_thread(server.kill)
        assert (await journal.append(event())).target == "spool"
        assert journal.remembers_since == now
    async with started(server.url, tmp_path / "c", retry_s=NEVER_S, now=lambda: first) as blind:
        assert blind.remembers_since == first
        assert blind.memory is None


async def test_of_the_changes_of_state_that_wait_on_disk_the_newest_counts(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    def change(state: TradingState, minutes: int) -> StateChange:
        at = NOON + timedelta(minutes=minutes)
        return StateChange(recorded_at=at, state=state, reason="test", changed_by="ops")

    halted, active = change(TradingState.HALTED, 2), change(TradingState.ACTIVE, 1)
    await asyncio.to_thread(server.kill)
    async with started(server.url, tmp_path / "spool", retry_s=NEVER_S) as journal:
        assert await journal.spooled_state() is None
        await journal.append(event("no state"))
        for each in (halted, active):
            assert await journal.set_state(each) == Receipt("spool", False)
        assert await journal.spooled_state() == halted


async def test_a_stream_that_was_emptied_is_asked_anew_for_a_decision_and_not_for_a_report(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    """Whether a decision's id is known was asked of the memory that is gone."""
    with client(server.url) as connection, capture_logs() as logs:
        async with (
            started(server.url, tmp_path / "a", retry_s=NEVER_S) as asks,
            started(server.url, tmp_path / "b", retry_s=NEVER_S) as reports,
        ):
            connection.flushall()
            with pytest.raises(JournalUnavailable, match=r"Valkey was emptied.*ask again"):
                await asks.append(event("decision"))
            assert asks.spool_depth() == 0
            report = event("report", kind=EventKind.OUTCOME)
            assert (await reports.append(report)).target == "spool"
            for each in (asks, reports):
                await each._look_after()
                assert each.reachable
            assert (await asks.append(event("decision"))).target == "stream"
            assert reports.spool_depth() == 0
    assert sorted(keys_in_stream(server.url)) == ["decision", "report"]
    emptied_told = [log for log in logs if log["event"].startswith("Valkey was emptied")]
    assert len(emptied_told) == 2, "each process noticed"


async def test_why_the_spool_waits_is_said_once_however_often_it_is_tried(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with started("redis://127.0.0.1:1/0", tmp_path, retry_s=600) as journal:
            for _ in range(3):
                await journal._look_after()
    assert [line["event"] for line in logs].count("spool waits") == 1
