"""What verification finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from app.domain.text import counted


class Fault(StrEnum):
    """What can be wrong with what is stored."""

    UNREADABLE = "cannot be read as a record"
    HASH = "hash differs from the content"
    COLUMNS = "columns differ from the record"
    REPLAY = "replay gives another record"
    NO_ADVICE = "no advice rows"
    CONTROL = "its control is missing or differs"
    KEY_WITHOUT_ROW = "recorded, but its row is missing"
    ROW_WITHOUT_KEY = "its idempotency key is missing or differs"
    ORPHAN_ADVICE = "advice of a decision that is missing"
    LINK_WITHOUT_ROW = "numbered, but its row is missing"
    ROW_WITHOUT_LINK = "its link is missing"
    OTHER_THAN_LINKED = "differs from what its link says"
    GAP = "numbered events are missing; they may still be in a journal or spool"
    BROKEN_CHAIN = "its link does not follow the one before"
    LINKED_TWICE = "linked twice"
    REPEAT_OF_NOTHING = "a repeat of what is not there; it may still be in the journal"
    FORGOTTEN = "accepted, and lost before it was decided"
    CHECKPOINT = "the log is not what a checkpoint says it was"
    COMPARISON = "its comparison is not what the tables say; `advisor compare` makes it anew"
    ORPHAN_REPORT = "report of a decision that is missing; it may still be in the journal"


@dataclass
class VerifyReport:
    """What was looked at, and every fault found."""

    decisions: int = 0
    reports: int = 0
    links: int = 0
    producers: int = 0
    missing: int = 0
    """Numbered events that are not there, and accepted requests that are lost."""
    waiting: int = 0
    """Accepted requests that are to be decided."""
    told: Counter[str] = field(default_factory=Counter)
    """Advices by version whose reading a model elsewhere told: nobody can read it again."""
    findings: list[str] = field(default_factory=list)
    counts: Counter[Fault] = field(default_factory=Counter)

    def add(self, fault: Fault, what: object, detail: str = "") -> None:
        """Note a fault of `what`: a decision's id, or a table and key."""
        self.counts[fault] += 1
        self.findings.append(f"{what}: {fault.value}" + (f" ({detail})" if detail else ""))

    def chain_summary(self) -> str:
        """One line about the links."""
        waiting = f", {counted(self.waiting, 'accepted request')} undecided" if self.waiting else ""
        producers = f"{counted(self.links, 'link')} of {counted(self.producers, 'producer')}"
        return f"{producers}, {counted(self.missing, 'event')} missing{waiting}"

    def told_summary(self) -> str:
        """One line about what cannot be replayed to the end; empty when there is none."""
        if not self.told:
            return ""
        versions = ", ".join(f"{name} {count}" for name, count in sorted(self.told.items()))
        return (
            f"{counted(self.told.total(), 'advice follows', 'advices follow')} from what models"
            f" elsewhere told; those cannot be asked again for the same answer: {versions}"
        )

    def summary(self) -> str:
        """One line."""
        looked_at = f"{counted(self.decisions, 'decision')}, {counted(self.reports, 'report')}"
        if not self.findings:
            return f"{looked_at}: every hash matches, every decision replays, no gaps"
        faults = ", ".join(f"{count} x {fault.value}" for fault, count in self.counts.items())
        return f"{looked_at}; {counted(len(self.findings), 'fault')}: {faults}"
