"""What a decision model elsewhere was asked and has cost on this UTC day, kept across restarts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()
NOTHING = (date.min, 0, 0.0)


class Budget:
    """Questions and US dollars of a day. The file is written before a question is sent, so that a
    process that dies over and over spends no more than the day's.

    Parameters
    ----------
    path : where the day is noted; its folder is made when needed. Processes that share it share
        the budget.
    per_day : questions. cost_per_day : US dollars; None does not limit them.
    """

    def __init__(self, path: Path, per_day: int, cost_per_day: float | None) -> None:
        self._path, self._per_day, self._cost_per_day = path, per_day, cost_per_day
        self._day, self._asked, self._cost = _read(path)

    def take(self, now: datetime) -> bool:
        """Whether one more question may be asked today; it is counted."""
        return self._changed(lambda: self._one_more(now.date()))

    def add(self, cost: float) -> None:
        """What a question has cost."""
        self._changed(lambda: self._paid(cost))

    def _one_more(self, today: date) -> bool:
        if self._is_over(today):
            self._day, self._asked, self._cost = today, 0, 0.0
        over = self._cost_per_day is not None and self._cost >= self._cost_per_day
        if over or self._asked >= self._per_day:
            return False
        self._asked += 1
        return True

    def _paid(self, cost: float) -> bool:
        self._cost += cost
        return True

    def _is_over(self, today: date) -> bool:
        """Whether the day that is noted has ended. A clock that goes back over midnight does not
        give the day's budget again; a note of a day that is far ahead was made by a wrong clock."""
        return today > self._day or self._day - today > timedelta(days=1)

    def _changed(self, change: Callable[[], bool]) -> bool:
        """Change the day by what is noted, one process after the other, and write it down. False
        when there was nothing to change; and what cannot be written down is not spent."""
        draft = self._path.with_suffix(".draft")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path.with_suffix(".lock").open("wb") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                noted = _read(self._path)
                if noted != NOTHING:
                    self._day, self._asked, self._cost = noted
                if not change():
                    return False
                document = {"day": self._day.isoformat(), "asked": self._asked, "cost": self._cost}
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
        return NOTHING
