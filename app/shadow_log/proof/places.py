"""Where checkpoints are kept: the log, a file, or a bucket of an object store."""

from __future__ import annotations

import asyncio
import hashlib
import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from app.domain.errors import AdvisorError

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

log = structlog.get_logger()
LOG = "log:"
READERS = 16
RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
"""The writer's next attempt is a minute away."""


class CheckpointError(AdvisorError):
    """A key or a place of checkpoints cannot be used."""


class Place(ABC):
    """Keeps lines, each a signed checkpoint of `size` links."""

    @abstractmethod
    async def add(self, size: int, line: bytes) -> None:
        """Keep one more, durably. Raises `CheckpointError`."""

    @abstractmethod
    def lines(self) -> list[bytes]:
        """All that are kept; an interrupted one may be cut. Raises `CheckpointError`."""


class LogPlace(Place):
    """The writer's log. Whoever ships it reads it elsewhere."""

    async def add(self, size: int, line: bytes) -> None:
        log.info("checkpoint", checkpoint=line.decode())

    def lines(self) -> list[bytes]:
        raise CheckpointError(
            "checkpoints went to the log: copy their lines into a file, and name it"
        )


class FilePlace(Place):
    """A file that lines are added to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def add(self, size: int, line: bytes) -> None:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                end = os.fstat(descriptor).st_size
                cut = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
                os.write(descriptor, (b"\n" if cut else b"") + line + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(f"checkpoints cannot be written: {error}") from error

    def lines(self) -> list[bytes]:
        try:
            return [line for line in self.path.read_bytes().splitlines() if line.strip()]
        except OSError as error:
            raise CheckpointError(f"checkpoints {self.path}: {error}") from error


class ObjectPlace(Place):
    """A bucket, or a folder of one: an object for each checkpoint, made once and never written
    again, so that buckets that refuse changes (object lock, retention) will do."""

    def __init__(self, url: str) -> None:
        try:
            import obstore.store
        except ImportError as error:
            raise CheckpointError(
                f"checkpoints {url}: pip install 'shadow-advisor[objects]' to use a bucket"
            ) from error
        self.url = url
        try:
            self._store: ObjectStore = obstore.store.from_url(url, retry_config=RETRIES)
        except obstore.exceptions.BaseError as error:
            raise CheckpointError(f"checkpoints {url}: {_first_line(error)}") from error

    async def add(self, size: int, line: bytes) -> None:
        import obstore

        name = f"{size:015d}-{hashlib.sha256(line).hexdigest()[:12]}.json"
        try:
            await asyncio.to_thread(obstore.put, self._store, name, line, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return  # An answer that was lost, and the same line again.
        except (obstore.exceptions.BaseError, OSError) as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.url}: {_first_line(error)}"
            ) from error

    def lines(self) -> list[bytes]:
        import obstore

        def line(name: str) -> bytes:
            return bytes(obstore.get(self._store, name).bytes())

        try:
            names = [each["path"] for batch in obstore.list(self._store) for each in batch]
            with ThreadPoolExecutor(READERS) as pool:
                return list(pool.map(line, sorted(names)))
        except (obstore.exceptions.BaseError, OSError) as error:
            raise CheckpointError(f"checkpoints {self.url}: {_first_line(error)}") from error


def place_at(where: str) -> Place:
    """`log:` is the log, a URL (`s3://`, `gs://`, `az://`, `https://`) an object store, anything
    else a file. Raises `CheckpointError`."""
    if where == LOG:
        return LogPlace()
    return ObjectPlace(where) if "://" in where else FilePlace(Path(where))


def _first_line(error: Exception) -> str:
    """What a library says, without its debug output, which may hold what a request held."""
    return str(error).partition("\n")[0]
