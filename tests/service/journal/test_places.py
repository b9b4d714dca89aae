"""Order of arrival: which of the reports on one subject came last, whatever is away or forgot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.record.event import AgentActionReport, Event, EventKind, content_of
from app.journal import journal as journals
from app.journal.journal import Journal
from app.journal.spool import Spool
from app.journal.stream import NOTHING_YET, Place, StreamJournal
from app.local.servers import EmbeddedValkey
from tests.service.journal.journal_events import client, event

NEVER_S = 3600.0
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@asynccontextmanager
async def started(url: str, directory: Path) -> AsyncIterator[Journal]:
    journal = Journal(StreamJournal(url), Spool(directory, 1 << 20), retry_s=NEVER_S)
    await journal.start()
    try:
        yield journal
    finally:
        await journal.aclose()


class Log:
    """What the shadow log holds of a subject, and how often it was asked."""

    def __init__(self, newest: Place | None = None) -> None:
        self.newest = newest
        self.asked = 0

    async def __call__(self) -> Place | None:
        self.asked += 1
        return self.newest


def test_what_says_the_same_has_the_same_place_and_what_says_otherwise_the_next() -> None:
    assert NOTHING_YET.after("yes") == (1, "yes")
    assert Place(1, "yes").after("yes") == (1, "yes")
    assert Place(1, "yes").after("no") == (2, "no")


async def test_the_stream_counts_what_came_on_a_decision_that_it_remembers(
    valkey_url: str, tmp_path: Path
) -> None:
    async with (
        started(valkey_url, tmp_path / "a") as first,
        started(valkey_url, tmp_path / "b") as second,
    ):
        await first.append(event("d-1"))
        log = Log()
        said = [
            (first, "yes"),
            (second, "yes"),
            (second, "no"),
            (first, "yes"),
            (first, "yes"),
        ]
        places = [await each.place("s", content, "d-1", log) for each, content in said]
        assert places == [1, 1, 2, 3, 3]
        assert log.asked == 0
        assert await first.place("another", "yes", "d-1", log) == 1


async def test_of_a_decision_that_the_stream_forgot_the_log_tells_what_came_before(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        assert await journal.place("s-1", "yes", "forgotten", Log(Place(3, "yes"))) == 3
        assert await journal.place("s-2", "no", "forgotten", Log(Place(3, "yes"))) == 4
        nothing = Log(None)
        assert await journal.place("s-3", "yes", "forgotten", nothing) == 1
        assert await journal.place("s-3", "no", "forgotten", nothing) == 2
        assert nothing.asked == 1, "from then on it is known here"


async def test_while_the_stream_is_away_this_process_and_the_log_count(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    async with started(server.url, tmp_path / "spool") as journal:
        await journal.append(event("d-1"))
        assert await journal.place("s-1", "yes", "d-1", Log()) == 1
        await asyncio.to_thread(server.kill)
        log = Log(Place(7, "no"))
        assert await journal.place("s-1", "no", "d-1", log) == 2, "noticed by this very report"
        assert not journal.reachable
        assert await journal.place("s-1", "yes", "d-1", log) == 3
        assert log.asked == 0
        assert await journal.place("s-2", "no", "d-2", log) == 7
        assert await journal.place("s-3", "yes", "d-3", log) == 8
        assert await journal.place("s-4", "yes", "d-4", Log(None)) == 1


async def test_a_stream_that_threw_keys_away_is_told_what_the_log_holds(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    with client(server.url) as connection:
        used: Any = connection.info("memory")
        connection.config_set("maxmemory-policy", "allkeys-lru")
        connection.config_set("maxmemory", used["used_memory"] + 100_000)
        for number in range(100):
            connection.set(f"filler-{number}", bytes(4_000))
        connection.config_set("maxmemory", 0)
        connection.flushall()
        async with started(server.url, tmp_path / "spool") as journal:
            assert journal.condition.evicted > 0
            await journal.append(event("d-1"))
            log = Log(Place(2, "no"))
            assert await journal.place("s", "yes", "d-1", log) == 3
            assert await journal.place("s", "yes", "d-1", log) == 3
            assert log.asked == 1


async def test_what_was_spooled_is_before_what_comes_through_the_stream_later(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    def report(decision: bool, arrival: int) -> AgentActionReport:
        fields = {"decision_id": UUID(int=8), "recorded_at": NOON, "arrival": arrival}
        return AgentActionReport.from_json(fields | {"action": {"decision": decision}})

    spooled = report(True, 5)
    subject, kind = spooled.subject, EventKind.AGENT_ACTION
    async with (
        started(server.url, tmp_path / "a") as first,
        started(server.url, tmp_path / "b") as second,
    ):
        await asyncio.to_thread(server.kill)
        assert (await first.append(Event.of_report(kind, spooled))).target == "spool"
        await asyncio.to_thread(server.start)
        await first.drain()
        log = Log()
        said = content_of(kind, spooled)
        assert await second.place(subject, said, "d", log) == 5, "the same: a repeat"
        assert await second.place(subject, content_of(kind, report(False, 1)), "d", log) == 6
        assert log.asked == 0


async def test_a_process_remembers_so_many_subjects_and_no_more(tmp_path: Path) -> None:
    journal = Journal(StreamJournal("redis://127.0.0.1:1/0"), Spool(tmp_path, 1 << 20))
    journal.reachable = False
    log = Log(Place(4, "no"))
    for _ in range(journals.REMEMBERED):
        await journal.place(str(uuid4()), "yes", "d", log)
    await journal.place("first", "yes", "d", log)
    assert log.asked == journals.REMEMBERED + 1
    await journal.place("first", "no", "d", log)
    assert log.asked == journals.REMEMBERED + 1
    for _ in range(journals.REMEMBERED):
        await journal.place(str(uuid4()), "yes", "d", log)
    assert await journal.place("first", "yes", "d", log) == 5, "as the log has it"
    assert log.asked == 2 * journals.REMEMBERED + 2
    await journal.aclose()


async def test_the_newest_is_what_this_process_or_the_stream_knows_else_what_the_log_tells(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    async with (
        started(server.url, tmp_path / "a") as first,
        started(server.url, tmp_path / "b") as second,
    ):
        await first.append(event("d-1"))
        log = Log(Place(7, "log"))
        assert await first.newest("s", log) == (7, "log"), "nobody here knows any"
        await first.place("s", "yes", "d-1", log)
        assert await second.newest("s", log) == (1, "yes"), "of the stream"
        await second.place("s", "no", "d-1", log)
        assert await first.newest("s", log) == (2, "no"), "later than what this process knows"
        with client(server.url) as plain:
            plain.set("advisor:newest:odd", "no number")
        assert await first._stream.newest("odd") is None
        await asyncio.to_thread(server.kill)
        assert await first.newest("s", log) == (1, "yes"), "of this process"
        assert not first.reachable
        assert log.asked == 1
        assert await first.newest("another", log) == (7, "log")
