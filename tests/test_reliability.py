"""The page of reliability: every fault has its row, and every command in it exists."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"^\| (?!fault |---)", line)
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_row_says_fault_promise_command_and_measure() -> None:
    assert len(ROWS) > len(FAULTS)
    assert [row[0] for row in ROWS if len(row) != 4 or not all(row)] == []
    assert [row[0] for row in ROWS if not row[2].startswith("`")] == []
    assert "@" not in PAGE


def test_every_fault_that_is_done_has_its_row() -> None:
    named = [re.search(r'FAULT="(.+?)"', row[2]) for row in ROWS]
    assert sorted(each[1] for each in named if each) == sorted(fault.name for fault in FAULTS)
    assert [
        row[0] for row, each in zip(ROWS, named, strict=True) if each and each[1] != row[0]
    ] == []


@pytest.mark.parametrize("command", sorted({row[2].strip("`") for row in ROWS}))
def test_every_command_exists(command: str) -> None:
    program, *arguments = command.split()
    if program == "make":
        assert arguments[0] in TARGETS
    elif program == "pytest":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert (program, arguments[0]) == ("python", "-m")
        assert find_spec(arguments[1]) is not None
