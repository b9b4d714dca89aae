"""Files that came from strangers: found without following links, read within bounds.

A link could lead out of the directory, a pipe would hold whoever opens it, and a file without end
would fill memory or disk: none of them is opened.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from app.domain.errors import AdvisorError, ModelFileError

PICKLE_SUFFIXES = frozenset(
    {
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
        ".pickle",
        ".ckpt",
        ".joblib",
        ".dill",
        ".cloudpickle",
        ".npy",
        ".npz",
        ".h5",
        ".keras",
        ".nemo",
    }
)
"""Formats that hold pickled code, or may."""
MAX_FILES, MAX_DEPTH = 4096, 8
MAX_JSON_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 128 << 20
_LFS = b"version https://git-lfs.github.com/spec/"
_PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
"""How torch's archives and pickles of protocol 2 to 5 begin."""
_CHUNK_BYTES = 1 << 20
_REASON_CHARACTERS = 300


@contextmanager
def refusals(what: Path | str) -> Iterator[None]:
    """Whatever goes wrong in the block, in whatever library, is a `ModelFileError` of one line.

    Rust libraries panic with exceptions that are no `Exception`, so all are caught but those that
    end the process.
    """
    try:
        yield
    except (AdvisorError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ModelFileError(f"{what} cannot be used: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An exception's kind and message, on one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _REASON_CHARACTERS else f"{text[:_REASON_CHARACTERS]}..."


def walk(directory: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of every ordinary file that is not hidden.

    Raises
    ------
    ModelFileError : a link, a pipe or another thing that is no file, a name that is no text, or too
        many of them.
    """
    pending, count = [directory], 0
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda found: found.name):
                count += 1
                path = Path(entry.path)
                name = PurePosixPath(path.relative_to(directory).as_posix())
                if count > MAX_FILES or len(name.parts) > MAX_DEPTH:
                    raise ModelFileError(
                        f"{directory} holds more than {MAX_FILES} files, or folders deeper than"
                        f" {MAX_DEPTH}: it is no model's directory"
                    )
                if entry.name.startswith("."):
                    continue
                if not entry.name.isprintable():
                    raise ModelFileError(f"{directory} holds the name {entry.name!r}: rename it")
                if entry.is_symlink():
                    raise ModelFileError(
                        f"{path} is a link, which may lead anywhere: copy the directory with"
                        " `cp -rL`"
                    )
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield str(name), path
                else:
                    raise ModelFileError(f"{path} is no ordinary file: remove it")


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """An ordinary file and what the system knows of it. Raises `ModelFileError`."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {one_line(error)}") from error
    with os.fdopen(number, "rb") as stream:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path} is no ordinary file: remove it")
        yield stream, status


def copy_file(source: Path, target: Path) -> None:
    """The bytes and the time of an ordinary file, readable for its owner alone.

    Raises
    ------
    ModelFileError : the file is a pointer of Git LFS or a pickle, or cannot be read.
    """
    with opened(source) as (stream, status):
        begin = stream.read(len(_LFS))
        if begin == _LFS:
            raise ModelFileError(
                f"{source} is a pointer of Git LFS, not the file: fetch it with `git lfs pull`"
            )
        if source.suffix != ".safetensors" and begin.startswith(_PICKLES):
            raise ModelFileError(
                f"{source} may hold pickled code and is never loaded: remove it, whatever its name"
            )
        remaining = status.st_size - len(begin)
        with target.open("xb") as copy:
            copy.write(begin)
            while remaining > 0:  # What the file grew by meanwhile stays behind.
                chunk = stream.read(min(_CHUNK_BYTES, remaining))
                if not chunk:
                    break
                copy.write(chunk)
                remaining -= len(chunk)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    target.chmod(0o400)


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """A small file's content. Raises `ModelFileError` when it is longer than `limit`."""
    with opened(path) as (stream, _):
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ModelFileError(f"{path} is longer than {limit} bytes: it is no such file")
    return content


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """A small file's text. Raises `ModelFileError`."""
    with refusals(path):
        return read_bytes(path, limit).decode()


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelFileError`."""
    text = read_text(path, limit)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object")
    return value


def some_of(names: Sequence[str]) -> str:
    """The first three names, and how many there are beside them."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
