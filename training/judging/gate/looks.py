"""Looks at held-out periods: each version that was judged on one, counted, since many looks find
something by luck."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from app.domain.canonical import content_hash
from training.config.data import HeldOutConfig, MarketConfig

FILE = "looks.jsonl"
REAL, MADE_UP, ANY = "bars", "synthetic ", "any"
"""What a look says of its market; of a synthetic one its hash too. `ANY` is of a lost line."""


class _Written(BaseModel):
    """A line of the file. `tried` : Sharpe ratios per step, by arm; None: not known yet."""

    version: str
    since: str
    until: str
    market: str
    tried: dict[str, float] | None = None


@dataclass(frozen=True)
class Look:
    """One version judged on days of a market.

    models : the folder of versions. Looks are written down in a file beside them, so that every
        configuration that publishes there counts into it. Real days are the same days wherever
        their bars lie; a synthetic market has days of its own.
    """

    models: Path
    version: str
    market: MarketConfig
    period: HeldOutConfig
    at: datetime

    def count(self) -> int:
        """Write it down, before anything is seen; how many versions have looked at days of this
        period, this included. Judging the same version again is written down and counts once."""
        self._write({})
        return len({look["version"] for look in self._meeting()})

    def note(self, sharpes: Mapping[str, float]) -> None:
        """Write down what came of it: the Sharpe ratio per step of every configuration that was
        tried in it, by the name of its arm."""
        self._write({"tried": dict(sharpes)})

    def tried_before(self) -> dict[str, float | None]:
        """Sharpe ratios per step of every configuration that other versions' looks at days of this
        period tried, the newest; None for a version of which no ratio was written down."""
        tried: dict[str, float | None] = {}
        for look in self._meeting():
            other = look["version"]
            if other == self.version:
                continue
            if "tried" in look:
                tried.pop(other, None)
                tried |= {f"{other}: {arm}": ratio for arm, ratio in look["tried"].items()}
            elif not any(name.startswith(f"{other}: ") for name in tried):
                tried[other] = None
        return tried

    def _entry(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "at": self.at.isoformat(),
            "since": str(self.period.since or ""),
            "until": str(self.period.until or "9999"),
            "market": self._of_market(),
        }

    def _of_market(self) -> str:
        if self.market.source != "synthetic":
            return REAL
        return MADE_UP + content_hash(self.market.synthetic.model_dump(mode="json"))

    def _write(self, found: dict[str, Any]) -> None:
        """One line, in one go; behind a line that was cut, a new one."""
        path = self.models / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            whole = stream.read(1) in (b"", b"\n")
            line = json.dumps(self._entry() | found).encode() + b"\n"
            stream.write(line if whole else b"\n" + line)
            os.fsync(stream.fileno())

    def _meeting(self) -> list[dict[str, Any]]:
        """Looks at the same market whose days meet this one's, in the order of the file. What does
        not say that its market was synthetic was of real days. A line that was cut was somebody's
        look at days that nobody knows: it counts, as a version of its own."""
        path, entry = self.models / FILE, self._entry()
        lines = path.read_bytes().splitlines() if path.is_file() else []
        looks = [_read(line, f"line {number}") for number, line in enumerate(lines, 1) if line]
        return [
            look
            for look in looks
            if look["since"] < entry["until"]
            and entry["since"] < look["until"]
            and (
                look["market"] == entry["market"]
                or look["market"] == ANY
                or (entry["market"] == REAL and not look["market"].startswith(MADE_UP))
            )
        ]


def _read(line: bytes, name: str) -> dict[str, Any]:
    """A look that was written down; of a line that says none, one at all days of every market."""
    try:
        return _Written.model_validate_json(line).model_dump(exclude_none=True)
    except ValidationError:
        return {"version": f"{FILE}, {name}", "since": "", "until": "9999", "market": ANY}
