"""What is lost, changed or taken away between a producer and its rows is found and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import psycopg
import pytest
from redis.exceptions import RedisError

from app.domain.canonical import decision_id
from app.domain.errors import JournalUnavailable
from app.domain.record.event import Entry, Event
from app.domain.record.link import Fate, Linked, Producer
from app.journal.drain import StreamDrain
from app.journal.journal import Journal
from app.journal.spool import Spool
from app.journal.stream import StreamJournal
from app.shadow_log.appending.links import Watch, append_links
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.findings import Fault
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema import tables
from app.telemetry import UNOBSERVED
from app.writer import Writer
from bench.record.tamper import IDENTITIES, OWN_ROWS, Tamperer, fill, linked, trials
from tests import builders as build
from tests.service.journal.journal_events import client
from tests.service.running import until
from tests.service.shadow_log.older_backup import back_up, restore


class Way:
    """A journal and a writer, moved by hand."""

    def __init__(self, valkey_url: str, database_url: str, spool: Path) -> None:
        self.journal = Journal(StreamJournal(valkey_url), Spool(spool, 10_000_000), retry_s=0.02)
        self.log = ShadowLog.connect(database_url)
        self.drain = StreamDrain(valkey_url, self._write, block_ms=10)
        self.writer = Writer(valkey_url, self.log, UNOBSERVED)

    async def _write(self, entries: Sequence[Entry]) -> None:
        await self.log.append(entries)

    async def write(self) -> None:
        """Until nothing is left; a group that went with the data is made anew, as in `run`."""
        with suppress(RedisError):
            await self.drain.step()
        while await self.drain.step():
            pass

    async def tell(self) -> None:
        numbered = self.journal.numbered()
        assert numbered is not None
        await self.log.note_head(*numbered)


@pytest.fixture
async def way(valkey_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Way]:
    made = Way(valkey_url, database_url, tmp_path)
    await made.journal.start()
    yield made
    await made.journal.aclose()
    await made.drain.aclose()
    await made.writer.aclose()


async def test_what_valkey_lost_is_counted_with_the_next_event(
    way: Way, valkey_url: str, database_url: str
) -> None:
    for number in range(3):
        await way.journal.append(build.decision_event(f"kept-{number}"))
    await way.write()
    assert await way.writer.watch() == 0
    for number in range(7):
        await way.journal.append(build.decision_event(f"lost-{number}"))
    with client(valkey_url) as connection:
        connection.flushall()
    assert await way.writer.watch() == 0, "nobody can know yet"

    async def answered() -> bool:
        """The journal looks at the new memory first; until then nobody is answered."""
        try:
            await way.journal.append(build.decision_event("after"))
        except JournalUnavailable:
            return False
        return True

    await until(answered)
    await way.write()
    assert await way.writer.watch() == 7
    assert await way.writer.watch() == 7, "each is counted once"
    report = await verify_log(database_url)
    assert report.missing == 7
    assert set(report.counts) == {Fault.GAP}
    assert report.chain_summary() == "4 links of 1 producer, 7 events missing"


async def test_a_loss_at_the_end_is_counted_when_the_producer_told_past_the_queue(
    way: Way, valkey_url: str, database_url: str
) -> None:
    await way.journal.append(build.decision_event("kept"))
    await way.write()
    for number in range(4):
        await way.journal.append(build.decision_event(f"lost-{number}"))
    await way.tell()
    assert await way.writer.watch() == 0, "they are on their way"
    with client(valkey_url) as connection:
        connection.flushall()
    assert await way.writer.watch() == 4
    assert (await verify_log(database_url)).missing == 4


async def test_what_is_missing_is_counted_alike_in_pages_of_any_size(database_url: str) -> None:
    """Numbers of two producers arrive in any order, some of them twice, some never."""
    log, chance = ShadowLog.connect(database_url), Random(7)
    watches = [Watch(most) for most in (1, 2, 7, 1_000)]
    coming = [(name, seq) for name in ("one", "two") for seq in (*range(1, 30), 41, 10**15)] * 2
    chance.shuffle(coming)
    arrived: dict[str, set[int]] = {"one": set(), "two": set()}
    while coming:
        taken, coming = coming[: chance.randint(1, 9)], coming[9:]
        links = [
            Linked(name, seq, "", "decision", f"{seq}", "", "", Fate.EVENT) for name, seq in taken
        ]
        async with log.engine.begin() as connection:
            await append_links(connection, links)
        for name, seq in taken:
            arrived[name].add(seq)
        gone = sum(max(seqs) - len(seqs) for seqs in arrived.values() if seqs)
        async with log.engine.connect() as connection:
            assert [await watch.missing(connection, {}) for watch in watches] == [gone] * 4
    await log.aclose()


async def test_what_an_older_backup_lacks_is_counted_by_whoever_saw_it(database_url: str) -> None:
    """Also what had not arrived when it was made, and of producers that it does not know at all;
    what is delivered again is not missing any more."""
    log, first, second = ShadowLog.connect(database_url), Producer(), Producer()
    events = [linked(first, build.decision_event(f"r-{n}")) for n in range(1, 7)]
    others = [linked(second, build.decision_event(f"o-{n}")) for n in range(1, 3)]
    await log.append([events[0], events[2]])
    copy = back_up(database_url)
    await log.append([events[1], *events[3:5], *others])
    assert await log.missing_events({}) == 0
    restore(database_url, copy)
    assert await log.missing_events({}) == 3 + 2, "numbers 2, 4, 5, and both of the other"
    assert await log.missing_events({first.name: 5, second.name: 3}) == 3 + 2 + 1
    await log.append([events[5]])
    assert await log.missing_events({}) == 3 + 2, "each is counted once"
    await log.append([*events[3:5], others[0]])
    assert await log.missing_events({}) == 1 + 1
    await log.append([events[1], others[1]])
    assert await log.missing_events({first.name: 6, second.name: 2}) == 0
    await log.aclose()


async def test_while_events_move_a_gap_counts_when_it_is_there_for_two_looks(
    database_url: str,
) -> None:
    """A writer that lies behind writes two batches at once, the later one first at times."""
    log, producer = ShadowLog.connect(database_url), Producer()
    events = [linked(producer, build.decision_event(f"r-{n}")) for n in range(6)]
    await log.append([events[0], events[2]])
    assert await log.missing_events({}, moving=True) == 0
    await log.append([events[1], events[5]])
    assert await log.missing_events({}, moving=True) == 0, "one gap closed, another is new"
    assert await log.missing_events({}, moving=True) == 2
    await log.append(events[3:5])
    assert await log.missing_events({}, moving=True) == 0
    await log.aclose()


async def test_a_gap_closes_when_what_waited_arrives(database_url: str) -> None:
    log, producer = ShadowLog.connect(database_url), Producer()
    events = [linked(producer, build.decision_event(f"r-{n}")) for n in range(6)]
    await log.append([events[0], events[5]])
    assert await log.missing_events({}) == 4
    await log.append([events[2]])
    assert await log.missing_events({}) == 3
    await log.append([events[1], events[3], events[4]])
    assert await log.missing_events({}) == 0
    assert await log.missing_events({producer.name: 8}) == 2
    await log.aclose()
    assert (await verify_log(database_url)).findings == []


async def test_a_second_answer_is_kept_and_linked(database_url: str) -> None:
    log, producers = ShadowLog.connect(database_url), (Producer(), Producer())
    first, second = (
        build.decision_event("r-1", label=label) for label in ("H", "A")
    )  # One request, two answers.
    assert first.claim == second.claim
    await log.append([linked(producers[0], first)])
    again = linked(producers[1], second)
    for _ in range(2):  # A writer that dies before its acknowledgement is given it again.
        appended = await log.append([again])
        assert appended.conflicts == [str(decision_id("r-1"))]
    assert (await log.append([linked(producers[0], first)])).conflicts == []
    await log.aclose()
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        kept = connection.execute("SELECT key, payload, reason FROM put_aside").fetchall()
        fates = connection.execute("SELECT fate FROM event_links ORDER BY id").fetchall()
    assert kept == [(first.key, second.payload, "answered before with another answer")]
    assert [fate for (fate,) in fates] == [Fate.EVENT, Fate.ASIDE, Fate.REPEAT]
    assert (await verify_log(database_url)).findings == []


async def test_events_of_an_earlier_release_are_linked_by_the_log(database_url: str) -> None:
    log = ShadowLog.connect(database_url)
    plain: list[Event] = [
        build.decision_event("r-1"),
        build.outcome_event("r-1", build.outcome(r=1.0)),
    ]
    await log.append(plain)
    await log.append(plain)
    await log.register_model(build.manifest("m-1"))
    await log.register_model(build.manifest("m-1"))
    await log.set_alias("shadow", "m-1", reason="test", by="me")
    await log.aclose()
    report = await verify_log(database_url)
    assert (report.findings, report.links, report.producers) == ([], 4, 1)


async def test_links_outlive_what_retention_drops(database_url: str) -> None:
    log, producer = ShadowLog.connect(database_url), Producer()
    old = datetime(2024, 1, 5, tzinfo=UTC)
    events = [build.decision_event(f"r-{n}", at=old) for n in range(3)]
    await log.append([linked(producer, each) for each in [*events, build.decision_event("new")]])
    await log.drop_months_before(datetime(2024, 2, 1, tzinfo=UTC))
    await log.aclose()
    report = await verify_log(database_url)
    assert (report.findings, report.links, report.missing) == ([], 5, 0)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM decision_keys WHERE as_of = %s", [old])
    assert set((await verify_log(database_url)).counts) == {Fault.LINK_WITHOUT_ROW}


async def test_one_row_deleted_edited_or_inserted_is_found(database_url: str) -> None:
    """The full trial, of a thousand, is `python -m bench.record.tamper`."""
    more = [
        build.decision_event("old", at=datetime(2024, 1, 5, tzinfo=UTC)),
        build.decision_event("two", control=True, shadows=[("other", "A")]),
        build.action_event("two", build.agent_action(False, reason="late")),
        build.outcome_event("two", build.outcome(r=-1.0, extra={"a": 1.0})),
    ]
    await fill(database_url, 2, more, build.manifest())
    assert (await verify_log(database_url)).findings == []
    done, unseen = await trials(database_url, 25, seed=1)
    assert (sum(done.values()), unseen) == (25, [])
    assert (await verify_log(database_url)).findings == []


def test_the_trial_leaves_no_table_out_but_the_one_that_says_how_far_the_others_are() -> None:
    assert set(tables.metadata.tables) - set(IDENTITIES) == {"chain_heads"}


@pytest.mark.parametrize("table", ["imported_trades", "limits_adoptions", "shared_parts"])
async def test_what_no_event_brought_cannot_vanish_unseen(database_url: str, table: str) -> None:
    await fill(database_url, 1, [], build.manifest())
    tamperer = Tamperer(database_url, seed=0)
    tamperer.connection.execute(f"DELETE FROM {table}")
    tamperer.close()
    assert (await verify_log(database_url)).findings


async def test_numbers_that_jsonb_writes_out_are_no_change(database_url: str) -> None:
    log = ShadowLog.connect(database_url)
    odd = {"decision": True, "entry": 1e150, "stop": 2.164036440412353e16, "quantity": 1e-9}
    assert await log.add_once("imported_trade", [OWN_ROWS["imported_trade"] | {"action": odd}]) == 1
    await log.aclose()
    assert (await verify_log(database_url)).findings == []
