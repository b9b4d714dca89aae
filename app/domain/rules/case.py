"""What the rules judge: an order for a scenario, in a trading state, at a time."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from app.domain.candidate import Direction
from app.domain.model.actions import Action
from app.domain.model.outlook import Outlook
from app.domain.rules.limits import Limits
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
    side: int = 1
    """1 buys and -1 sells: profit is `side` x (price - entry)."""

    @property
    def reward(self) -> float:
        """From entry to the nearest target, price units; below 0 when it lies on the wrong side."""
        return self.side * (self.target - self.entry)

    @property
    def notional(self) -> float:
        return self.quantity * self.entry

    @property
    def distance(self) -> float:
        return abs(self.entry - self.stop)

    @property
    def risk(self) -> float:
        return self.quantity * self.distance


class Scene(Protocol):
    """What a rule may look at that judges no order: the same for all orders of one decision."""

    @property
    def scenario(self) -> Scenario: ...
    @property
    def state(self) -> TradingState: ...
    @property
    def now(self) -> datetime: ...


class Case(NamedTuple):
    """Everything that a rule may look at. `approve_probability` is None for the agent's own order,
    `outlook` for a version that answers no question."""

    scenario: Scenario
    order: Order
    state: TradingState
    now: datetime
    approve_probability: float | None
    outlook: Outlook | None = None


def order_for(action: Action, scenario: Scenario, side: int = 1) -> Order:
    """The order that an approving action means: its stop in ATR from entry, and the quantity that
    follows. Where the ATR is not known, the stop is the plan's.

    quantity = min(agent's quantity, fraction x agent's risk / stop distance): never more than the
    agent's own risk, never more than its own notional.
    """
    plan, atr = scenario.plan, scenario.candidate.atr
    if atr is None:
        stop, quantity = plan.stop, action.risk_fraction * plan.quantity
    else:
        distance = action.stop_atr * atr
        stop = plan.entry - side * distance
        quantity = min(plan.quantity, action.risk_fraction * plan.risk / distance)
    return Order(plan.entry, stop, _nearest_target(scenario, side), quantity, side)


def agents_order(scenario: Scenario, side: int = 1) -> Order:
    """The agent's own plan as an order."""
    plan = scenario.plan
    return Order(plan.entry, plan.stop, _nearest_target(scenario, side), plan.quantity, side)


def side_of(scenario: Scenario, limits: Limits) -> int:
    """1 for a purchase, -1 for a short sale. Limits that say nothing of directions were written
    when every order was taken for a purchase; decisions by them replay so."""
    short = scenario.candidate.direction is Direction.SHORT
    return -1 if short and limits.direction is not None else 1


def _nearest_target(scenario: Scenario, side: int) -> float:
    return min(scenario.plan.targets) if side > 0 else max(scenario.plan.targets)
