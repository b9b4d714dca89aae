"""A request that was answered 202 is decided, waits, or is named as lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from redis.exceptions import RedisError

from app.domain.errors import JournalUnavailable
from app.domain.record.event import Entry, Event
from app.domain.record.link import Fate, Producer
from app.journal.drain import StreamDrain
from app.journal.journal import Journal
from app.journal.later import RequestQueue
from app.journal.spool import Spool
from app.journal.stream import AcceptedRequest, StreamJournal
from app.shadow_log.appending.promises import Promises, newest_link
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.findings import Fault
from app.shadow_log.proof.verify import verify_log
from app.telemetry import UNOBSERVED
from app.writer import GONE_S, Writer
from tests import builders as build
from tests.service.journal.journal_events import client
from tests.service.running import until
from tests.service.shadow_log.older_backup import back_up, restore


class Way:
    """A replica's journal and queue, and a writer with a clock, moved by hand."""

    def __init__(self, valkey_url: str, database_url: str, spool: Path) -> None:
        self.now = 0.0
        self.journal = Journal(StreamJournal(valkey_url), Spool(spool, 10_000_000), retry_s=0.02)
        self.queue = RequestQueue(valkey_url, block_ms=20)
        self.log = ShadowLog.connect(database_url)
        self.drain = StreamDrain(valkey_url, self._write, block_ms=10)
        self.writer = Writer(valkey_url, self.log, UNOBSERVED, clock=lambda: self.now)

    async def _write(self, entries: Sequence[Entry]) -> None:
        await self.log.append(entries)

    async def accept(self, *keys: str) -> list[Event]:
        """As the service does before it answers 202; the decisions that are to come."""
        events = [build.decision_event(key) for key in keys]
        requests = [AcceptedRequest(each.key, each.claim, b"{}") for each in events]
        await self.queue.put_all(requests)
        await self.journal.promise(requests)
        return events

    async def write(self) -> None:
        with suppress(RedisError):  # A group that went with the data is made anew.
            await self.drain.step()
        while await self.drain.step():
            pass

    async def watch_for(self, seconds: float) -> int:
        """What the writer counts as missing that much later."""
        await self.writer.watch()
        self.now += seconds
        return await self.writer.watch()

    async def aclose(self) -> None:
        for part in (self.journal, self.queue, self.drain, self.writer):
            await part.aclose()


@pytest.fixture
async def way(valkey_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Way]:
    made = Way(valkey_url, database_url, tmp_path)
    await made.journal.start()
    yield made
    await made.aclose()


async def test_an_accepted_request_waits_as_long_as_its_queue_holds_it(
    way: Way, database_url: str
) -> None:
    [first, _] = await way.accept("one", "two")
    await way.write()
    assert await way.watch_for(3600.0) == 0
    report = await verify_log(database_url)
    assert report.findings == []
    assert report.chain_summary() == (
        "2 links of 1 producer, 0 events missing, 2 accepted requests undecided"
    )
    taken, _ = await way.queue.take()
    await way.journal.append(first)
    await way.queue.done(taken)
    assert await way.watch_for(3600.0) == 0, "its decision is on its way"
    await way.write()
    assert await way.watch_for(3600.0) == 0
    assert (await verify_log(database_url)).waiting == 1


async def test_what_is_lost_with_valkey_after_its_link_was_moved_is_named_and_counted(
    way: Way, valkey_url: str, database_url: str
) -> None:
    events = await way.accept("one", "two")
    await way.write()
    assert await way.writer.watch() == 0
    with client(valkey_url) as connection:
        connection.flushall()
    assert await way.watch_for(GONE_S / 2) == 0, "it may lie in a spool"
    assert await way.watch_for(GONE_S) == 2
    assert await way.watch_for(GONE_S) == 2, "each is counted once"
    report = await verify_log(database_url)
    assert report.missing == 2
    assert report.counts == {Fault.FORGOTTEN: 2}
    assert {each.partition(":")[0] for each in report.findings} == {
        f"decision {event.key}" for event in events
    }
    assert report.waiting == 0
    # Who asks again under the same id is decided, and nothing is missing any more.
    await way.log.append([events[0]])
    assert await way.writer.watch() == 1
    assert (await verify_log(database_url)).missing == 1


async def test_what_is_lost_with_valkey_together_with_its_link_is_a_gap(
    way: Way, valkey_url: str, database_url: str
) -> None:
    await way.journal.append(build.decision_event("kept"))
    await way.write()
    await way.accept("one", "two", "three")
    numbered = way.journal.numbered()
    assert numbered is not None
    assert numbered[1] == 4
    await way.log.note_head(*numbered)
    with client(valkey_url) as connection:
        connection.flushall()
    assert await way.writer.watch() == 3
    report = await verify_log(database_url)
    assert (report.missing, set(report.counts)) == (3, {Fault.GAP})


async def test_a_decision_that_lay_in_a_spool_meanwhile_is_not_lost(
    way: Way, valkey_url: str, database_url: str
) -> None:
    [event] = await way.accept("one")
    await way.write()
    with client(valkey_url) as connection:
        connection.flushall()
    await way.writer.watch()

    async def appended() -> bool:
        with suppress(JournalUnavailable):  # The journal looks at the new memory first.
            await way.journal.append(event)
            return True
        return False

    await until(appended)
    assert await way.watch_for(GONE_S) == 0
    await way.write()
    assert await way.watch_for(GONE_S) == 0
    assert (await verify_log(database_url)).findings == []


async def test_an_id_that_was_decided_with_other_content_does_not_hide_an_accepted_one(
    way: Way, valkey_url: str, database_url: str
) -> None:
    [event] = await way.accept("one")
    [taken] = await way.queue.take()
    await way.journal.append(event._replace(claim="sha256:other"))
    await way.queue.put_aside(taken, "decided otherwise")
    await way.write()
    assert await way.watch_for(GONE_S) == 1
    assert await way.log.forgotten() == 1


async def test_what_nobody_was_promised_is_not_missed(way: Way, database_url: str) -> None:
    """Its number was withdrawn: the caller was told that nothing was accepted."""
    producer, event = Producer(), build.decision_event("one")
    linked = producer.link(event.kind.value, event.key, event.claim, "sha256:00")
    await way.log.append([linked._replace(fate=fate) for fate in (Fate.ACCEPTED, Fate.WITHDRAWN)])
    assert await way.watch_for(GONE_S) == 0
    assert (await verify_log(database_url)).chain_summary() == (
        "2 links of 1 producer, 0 events missing"
    )


async def test_a_link_that_commits_late_is_not_passed_over(way: Way, database_url: str) -> None:
    """A writer that is slow to commit has the lower id."""
    producer = Producer()
    links = [
        producer.link("decision", key, f"sha256:{key}", "")._replace(fate=Fate.ACCEPTED)
        for key in ("slow", "fast")
    ]
    plain = database_url.replace("+psycopg", "")
    with psycopg.connect(plain) as slow:
        slow.execute("INSERT INTO link_producers (name) VALUES (%s)", [producer.name])
        slow.commit()
        slow.execute("SELECT pg_advisory_xact_lock_shared(%s)", [0x5AD1])
        slow.execute(
            "INSERT INTO links (seq, producer_id, fate, kind, previous, key, other_claim, payload)"
            " SELECT %s, id, 'accepted', 'decision', '', %s, %s, '' FROM link_producers",
            [links[0].seq, links[0].key, links[0].claim],
        )
        await way.log.append([links[1]])
        assert [each.key for each in await way.log.undecided()] == ["fast"]
        assert [each.key for each in await way.log.undecided()] == ["fast"]
        slow.commit()
    for _ in range(2):
        assert [each.key for each in await way.log.undecided()] == ["slow", "fast"]


async def test_after_an_older_backup_everything_is_looked_at_again(
    way: Way, database_url: str
) -> None:
    copy = back_up(database_url)
    producer = Producer()
    await way.log.append([producer.link("state_change", str(n), "c", "p") for n in range(5)])
    assert await way.log.undecided() == []
    restore(database_url, copy)
    [late] = [producer.link("decision", "late", "sha256:late", "")]
    await way.log.append([late._replace(fate=Fate.ACCEPTED)])
    await way.log.undecided()
    assert [each.key for each in await way.log.undecided()] == ["late"]


async def test_who_begins_looks_at_a_few_at_a_time_and_passes_none_over(database_url: str) -> None:
    log, producer = ShadowLog.connect(database_url), Producer()
    events = [build.decision_event(str(number)) for number in range(5)]
    accepted = [
        producer.link(each.kind.value, each.key, each.claim, "sha256:00") for each in events
    ]
    await log.append([each._replace(fate=Fate.ACCEPTED) for each in accepted])
    await log.append([events[1]])
    promises, seen = Promises(most=2), []
    for _ in range(4):
        async with log.engine.begin() as connection:
            newest = await newest_link(connection)
            found = await promises.undecided(connection, newest)
        seen.append([events.index(next(e for e in events if e.key == each.key)) for each in found])
    await log.aclose()
    assert seen == [[0], [0, 2, 3], [0, 2, 3, 4], [0, 2, 3, 4]]
