"""Words of the deterministic rules, which have the last word. `rules.py` holds the rules and
`review()`.

A rule is a pure function `rule(case, limits) -> Veto | None`. A missing input refuses unless the
limits say `when_missing = "pass"`; a rule that raises refuses with RULE_FAILED. Comparisons are
written so that NaN refuses. Caps make the order smaller or its stop nearer, never the other way,
and are computed beside the rules, so that loosening a limit never adds a veto.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeVar

from pydantic import Field

from app.domain.fields import Record
from app.domain.limits import Limits
from app.domain.scenario import Scenario


class TradingState(StrEnum):
    """ACTIVE trades; REDUCING opens nothing new; HALTED refuses everything. Spot entries are
    refused in both."""

    ACTIVE = "ACTIVE"
    REDUCING = "REDUCING"
    HALTED = "HALTED"


class VetoCode(StrEnum):
    """Closed set; each has a row in docs/vetoes.md."""

    STATE_HALTED = "STATE_HALTED"
    STATE_REDUCING = "STATE_REDUCING"
    STALE_SNAPSHOT = "STALE_SNAPSHOT"
    INPUT_SANITY = "INPUT_SANITY"
    PRICE_SANITY = "PRICE_SANITY"
    DIRECTION = "DIRECTION"
    STOP_DISTANCE = "STOP_DISTANCE"
    BTC_TREND_CONFLICT = "BTC_TREND_CONFLICT"
    NEWS_WINDOW = "NEWS_WINDOW"
    MACRO_NEWS = "MACRO_NEWS"
    VOLATILITY_SPIKE = "VOLATILITY_SPIKE"
    REWARD_RISK = "REWARD_RISK"
    SPREAD = "SPREAD"
    LIQUIDITY = "LIQUIDITY"
    RISK_PER_TRADE = "RISK_PER_TRADE"
    SYMBOL_EXPOSURE = "SYMBOL_EXPOSURE"
    TOTAL_EXPOSURE = "TOTAL_EXPOSURE"
    MIN_NOTIONAL = "MIN_NOTIONAL"
    OPEN_POSITIONS = "OPEN_POSITIONS"
    DAILY_LOSS = "DAILY_LOSS"
    DRAWDOWN = "DRAWDOWN"
    CONSECUTIVE_LOSSES = "CONSECUTIVE_LOSSES"
    COOL_DOWN = "COOL_DOWN"
    DUPLICATE_SYMBOL = "DUPLICATE_SYMBOL"
    RESTRICTED_SYMBOL = "RESTRICTED_SYMBOL"
    SESSION_CLOSED = "SESSION_CLOSED"
    MAINTENANCE_WINDOW = "MAINTENANCE_WINDOW"
    MODEL_CONFIDENCE = "MODEL_CONFIDENCE"
    RULE_FAILED = "RULE_FAILED"


class Veto(Record):
    """A rule's refusal with its evidence."""

    code: VetoCode
    observed: float | str | None = None
    limit: float | str | None = None
    missing: str | None = Field(
        None, description="the input that was not known, when that is why it refused"
    )


class Cap(Record):
    """A limit that made the order smaller or its stop nearer."""

    limit: str
    before: float
    after: float


class Order(NamedTuple):
    """What would be traded. Prices in quote currency, quantity in base units."""

    entry: float
    stop: float
    target: float
    quantity: float

    @property
    def notional(self) -> float:
        return self.quantity * self.entry

    @property
    def distance(self) -> float:
        return abs(self.entry - self.stop)

    @property
    def risk(self) -> float:
        return self.quantity * self.distance


class Case(NamedTuple):
    """Everything that a rule may look at. `approve_probability` is None for the agent's own
    order."""

    scenario: Scenario
    order: Order
    state: TradingState
    now: datetime
    approve_probability: float | None


class Review(Record):
    """The rules' verdict on one order: every veto, every cap, and the order after caps."""

    vetoes: tuple[Veto, ...]
    caps: tuple[Cap, ...]
    quantity: float | None = Field(
        description="base units after caps; null when the order could not be computed"
    )
    stop: float | None = Field(
        description="price after the clamp; null when the order could not be computed"
    )


class MissingInput(Exception):
    """A rule needs an input that is not known; the argument names it."""


Known = TypeVar("Known")
Rule = Callable[[Case, Limits], Veto | None]


def known(value: Known | None, name: str) -> Known:
    """`value`, or `MissingInput` when it is not known."""
    if value is None:
        raise MissingInput(name)
    return value
