"""What became of a decision's orders, reported or simulated."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import Field, model_validator

from app.domain.fields import Extra, Flag, Instant, Number, Record, ShortText, absent, measure


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
    OTHER = "other"
    """As the agent's own word says."""


_CODES = frozenset(code.value for code in OutcomeCode)


class Outcome(Record):
    """What later bars did to an action.

    What is reported in multiples of risk is over the order's own: quantity x |entry - stop| of the
    order that this is the outcome of. R, over the risk of the agent's plan, is derived from it.
    """

    arm: Arm = measure("label", "whose action this is the outcome of")
    model_version: ShortText | None = measure(
        "label", "version advised; required for arm advice", null="arm agent"
    )
    source: OutcomeSource = measure(
        "label", "reported by the agent, or simulated on bars", default=OutcomeSource.REPORTED
    )
    outcome: OutcomeCode = measure("label", "how the trade ended; a word that is none: `other`")
    outcome_word: ShortText | None = Field(
        None,
        exclude_if=absent,
        description="the agent's own word for an outcome that is `other`",
        json_schema_extra={"unit": "label", "null": "it is none of the agent's own"},
    )
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
        "own risk", "net_pnl over the order's own risk; 0 when not traded", null="risk not known"
    )
    mae_r: Number | None = measure(
        "own risk", "worst excursion, <= 0", le=0, null="bars not joined"
    )
    mfe_r: Number | None = measure("own risk", "best excursion, >= 0", ge=0, null="bars not joined")
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

    @model_validator(mode="before")
    @classmethod
    def words_of_the_agents_own(cls, sent: Any) -> Any:
        """Take a word that is no code for `other`, and keep it."""
        word = sent.get("outcome") if isinstance(sent, dict) else None
        if not isinstance(word, str) or not word or word in _CODES:
            return sent
        if word.strip().lower() in _CODES:
            return {**sent, "outcome": word.strip().lower()}
        return {**sent, "outcome": OutcomeCode.OTHER, "outcome_word": word[:200]}

    @model_validator(mode="after")
    def advice_names_its_version(self) -> Self:
        """An outcome of advice belongs to one model version."""
        if self.arm is Arm.ADVICE and not self.model_version:
            raise ValueError("model_version is required when arm is 'advice'")
        return self
