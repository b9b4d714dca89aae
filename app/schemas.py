"""Shapes on the wire, and their way to and from the domain."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from app.domain.actions import LABELS
from app.domain.canonical import content_hash
from app.domain.case import TradingState
from app.domain.control import AgentAction
from app.domain.decision import Advice, Decision
from app.domain.fields import Flag, Record, ShortText, Whole
from app.domain.manifest import VERSION_PATTERN
from app.domain.outcome import Outcome
from app.domain.review import MissedInput, Veto
from app.domain.scenario import Scenario

EXAMPLE: dict[str, Any] = {
    "request_id": "2026-11-23T09:00:00Z-BTCUSDT",
    "candidate": {
        "symbol": "BTCUSDT",
        "direction": "long",
        "ts": "2026-11-23T09:00:00Z",
        "session": "Europe",
        "setup_type": "trend",
        "score": 6.8,
        "score_threshold": 5.5,
        "confidence": 7.2,
        "rsi": 56.2,
        "adx": 24.3,
        "atr": 412.0,
        "volatility_pct": 0.63,
        "btc_trend": "up",
        "fear_greed": 34,
        "news_severity": 0,
        "time_to_news_minutes": 240,
        "macro_news_safe": True,
        "spread_bps": 1.2,
        "news_summary": "Bitcoin rises as inflows hit a record",
    },
    "plan": {
        "entry": 40000.0,
        "stop": 39382.0,
        "targets": [41236.0, 41648.0, 42060.0],
        "quantity": 0.01,
    },
    "account": {
        "equity": 10000.0,
        "day_pnl_fraction": 0.0,
        "drawdown_fraction": 0.01,
        "consecutive_losses": 0,
        "positions": [],
    },
    "market": {
        "last_close": 40000.0,
        "bar_closed_at": "2026-11-23T09:00:00Z",
        "bar_seconds": 3600,
        "volume_24h": 900000000.0,
    },
}


LONGEST_DEADLINE_MS = 60_000
REQUEST_ID_PATTERN = r"^[\x21-\x7e]{1,128}$"


class AdviseRequest(Scenario):
    """One candidate. The same `request_id` with the same content returns the stored decision."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    request_id: str = Field(
        default_factory=lambda: str(uuid4()),
        min_length=1,
        max_length=128,
        pattern=REQUEST_ID_PATTERN,
        description="idempotency key; also accepted as the header Idempotency-Key",
    )
    agent_action: AgentAction | None = Field(
        None, description="the agent's own action, when it is known already"
    )
    rationale: Flag = Field(False, description="also explain, after the decision, if there is time")
    deadline_ms: Whole | None = Field(
        None, ge=10, le=LONGEST_DEADLINE_MS, description="answer within; also header X-Deadline-Ms"
    )

    def scenario(self) -> Scenario:
        """The domain's scenario; it has been validated as part of this request."""
        return Scenario.model_construct(
            **{name: getattr(self, name) for name in Scenario.model_fields}
        )

    def claim(self) -> str:
        """Hash of what is decided on: a repeat must match it."""
        return content_hash(self.model_dump(mode="json", include=_CLAIMED))


class AdviseHeaders(BaseModel):
    """The headers that `/advise` reads, under their names on the wire."""

    model_config = ConfigDict(frozen=True)

    idempotency_key: str | None = Field(None, alias="idempotency-key", pattern=REQUEST_ID_PATTERN)
    prefer: str | None = None
    x_deadline_ms: int | None = Field(None, alias="x-deadline-ms", ge=10, le=LONGEST_DEADLINE_MS)
    traceparent: str | None = Field(None, max_length=200)


_CLAIMED = {*Scenario.model_fields, "agent_action"}


def _one_or_many(value: Any) -> str:
    return "many" if isinstance(value, list) else "one"


AdviseBody = Annotated[
    Annotated[AdviseRequest, Tag("one")]
    | Annotated[list[AdviseRequest], Field(min_length=1), Tag("many")],
    Discriminator(_one_or_many),
]
ADVISE_BODY: TypeAdapter[AdviseRequest | list[AdviseRequest]] = TypeAdapter(AdviseBody)
ADVISE_ONE: TypeAdapter[AdviseRequest] = TypeAdapter(AdviseRequest)
ITEMS: TypeAdapter[list[Any]] = TypeAdapter(Annotated[list[Any], Field(min_length=1)])
"""The elements of a list, before any of them is looked at."""
ANY: TypeAdapter[Any] = TypeAdapter(Any)
AGENT_ACTION: TypeAdapter[AgentAction] = TypeAdapter(AgentAction)
OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


class AdviceSummary(BaseModel):
    """What one model version advised."""

    model_version: str
    role: str
    status: str
    action: str | None
    approve_probability: float | None


class AdviseResponse(BaseModel):
    """The primary version's advice. `binding` is false: in shadow mode it changes nothing."""

    decision_id: str
    request_id: str
    status: str = Field(description="advised, vetoed or abstained")
    approve: bool | None = Field(description="final; null when the policy abstained")
    action: str | None
    quantity: float | None = Field(description="base units; 0 when rejected")
    stop: float | None = Field(description="price; null unless approved")
    abstain_reason: str | None
    vetoes: list[Veto]
    control_vetoes: list[Veto] = Field(description="the agent's own order through the same rules")
    approve_probability: float | None
    probabilities: list[float] | None = Field(
        description=f"over the labels {LABELS[0]}-{LABELS[-1]}"
    )
    model_version: str
    binding: bool = False
    rationale: str | None = None
    unrecognised_fields: list[str] = Field(
        description="candidate keys outside the schema; kept under `extra`"
    )
    repeated: bool = Field(
        description="this request had been decided before; this is the stored decision"
    )
    recorded: str = Field(
        description="where the record became durable: stream, spool or shadow_log"
    )
    advices: list[AdviceSummary]


class Verdict(StrEnum):
    """What became of a field: LEFT_OUT could not be read and was done without, REFUSED is why the
    request is refused, UNRECOGNISED is kept and read by nobody."""

    ACCEPTED = "accepted"
    COERCED = "coerced"
    LEFT_OUT = "left_out"
    REFUSED = "refused"
    MISSING = "missing"
    UNRECOGNISED = "unrecognised"


class FieldReport(BaseModel):
    """What became of one field of a document."""

    model_config = ConfigDict(frozen=True)

    field: str
    verdict: Verdict
    sent: str | None = Field(None, description="the beginning of what was sent")
    taken: str | None = Field(None, description="what was taken of it, where that differs")
    why: str | None = Field(None, description="what is wrong, or what it means that it is missing")


class DryRun(BaseModel):
    """What would become of a request: nothing is recorded, no id is taken."""

    acceptable: bool = Field(description="it would be decided on")
    fields: list[FieldReport]
    missed_inputs: list[MissedInput] = Field(description="rules that would lack an input")
    control_vetoes: list[Veto] | None = Field(
        description="the agent's own order through the rules; null when it is not acceptable"
    )


class Pending(BaseModel):
    """Accepted and durable, not decided yet."""

    decision_id: str
    status: str = "pending"
    location: str


class Accepted(BaseModel):
    """A report is durable and on its way to the shadow log."""

    decision_id: str
    recorded: str
    repeated: bool


class StateBody(Record):
    """A change of the trading state."""

    state: TradingState
    reason: ShortText = Field(min_length=1)
    changed_by: ShortText = Field(min_length=1)


STATE: TypeAdapter[StateBody] = TypeAdapter(StateBody)


ALIAS_PATTERN = r"^[a-z][a-z0-9._-]{0,63}$"


class AliasMove(Record):
    """Where an alias shall point: a version that lies in a models directory, or `none`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_version": "smollm2-expected-2026-11-2",
                    "reason": "passed",
                    "changed_by": "ops",
                }
            ]
        }
    )

    model_version: str = Field(pattern=VERSION_PATTERN)
    reason: ShortText = Field(min_length=1)
    changed_by: ShortText = Field(min_length=1)


ALIAS_MOVE: TypeAdapter[AliasMove] = TypeAdapter(AliasMove)


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


def response(
    decision: Decision, *, repeated: bool, recorded: str, rationale: str | None = None
) -> dict[str, Any]:
    """`AdviseResponse` as a JSON-like dictionary, built without a second validation: this is the
    hot path."""
    advice = decision.primary
    proposal, vetoes = advice.proposal, advice.review.vetoes if advice.review else ()
    return {
        "decision_id": str(decision.decision_id),
        "request_id": decision.request_id,
        "status": advice.status.value,
        "approve": advice.approve,
        "action": advice.action,
        "quantity": advice.quantity,
        "stop": advice.stop,
        "abstain_reason": advice.abstain_reason,
        "vetoes": [veto.as_json() for veto in vetoes],
        "control_vetoes": [veto.as_json() for veto in decision.control_review.vetoes],
        "approve_probability": proposal.approve_probability if proposal else None,
        "probabilities": list(proposal.probabilities) if proposal else None,
        "model_version": advice.model_version,
        "binding": False,
        "rationale": rationale,
        "unrecognised_fields": sorted(decision.scenario.candidate.extra),
        "repeated": repeated,
        "recorded": recorded,
        "advices": [_summary(each) for each in decision.advices],
    }


def _summary(advice: Advice) -> dict[str, Any]:
    return {
        "model_version": advice.model_version,
        "role": advice.role.value,
        "status": advice.status.value,
        "action": advice.action,
        "approve_probability": advice.proposal.approve_probability if advice.proposal else None,
    }
