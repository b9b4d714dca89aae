"""A segment: where the disk or the kernel refuses, nothing half made is left."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.domain.errors import JournalUnavailable
from app.domain.record.event import EventKind
from app.journal.segment import Segment
from app.journal.spool import Spool
from tests.service.journal.journal_events import event


@contextmanager
def one_more_file() -> Iterator[None]:
    """The kernel lets this process open one file more, and no second one."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_segment_whose_directory_cannot_be_synced_leaves_no_file(tmp_path: Path) -> None:
    with one_more_file(), pytest.raises(OSError, match="Too many open files"):
        Segment.create(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_another_process_drained_meanwhile_is_not_adopted(tmp_path: Path) -> None:
    assert Segment.adopt(tmp_path / "gone.segment") is None


async def test_an_orphan_that_cannot_be_read_now_is_adopted_later(tmp_path: Path) -> None:
    dying = Spool(tmp_path, 1 << 20)
    await dying.open()
    await dying.append(event("one"))
    await dying.aclose()
    spool = Spool(tmp_path, 1 << 20)
    with one_more_file(), pytest.raises(JournalUnavailable, match="Too many open files"):
        await spool.open()
    await spool.open()
    assert spool.claim(EventKind.DECISION, "one") == "sha256:a"
    await spool.aclose()
