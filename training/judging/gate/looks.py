"""Looks at held-out periods: each version that was judged on one, counted, since many looks find
something by luck."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app.domain.canonical import content_hash
from training.config.data import HeldOutConfig, MarketConfig

FILE = "looks.jsonl"
REAL, MADE_UP = "bars", "synthetic "
"""What a look says of its market; of a synthetic one its hash too."""


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
        path = self.models / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(self._entry() | found) + "\n")

    def _meeting(self) -> list[dict[str, Any]]:
        """Looks at the same market whose days meet this one's, in the order of the file. What does
        not say that its market was synthetic was of real days."""
        path, entry = self.models / FILE, self._entry()
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [
            look
            for look in map(json.loads, lines)
            if look["since"] < entry["until"]
            and entry["since"] < look["until"]
            and (
                look["market"] == entry["market"]
                or (entry["market"] == REAL and not look["market"].startswith(MADE_UP))
            )
        ]
