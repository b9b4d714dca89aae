"""What waits lies in a folder as well, and outlives the process: the next one sends it, with the
same ids.

Every process has files of its own there, which it holds a lock on; what a process left behind
belongs to the first that starts after its end. A line is a message, or says that one is done; a
file goes when all of its messages are. A line that was not written to its end is set aside. Nothing
is synchronised with the disk, so that the agent never waits for it: files outlive the process, the
last of them perhaps not a loss of power.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from secrets import token_hex
from time import monotonic, time
from typing import Any
from weakref import WeakSet
from zlib import crc32

from .connection import ConfigurationError
from .lanes import Message

try:
    import fcntl
except ImportError:  # There is none on Windows, where this cannot be used.
    fcntl = None  # type: ignore[assignment]

FILE_BYTES = 1_000_000
"""A file that is larger gets no further messages."""
DONE = b"done"


class _File:
    """Lines of one process, and how many of its messages are not done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.size = os.fstat(self.descriptor).st_size
        self.pending = 0

    @property
    def is_removed(self) -> bool:
        """Whether nobody finds it any more."""
        return os.fstat(self.descriptor).st_nlink == 0

    def append(self, line: bytes) -> None:
        """Raises `OSError`, and leaves no part of a line behind."""
        try:
            if os.write(self.descriptor, line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise
        self.size += len(line)

    def cut(self, size: int) -> None:
        """Keep the beginning."""
        os.ftruncate(self.descriptor, size)
        self.size = size


class Kept:
    """The folder, for one process. Whoever calls it holds the client's lock.

    Parameters
    ----------
    max_bytes : what all of this process' files may hold; what is more is not kept, and counted.
    whose : the principal that asks: what one agent left is never sent under the name of another.

    Raises `ConfigurationError` here when the folder cannot be used; no fault of the disk is raised
    later, they are counted.
    """

    def __init__(self, folder: Path, max_bytes: int, whose: str) -> None:
        if fcntl is None:
            raise ConfigurationError("queue_dir cannot be used on this system: it has no flock")
        self.folder = folder
        self._max_bytes = max_bytes
        self._numbers = count()
        self._whose = sha256(whose.encode()).hexdigest()[:12]
        self._name = f"{self._whose}-{os.getpid()}-{token_hex(4)}"
        self._files: list[_File] = []
        self._locks: dict[str, int] = {}
        self._current: _File | None = None
        self.pending = 0
        self.not_kept = 0
        self.set_aside = 0
        self.last_error: str | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._locks[self._name] = _new_lock(folder, self._name)
        except OSError as error:
            raise ConfigurationError(f"queue_dir {folder} cannot be used: {error}") from error
        _open.add(self)

    def left_behind(self) -> list[Message]:
        """What processes that ended had not sent, in their order."""
        messages: list[Message] = []
        try:
            for path in sorted(self.folder.glob("*.lock")):
                if path.stem not in self._locks and self._is_ours(path.stem):
                    messages += self._taken_over(path)
        except OSError as error:
            self._fault(error)
        return messages

    def _is_ours(self, name: str) -> bool:
        """Whether the same agent wrote it. Names of before do not say who did."""
        whose, _, rest = name.partition("-")
        return "-" not in rest or whose == self._whose

    def keep(self, message: Message) -> None:
        """Write it down, where there is room."""
        number = next(self._numbers)
        line = _line(
            [number, time(), message.method, message.path, message.decision_id], message.body
        )
        if sum(file.size for file in self._files) + len(line) > self._max_bytes:
            self.not_kept += 1
            return
        try:
            file = self._writable()
            file.append(line)
        except OSError as error:
            self.not_kept += 1
            self._fault(error)
            return
        file.pending += 1
        self.pending += 1
        message.kept = (file, number)

    def done(self, message: Message) -> None:
        """It need not be sent any more."""
        if message.kept is None or not self._locks:
            return
        file: _File = message.kept[0]
        number: int = message.kept[1]
        message.kept = None
        if file not in self._files:
            return
        file.pending -= 1
        self.pending -= 1
        try:
            if file.pending:
                file.append(_line(number, DONE))
            elif file is self._current:
                file.cut(0)
            else:
                self._remove(file)
        except OSError as error:
            self._fault(error)

    def holds(self, message: Message) -> bool:
        """Whether the next process will find it."""
        return message.kept is not None and message.kept[0] in self._files

    def close(self) -> None:
        """Leave what is not done to the next process."""
        with suppress(OSError):
            for file in [file for file in self._files if not file.pending]:
                self._remove(file)
            for name in list(self._locks):
                self._unlock_when_empty(name)
        self.let_go()

    def let_go(self) -> None:
        """Close every file; the locks go with them."""
        descriptors = [*self._locks.values(), *(file.descriptor for file in self._files)]
        self._files, self._locks, self._current = [], {}, None
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)

    def look(self) -> None:
        """Count what lies in files that somebody removed as not kept."""
        for file in [file for file in self._files if file.is_removed]:
            self.pending -= file.pending
            self.not_kept += file.pending
            self.last_error = f"queue_dir {self.folder}: {file.path.name} was removed"
            self._files.remove(file)
            self._current = None if file is self._current else self._current
            os.close(file.descriptor)

    def _writable(self) -> _File:
        self.look()
        if self._current is None or self._current.size >= FILE_BYTES:
            path = self.folder / f"{self._name}-{next(self._numbers):09}.queue"
            self._current = _File(path)
            self._files.append(self._current)
        return self._current

    def _taken_over(self, path: Path) -> list[Message]:
        """The messages of another process, whose lock is ours from now on; none while it lives."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return []
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return []
        self._locks[path.stem] = descriptor
        messages: list[Message] = []
        for left in sorted(self.folder.glob(f"{path.stem}-*.queue")):
            file = _File(left)
            self._files.append(file)
            messages += self._read(file)
            if not file.pending:
                self._remove(file)
        self._unlock_when_empty(path.stem)
        return messages

    def _read(self, file: _File) -> list[Message]:
        """The messages of a file that are not done."""
        messages: dict[int, Message] = {}
        whole = 0
        content = file.path.read_bytes()
        for line in content.splitlines(keepends=True):
            whole += len(line)
            try:
                head, body = _parts(line)
                if body == DONE:
                    messages.pop(head, None)
                else:
                    number, message = _message(head, body)
                    message.kept = (file, number)
                    messages[number] = message
            except (ValueError, TypeError):
                self._set_aside(file, line)
        if content and not content.endswith(b"\n"):
            file.cut(content.rfind(b"\n") + 1)
        file.pending = len(messages)
        self.pending += len(messages)
        return list(messages.values())

    def _set_aside(self, file: _File, line: bytes) -> None:
        self.set_aside += 1
        path = file.path.with_suffix(".damaged")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.rstrip(b"\n") + b"\n")
        finally:
            os.close(descriptor)

    def _remove(self, file: _File) -> None:
        self._files.remove(file)
        if file is self._current:
            self._current = None
        file.path.unlink()
        os.close(file.descriptor)
        owner = file.path.name.rpartition("-")[0]
        if owner != self._name:
            self._unlock_when_empty(owner)

    def _unlock_when_empty(self, name: str) -> None:
        """A process' lock goes after the last of its files."""
        if name in self._locks and not any(self.folder.glob(f"{name}-*.queue")):
            (self.folder / f"{name}.lock").unlink()
            os.close(self._locks.pop(name))

    def _fault(self, error: OSError) -> None:
        self.last_error = f"queue_dir {self.folder}: {error}"[:500]


_open: WeakSet[Kept] = WeakSet()


def _let_go_in_child() -> None:
    """A child has no part in its parent's files, and does not keep them locked after its end."""
    for kept in list(_open):
        kept.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _new_lock(folder: Path, name: str) -> int:
    """A lock that nobody else can take before us: it has its name when it is ours."""
    unnamed = folder / f"{name}.new"
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(folder / f"{name}.lock")
    return descriptor


def _line(head: object, body: bytes) -> bytes:
    content = json.dumps(head).encode() + b"\t" + body
    return b"%08x %b\n" % (crc32(content), content)


def _parts(line: bytes) -> tuple[Any, bytes]:
    """Head and body of a line. Raises ValueError when it is not as it was written."""
    if not line.endswith(b"\n"):
        raise ValueError("not written to its end")
    content = line[9:-1]
    if int(line[:8], 16) != crc32(content):
        raise ValueError("damaged")
    head, _, body = content.partition(b"\t")
    return json.loads(head), body


def _message(head: Any, body: bytes) -> tuple[int, Message]:
    """Number and message. Raises ValueError or TypeError."""
    if not isinstance(head, list):
        raise TypeError("no message")
    number, written, method, path, decision_id = head
    age_s = max(time() - float(written), 0.0)
    return int(number), Message(str(method), str(path), body, monotonic() - age_s, str(decision_id))
