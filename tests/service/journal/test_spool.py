"""The spool: what it confirmed is on disk, whatever happens to the process or the disk."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.record.event import Event, EventKind
from app.journal.segment import decode, encode
from app.journal.spool import Spool
from app.telemetry import UNOBSERVED, Task, Telemetry
from tests.service.journal.journal_events import cancel_the, event
from tests.telemetry import Told

MIB = 1 << 20


async def opened(
    directory: Path, max_bytes: int = 10 * MIB, telemetry: Telemetry = UNOBSERVED
) -> Spool:
    spool = Spool(directory, max_bytes, telemetry)
    await spool.open()
    return spool


async def contents(spool: Spool) -> list[Event]:
    return [each for segment in await spool.segments() for each in await spool.events(segment)]


async def spooled(directory: Path, events: list[Event]) -> Path:
    """Write events with a process that then ends; the segment's path."""
    spool = await opened(directory)
    for each in events:
        await spool.append(each)
    await spool.aclose()
    return max(directory.glob("*.segment"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A real limit of the kernel: a write beyond it is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(
    st.sampled_from(list(EventKind)),
    st.text(min_size=1),
    st.text(),
    st.text().map(lambda text: text.encode()),
)
def test_a_line_holds_any_event(kind: EventKind, key: str, claim: str, payload: bytes) -> None:
    line = encode(Event(kind, key, claim, payload))
    assert line.count(b"\n") == 1
    assert decode(line) == Event(kind, key, claim, payload)


@given(st.data())
def test_no_single_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    line = bytearray(encode(event("one", text="some payload")))
    position = data.draw(st.integers(0, len(line) - 2))
    line[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="checksum does not match"):
        decode(bytes(line))


async def test_events_are_there_in_order_for_the_next_process(tmp_path: Path) -> None:
    events = [event(text="x" * n) for n in range(20)]
    await spooled(tmp_path / "not" / "yet" / "there", events)
    after = await opened(tmp_path / "not" / "yet" / "there")
    assert len(after) == 20
    assert after.claim(EventKind.DECISION, events[7].key) == "sha256:a"
    assert await after.find(EventKind.DECISION, events[7].key) == events[7].payload
    assert await after.find(EventKind.DECISION, "unknown") is None
    assert await contents(after) == events
    await after.aclose()


async def test_concurrent_events_keep_their_order_and_each_is_written_once(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    events = [event() for _ in range(32)]
    results = await asyncio.gather(*(spool.append(each) for each in events + events))
    assert results == [False] * 32 + [True] * 32
    assert await contents(spool) == events
    await spool.aclose()


async def test_in_one_write_each_caller_gets_its_own_result_or_error(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    results = await asyncio.gather(
        spool.append(event("one", claim="sha256:a")),
        spool.append(event("one", claim="sha256:b")),
        spool.append(event("two")),
        return_exceptions=True,
    )
    assert results[0] is False
    assert isinstance(results[1], RequestConflict)
    assert results[2] is False
    with pytest.raises(RequestConflict):
        await spool.append(event("two", claim="sha256:c"))
    assert [each.claim for each in await contents(spool)] == ["sha256:a", "sha256:a"]
    await spool.aclose()


async def test_a_drained_segment_is_forgotten_and_the_next_event_starts_another(
    tmp_path: Path,
) -> None:
    spool = await opened(tmp_path)
    await spool.append(event("one"))
    [segment] = await spool.segments()
    await spool.append(event("two"))
    await spool.remove(segment)
    assert len(spool) == 1
    assert await spool.find(EventKind.DECISION, "one") is None
    assert [each.key for each in await contents(spool)] == ["two"]
    assert len(list(tmp_path.iterdir())) == 1
    await spool.aclose()


@given(cut=st.integers(0, 600))
def test_of_a_torn_segment_every_whole_line_is_kept(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    async def scenario() -> None:
        directory = tmp_path_factory.mktemp("torn")
        events = [event(text="x" * n) for n in (1, 50, 100, 5)]
        path = await spooled(directory, events)
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        told = Told()
        spool = await opened(directory, telemetry=told)
        ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
        kept = sum(end <= cut for end in ends)
        assert await contents(spool) == events[:kept], "a line may lack its end, and nothing else"
        assert told.losses == {}
        await spool.aclose()

    asyncio.run(scenario())


async def test_a_corrupt_line_is_set_aside_and_counted_once(tmp_path: Path) -> None:
    events = [event(text="x" * 50) for _ in range(5)]
    path = await spooled(tmp_path, events)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"xxx", b"xyx", 1)
    path.write_bytes(b"".join(lines))
    told = Told()
    spool = await opened(tmp_path, telemetry=told)
    kept = [*events[:2], *events[3:]]
    assert await contents(spool) == kept
    [segment] = await spool.segments()
    await spool.remove(segment)
    await spool.aclose()
    assert told.losses == {"corrupt_entry": 1}
    [aside] = tmp_path.iterdir()
    assert aside.suffix == ".corrupt"
    assert aside.read_bytes() == lines[2]


async def test_a_full_disk_refuses_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    told = Told()
    spool = await opened(tmp_path, telemetry=told)
    events = [event(text="x" * 6000) for _ in range(4)]
    size = len(encode(events[0]))
    with largest_file(3 * size + 1000):
        for each in events[:3]:
            await spool.append(each)
        with pytest.raises(JournalUnavailable, match="free the disk"):
            await spool.append(events[3])
        [path] = tmp_path.glob("*.segment")
        assert path.stat().st_size == 3 * size
        assert spool.claim(EventKind.DECISION, events[3].key) is None
    assert told.losses == {"spool_full": 1}
    await spool.append(events[3])  # Somebody made room.
    assert await contents(spool) == events
    await spool.aclose()


async def test_of_a_batch_that_does_not_fit_on_the_disk_nobody_is_told_it_was_recorded(
    tmp_path: Path,
) -> None:
    told = Told()
    spool = await opened(tmp_path, telemetry=told)
    events = [event(text="x" * 6000) for _ in range(8)]
    with largest_file(20_000):
        results = await asyncio.gather(
            *(spool.append(each) for each in events), return_exceptions=True
        )
    assert [type(result) for result in results] == [JournalUnavailable] * 8
    assert told.losses == {"spool_full": 8}
    assert await contents(spool) == []
    await spool.aclose()


async def test_the_spool_stops_at_its_limit_and_says_so(tmp_path: Path) -> None:
    told = Told()
    spool = await opened(tmp_path, max_bytes=10_000, telemetry=told)
    await spool.probe()
    await spool.append(event(text="x" * 9_000))
    with pytest.raises(JournalUnavailable, match="bytes wait already, the limit is 10000"):
        await spool.append(event(text="x" * 9_000))
    assert told.losses == {"spool_full": 1}
    await spool.append(event(text="x" * 800))
    with pytest.raises(JournalUnavailable, match="bytes wait already"):
        await asyncio.gather(*(spool.append(event(text="x" * 100)) for _ in range(5)))
    await spool.aclose()


async def test_a_disk_with_room_for_the_probe_and_not_for_an_event_shows_in_the_probe(
    tmp_path: Path,
) -> None:
    spool = await opened(tmp_path)
    with largest_file(6_000):
        with pytest.raises(JournalUnavailable):
            await spool.append(event(text="x" * 9_000))
        with pytest.raises(JournalUnavailable, match="free the disk"):
            await spool.probe()
    await spool.probe()
    await spool.append(event(text="x" * 9_000))
    await spool.aclose()


async def test_a_full_disk_shows_in_the_probe(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.probe()
    with largest_file(100), pytest.raises(JournalUnavailable, match="free the disk"):
        await spool.probe()
    assert list(tmp_path.iterdir()) == []
    await spool.aclose()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalUnavailable, match=r"spool .*file/spool"):
        await opened(tmp_path / "file" / "spool")


async def test_a_large_spool_is_cut_into_segments(tmp_path: Path) -> None:
    spool = await opened(tmp_path, max_bytes=100 * MIB)
    for _ in range(3):
        await asyncio.gather(*(spool.append(event(text="x" * MIB)) for _ in range(6)))
    segments = await spool.segments()
    assert [len(await spool.events(segment)) for segment in segments] == [12, 6]
    await spool.aclose()


async def test_processes_share_a_directory_and_only_the_dead_are_adopted(tmp_path: Path) -> None:
    first, second = await opened(tmp_path), await opened(tmp_path)
    await first.append(event("of the first"))
    await second.append(event("of the second"))
    assert [each.key for each in await contents(second)] == ["of the second"]
    await first.aclose()
    assert {each.key for each in await contents(second)} == {"of the first", "of the second"}
    assert await second.find(EventKind.DECISION, "of the first") is not None
    await second.aclose()


SPOOLING = """
import asyncio, sys
from pathlib import Path
from app.domain.record.event import Event, EventKind
from app.journal.spool import Spool

async def main():
    spool = Spool(Path(sys.argv[1]), 1 << 30)
    await spool.open()
    async def agent(name):
        for n in range(1_000_000):
            key = f"{name}-{n}"
            payload = b'{"text":"%s"}' % (b"x" * 6000)
            await spool.append(Event(EventKind.DECISION, key, "sha256:a", payload))
            print(key, flush=True)
    await asyncio.gather(*(agent(name) for name in range(8)))

asyncio.run(main())
"""


async def test_every_confirmed_event_survives_kill_9_of_the_process(tmp_path: Path) -> None:
    def kill_in_the_middle() -> set[str]:
        command = [sys.executable, "-c", SPOOLING, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            confirmed = [next(process.stdout) for _ in range(300)]
            process.kill()
            confirmed += [line for line in process.stdout if line.endswith("\n")]
        return {line.strip() for line in confirmed}

    confirmed = await asyncio.to_thread(kill_in_the_middle)
    told = Told()
    spool = await opened(tmp_path, telemetry=told)
    found = Counter(each.key for each in await contents(spool))
    assert confirmed <= set(found)
    assert set(found.values()) == {1}
    assert told.losses == {}
    await spool.aclose()


async def test_an_event_that_is_written_while_a_segment_is_removed_is_indexed(
    tmp_path: Path,
) -> None:
    spool = await opened(tmp_path)
    await spool.append(event("early"))
    (segment,) = await spool.segments()
    late = event("late")
    repeated, _ = await asyncio.gather(spool.append(late), spool.remove(segment))
    assert repeated is False
    assert len(spool) == 1
    assert await spool.find(late.kind, late.key) == late.payload
    assert await spool.append(late) is True
    await spool.aclose()


async def taken(spool: Spool, given: Event) -> asyncio.Task[bool]:
    """An append whose write is under way in the thread."""
    append = asyncio.create_task(spool.append(given))
    await asyncio.sleep(0)  # It waits for the flusher,
    await asyncio.sleep(0)  # which has handed it to the thread.
    return append


async def test_an_event_repeated_during_its_own_write_is_written_once(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    first = await taken(spool, event("one"))
    assert await spool.append(event("one")) is True
    assert await first is False
    assert [each.key for each in await contents(spool)] == ["one"]
    await spool.aclose()


async def test_an_event_whose_caller_went_away_is_durable_all_the_same(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    cancelled = await taken(spool, event("one"))
    cancelled.cancel()
    assert await spool.append(event("two")) is False
    assert cancelled.cancelled()
    assert [each.key for each in await contents(spool)] == ["one", "two"]
    await spool.aclose()


async def test_a_closed_spool_confirms_nothing(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.aclose()
    cancelled = asyncio.create_task(spool.append(event("one")))
    waiting = asyncio.create_task(spool.append(event("two")))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(JournalUnavailable, match=r"spooling was abandoned: .*after shutdown"):
        await waiting
    assert cancelled.cancelled()
    assert list(tmp_path.iterdir()) == []
    await spool.aclose()


async def test_an_event_that_goes_to_the_stream_while_it_is_looked_for_is_not_here(
    tmp_path: Path,
) -> None:
    spool = await opened(tmp_path)
    await spool.append(event("one"))
    (segment,) = await spool.segments()
    _, found = await asyncio.gather(spool.remove(segment), spool.find(EventKind.DECISION, "one"))
    assert found is None
    await spool.aclose()


async def test_an_event_that_was_damaged_on_disk_is_an_error_not_an_answer(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.append(event("one", text="approve"))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"approve", b"rejects"))
    with pytest.raises(JournalUnavailable, match="checksum does not match"):
        await spool.find(EventKind.DECISION, "one")
    await spool.aclose()


async def test_a_spool_that_refused_something_shows_it_in_the_probe_until_it_is_drained(
    tmp_path: Path,
) -> None:
    spool = await opened(tmp_path, max_bytes=10_000)
    await spool.append(event("one", text="x" * 100))
    with pytest.raises(JournalUnavailable, match="the limit is 10000"):
        await spool.append(event("two", text="x" * 10_000))
    with pytest.raises(JournalUnavailable, match="the limit is 10000"):
        await spool.probe()
    (segment,) = await spool.segments()
    await spool.remove(segment)
    await spool.probe()
    await spool.aclose()


async def test_a_writer_that_is_cancelled_confirms_nothing_and_the_next_event_begins_anew(
    tmp_path: Path,
) -> None:
    told = Told()
    spool = Spool(tmp_path, 1 << 20, told)
    await spool.open()
    waiting = asyncio.create_task(spool.append(event("one")))
    await cancel_the(Spool._flush)
    with pytest.raises(JournalUnavailable, match=r"spooling was abandoned: CancelledError"):
        await waiting
    assert told.failures == {Task.SPOOL_WRITER: 1}
    assert await spool.append(event("two")) is False
    await spool.aclose()


async def test_keys_of_one_kind_are_told_apart_from_those_of_another(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    for kind in (EventKind.STATE_CHANGE, EventKind.DECISION):
        for number in range(2):
            await spool.append(event(f"{kind}-{number}", kind=kind))
    assert spool.keys(EventKind.STATE_CHANGE) == ["state_change-0", "state_change-1"]
    assert spool.keys(EventKind.OUTCOME) == []
    await spool.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
async def test_a_directory_of_somebody_else_keeps_its_mode(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    for directory in (mine, others):
        directory.mkdir()
        directory.chmod(0o755)
    os.chown(others, 65_534, 65_534)
    for directory in (mine, others):
        await (await opened(directory)).aclose()
    assert [stat.S_IMODE(each.stat().st_mode) for each in (mine, others)] == [0o700, 0o755]
