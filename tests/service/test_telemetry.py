"""The log of a process whose disk is full, and what a traceback in it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
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


def test_a_log_in_json_is_one_object_a_line_also_of_what_others_say(tmp_path: Path) -> None:
    code = """
import logging, structlog
from app.telemetry import configure_log

configure_log(as_json=True)
structlog.get_logger().info("ready", url="http://h", models=["v1"])
logging.getLogger("uvicorn.error").warning("slow %s", "client")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("it failed")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ready, slow, failed = map(json.loads, said.stdout.splitlines())
    assert datetime.fromisoformat(ready.pop("timestamp")).utcoffset() == timedelta(0)
    assert ready == {"event": "ready", "level": "info", "url": "http://h", "models": ["v1"]}
    assert (slow["event"], slow["level"]) == ("slow client", "warning")
    assert "ZeroDivisionError" in failed["exception"]
