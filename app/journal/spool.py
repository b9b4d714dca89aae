"""The journal's refuge: fsynced segments on local disk while the stream is away.

Several processes may share a directory: each writes its own segments; who drains adopts those of
the dead.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.record.event import Event, EventKind
from app.journal.segment import SUFFIX, Line, Segment, encode, sync_directory
from app.telemetry import UNOBSERVED, LossCause, Task, Telemetry

log = structlog.get_logger()
_T = TypeVar("_T")
_Key = tuple[EventKind, str]
_Waiter = tuple[Event, bytes, asyncio.Future[bool]]
SEGMENT_BYTES = 8 * 1024 * 1024


class _Place(NamedTuple):
    """Where a durable event lies."""

    claim: str
    segment: Segment
    offset: int
    length: int


class Spool:
    """Durable, idempotent by key, bounded in bytes. File work happens in one thread of its own.

    Told to `telemetry` as lost: events that were refused, and, from the thread, lines that were set
    aside.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        telemetry: Telemetry = UNOBSERVED,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._telemetry = telemetry
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._places: dict[_Key, _Place] = {}
        self._active: Segment | None = None
        self._closed: list[Segment] = []
        self._full = False  # Something was refused for want of room, and none was made since.
        self._refused_bytes = 0  # What the disk did not take; the probe asks it for as much.
        self._waiting: list[_Waiter] = []
        self._flusher: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._places)

    async def open(self) -> None:
        """Create the directory and adopt what dead processes left. Raises `JournalUnavailable`."""
        self._places.update(await self._in_thread(self._open))

    async def append(self, event: Event) -> bool:
        """Make an event durable; True when it had been here already.

        Raises
        ------
        RequestConflict : the key is here with another claim.
        JournalUnavailable : the disk is full or broken; nothing of the event remains.
        """
        place = self._places.get((event.kind, event.key))
        if place is not None:
            return _repeats(event, place.claim)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, encode(event), future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await future

    def claim(self, kind: EventKind, key: str) -> str | None:
        """Claim of an event that waits here."""
        place = self._places.get((kind, key))
        return None if place is None else place.claim

    def keys(self, kind: EventKind) -> list[str]:
        """Keys of the events of a kind that wait here."""
        return [key for of, key in self._places if of is kind]

    async def find(self, kind: EventKind, key: str) -> bytes | None:
        """Payload of an event that waits here. Raises `JournalUnavailable` when the disk cannot
        read it."""
        place = self._places.get((kind, key))
        if place is None:
            return None
        try:
            return (
                await self._in_thread(lambda: place.segment.event_at(place.offset, place.length))
            ).payload
        except JournalUnavailable:
            if (kind, key) not in self._places:
                return None  # It went to the stream while this read waited for its turn.
            raise

    async def probe(self) -> None:
        """Write, fsync and remove a few bytes, or as many as the disk refused last. Raises
        `JournalUnavailable`."""
        await self._in_thread(self._probe)

    async def segments(self) -> list[Segment]:
        """Close the active segment, adopt orphans, and hand out all that wait to be drained, oldest
        first."""
        adopted = await self._in_thread(self._rotate)
        self._places = adopted | self._places
        return sorted(self._closed, key=lambda segment: segment.path.name)

    async def others_wait(self) -> bool:
        """Whether processes that share the directory have events in it. Raises
        `JournalUnavailable`."""
        return await self._in_thread(self._others_wait)

    async def events(self, segment: Segment) -> list[Event]:
        """All events of a segment, in order."""
        return [line.event for line in await self._in_thread(lambda: self._read(segment))]

    async def remove(self, segment: Segment) -> None:
        """Forget a segment whose events are all in the stream."""
        await self._in_thread(lambda: self._remove(segment))
        self._places = {
            key: place for key, place in self._places.items() if place.segment is not segment
        }

    async def aclose(self) -> None:
        """Finish what is being written and release the locks; files stay."""
        if self._flusher is not None:
            await asyncio.gather(self._flusher, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        for segment in self._mine():
            segment.close()
        self._closed, self._active = [], None

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (OSError, ValueError) as error:
            advice = "free the disk or set ADVISOR_HOME"
            raise JournalUnavailable(f"spool {self._directory}: {error}; {advice}") from error

    async def _flush(self) -> None:
        """Write what waits, one fsync for all of it."""
        batch: list[_Waiter] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)
        except BaseException as error:
            stranded, self._waiting = [*batch, *self._waiting], []
            for *_, future in stranded:
                if not future.done():
                    future.set_exception(JournalUnavailable(f"spooling was abandoned: {error!r}"))
            self._telemetry.task_failed(Task.SPOOL_WRITER)
            log.error("spooling was abandoned, the next event begins anew", error=repr(error))
            if not isinstance(error, Exception):
                raise

    async def _commit(self, batch: list[_Waiter]) -> None:
        fresh: dict[_Key, tuple[Event, bytes]] = {}
        for event, line, _ in batch:
            if (event.kind, event.key) not in self._places:
                fresh.setdefault((event.kind, event.key), (event, line))
        failure: JournalUnavailable | None = None
        try:
            written = await self._in_thread(lambda: self._write(list(fresh.values())))
            # Not in one line: meanwhile a drain may have put another index here.
            self._places.update(written)
        except JournalUnavailable as error:
            failure = error
            self._telemetry.lost(LossCause.SPOOL_FULL, len(fresh))
        for event, line, future in batch:
            place = self._places.get((event.kind, event.key))
            if future.done():
                continue  # Its caller was cancelled; the event is durable all the same.
            if place is None:
                future.set_exception(failure or AssertionError("written, but not indexed"))
            elif fresh.get((event.kind, event.key), (None, None))[1] is line:
                future.set_result(False)
            else:
                try:
                    future.set_result(_repeats(event, place.claim))
                except RequestConflict as conflict:
                    future.set_exception(conflict)

    # From here on: in the thread.

    def _mine(self) -> list[Segment]:
        return [*self._closed, *([self._active] if self._active else [])]

    def _open(self) -> dict[_Key, _Place]:
        missing = [
            path for path in (self._directory, *self._directory.parents) if not path.exists()
        ]
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # To test the other branch takes root, who can give a directory away.
        if self._directory.stat().st_uid == os.geteuid():  # pragma: no branch
            self._directory.chmod(0o700)  # It was made for everybody once.
        for path in missing:
            sync_directory(path.parent)
        return self._adopt()

    def _adopt(self) -> dict[_Key, _Place]:
        """Lock and index every segment whose writer is dead."""
        mine = {segment.path for segment in self._mine()}
        places: dict[_Key, _Place] = {}
        for path in sorted(set(self._directory.glob(f"*{SUFFIX}")) - mine):
            segment = Segment.adopt(path)
            if segment is None:
                continue
            try:
                lines = self._read(segment)
            except OSError:
                segment.close()
                raise
            self._closed.append(segment)
            for event, offset, length in lines:
                places.setdefault(
                    (event.kind, event.key), _Place(event.claim, segment, offset, length)
                )
            log.info("spool segment of a dead process adopted", file=path.name, events=len(lines))
        return places

    def _read(self, segment: Segment) -> list[Line]:
        lines, set_aside = segment.read()
        if set_aside:
            self._telemetry.lost(LossCause.CORRUPT_ENTRY, set_aside)
            log.error(
                "corrupt spool lines set aside",
                file=f"{segment.path.stem}.corrupt",
                lines=set_aside,
            )
        return lines

    def _write(self, batch: list[tuple[Event, bytes]]) -> dict[_Key, _Place]:
        size, waiting = sum(len(line) for _, line in batch), self._bytes()
        if waiting + size > self._max_bytes:
            self._full = True
            raise OSError(
                errno.ENOSPC, f"{waiting} bytes wait already, the limit is {self._max_bytes}"
            )
        if self._active is not None and (
            not self._active.sound or self._active.size >= SEGMENT_BYTES
        ):
            self._close_active()
        segment = self._active = self._active or Segment.create(self._directory)
        offset = segment.size
        try:
            segment.append([line for _, line in batch])
        except OSError:
            self._refused_bytes = max(self._refused_bytes, size)
            raise
        places: dict[_Key, _Place] = {}
        for event, line in batch:
            places[event.kind, event.key] = _Place(event.claim, segment, offset, len(line))
            offset += len(line)
        return places

    def _bytes(self) -> int:
        return sum(segment.size for segment in self._mine())

    def _others_wait(self) -> bool:
        mine = {segment.path for segment in self._mine()}
        return any(_size(path) for path in set(self._directory.glob(f"*{SUFFIX}")) - mine)

    def _close_active(self) -> None:
        if self._active is not None:
            self._closed.append(self._active)
            self._active = None

    def _rotate(self) -> dict[_Key, _Place]:
        self._close_active()
        return self._adopt()

    def _remove(self, segment: Segment) -> None:
        segment.remove()
        self._closed.remove(segment)
        self._full = False

    def _probe(self) -> None:
        waiting = self._bytes()
        if self._full or waiting >= self._max_bytes:
            raise OSError(
                errno.ENOSPC, f"{waiting} bytes wait already, the limit is {self._max_bytes}"
            )
        with tempfile.TemporaryFile(dir=self._directory) as file:
            file.write(bytes(max(4096, self._refused_bytes)))
            file.flush()
            os.fsync(file.fileno())
        self._refused_bytes = 0


def _repeats(event: Event, claim: str) -> bool:
    """True. Raises `RequestConflict` when the event does not fit the claim that is known."""
    if claim != event.claim:
        raise RequestConflict(
            f"{event.kind.value} {event.key} was recorded before with other content"
        )
    return True


def _size(path: Path) -> int:
    """Of a segment; 0 of one that was drained just now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
