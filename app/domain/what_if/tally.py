"""Sums over decisions that were judged again."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, date
from enum import StrEnum
from typing import Any

from app.domain.candidate import Candidate
from app.domain.intervals import Day, Mean, mean_of_days
from app.domain.record.comparison import regime
from app.domain.what_if.past import AGENT, UNREAD, Grade, Judged, Verdict

MOST_CHANGED = 1_000
"""So many changed decisions are kept, the newest."""


@dataclass
class CodeTally:
    """What one veto code does to the agent's orders. R saved is minus the R of the agent's plan,
    over those whose outcome is known, as in the view `veto_value`."""

    refused_before: int = 0
    refused_after: int = 0
    r_saved_before: float = 0.0
    r_saved_after: float = 0.0


@dataclass
class ArmTally:
    """What becomes of one arm. R counts where it is known both before and after; approvals where
    what was said is known."""

    decisions: int = 0
    approved_before: int = 0
    approved_after: int = 0
    grades: Counter[Grade] = field(default_factory=Counter)
    whys: Counter[str] = field(default_factory=Counter)
    """What was assumed, and why others are undetermined."""
    judged: int = 0
    r_before: float = 0.0
    r_after: float = 0.0
    days: dict[date, Day] = field(default_factory=dict)

    @property
    def gain(self) -> Mean | None:
        """R a decision, after less before, with its interval over days."""
        return mean_of_days(self.days.values())

    def as_json(self) -> dict[str, Any]:
        """The sums as a document."""
        return {
            "decisions": self.decisions,
            "approved": {"before": self.approved_before, "after": self.approved_after},
            "r": {"before": self.r_before, "after": self.r_after, "judged": self.judged},
            "gain_r_a_decision": None if self.gain is None else self.gain._asdict(),
            "grades": {grade.value: self.grades[grade] for grade in Grade},
            "why": dict(self.whys.most_common()),
        }

    def add(self, judged: Judged) -> None:
        """Count one decision."""
        self.decisions += 1
        self.grades[judged.grade] += 1
        if judged.why:
            self.whys[judged.why] += 1
        if UNREAD in (judged.before, judged.after):
            return
        approves = _trades(judged, judged.before), _trades(judged, judged.after)
        self.approved_before += approves[0]
        self.approved_after += approves[1]
        if judged.r_before is None or judged.r_after is None:
            return
        self.judged += 1
        self.r_before += judged.r_before
        self.r_after += judged.r_after
        day = judged.past.decision.scenario.as_of.astimezone(UTC).date()
        values, total = self.days.get(day, Day(0, 0.0))
        self.days[day] = Day(values + 1, total + judged.r_after - judged.r_before)


class By(StrEnum):
    """What decisions are grouped by."""

    SYMBOL = "symbol"
    SETUP = "setup"
    SESSION = "session"
    REGIME = "regime"

    def of(self, candidate: Candidate) -> str:
        """The group of a candidate."""
        if self is By.REGIME:
            return regime(candidate).value
        return str(getattr(candidate, {"setup": "setup_type"}.get(self.value, self.value)))


@dataclass
class Tally:
    """Sums over everything that was judged, by arm and again by group within it, and the decisions
    that change, the newest last."""

    by: By = By.SYMBOL
    arms: dict[str, ArmTally] = field(default_factory=dict)
    groups: dict[str, dict[str, ArmTally]] = field(default_factory=dict)
    codes: dict[str, CodeTally] = field(default_factory=dict)
    changed: deque[Judged] = field(default_factory=lambda: deque(maxlen=MOST_CHANGED), repr=False)

    def add(self, judged: Judged) -> None:
        """Count one arm of one decision."""
        self.arms.setdefault(judged.arm, ArmTally()).add(judged)
        group = self.by.of(judged.past.decision.scenario.candidate)
        self.groups.setdefault(judged.arm, {}).setdefault(group, ArmTally()).add(judged)
        if judged.changes:
            self.changed.append(judged)
        if judged.arm != AGENT:
            return
        saved = [-(r or 0.0) for r in judged.plan_r]
        for code in judged.before.codes:
            tally = self.codes.setdefault(code, CodeTally())
            tally.refused_before += 1
            tally.r_saved_before += saved[0]
        for code in judged.after.codes:
            tally = self.codes.setdefault(code, CodeTally())
            tally.refused_after += 1
            tally.r_saved_after += saved[1]

    def as_json(self) -> dict[str, Any]:
        """Everything as a document."""
        return {
            "arms": {name: arm.as_json() for name, arm in self.arms.items()},
            "by": self.by.value,
            "groups": {
                name: {group: own.as_json() for group, own in sorted(groups.items())}
                for name, groups in self.groups.items()
            },
            "vetoes": {code: asdict(tally) for code, tally in sorted(self.codes.items())},
            "changed": [_as_json(judged) for judged in self.changed],
        }


def _trades(judged: Judged, verdict: Verdict) -> bool:
    """Whether the arm trades: the agent when it wants to and the rules let it."""
    return verdict.approves and (judged.arm != AGENT or bool(judged.past.agent_approves))


def _as_json(judged: Judged) -> dict[str, Any]:
    decision = judged.past.decision
    return {
        "decision_id": str(decision.decision_id),
        "as_of": decision.scenario.as_of.isoformat(),
        "symbol": decision.scenario.candidate.symbol,
        "arm": judged.arm,
        "before": judged.before._asdict(),
        "after": judged.after._asdict(),
        "r_before": judged.r_before,
        "r_after": judged.r_after,
        "grade": judged.grade.value,
        "why": judged.why,
    }
