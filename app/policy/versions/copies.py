"""Private copies of versions: a model is loaded from bytes that nobody else can change.

What is hashed in a stranger's directory may be another file when it is opened again. So its files
are copied to a place that only this user can enter, hashed there and loaded from there. A copy is
kept under the hash of its content: the next start hashes it again, and copies nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError, ModelFileError
from app.policy.versions.files import copy_file, refusals, walk
from app.policy.versions.store import file_hash, require_hashes, require_names

KEPT = 8
"""Copies that are kept, those that were used last; others are removed when nobody is loading."""
_SPARE_BYTES = 256 << 20


class PrivateCopies:
    """Copies of versions' files, each verified whenever it is asked for.

    Parameters
    ----------
    place : where they are kept, for this user alone; made when needed. None keeps nothing: a copy
        lasts as long as the loading. (What was loaded stays in memory when its file is gone.)
    """

    def __init__(self, place: Path | None = None) -> None:
        self._place = place

    @contextmanager
    def of(
        self, directory: Path, files: Mapping[str, str], *, weights: bool = True
    ) -> Iterator[Path]:
        """A private directory with exactly these files: names and hashes, as a manifest lists them.

        Parameters
        ----------
        directory : where they come from.
        weights : without them, what is needed to write prompts is copied, and no more.

        Raises
        ------
        ModelFileError : the directory holds other files, a link, a pickle, a pointer of Git LFS; or
            there is no room.
        ManifestMismatch : the bytes are others.

        What is refused within the block is told of the directory, whose copy nobody knows.
        """
        require_names(directory, files)
        wanted = {
            name: value
            for name, value in files.items()
            if weights or not name.endswith(".safetensors")
        }
        with self._opened() as place:
            with refusals(directory), (place / ".making").open("wb") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                copy = place / content_hash(wanted).removeprefix("sha256:")
                if not _holds(copy, wanted):
                    _replace(copy, _copied(directory, wanted, place))
                _require_unchanged(directory, copy, wanted)
                os.utime(copy)
            try:
                yield copy
            except AdvisorError as error:
                error.args = (str(error).replace(str(copy), str(directory)),)
                raise

    @contextmanager
    def _opened(self) -> Iterator[Path]:
        """The place, while nobody tidies it up."""
        if self._place is None:
            with tempfile.TemporaryDirectory(prefix="advisor-model-") as name:
                yield Path(name)
            return
        with refusals(self._place):
            self._place.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_private(self._place)
        with (self._place / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield self._place
        with (self._place / ".lock").open("wb") as lock, suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _tidy(self._place)


def _require_private(place: Path) -> None:
    """Raise `ModelFileError` unless the place is this user's; others are shut out of it."""
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ModelFileError(
            f"{place} belongs to somebody else, or is no directory: models are copied to a place of"
            " our own; remove it, or set ADVISOR_HOME"
        )
    if status.st_mode & 0o077:
        place.chmod(0o700)


def _holds(copy: Path, files: Mapping[str, str]) -> bool:
    """Whether the copy's bytes are what its name says; they are read."""
    return (
        copy.is_dir()
        and {name for name, _ in walk(copy)} == files.keys()
        and all(file_hash(copy / name) == value for name, value in files.items())
    )


def _copied(directory: Path, files: Mapping[str, str], place: Path) -> Path:
    """A new copy under a name of its own, verified."""
    size = sum((directory / name).lstat().st_size for name in files)
    if size + _SPARE_BYTES > shutil.disk_usage(place).free:
        raise ModelFileError(
            f"{directory} takes {size} bytes, and {place} has no room for a copy: make room"
        )
    work = Path(tempfile.mkdtemp(prefix=".copy-", dir=place))
    try:
        for name in files:
            (work / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            copy_file(directory / name, work / name)
        require_hashes(directory, work, files)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return work


def _replace(copy: Path, work: Path) -> None:
    """Put a verified copy in the place of a missing or damaged one."""
    if copy.exists():
        damaged = work.with_name(f"{work.name}-damaged")
        copy.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    work.rename(copy)


def _require_unchanged(directory: Path, copy: Path, files: Mapping[str, str]) -> None:
    """A directory that no longer holds what was copied is refused too. A file of the same size and
    time counts as unchanged: what is loaded is the copy in any case."""
    touched = {
        name: value
        for name, value in files.items()
        if _look(directory / name) != _look(copy / name)
    }
    require_hashes(directory, directory, touched)
    for name in touched:
        status = (directory / name).lstat()
        os.utime(copy / name, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _look(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_size, status.st_mtime_ns


def _tidy(place: Path) -> None:
    """Remove what was left half done, and all copies but the newest."""
    copies = [path for path in place.iterdir() if path.is_dir()]
    half = [path for path in copies if path.name.startswith(".")]
    whole = sorted(
        (path for path in copies if not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in (*half, *whole[KEPT:]):
        shutil.rmtree(path, ignore_errors=True)
