"""The journal's refuge: fsynced files on local disk while the stream is away.

A segment is a file of lines, `crc32 json`, written by one process that holds its lock. A line counts only once it was
fsynced; a torn last line was never answered and is dropped, a corrupt line elsewhere is set aside and counted.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar
from uuid import uuid4
from zlib import crc32

import orjson
import structlog

from app.domain.errors import JournalUnavailable, RequestConflict
from app.domain.event import Event, EventKind

log = structlog.get_logger()
_T = TypeVar("_T")


class _Place(NamedTuple):
    """Where an event lies."""

    claim: str
    path: Path
    offset: int
    length: int


class Segment(NamedTuple):
    """A segment that nobody writes any more, under this process' lock."""

    path: Path
    descriptor: int


def encode(event: Event) -> bytes:
    """One line."""
    body = orjson.dumps([event.kind.value, event.key, event.claim, event.payload.decode()])
    return b"%08x %s\n" % (crc32(body), body)


def decode(line: bytes) -> Event:
    """Raises ValueError when the line is not what was written."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32(body):
        raise ValueError("checksum does not match")
    kind, key, claim, payload = orjson.loads(body)
    return Event(EventKind(kind), key, claim, payload.encode())


class Spool:
    """Durable, idempotent by key, bounded in bytes. File work happens in one thread of its own."""

    def __init__(
        self, directory: Path, max_bytes: int, lose: Callable[[str, int], None] = lambda cause, count: None
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._lose = lose
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._places: dict[tuple[str, str], _Place] = {}
        self._active: Segment | None = None
        self._closed: list[Segment] = []
        self._bytes = 0
        self._waiting: list[tuple[Event, asyncio.Future[bool]]] = []
        self._flusher: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._places)

    async def open(self) -> None:
        """Create the directory and adopt what dead processes left. Raises `JournalUnavailable`."""
        await self._in_thread(self._open)

    async def append(self, event: Event) -> bool:
        """Make an event durable; True when it had been here already.

        Raises
        ------
        RequestConflict : the key is here with another claim.
        JournalUnavailable : the disk is full or broken; nothing of the event remains.
        """
        known = self._places.get((event.kind.value, event.key))
        if known is not None:
            return self._match(known, event)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await future

    def claim(self, kind: EventKind, key: str) -> str | None:
        """Claim of an event that waits here."""
        place = self._places.get((kind.value, key))
        return None if place is None else place.claim

    async def find(self, kind: EventKind, key: str) -> bytes | None:
        """Payload of an event that waits here."""
        place = self._places.get((kind.value, key))
        if place is None:
            return None
        try:
            return (await self._in_thread(lambda: self._read(place))).payload
        except JournalUnavailable:
            if (kind.value, key) not in self._places:
                return None  # It was drained while we were opening the file.
            raise

    async def probe(self) -> None:
        """Write, fsync and remove a few bytes. Raises `JournalUnavailable`."""
        await self._in_thread(self._probe)

    async def segments(self) -> list[Segment]:
        """Close the active segment, adopt orphans, and hand out all that wait to be drained."""
        return await self._in_thread(self._rotate)

    async def events(self, segment: Segment) -> list[Event]:
        """All events of a segment, in order."""
        return await self._in_thread(lambda: [event for _, event in self._scan(segment.path)])

    async def remove(self, segment: Segment) -> None:
        """Forget a segment whose events are all in the stream."""
        await self._in_thread(lambda: self._remove(segment))
        self._places = {key: place for key, place in self._places.items() if place.path != segment.path}

    async def aclose(self) -> None:
        """Finish what is being written and release the locks; files stay."""
        if self._flusher is not None:
            await asyncio.gather(self._flusher, return_exceptions=True)
        for segment in (*self._closed, *([self._active] if self._active else ())):
            os.close(segment.descriptor)
        self._closed, self._active = [], None
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            raise JournalUnavailable(f"spool {self._directory}: {error}; free the disk or set ADVISOR_HOME") from error

    async def _flush(self) -> None:
        """Write what waits, one fsync for all of it."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error: JournalUnavailable | None = None
            fresh = {(event.kind.value, event.key): event for event, _ in reversed(batch)}
            lines = [event for event in fresh.values() if (event.kind.value, event.key) not in self._places]
            try:
                places = await self._in_thread(lambda lines=lines: self._write(lines))  # type: ignore[misc]
            except JournalUnavailable as unavailable:
                error = unavailable
                self._lose("spool_full", len(lines))
            else:
                self._places.update(places)
            written = {id(event) for event in lines}
            for event, future in batch:
                self._settle(event, future, id(event) in written, error)

    def _settle(self, event: Event, future: asyncio.Future[bool], fresh: bool, error: JournalUnavailable | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif fresh:
            future.set_result(False)
        else:
            try:
                future.set_result(self._match(self._places[(event.kind.value, event.key)], event))
            except RequestConflict as conflict:
                future.set_exception(conflict)

    def _match(self, place: _Place, event: Event) -> bool:
        if place.claim != event.claim:
            raise RequestConflict(f"{event.kind.value} {event.key} was recorded before with other content")
        return True

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._adopt()

    def _adopt(self) -> None:
        """Lock and index every segment whose writer is dead."""
        mine = {segment.path for segment in (*self._closed, *([self._active] if self._active else ()))}
        for path in sorted(self._directory.glob("*.segment")):
            if path in mine:
                continue
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self._closed.append(Segment(path, descriptor))
            for place, event in self._scan(path):
                self._places.setdefault((event.kind.value, event.key), place)
            self._bytes += path.stat().st_size

    def _scan(self, path: Path) -> Iterator[tuple[_Place, Event]]:
        offset = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    event = decode(line)
                except ValueError:
                    if line.endswith(b"\n"):
                        self._set_aside(path, line)
                else:
                    yield _Place(event.claim, path, offset, len(line)), event
                offset += len(line)

    def _set_aside(self, path: Path, line: bytes) -> None:
        """Keep a corrupt line for people, once, and count it."""
        aside = path.with_suffix(".corrupt")
        if aside.exists() and line in aside.read_bytes():
            return
        with aside.open("ab") as file:
            file.write(line)
        self._lose("corrupt_entry", 1)
        log.error("corrupt spool line set aside", file=str(aside))

    def _write(self, events: list[Event]) -> dict[tuple[str, str], _Place]:
        data = [encode(event) for event in events]
        size = sum(map(len, data))
        if self._bytes + size > self._max_bytes:
            raise OSError(f"{self._bytes} bytes wait already, the limit is {self._max_bytes}")
        segment = self._active = self._active or self._create()
        offset = start = os.fstat(segment.descriptor).st_size
        try:
            block = memoryview(b"".join(data))
            while block:
                block = block[os.write(segment.descriptor, block) :]
            os.fdatasync(segment.descriptor)
        except OSError:
            os.ftruncate(segment.descriptor, start)  # Nothing is half-written.
            raise
        places = {}
        for event, line in zip(events, data, strict=True):
            places[(event.kind.value, event.key)] = _Place(event.claim, segment.path, offset, len(line))
            offset += len(line)
        self._bytes += size
        return places

    def _create(self) -> Segment:
        path = self._directory / f"{uuid4()}.segment"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return Segment(path, descriptor)

    def _read(self, place: _Place) -> Event:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return decode(file.read(place.length))

    def _rotate(self) -> list[Segment]:
        if self._active is not None:
            self._closed.append(self._active)
            self._active = None
        self._adopt()
        return list(self._closed)

    def _remove(self, segment: Segment) -> None:
        self._bytes = max(self._bytes - segment.path.stat().st_size, 0)
        segment.path.unlink()
        os.close(segment.descriptor)
        self._closed.remove(segment)

    def _probe(self) -> None:
        path = self._directory / f"{uuid4()}.probe"
        try:
            with path.open("wb") as file:
                file.write(b"probe\n" * 100)
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
