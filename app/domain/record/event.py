"""What travels through the journal to the shadow log: one event, one idempotency key, one row (or
one set of rows)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self
from uuid import UUID

import orjson
from pydantic import AfterValidator, Field

from app.domain.canonical import canonical_json, content_hash, digest, forget, fragment
from app.domain.errors import InvalidRecord
from app.domain.fields import Hash, Instant, Record, ShortText, Text, absent, clean_text
from app.domain.model.manifest import Calibration
from app.domain.record.control import AgentAction
from app.domain.record.decision import Advice, Decision, Proposal, Reading, propose
from app.domain.record.link import Fate, Link, Linked
from app.domain.record.outcome import Arm, Outcome
from app.domain.rules.case import TradingState

LAST_INSTANT = datetime.max.replace(tzinfo=UTC)


class EventKind(StrEnum):
    DECISION = "decision"
    AGENT_ACTION = "agent_action"
    OUTCOME = "outcome"
    RATIONALE = "rationale"
    STATE_CHANGE = "state_change"
    LATE_ADVICE = "late_advice"
    REPETITION = "repetition"


Arrival = Annotated[int, Field(ge=1, lt=2**31)]
"""Which of the reports on the same thing it is, by the order in which they came: the first is 1, a
correction of it 2. No clock decides it. None in reports of earlier releases, which are older."""


class AgentActionReport(Record):
    """The control, reported after the advice."""

    decision_id: UUID
    recorded_at: Instant
    reported_by: ShortText | None = Field(None, exclude_if=absent)
    action: AgentAction
    arrival: Arrival | None = Field(None, exclude_if=absent)

    @property
    def subject(self) -> str:
        """What it reports on; of two reports on the same thing the later corrects the earlier."""
        return f"{EventKind.AGENT_ACTION}:{self.decision_id}"


class OutcomeReport(Record):
    """An outcome of one arm."""

    decision_id: UUID
    recorded_at: Instant
    reported_by: ShortText | None = Field(None, exclude_if=absent)
    outcome: Outcome
    arrival: Arrival | None = Field(None, exclude_if=absent)

    @property
    def subject(self) -> str:
        """As of `AgentActionReport`; the arm of the agent is one, whatever version it names."""
        arm = self.outcome.arm
        version = "" if arm is Arm.AGENT else f":{self.outcome.model_version}"
        return f"{EventKind.OUTCOME}:{self.decision_id}:{arm}{version}"


class Rationale(Record):
    """A rationale generated after the decision."""

    decision_id: UUID
    recorded_at: Instant
    model_version: ShortText
    text: Annotated[str, AfterValidator(clean_text), Field(max_length=1000)]


class LateAdvice(Record):
    """What a version advises that is asked after the reply: one for a decision and a version."""

    decision_id: UUID
    as_of: Instant
    recorded_at: Instant
    advice: Advice

    @property
    def subject(self) -> str:
        """What it is, whatever it says."""
        version = self.advice.model_version
        return content_hash([EventKind.LATE_ADVICE.value, str(self.decision_id), version])


class RepetitionKind(StrEnum):
    """How a version is asked again."""

    ORDER = "order"
    """With its options in another order."""
    SAME = "same"
    """With the very same question."""


class Repetition(Record):
    """A version asked again about a decision, to see whether it says the same. It never counts as
    advice."""

    decision_id: UUID
    recorded_at: Instant
    model_version: ShortText
    manifest_hash: Hash
    kind: RepetitionKind
    calibration: Calibration
    first: Reading
    again: Reading

    @property
    def proposals(self) -> tuple[Proposal, Proposal]:
        """What each reading proposes."""
        return propose(self.first, self.calibration), propose(self.again, self.calibration)

    @property
    def flipped(self) -> bool:
        """Whether another action is proposed."""
        first, again = self.proposals
        return first.label != again.label

    @property
    def distance(self) -> float:
        """Total variation between both distributions, 0-1."""
        first, again = self.proposals
        pairs = zip(first.probabilities, again.probabilities, strict=True)
        return sum(abs(a - b) for a, b in pairs) / 2


class StateChange(Record):
    """Somebody changed the trading state. The newest by `recorded_at` is in force."""

    recorded_at: Instant
    state: TradingState
    reason: Text
    changed_by: ShortText

    def after(self, before: StateChange | None) -> StateChange:
        """The same change, newer than one that it follows: a clock may be behind, or set back.
        Nothing is newer than the end of time, and nothing raises: a halt may follow."""
        if before is None or not self.recorded_at <= before.recorded_at < LAST_INSTANT:
            return self
        return self.model_copy(update={"recorded_at": before.recorded_at + timedelta.resolution})


CorrectableReport = AgentActionReport | OutcomeReport
CORRECTABLE = (EventKind.AGENT_ACTION, EventKind.OUTCOME)
"""Kinds of reports of which a later one corrects an earlier one."""
Report = AgentActionReport | OutcomeReport | Rationale | StateChange | LateAdvice | Repetition
Payload = Decision | Report
_KINDS: dict[EventKind, type[Record]] = {
    EventKind.DECISION: Decision,
    EventKind.AGENT_ACTION: AgentActionReport,
    EventKind.OUTCOME: OutcomeReport,
    EventKind.RATIONALE: Rationale,
    EventKind.STATE_CHANGE: StateChange,
    EventKind.LATE_ADVICE: LateAdvice,
    EventKind.REPETITION: Repetition,
}


class Event(NamedTuple):
    """`key` makes the event idempotent; `claim` is what a repeat under the same key must match;
    `link` is its place among the events of who made it."""

    kind: EventKind
    key: str
    claim: str
    payload: bytes
    link: Link | None = None

    @classmethod
    def of_decision(cls, decision: Decision) -> Self:
        """Key: the decision id. Claim: the hash of the request."""
        return cls(
            EventKind.DECISION, str(decision.decision_id), decision.request_hash, _written(decision)
        )

    @classmethod
    def of_report(cls, kind: EventKind, report: Record) -> Self:
        """Key and claim: the content without the time it was recorded, so that a retry is the same
        event, while the same content that comes again after a correction is another one."""
        document = report.as_json()
        claim = content_hash({"kind": kind.value, **_without(document, "recorded_at")})
        return cls(kind, claim, claim, canonical_json(document))

    @classmethod
    def of_late_advice(cls, late: LateAdvice) -> Self:
        """Key and claim: the decision and the version, which gives one advice on it."""
        payload = canonical_json(late.as_json())
        return cls(EventKind.LATE_ADVICE, late.subject, late.subject, payload)

    @classmethod
    def of_state_change(cls, change: StateChange) -> Self:
        """Key: the whole content with its time: the same state may be set twice."""
        payload = canonical_json(change.as_json())
        key = content_hash(change.as_json())
        return cls(EventKind.STATE_CHANGE, key, key, payload)

    def document(self) -> Any:
        """The payload as JSON. Raises `InvalidRecord` when it is none."""
        try:
            return orjson.loads(self.payload)
        except ValueError as error:
            raise InvalidRecord(f"{self.kind.value} {self.key}: {error}") from error

    def record(self) -> Payload:
        """The payload as a record. Raises `InvalidRecord` when it does not fit its schema."""
        return self.read(self.document())

    def read(self, document: Any) -> Payload:
        """The payload's JSON as a record. Raises `InvalidRecord` when it does not fit."""
        return _KINDS[self.kind].from_json(document)  # type: ignore[return-value]

    def linked(self, fate: Fate = Fate.EVENT) -> Linked:
        """The row of its link, which it must have."""
        assert self.link is not None
        hashes = (self.kind.value, self.key, self.claim, digest(self.payload))
        return Linked(*self.link, *hashes, fate)


_FRAGMENTS: dict[str, Any] = {
    "limits": True,
    "scenario": {"candidate"},
    "advices": {"__all__": {"calibration"}},
}


def _written(decision: Decision) -> bytes:
    """The canonical JSON of a decision; of what other documents hold too, as it was written
    there."""
    document = decision.model_dump(mode="json", exclude=_FRAGMENTS)
    document["limits"] = fragment(decision.limits)
    document["scenario"]["candidate"] = fragment(decision.scenario.candidate)
    for written, advice in zip(document["advices"], decision.advices, strict=True):
        written["calibration"] = fragment(advice.calibration)
    forget(decision.scenario.candidate)
    return canonical_json(document)


def reported(
    said: AgentAction | Outcome, decision_id: UUID, recorded_at: datetime, by: str | None
) -> tuple[EventKind, CorrectableReport]:
    """The report that says this of a decision, without its place, and its kind."""
    told: dict[str, Any] = {
        "decision_id": decision_id,
        "recorded_at": recorded_at,
        "reported_by": by,
    }
    if isinstance(said, AgentAction):
        return EventKind.AGENT_ACTION, AgentActionReport(**told, action=said)
    return EventKind.OUTCOME, OutcomeReport(**told, outcome=said)


def content_of(kind: EventKind, report: CorrectableReport) -> str:
    """The hash of what is reported, whenever and in which place it came: reports with the same
    content say the same."""
    said = _without(report.as_json(), "recorded_at", "arrival")
    return content_hash({"kind": kind.value, **said})


def _without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


class Aside(NamedTuple):
    """An event that cannot be recorded where it belongs, kept with the reason: a second answer
    under an id that has one, or what the database refuses."""

    event: Event
    reason: str


Entry = Event | Linked | Aside
"""What the journal hands to the shadow log. A link alone is a number that carries no new event."""
