"""The log of a process whose disk is full, and what a traceback in it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SPEAK = """
import structlog
from app.telemetry import configure_log

configure_log()
password = "hunter" + "2"
try:
    len(password) / 0
except ZeroDivisionError:
    structlog.get_logger().exception("it failed", task="writer")
open({mark!r}, "w").write("went on")
"""


def speak(mark: Path, stdout: str) -> None:
    with Path(stdout).open("w") as log:
        subprocess.run(
            [sys.executable, "-c", SPEAK.format(mark=str(mark))], stdout=log, check=False
        )


def test_whoever_logs_to_a_full_disk_goes_on(tmp_path: Path) -> None:
    speak(tmp_path / "mark", "/dev/full")
    assert (tmp_path / "mark").read_text() == "went on"


def test_a_traceback_shows_no_values(tmp_path: Path) -> None:
    speak(tmp_path / "mark", str(tmp_path / "log"))
    said = (tmp_path / "log").read_text()
    assert "it failed" in said
    assert "ZeroDivisionError" in said
    assert "hunter2" not in said
