"""What an import has, and what it lacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from app.shadow_log.importing.trade import ImportedTrade

MAX_REASON = 160
SHOWN = 20
"""Reasons by which rows cannot be read; more are counted together."""


class Unreadable(NamedTuple):
    """Rows that cannot be read for one reason."""

    number: int
    first: str
    """Its file and number, from 1; a header is none."""


@dataclass
class Coverage:
    """Counts of one import."""

    rows: int = 0
    passed_over: int = 0
    """No trade, or one that is still open."""
    unreadable: dict[str, Unreadable] = field(default_factory=dict)
    """By reason."""
    traded: int = 0
    rejected: int = 0
    with_outcome: int = 0
    complete: int = 0
    """Usable for training."""
    missing: Counter[str] = field(default_factory=Counter)
    symbols: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None

    def add(self, trade: ImportedTrade) -> None:
        """Count a trade."""
        self.traded += trade.action.decision
        self.rejected += not trade.action.decision
        self.with_outcome += trade.outcome is not None
        self.complete += trade.scenario is not None
        self.missing.update(trade.missing)
        self.symbols[trade.symbol] += 1
        self.first = min(self.first or trade.as_of, trade.as_of)
        self.last = max(self.last or trade.as_of, trade.as_of)

    def refuse(self, why: str, row: str) -> None:
        """Count a row that cannot be read."""
        before = self.unreadable.get(why[:MAX_REASON], Unreadable(0, row))
        self.unreadable[why[:MAX_REASON]] = Unreadable(before.number + 1, before.first)

    def lines(self) -> list[tuple[str, str]]:
        """What a person reads: a name and a value each."""
        names = ", ".join(name for name, _ in self.symbols.most_common(5))
        lines = [
            ("rows", f"{self.rows}, {self.passed_over} of them no closed trade or candidate"),
            ("traded", f"{self.traded}, {self.with_outcome} with an outcome"),
            ("rejected", str(self.rejected)),
            ("complete", f"{self.complete}: usable for training"),
        ]
        if self.first and self.last:
            lines.append(("from, to", f"{self.first.isoformat()}, {self.last.isoformat()}"))
            lines.append(("symbols", f"{len(self.symbols)}: {names}"))
        lines += [(f"missing {name}", str(count)) for name, count in self.missing.most_common()]
        refused = sorted(self.unreadable.items(), key=lambda item: -item[1].number)
        for why, (count, first) in refused[:SHOWN]:
            lines.append((f"unreadable: {why}", f"{count}, the first in {first}"))
        if more := sum(each.number for _, each in refused[SHOWN:]):
            lines.append(("unreadable: for other reasons", str(more)))
        return lines
