"""What the agent itself did: the control."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.domain.fields import Extra, Flag, Instant, Number, Record, ShortText, Text, measure


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
    final_skip_reason: Text | None = measure(
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
