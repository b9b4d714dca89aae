"""The ledger in Valkey: the newest of what a principal told stays, and nothing is told while it is
not whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from time import time
from typing import Any

import pytest

from app.domain.errors import InvalidRecord, JournalUnavailable
from app.domain.record.event import EventKind
from app.domain.record.ledger import Closed, Opened
from app.journal import journal as journals
from app.journal import ledger
from app.journal.keys import EVENTS
from app.journal.ledger import LEDGER, Entry
from app.journal.segment import SUFFIX
from app.local.servers import EmbeddedValkey
from tests.service.journal.journal_events import client, event
from tests.service.journal.test_places import NOON, started


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


def opened(decision: str, minutes: int = 0, quantity: float = 1.0) -> Entry:
    at = NOON + timedelta(minutes=minutes)
    trade = Opened(symbol="ETHUSDT", quantity=quantity, entry=2000.0, stop=1970.0, at=at)
    return Entry("desk", decision, at, trade)


def closed(decision: str, minutes: int = 1, net: float = 5.0) -> Entry:
    at = NOON + timedelta(minutes=minutes)
    return Entry("desk", decision, at, Closed(at=at, net=net))


def later(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


async def nothing() -> list[Entry]:
    return []


async def test_it_tells_nothing_until_what_is_recorded_was_taken_in(
    valkey_url: str, tmp_path: Path
) -> None:
    asked = 0

    async def recorded() -> list[Entry]:
        nonlocal asked
        asked += 1
        return [opened("d-1"), closed("d-1")]

    async with started(valkey_url, tmp_path) as journal:
        await journal.note(opened("d-2", minutes=3))
        assert await journal.ledger_of("desk") is None
        for _ in range(2):
            await journal.fill_ledger(recorded)
        assert asked == 1
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert {name: note.told_at for name, note in notes.items()} == {
            "d-1": later(1),
            "d-2": later(3),
        }
        assert notes["d-1"].closed == Closed(at=later(1), net=5.0)
        assert notes["d-2"].closed is None
        assert await journal.ledger_of("another") == {}


async def test_the_newer_of_two_reports_stays_in_whichever_order_they_come(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        await journal.fill_ledger(nothing)
        for entry in (opened("d", 5, quantity=2.0), opened("d", 1), closed("d", 2), closed("d", 9)):
            await journal.note(entry)
        await journal.note(Entry("desk", "none", NOON, None))
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert notes["d"].opened == opened("d", 5, quantity=2.0).what
        assert (notes["d"].closed, notes["d"].told_at) == (closed("d", 9).what, later(9))
        assert notes["none"].opened is None


async def test_of_too_many_notes_the_oldest_that_ended_are_forgotten(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MOST", 3)
    async with started(valkey_url, tmp_path) as journal:
        await journal.fill_ledger(nothing)
        for number in range(3):
            await journal.note(opened(f"ended-{number}", number))
            await journal.note(closed(f"ended-{number}", number))
        for number in range(2):
            await journal.note(opened(f"open-{number}"))
        before = await journal.ledger_of("desk")
        assert before is not None
        assert len(before) == 5, "told once more, then forgotten"
        after = await journal.ledger_of("desk")
        assert after is not None
        assert sorted(after) == ["ended-2", "open-0", "open-1"]
        for number in range(2, 5):
            await journal.note(opened(f"open-{number}"))
        for _ in range(3):
            held = await journal.ledger_of("desk")
        assert held is not None
        assert sorted(held) == [f"open-{number}" for number in range(5)], "what is open stays"


async def test_notes_of_one_that_never_asks_for_them_are_bounded_too(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that sends its whole account and turns away a thousand candidates a day."""
    monkeypatch.setattr(ledger, "MOST", 3)
    monkeypatch.setattr(ledger, "MOST_FIELDS", 6)
    monkeypatch.setattr(ledger, "LOOK_EVERY", 2)
    async with started(valkey_url, tmp_path) as journal:
        await journal.fill_ledger(nothing)
        await journal.note(opened("open", minutes=-60))
        await journal.note(opened("open for long", minutes=-40 * 24 * 60))
        for number in range(40):
            await journal.note(Entry("desk", f"none-{number:02}", later(number), None))
        with client(valkey_url) as connection:
            (key,) = connection.keys(f"{LEDGER}:*:desk")
            fields = set(connection.hkeys(key))
            assert len(fields) <= 8
            assert {b"open:opened", b"none-39:opened"} < fields
            assert b"open for long:opened" not in fields
            connection.hset(key, "broken:opened", f"{0:010d} {0:020d} {{")
        for number in range(40, 44):
            await journal.note(Entry("desk", f"none-{number}", later(number), None))


@pytest.mark.parametrize("kind", [EventKind.OUTCOME, EventKind.DECISION])
async def test_what_waits_on_disk_at_a_start_is_told_by_the_record_before_anything_is(
    kind: EventKind, server: EmbeddedValkey, tmp_path: Path
) -> None:
    """Told while the stream was away, by a report or a control with its decision; killed before it
    could be noted."""
    async with started(server.url, tmp_path / "spool") as journal:
        await journal.fill_ledger(nothing)
        await asyncio.to_thread(server.kill)
        await journal.append(event("report", kind=kind))
        await journal.note(closed("d"))
    await asyncio.to_thread(server.start)
    stored: list[Entry] = []

    async def recorded() -> list[Entry]:
        return stored

    async with started(server.url, tmp_path / "spool") as journal:
        await journal.fill_ledger(recorded)
        assert await journal.ledger_of("desk") is None, "it lies on the disk"
        await journal._look_after()
        await journal.fill_ledger(recorded)
        assert journal.spool_depth() == 0
        assert await journal.ledger_of("desk") is None, "it lies in the stream"
        with client(server.url) as connection:
            connection.xtrim(EVENTS, maxlen=0)
        stored.append(closed("d"))
        await journal.fill_ledger(recorded)
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert notes["d"].closed == closed("d").what


async def test_the_record_is_asked_again_until_it_holds_what_was_in_the_stream_at_the_start(
    valkey_url: str, tmp_path: Path
) -> None:
    """Another process was killed between its report and its note."""
    async with started(valkey_url, tmp_path / "dead") as dead:
        await dead.append(event("report", kind=EventKind.AGENT_ACTION))
    stored: list[Entry] = []

    async def recorded() -> list[Entry]:
        return stored

    async with started(valkey_url, tmp_path / "spool") as journal:
        await journal.fill_ledger(recorded)
        assert await journal.ledger_of("desk") == {}
        with client(valkey_url) as connection:
            connection.xtrim(EVENTS, maxlen=0)
        stored.append(opened("d"))
        await journal.fill_ledger(recorded)
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert list(notes) == ["d"]


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
async def test_what_was_in_the_stream_at_the_start_is_told_by_its_order_not_by_a_clock(
    ahead_s: float, valkey_url: str, tmp_path: Path
) -> None:
    """The stream's clock is behind ours, or ahead of it."""
    asked = 0

    async def recorded() -> list[Entry]:
        nonlocal asked
        asked += 1
        return []

    with client(valkey_url) as connection:
        there = f"{int((time() + ahead_s) * 1000)}-0"
        connection.xadd(EVENTS, {"kind": "x"}, id=there)
        async with started(valkey_url, tmp_path) as journal:
            for times in (1, 2, 3):
                await journal.fill_ledger(recorded)
                assert asked == times
            connection.xadd(EVENTS, {"kind": "noted"})
            connection.xdel(EVENTS, there)
            for _ in range(2):
                await journal.fill_ledger(recorded)
                assert asked == 4


async def test_nothing_is_told_while_a_process_beside_has_reports_on_its_disk(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    """Both were without the stream, and the other finds it again first."""
    spool = tmp_path / "spool"
    async with started(server.url, spool) as other:
        async with started(server.url, spool) as journal:
            for each in (journal, other):
                await each.fill_ledger(nothing)
            await journal.note(opened("d"))
            await asyncio.to_thread(server.kill)
            await journal.append(event("report", kind=EventKind.OUTCOME))
            await journal.note(closed("d"))
            await other._look_after()
            await asyncio.to_thread(server.start)
            await other._look_after()
            assert await other.ledger_of("desk") is None
            await journal._look_after()
            await journal.fill_ledger(nothing)
            await other._look_after()
            notes = await other.ledger_of("desk")
            assert notes is not None
            assert notes["d"].closed == closed("d").what
            # Killed before its report was in the stream.
            await asyncio.to_thread(server.kill)
            await journal.append(event("another", kind=EventKind.OUTCOME))
            await other._look_after()
        await asyncio.to_thread(server.start)
        await other._look_after()
        stored: list[Entry] = []

        async def recorded() -> list[Entry]:
            return stored

        await other.fill_ledger(recorded)
        assert await other.ledger_of("desk") is None, "adopted, and in the stream"
        with client(server.url) as connection:
            connection.xtrim(EVENTS, maxlen=0)
        stored.append(closed("e"))
        await other.fill_ledger(recorded)
        notes = await other.ledger_of("desk")
        assert notes is not None
        assert sorted(notes) == ["d", "e"]


async def test_what_is_lacking_while_the_record_is_read_is_read_again(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    """The record was asked before it had it."""
    asked = 0
    async with started(server.url, tmp_path / "spool") as journal:

        async def recorded() -> list[Entry]:
            nonlocal asked
            asked += 1
            if asked == 1:
                await journal.lack("report")
                return []
            return [closed("d")]

        await journal.fill_ledger(recorded)
        assert await journal.ledger_of("desk") is None
        await journal.fill_ledger(recorded)
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert list(notes) == ["d"]

        # The stream goes away before the others could be told.
        await journal.append(event("another", kind=EventKind.OUTCOME))
        await asyncio.to_thread(server.kill)
        await journal.lack("another")
        await asyncio.to_thread(server.start)
        await journal._look_after()
        assert await journal.ledger_of("desk") is None
        await journal.fill_ledger(recorded)
        assert await journal._stream.ledger().lacks() is not None


async def test_what_others_cannot_be_told_is_lacking_is_told_with_the_next_look(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        await journal.fill_ledger(nothing)
        await journal.append(event("report", kind=EventKind.OUTCOME))

        async def fails(*_: object) -> None:
            raise JournalUnavailable("a test")

        with monkeypatch.context() as patched:
            patched.setattr(ledger.Ledger, "lack", fails)
            await journal.lack("report")
            with pytest.raises(JournalUnavailable):
                await journal.fill_ledger(nothing)
        assert await journal._stream.ledger().lacks() is None
        journal.reachable = False
        await journal.lack("another")
        journal.reachable = True
        assert await journal._stream.ledger().lacks() is None
        await journal.fill_ledger(nothing)
        assert await journal._stream.ledger().lacks() is not None
        assert await journal.ledger_of("desk") is None


async def test_a_look_that_began_before_more_was_lacking_says_nothing_of_it(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        look = journal._stream.ends

        async def meanwhile() -> object:
            found = await look()
            monkeypatch.setattr(journal._stream, "ends", look)
            await journal.append(event("report", kind=EventKind.OUTCOME))
            await journal.lack("report")
            return found

        monkeypatch.setattr(journal._stream, "ends", meanwhile)
        await journal.fill_ledger(nothing)
        assert await journal.ledger_of("desk") is None
        await journal.fill_ledger(nothing)
        assert await journal.ledger_of("desk") is None, "it still lies in the stream"


async def test_a_segment_that_is_gone_when_it_is_looked_at_waits_no_more(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        (tmp_path / f"1-gone{SUFFIX}").symlink_to(tmp_path / "nowhere")
        assert not await journal._spool.others_wait()


async def test_what_a_forgetful_stream_has_too_and_a_disk_that_fails_keep_no_ledger_untold(
    server: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    with client(server.url) as connection:
        connection.config_set("appendfsync", "everysec")
    async with started(server.url, spool) as journal, started(server.url, spool) as other:
        await journal.append(event("report", kind=EventKind.OUTCOME))
        assert journal.spool_depth() == 1
        for each in (journal, other):
            await each._look_after()
            await each.fill_ledger(nothing)
        assert await other.ledger_of("desk") == {}
        with client(server.url) as connection:
            connection.config_set("appendfsync", "always")
        await other._look_after()
        assert await other.ledger_of("desk") is None

        def broken() -> bool:
            raise OSError("a test")

        monkeypatch.setattr(other._spool, "_others_wait", broken)
        await other._look_after()
        assert await other.ledger_of("desk") == {}


async def test_what_one_process_could_not_note_no_process_tells_without(
    valkey_url: str, tmp_path: Path
) -> None:
    stored: list[Entry] = []

    async def recorded() -> list[Entry]:
        return stored

    async with (
        started(valkey_url, tmp_path / "one") as one,
        started(valkey_url, tmp_path / "two") as two,
    ):
        for each in (one, two):
            await each.fill_ledger(recorded)
            assert await each.ledger_of("desk") == {}
        await one.append(event("report", kind=EventKind.OUTCOME))
        await one.lack("report")
        await two.append(event("later", kind=EventKind.AGENT_ACTION))
        for each in (one, two):
            await each.fill_ledger(recorded)
            assert await each.ledger_of("desk") is None
        with client(valkey_url) as connection:
            entries: Any = connection.xrange(EVENTS)
            assert len(entries) == 2
            connection.xdel(EVENTS, entries[0][0])
        stored.append(closed("d"))
        await two.fill_ledger(recorded)
        told = await two.ledger_of("desk")
        assert told is not None
        assert told["d"].closed == closed("d").what
        assert await one.ledger_of("desk") is None, "it looks for itself"
        await one.fill_ledger(recorded)
        assert await one.ledger_of("desk") == told


async def test_while_the_stream_is_away_reports_wait_and_nothing_is_told(
    server: EmbeddedValkey, tmp_path: Path
) -> None:
    async with started(server.url, tmp_path / "spool") as journal:
        await journal.fill_ledger(nothing)
        await asyncio.to_thread(server.kill)
        assert await journal.ledger_of("desk") is None, "noticed by this very question"
        await journal.note(opened("d"))
        journal.reachable = False
        await journal.note(closed("d"))
        await journal.fill_ledger(nothing)
        assert await journal.ledger_of("desk") is None
        await asyncio.to_thread(server.start)
        await journal._look_after()
        await journal.fill_ledger(nothing)
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert (notes["d"].opened, notes["d"].closed) == (opened("d").what, closed("d").what)


async def test_of_more_reports_than_can_wait_the_record_tells_the_rest(
    server: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "REMEMBERED", 2)

    async def recorded() -> list[Entry]:
        return [opened("d-0")]

    async with started(server.url, tmp_path / "spool") as journal:
        await journal.fill_ledger(nothing)
        journal.reachable = False
        for number in range(3):
            await journal.note(opened(f"d-{number}"))
        journal.reachable = True
        await journal.fill_ledger(recorded)
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert sorted(notes) == ["d-0", "d-1", "d-2"]


async def test_what_a_release_before_kept_is_left_alone_and_told_again_by_the_record(
    valkey_url: str, tmp_path: Path
) -> None:
    async def recorded() -> list[Entry]:
        return [opened("d-1")]

    async with started(valkey_url, tmp_path) as journal:
        assert journal.memory is not None
        with client(valkey_url) as connection:
            before = f"advisor:ledger:{journal.memory.identity}"
            connection.set(before, "whole")
            connection.hset(f"{before}:desk", "d-1:opened", f"{1:020d} null")
        assert await journal.ledger_of("desk") is None
        await journal._look_after()
        await journal.fill_ledger(recorded)
        notes = await journal.ledger_of("desk")
        assert notes is not None
        assert notes["d-1"].opened == opened("d-1").what


async def test_a_note_that_is_none_is_an_error_not_an_account(
    valkey_url: str, tmp_path: Path
) -> None:
    async with started(valkey_url, tmp_path) as journal:
        await journal.fill_ledger(nothing)
        await journal.note(opened("d"))
        with client(valkey_url) as connection:
            [key] = connection.keys(f"{LEDGER}:*:desk")
            connection.hset(key, "d:opened", "0000000001 00000000000000000001 {")
        with pytest.raises(InvalidRecord, match="the ledger cannot be read"):
            await journal.ledger_of("desk")
