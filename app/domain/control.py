"""What the agent itself did (the control), and what the market did afterwards (the outcome)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from app.domain.fields import Flag, Instant, Number, Record, ShortText, Text, exact, measure

Extra = Annotated[dict[str, Any], AfterValidator(exact), Field(max_length=64)]


class AgentAction(Record):
    """The control: reported with the request or later; the latest report counts."""

    decision: Flag = measure("flag", "the agent trades the candidate")
    decided_at: Instant | None = measure("time", "when the agent decided", null="not reported")
    llm_decision: Flag | None = measure("flag", "the agent's LLM said yes", null="LLM not asked")
    llm_approval: Flag | None = measure("flag", "the approval after parsing", null="LLM not asked")
    llm_confidence: Number | None = measure(
        "probability 0-1", "the LLM's confidence", ge=0, le=1, null="LLM not asked"
    )
    llm_error: Text | None = measure("text", "why the LLM call failed", null="no error")
    llm_model: ShortText | None = measure("label", "model the agent asked", null="LLM not asked")
    reason: Text | None = measure("untrusted text", "rationale of the agent", null="none given")
    final_skip_reason: ShortText | None = measure(
        "label", "gate that ended the candidate", null="traded"
    )
    entry: Number | None = measure("price", "fill", gt=0, null="not traded")
    stop: Number | None = measure("price", "initial stop", gt=0, null="not traded")
    targets: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        (), max_length=8, description="take-profit prices", json_schema_extra={"unit": "price"}
    )
    atr_at_entry: Number | None = measure("price", "ATR at entry", gt=0, null="not traded")
    size_usd: Number | None = measure("quote", "money put in", ge=0, null="not traded")
    quantity: Number | None = measure("base units", "size", ge=0, null="not traded")
    take_profit_strategy: ShortText | None = measure("label", "exit plan", null="not traded")
    micro_plan: Text | None = measure("text", "execution plan", null="none")
    extra: Extra = Field(
        default_factory=dict,
        description="further keys, kept as sent",
        json_schema_extra={"unit": "any JSON"},
    )


class Arm(StrEnum):
    """Whose action an outcome belongs to."""

    AGENT = "agent"
    ADVICE = "advice"


class OutcomeSource(StrEnum):
    REPORTED = "reported"
    SIMULATED = "simulated"


class OutcomeCode(StrEnum):
    TP1_PARTIAL = "tp1_partial"
    TP2_PARTIAL = "tp2_partial"
    TP1 = "tp1"
    TP2 = "tp2"
    TP3 = "tp3"
    TP4 = "tp4"
    TRAILING_SL = "trailing_sl"
    SL = "sl"
    EARLY_EXIT = "early_exit"
    TIME_EXIT = "time_exit"
    NOT_TRADED = "not_traded"


class Outcome(Record):
    """What later bars did to an action. One R is quantity x |entry - stop| of the action that was
    traded."""

    arm: Arm = measure("label", "whose action this is the outcome of")
    model_version: ShortText | None = measure(
        "label", "version advised; required for arm advice", null="arm agent"
    )
    source: OutcomeSource = measure(
        "label", "reported by the agent, or simulated on bars", default=OutcomeSource.REPORTED
    )
    outcome: OutcomeCode = measure("label", "how the trade ended")
    exit_time: Instant | None = measure("time", "when the last part was closed", null="not traded")
    exit_price: Number | None = measure("price", "average exit", gt=0, null="not traded")
    exit_reason: ShortText | None = measure("text", "the agent's words", null="none")
    fees: Number | None = measure("quote", "commissions, both sides", ge=0, null="not reported")
    slippage: Number | None = measure("quote", "cost of slippage, both sides", null="not reported")
    net_pnl: Number | None = measure(
        "quote", "profit after fees and slippage; 0 when not traded", null="not reported"
    )
    pnl_pct: Number | None = measure(
        "percent of entry notional", "net_pnl over notional", null="not reported"
    )
    r_multiple: Number | None = measure(
        "R", "net_pnl over the risk taken; 0 when not traded", null="risk not known"
    )
    mae_r: Number | None = measure("R", "worst excursion, <= 0", le=0, null="bars not joined")
    mfe_r: Number | None = measure("R", "best excursion, >= 0", ge=0, null="bars not joined")
    max_price: Number | None = measure(
        "price", "highest price while open", gt=0, null="not reported"
    )
    holding_seconds: Number | None = measure("s", "entry to last exit", ge=0, null="not traded")
    exogenous_skip: Flag = measure(
        "flag", "skipped for maintenance or an outage: not a verdict", default=False
    )
    extra: Extra = Field(
        default_factory=dict,
        description="further keys, kept as sent",
        json_schema_extra={"unit": "any JSON"},
    )

    @model_validator(mode="after")
    def advice_names_its_version(self) -> Self:
        """An outcome of advice belongs to one model version."""
        if self.arm is Arm.ADVICE and not self.model_version:
            raise ValueError("model_version is required when arm is 'advice'")
        return self
