"""What a decision model elsewhere was asked and has cost on this UTC day, kept across restarts."""

from __future__ import annotations

import json
import os
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()


class Budget:
    """Questions and US dollars of a day. The file is written before a question is sent, so that a
    process that dies over and over spends no more than the day's.

    Parameters
    ----------
    path : where the day is noted; its folder is made when needed. Each process has its own.
    per_day : questions. cost_per_day : US dollars; None does not limit them.
    """

    def __init__(self, path: Path, per_day: int, cost_per_day: float | None) -> None:
        self._path, self._per_day, self._cost_per_day = path, per_day, cost_per_day
        self._day, self._asked, self._cost = _read(path)

    def take(self, now: datetime) -> bool:
        """Whether one more question may be asked today; it is counted."""
        if self._is_over(now.date()):
            self._day, self._asked, self._cost = now.date(), 0, 0.0
        over = self._cost_per_day is not None and self._cost >= self._cost_per_day
        if over or self._asked >= self._per_day:
            return False
        self._asked += 1
        return self._note()

    def _is_over(self, today: date) -> bool:
        """Whether the day that is noted has ended. A clock that goes back over midnight does not
        give the day's budget again; a note of a day that is far ahead was made by a wrong clock."""
        return today > self._day or self._day - today > timedelta(days=1)

    def add(self, cost: float) -> None:
        """What a question has cost."""
        self._cost += cost
        self._note()

    def _note(self) -> bool:
        """Write the day down. What cannot be written down is not spent."""
        document = {"day": self._day.isoformat(), "asked": self._asked, "cost": self._cost}
        draft = self._path.with_suffix(".draft")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text(json.dumps(document))
            os.replace(draft, self._path)
        except OSError as error:
            log.warning("a budget cannot be noted", path=str(self._path), error=error.strerror)
            return False
        return True


def _read(path: Path) -> tuple[date, int, float]:
    """The day that was noted last; what cannot be read counts as nothing asked."""
    try:
        document: Any = json.loads(path.read_text())
        day = date.fromisoformat(document["day"])
        return day, int(document["asked"]), float(document["cost"])
    except (OSError, ValueError, KeyError, TypeError):
        return date.min, 0, 0.0
