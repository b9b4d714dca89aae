"""What travels through the journal to the shadow log: one event, one idempotency key, one row (or
one set of rows)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple, Self
from uuid import UUID

import orjson
from pydantic import Field

from app.domain.canonical import canonical_json, content_hash, digest
from app.domain.case import TradingState
from app.domain.control import AgentAction
from app.domain.decision import Decision
from app.domain.errors import InvalidRecord
from app.domain.fields import Instant, Record, ShortText, Text, absent
from app.domain.link import Fate, Link, Linked
from app.domain.outcome import Outcome


class EventKind(StrEnum):
    DECISION = "decision"
    AGENT_ACTION = "agent_action"
    OUTCOME = "outcome"
    RATIONALE = "rationale"
    STATE_CHANGE = "state_change"


class AgentActionReport(Record):
    """The control, reported after the advice."""

    decision_id: UUID
    recorded_at: Instant
    reported_by: ShortText | None = Field(None, exclude_if=absent)
    action: AgentAction


class OutcomeReport(Record):
    """An outcome of one arm."""

    decision_id: UUID
    recorded_at: Instant
    reported_by: ShortText | None = Field(None, exclude_if=absent)
    outcome: Outcome


class Rationale(Record):
    """A rationale generated after the decision."""

    decision_id: UUID
    recorded_at: Instant
    model_version: ShortText
    text: Annotated[str, Field(max_length=1000)]


class StateChange(Record):
    """Somebody changed the trading state."""

    recorded_at: Instant
    state: TradingState
    reason: Text
    changed_by: ShortText


Payload = Decision | AgentActionReport | OutcomeReport | Rationale | StateChange
_KINDS: dict[EventKind, type[Record]] = {
    EventKind.DECISION: Decision,
    EventKind.AGENT_ACTION: AgentActionReport,
    EventKind.OUTCOME: OutcomeReport,
    EventKind.RATIONALE: Rationale,
    EventKind.STATE_CHANGE: StateChange,
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
        payload = canonical_json(decision.as_json())
        return cls(EventKind.DECISION, str(decision.decision_id), decision.request_hash, payload)

    @classmethod
    def of_report(cls, kind: EventKind, report: Record) -> Self:
        """Key and claim: the content without the time it was recorded, so that a retry is the same
        event."""
        content = report.as_json()
        payload = canonical_json(content)
        claim = content_hash(
            {"kind": kind.value, **{k: v for k, v in content.items() if k != "recorded_at"}}
        )
        return cls(kind, claim, claim, payload)

    @classmethod
    def of_state_change(cls, change: StateChange) -> Self:
        """Key: the whole content with its time: the same state may be set twice."""
        payload = canonical_json(change.as_json())
        key = content_hash(change.as_json())
        return cls(EventKind.STATE_CHANGE, key, key, payload)

    def record(self) -> Payload:
        """The payload as a record. Raises `InvalidRecord` when it does not fit its schema."""
        try:
            document = orjson.loads(self.payload)
        except ValueError as error:
            raise InvalidRecord(f"{self.kind.value} {self.key}: {error}") from error
        return _KINDS[self.kind].from_json(document)  # type: ignore[return-value]

    def linked(self, fate: Fate = Fate.EVENT) -> Linked:
        """The row of its link, which it must have."""
        assert self.link is not None
        hashes = (self.kind.value, self.key, self.claim, digest(self.payload))
        return Linked(*self.link, *hashes, fate)


class Aside(NamedTuple):
    """An event that cannot be recorded where it belongs, kept with the reason: a second answer
    under an id that has one, or what the database refuses."""

    event: Event
    reason: str


Entry = Event | Linked | Aside
"""What the journal hands to the shadow log. A link alone is a number that carries no new event."""
