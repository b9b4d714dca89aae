"""What the rules judge: an order for a scenario, in a trading state, at a time."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from app.domain.actions import Action
from app.domain.scenario import Scenario


class TradingState(StrEnum):
    """ACTIVE trades; REDUCING opens nothing new; HALTED refuses everything. Spot entries are
    refused in both."""

    ACTIVE = "ACTIVE"
    REDUCING = "REDUCING"
    HALTED = "HALTED"


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


def order_for(action: Action, scenario: Scenario) -> Order:
    """The order that an approving action means: its stop in ATR below entry, and the quantity that
    follows.

    quantity = min(agent's quantity, fraction x agent's risk / stop distance): never more than the
    agent's own risk, never more than its own notional.
    """
    plan = scenario.plan
    distance = action.stop_atr * scenario.candidate.atr
    quantity = min(plan.quantity, action.risk_fraction * plan.risk / distance)
    return Order(plan.entry, plan.entry - distance, min(plan.targets), quantity)


def agents_order(scenario: Scenario) -> Order:
    """The agent's own plan as an order."""
    plan = scenario.plan
    return Order(plan.entry, plan.stop, min(plan.targets), plan.quantity)
