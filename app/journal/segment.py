"""One file of the spool: `crc32 json` lines, written by the process that locks it, fsynced before
they count.

A torn last line was never confirmed and is dropped; one that lost nothing but its end of line is
whole. A corrupt line elsewhere is copied to a
`.corrupt` file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from time import time_ns
from typing import NamedTuple, Self
from uuid import uuid4
from zlib import crc32

import orjson

from app.domain.record.event import Event, EventKind
from app.domain.record.link import Link

SUFFIX = ".segment"


class Line(NamedTuple):
    """An event and where its line lies, in bytes."""

    event: Event
    offset: int
    length: int


class Contents(NamedTuple):
    """The good lines in order, and how many corrupt ones were set aside just now."""

    lines: list[Line]
    set_aside: int


def encode(event: Event) -> bytes:
    """One line: kind, key, claim, payload, and the link where it has one. Raises ValueError when
    the payload is not UTF-8."""
    parts: list[object] = [event.kind.value, event.key, event.claim, event.payload.decode()]
    if event.link is not None:
        parts.append(list(event.link))
    body = orjson.dumps(parts)
    return b"%08x %s\n" % (crc32(body), body)


def decode(line: bytes) -> Event:
    """Raises ValueError when the line is not what was written."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % crc32(body):
        raise ValueError("checksum does not match")
    kind, key, claim, payload, *link = orjson.loads(body)
    return Event(EventKind(kind), key, claim, payload.encode(), Link(*link[0]) if link else None)


def sync_directory(path: Path) -> None:
    """Make the creation of files in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Segment:
    """An open, locked segment. Everything here blocks, and raises OSError when the disk refuses."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.sound = True
        """False once a failed write could not be taken back: nothing may be appended behind its
        remains."""

    @classmethod
    def create(cls, directory: Path) -> Self:
        """A new segment. It gets its name only when it is locked, so that nobody takes it for an
        orphan."""
        path = directory / f"{time_ns():020d}-{uuid4().hex[:8]}{SUFFIX}"
        unnamed = path.with_suffix(".new")
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(path)
            sync_directory(directory)
        except OSError:
            os.close(descriptor)
            unnamed.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """A dead process' segment; None when its process lives, or it has just been drained by
        another."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = os.fstat(descriptor).st_nlink == 0
        except BlockingIOError:
            gone = True
        if gone:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write and fsync all, or leave nothing behind."""
        start = self.size
        try:
            block = memoryview(b"".join(lines))
            while block:
                written = os.write(self._descriptor, block)
                self.size += written
                block = block[written:]
            os.fdatasync(self._descriptor)
        except OSError:
            self.sound = False
            os.ftruncate(self._descriptor, start)
            self.size, self.sound = start, True
            raise

    def read(self) -> Contents:
        """Every event; corrupt lines are copied to a file beside this one, once."""
        lines: list[Line] = []
        corrupt: list[bytes] = []
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    lines.append(Line(decode(line), offset, len(line)))
                except ValueError:
                    if line.endswith(b"\n"):
                        corrupt.append(line)
                offset += len(line)
        aside = self.path.with_suffix(".corrupt")
        if not corrupt or aside.exists():
            return Contents(lines, 0)
        unfinished = aside.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            file.writelines(corrupt)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(aside)
        sync_directory(aside.parent)
        return Contents(lines, len(corrupt))

    def event_at(self, offset: int, length: int) -> Event:
        """One event. Raises ValueError when its line was damaged since."""
        return decode(os.pread(self._descriptor, length, offset))

    def remove(self) -> None:
        """Delete the file and release the lock."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the lock; the file stays."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
