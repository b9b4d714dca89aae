"""Shapes on the wire, and their way to and from the domain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from app.domain.canonical import content_hash, fragment
from app.domain.charts.computed import ENOUGH_BARS, SETTLED_BARS, fault_of, of_bars
from app.domain.fields import Flag, Hash, Record, ShortText, Whole, absent, moved, shown
from app.domain.intake.mending import plainly
from app.domain.intake.reception import Coerced, Doubt, Needs
from app.domain.model.actions import LABELS
from app.domain.model.manifest import VERSION_PATTERN
from app.domain.model.outlook import Outlook
from app.domain.record.control import AgentAction
from app.domain.record.decision import Advice, Decision
from app.domain.record.outcome import Outcome
from app.domain.rules.case import TradingState
from app.domain.rules.review import MissedInput, Veto
from app.domain.scenario import Bar, LeftOut, Scenario, Surroundings

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


def _named(bar: Any) -> Any:
    """A bar as an object; a list holds its values in the order of the fields. Exchanges write
    prices as texts, and times without an offset."""
    if isinstance(bar, list | tuple) and len(bar) == len(Bar.model_fields):
        bar = dict(zip(Bar.model_fields, bar, strict=True))
    return {name: plainly(value) for name, value in bar.items()} if isinstance(bar, dict) else bar


LAST_MILLISECOND = 999_000
"""Of a second, in microseconds."""


def _closed(bar: Bar) -> Bar:
    """Binance stamps the last millisecond of a bar, which closes with it."""
    if bar.closed_at.microsecond != LAST_MILLISECOND:
        return bar
    return bar.model_copy(update={"closed_at": moved(bar.closed_at, timedelta(milliseconds=1))})


SentBar = Annotated[Bar, BeforeValidator(_named), AfterValidator(_closed)]
MAX_BARS = 4096


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
    bars: tuple[SentBar, ...] | None = Field(
        None,
        max_length=MAX_BARS,
        exclude_if=absent,
        description="the last closed bars of the symbol, oldest first: what the request leaves open"
        " of candidate and market is computed from them. An object or [closed_at, open, high, low,"
        f" close, volume] each; {SETTLED_BARS} for most fields, {ENOUGH_BARS} for all",
    )
    rationale: Flag = Field(False, description="also explain, after the decision, if there is time")
    deadline_ms: Whole | None = Field(
        None, ge=10, le=LONGEST_DEADLINE_MS, description="answer within; also header X-Deadline-Ms"
    )

    _coerced: tuple[Coerced, ...] = PrivateAttr(default=())

    @property
    def coerced(self) -> tuple[Coerced, ...]:
        """What of the document was read in another way than it was written."""
        return self._coerced

    def received(
        self, left_out: tuple[LeftOut, ...], coerced: tuple[Coerced, ...]
    ) -> AdviseRequest:
        """The same request, with what became of the document that it was sent as."""
        body = self.model_copy(update={"left_out": (*self.left_out, *left_out)})
        body._coerced = coerced
        return body

    def scenario(self) -> Scenario:
        """The domain's scenario; it has been validated as part of this request. What it leaves open
        and its bars tell is computed; what was sent and left out is not replaced."""
        fields = {name: getattr(self, name) for name in Scenario.model_fields}
        scenario = Scenario.model_construct(**fields)
        return scenario if self.bars is None else _with_bars(scenario, self.bars)

    def claim(self) -> str:
        """Hash of what is decided on: a repeat must match it."""
        document = self.model_dump(mode="json", include=_CLAIMED)
        return content_hash({**document, "candidate": fragment(self.candidate)})


class AdviseHeaders(BaseModel):
    """The headers that `/advise` reads, under their names on the wire."""

    model_config = ConfigDict(frozen=True)

    idempotency_key: str | None = Field(None, alias="idempotency-key", pattern=REQUEST_ID_PATTERN)
    prefer: str | None = None
    x_deadline_ms: int | None = Field(None, alias="x-deadline-ms", ge=10, le=LONGEST_DEADLINE_MS)
    traceparent: str | None = Field(None, max_length=200)


_CLAIMED = {*Scenario.model_fields, "agent_action", "bars"} - {"candidate"}


def _fitting(part: Record, told: dict[str, Any]) -> dict[str, Any]:
    """Of what was computed, what its fields allow. An ATR of bars that do not move is none."""
    try:
        type(part).model_validate({**dict(part), **told})
    except ValidationError as error:
        unfit = {fault["loc"][0] for fault in error.errors()}
        return {name: value for name, value in told.items() if name not in unfit}
    return told


def _with_bars(scenario: Scenario, bars: tuple[Bar, ...]) -> Scenario:
    computed: list[str] = []
    parts: dict[str, Any] = {}
    for name, told in zip(("candidate", "market"), of_bars(bars), strict=True):
        part = getattr(scenario, name)
        new = {
            field: value
            for field, value in told.items()
            if getattr(part, field) is None and not scenario.lost(f"{name}.{field}")
        }
        new = _fitting(part, new)
        if "surroundings" in new:
            new["surroundings"] = Surroundings.model_validate(new["surroundings"])
        parts[name] = part.model_copy(update=new)
        computed += [f"{name}.{field}" for field in sorted(new)]
    return scenario.model_copy(update=parts | {"computed": tuple(computed)})


def bar_doubts(request: AdviseRequest) -> list[Doubt]:
    """Bars that are later than the candidate, or that no exchange reports."""
    bars = request.bars
    if bars is None:
        return []
    if bars and bars[-1].closed_at - request.as_of > timedelta(milliseconds=1):
        return [Doubt(("bars",), "the last one closes after candidate.ts: send closed bars alone")]
    fault = fault_of(bars)
    return [] if fault is None else [Doubt(("bars",), fault)]


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
ADVISE_NEEDS = Needs(
    frozenset(
        {
            ("request_id",),
            ("candidate", "symbol"),
            ("candidate", "direction"),
            ("candidate", "ts"),
            ("plan", "entry"),
            ("plan", "stop"),
            ("plan", "targets"),
            ("plan", "quantity"),
        }
    ),
    counted=frozenset({("account", "positions")}),
    extras=frozenset({("agent_action",)}),
    names=frozenset({("request_id",), ("candidate", "symbol")}),
    whole=frozenset({("bars",), ("plan", "exits")}),
)
"""What a decision cannot do without. A position counts, whatever it is."""
ACTION_NEEDS = Needs(frozenset({("decision",)}), extras=frozenset({()}))
OUTCOME_NEEDS = Needs(
    frozenset({("arm",), ("model_version",), ("outcome",)}), extras=frozenset({()})
)


class AdviceSummary(BaseModel):
    """What one model version advised."""

    model_version: str
    role: str
    status: str
    action: str | None
    approve_probability: float | None
    win_probability: float | None
    expected_r: float | None
    stopped_probability: float | None
    range_atr: float | None


class Reread(BaseModel):
    """A value that was read in another way than it was written."""

    field: str
    value: str
    taken: str
    why: str


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
    win_probability: float | None = Field(
        description="that the agent's plan makes money after costs; null: the version does not say"
    )
    expected_r: float | None = Field(
        description="of the agent's plan, R after costs; null: the version does not say"
    )
    stopped_probability: float | None = Field(
        description="that the plan ends at its initial stop; null: the version does not say"
    )
    range_atr: float | None = Field(
        description=(
            "highest high less lowest low until the time exit, ATR; null: the version does not say"
        )
    )
    model_version: str
    binding: bool = False
    rationale: str | None = None
    unrecognised_fields: list[str] = Field(
        description="candidate keys outside the schema; kept under `extra`"
    )
    left_out: list[LeftOut] = Field(description="what could not be used, and was done without")
    coerced: list[Reread] = Field(description="what was read in another way than it was written")
    repeated: bool = Field(
        description="this request had been decided before; this is the stored decision"
    )
    recorded: str = Field(
        description="where the record became durable: stream, spool or shadow_log"
    )
    advices: list[AdviceSummary]


class Verdict(StrEnum):
    """What became of a field: LEFT_OUT could not be read and was done without, REFUSED is why the
    request is refused, UNRECOGNISED is kept and read by nobody, DERIVED was not sent and follows
    from what the agent reported before."""

    ACCEPTED = "accepted"
    COERCED = "coerced"
    LEFT_OUT = "left_out"
    REFUSED = "refused"
    MISSING = "missing"
    UNRECOGNISED = "unrecognised"
    DERIVED = "derived"


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
    left_out: list[LeftOut] = Field(description="what could not be used, and was done without")
    coerced: list[Reread] = Field(description="what was read in another way than it was written")


class StateBody(Record):
    """A change of the trading state."""

    state: TradingState
    reason: ShortText = Field(min_length=1)
    changed_by: ShortText = Field(min_length=1)


STATE: TypeAdapter[StateBody] = TypeAdapter(StateBody)


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
    seen: str | None = Field(
        None,
        max_length=64,
        description="`changed_at` of the alias' newest move, empty when it has none: refused when"
        " somebody moved it since",
    )


ALIAS_MOVE: TypeAdapter[AliasMove] = TypeAdapter(AliasMove)


class LimitsMove(Record):
    """Which limits shall judge in the place of a file: `toml`, or what judged before with
    `rollback`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "toml": 'version = "tight"\n[spread]\nmax_bps = 5.0\n',
                    "seen": "sha256:" + "0" * 64,
                    "reason": "spreads above 5 bps lose",
                    "changed_by": "ops",
                }
            ]
        }
    )

    profile: str = Field("", max_length=64, description="empty: the general limits")
    toml: str | None = Field(None, max_length=65_536)
    rollback: bool = False
    seen: Hash = Field(description="of the limits in force that these shall follow")
    reason: ShortText = Field(min_length=1)
    changed_by: ShortText = Field(min_length=1)

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        """Limits, or the way back."""
        if (self.toml is None) is not self.rollback:
            raise ValueError("give the limits as toml, or ask for a rollback")
        return self


LIMITS_MOVE: TypeAdapter[LimitsMove] = TypeAdapter(LimitsMove)


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


def reread(coerced: Sequence[Coerced]) -> list[dict[str, Any]]:
    """The wire form of what was read in another way than it was written."""
    return [
        {"field": c.field, "value": shown(c.value), "taken": shown(c.taken), "why": c.why}
        for c in coerced
    ]


def accepted(
    decision_id: UUID,
    recorded: str,
    repeated: bool,
    left_out: Sequence[LeftOut],
    coerced: Sequence[Coerced],
) -> dict[str, Any]:
    """`Accepted` as a JSON-like dictionary."""
    return {
        "decision_id": str(decision_id),
        "recorded": recorded,
        "repeated": repeated,
        "left_out": [gone.as_json() for gone in left_out],
        "coerced": reread(coerced),
    }


def response(
    decision: Decision,
    *,
    repeated: bool,
    recorded: str,
    rationale: str | None = None,
    coerced: Sequence[Coerced] = (),
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
        **_outlook(advice),
        "model_version": advice.model_version,
        "binding": False,
        "rationale": rationale,
        "unrecognised_fields": sorted(decision.scenario.candidate.extra),
        "left_out": [gone.as_json() for gone in decision.scenario.left_out],
        "coerced": reread(coerced),
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
        **_outlook(advice),
    }


def _outlook(advice: Advice) -> dict[str, float | None]:
    return {name: getattr(advice.outlook, name, None) for name in Outlook.model_fields}
