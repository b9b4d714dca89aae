"""A file that somebody changes while the service runs: read whole and within bounds, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.domain.rules.files import read_ordinary


def test_an_ordinary_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_ordinary(tmp_path / "link", most=7) == b"content"


@pytest.mark.parametrize("kind", ["pipe", "endless", "directory", "large", "absent"])
def test_nothing_else_is_waited_for_nor_read_without_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"12345678")
    with pytest.raises(OSError, match=r"ordinary|directory|larger than 7 bytes|No such file"):
        read_ordinary(path, most=7)
