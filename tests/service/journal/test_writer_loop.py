"""The writer's loop: every event reaches the sink, acknowledged only after its commit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from app.domain.errors import InvalidRecord, ShadowLogUnavailable
from app.domain.record.event import Entry, Event
from app.domain.record.link import Fate, Linked
from app.journal import drain as drains
from app.journal.drain import GROUP, StreamDrain
from app.journal.keys import EVENTS, MisplacedKey
from app.journal.stream import StreamJournal
from app.local.servers import EmbeddedValkey
from app.tasks import end
from app.telemetry import UNOBSERVED, Telemetry
from tests.service.journal.journal_events import client, dead_letters, event, keys_in_stream
from tests.service.running import until
from tests.telemetry import Told


class Sink:
    """Stores each event once by key, as the shadow log does; refuses what it is told to refuse."""

    def __init__(self, poison: Sequence[str] = ()) -> None:
        self.rows: dict[str, Event] = {}
        self.deliveries: Counter[str] = Counter()
        self.poison = set(poison)
        self.away = False

    async def __call__(self, entries: Sequence[Entry]) -> None:
        if self.away:
            raise ShadowLogUnavailable("Postgres is away")
        events = [entry for entry in entries if isinstance(entry, Event)]
        for each in events:
            if each.key in self.poison:
                raise InvalidRecord(f"{each.key} does not fit")
        for each in events:
            self.deliveries[each.key] += 1
            self.rows.setdefault(each.key, each)


@asynccontextmanager
async def draining(
    url: str, sink: Sink, telemetry: Telemetry = UNOBSERVED, idle_ms: int = 30_000
) -> AsyncIterator[StreamDrain]:
    drain = StreamDrain(url, sink, telemetry, idle_ms=idle_ms, block_ms=20)
    try:
        yield drain
    finally:
        await drain.aclose()


async def append(url: str, events: Sequence[Event]) -> None:
    stream = StreamJournal(url, timeout_s=5)
    await asyncio.gather(*(stream.append(each) for each in events))
    await stream.aclose()


async def everything(drain: StreamDrain) -> int:
    moved = 0
    while step := await drain.step():
        moved += step
    return moved


def left_behind(url: str) -> int:
    """Entries that are delivered and not acknowledged."""
    with client(url) as connection:
        return int(connection.xpending(EVENTS, GROUP)["pending"])


async def test_everything_moves_in_order_and_nothing_stays(valkey_url: str) -> None:
    events = [event(text=f"é {n}") for n in range(600)]
    await append(valkey_url, events)
    sink, told = Sink(), Told()
    async with draining(valkey_url, sink, told) as drain:
        assert await everything(drain) == 600
    assert list(sink.rows.values()) == events
    assert set(sink.deliveries.values()) == {1}
    assert keys_in_stream(valkey_url) == []
    assert left_behind(valkey_url) == 0
    held = [events for events, _ in told.seen["stream_holds"]]
    assert held == [88, 0, 0]
    assert told.seen["stream_holds"][-1] == (0, 0)


async def test_while_the_sink_is_away_nothing_is_acknowledged(valkey_url: str) -> None:
    events = [event() for _ in range(10)]
    await append(valkey_url, events)
    sink = Sink()
    sink.away = True
    async with draining(valkey_url, sink) as drain:
        for _ in range(3):
            with pytest.raises(ShadowLogUnavailable):
                await drain.step()
        assert keys_in_stream(valkey_url) == [each.key for each in events]
        sink.away = False
        assert await drain.step() == 10
    assert list(sink.rows.values()) == events
    assert left_behind(valkey_url) == 0


async def test_poison_is_put_aside_with_its_reason_and_the_others_pass(valkey_url: str) -> None:
    events = [event() for _ in range(50)]
    poison = [events[n].key for n in (0, 17, 18, 49)]
    await append(valkey_url, events)
    sink, told = Sink(poison), Told()
    async with draining(valkey_url, sink, told) as drain:
        assert await everything(drain) == 50
    assert list(sink.rows) == [each.key for each in events if each.key not in poison]
    letters = dead_letters(valkey_url)
    assert [letter["key"] for letter in letters] == poison
    assert letters[1]["error"] == f"InvalidRecord: {poison[1]} does not fit"
    assert letters[1]["payload"] == events[17].payload.decode()
    assert told.losses == {"rejected_by_database": 4}
    assert keys_in_stream(valkey_url) == []
    assert left_behind(valkey_url) == 0


async def test_a_link_alone_that_is_refused_is_put_aside_without_an_event(valkey_url: str) -> None:
    """A number without an event: there is nothing to keep in the log's `put_aside`."""
    stream = StreamJournal(valkey_url, timeout_s=5)
    await stream.leave(Linked("p", 1, "", "decision", "k", "c", "sha256:aa", Fate.WITHDRAWN))
    await stream.aclose()
    asked: list[Entry] = []

    async def refuses(entries: Sequence[Entry]) -> None:
        asked.extend(entries)
        raise InvalidRecord("no such producer")

    drain = StreamDrain(valkey_url, refuses, block_ms=20)
    assert await drain.backlog() == 1
    assert await everything(drain) == 1
    assert await drain.backlog() == 0
    await drain.aclose()
    assert [type(entry) for entry in asked] == [Linked], "it is not offered once more"
    [letter] = dead_letters(valkey_url)
    assert (letter["key"], letter["fate"]) == ("k", "withdrawn")
    assert letter["error"] == "InvalidRecord: no such producer"


async def test_an_entry_that_is_no_event_is_put_aside(valkey_url: str) -> None:
    await append(valkey_url, [event("one")])
    with client(valkey_url) as connection:
        connection.xadd(EVENTS, {"kind": "gossip", "key": "k", "claim": "c", "payload": "{}"})
        connection.xadd(EVENTS, {"something": "else"})
    await append(valkey_url, [event("two")])
    sink = Sink()
    async with draining(valkey_url, sink) as drain:
        assert await everything(drain) == 4
    assert list(sink.rows) == ["one", "two"]
    assert [letter["error"] for letter in dead_letters(valkey_url)] == [
        "ValueError: 'gossip' is not a valid EventKind",
        "KeyError: b'kind'",
    ]


async def test_an_entry_deleted_by_hand_is_only_acknowledged(valkey_url: str) -> None:
    await append(valkey_url, [event("one"), event("two")])
    sink = Sink()
    sink.away = True
    async with draining(valkey_url, sink) as drain:
        with pytest.raises(ShadowLogUnavailable):
            await drain.step()
        with client(valkey_url) as connection:
            connection.xtrim(EVENTS, maxlen=1, approximate=False)
        sink.away = False
        await drain.step()
    assert list(sink.rows) == ["two"]
    assert left_behind(valkey_url) == 0
    assert dead_letters(valkey_url) == []


async def test_two_writers_share_the_work(valkey_url: str) -> None:
    await append(valkey_url, [event() for _ in range(1500)])
    sink = Sink()
    async with draining(valkey_url, sink) as first, draining(valkey_url, sink) as second:
        moved = await asyncio.gather(everything(first), everything(second))
    assert sum(moved) == 1500
    assert min(moved) > 0
    assert set(sink.deliveries.values()) == {1}


async def test_the_loop_survives_an_outage_of_either_server(tmp_path: Path) -> None:
    sink = Sink()
    with EmbeddedValkey(tmp_path) as server:
        async with draining(server.url, sink) as drain:
            running = asyncio.create_task(drain.run())

            async def appended_and_moved(events: Sequence[Event]) -> None:
                await append(server.url, events)

                async def moved() -> bool:
                    arrived = all(each.key in sink.rows for each in events)
                    return arrived and not keys_in_stream(server.url)

                await until(moved)

            await appended_and_moved([event() for _ in range(10)])
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await appended_and_moved([event() for _ in range(10)])
            with client(server.url) as connection:
                connection.flushall()
            await appended_and_moved([event() for _ in range(10)])
            sink.away = True
            behind = [event() for _ in range(10)]
            await append(server.url, behind)

            async def tried() -> bool:
                return left_behind(server.url) > 0

            await until(tried)
            sink.away = False
            await appended_and_moved(behind)
            await end([running])
            assert running.cancelled()
        assert len(sink.rows) == 40
        assert set(sink.deliveries.values()) == {1}
        assert keys_in_stream(server.url) == []


async def test_what_a_stopped_writer_left_goes_to_another(valkey_url: str) -> None:
    await append(valkey_url, [event() for _ in range(20)])
    entered = asyncio.Event()

    async def hangs(events: Sequence[Entry]) -> None:
        entered.set()
        await asyncio.Event().wait()

    drain = StreamDrain(valkey_url, hangs, block_ms=20)
    running = asyncio.create_task(drain.run())
    await entered.wait()
    await end([running])
    await drain.aclose()
    sink = Sink()
    async with draining(valkey_url, sink, idle_ms=30_000) as patient:
        assert await everything(patient) == 0
    async with draining(valkey_url, sink, idle_ms=0) as heir:
        assert await everything(heir) == 20
    assert set(sink.deliveries.values()) == {1}
    assert left_behind(valkey_url) == 0


async def test_a_writer_that_lies_behind_moves_two_batches_at_once_and_leaves_none_behind(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the sink is away for one of them."""
    monkeypatch.setattr(drains, "BATCH", 4)
    await append(valkey_url, [event() for _ in range(42)])
    stored, under_way, both = Sink(), 0, asyncio.Event()

    async def sink(entries: Sequence[Entry]) -> None:
        nonlocal under_way
        under_way += 1
        try:
            if stored.rows and not both.is_set():  # Behind the first batch, which was a full one.
                if under_way == 2:
                    both.set()
                    raise ShadowLogUnavailable("Postgres is away for this one")
                await both.wait()
            await stored(entries)
        finally:
            under_way -= 1

    drain = StreamDrain(valkey_url, sink, idle_ms=30_000, block_ms=20)
    running = asyncio.create_task(drain.run())

    async def moved() -> bool:
        return len(stored.rows) == 42 and left_behind(valkey_url) == 0

    await until(moved)
    await end([running])
    await drain.aclose()
    assert set(stored.deliveries.values()) == {1}
    assert keys_in_stream(valkey_url) == []


COMMITS_AND_DIES = """
import asyncio, os, signal, sys
import psycopg
from app.journal.drain import StreamDrain

async def sink(events):
    with psycopg.connect(sys.argv[2]) as connection:
        for event in events:
            statement = "INSERT INTO arrived VALUES (%s, 'first') ON CONFLICT DO NOTHING"
            connection.execute(statement, (event.key,))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(StreamDrain(sys.argv[1], sink).run())
"""


async def test_a_writer_killed_between_commit_and_acknowledgement_leaves_one_row_each(
    valkey_url: str, empty_database_url: str
) -> None:
    database = empty_database_url.replace("+psycopg", "")
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE arrived (key text PRIMARY KEY, writer text)")
    await append(valkey_url, [event(f"row-{n}") for n in range(30)])
    command = [sys.executable, "-c", COMMITS_AND_DIES, valkey_url, database]
    died = await asyncio.to_thread(subprocess.run, command, check=False)
    assert died.returncode == -9
    assert left_behind(valkey_url) == 30
    delivered: list[str] = []

    async def sink(events: Sequence[Entry]) -> None:
        with psycopg.connect(database) as connection:
            for each in events:
                assert isinstance(each, Event)
                delivered.append(each.key)
                row = (each.key,)
                connection.execute(
                    "INSERT INTO arrived VALUES (%s, 'second') ON CONFLICT DO NOTHING", row
                )

    heir = StreamDrain(valkey_url, sink, idle_ms=0, block_ms=20)
    assert await everything(heir) == 30
    await heir.aclose()
    assert len(delivered) == 30
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT writer, count(*) FROM arrived GROUP BY writer").fetchall()
    assert rows == [("first", 30)]
    assert keys_in_stream(valkey_url) == []
    assert left_behind(valkey_url) == 0


async def test_a_stream_that_is_none_is_an_error_not_an_empty_batch(valkey_url: str) -> None:
    with client(valkey_url) as connection:
        connection.set(EVENTS, "no stream")
    sink = Sink()
    async with draining(valkey_url, sink) as drain:
        with pytest.raises(MisplacedKey, match="advisor:events in Valkey is a string"):
            await drain.step()
        with client(valkey_url) as connection:
            connection.delete(EVENTS)
        await append(valkey_url, [event("one")])
        assert await drain.step() == 1
    assert list(sink.rows) == ["one"]
