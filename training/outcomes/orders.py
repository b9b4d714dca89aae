"""An order: what an arm would buy, and where it would give up. One of them, or many as arrays.

Everything that trades in here holds final orders: what a limit clamped or capped is the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from app.domain.candidate import Direction
from app.domain.exits import MOST_TARGETS, TRAIL, Exits, Followed
from app.domain.scenario import Scenario
from training.arrays import Columns, Flags, Floats, Rows, Times


class Order(NamedTuple):
    """A long order. Prices in quote currency."""

    symbol: str
    as_of: int
    """The second of its decision (`Scenario.second`); 1970, UTC."""
    entry: float
    """Planned; it is bought at what the market asks."""
    stop: float
    targets: tuple[float, ...]
    """Three, nearest first; an absent one is infinite."""
    atr: float
    quantity: float
    """Base units; NaN: nothing is bought."""
    plan_risk: float
    """Quote, of the agent's plan: what one R is, also for an order of another size or stop."""
    exits: Exits = TRAIL

    @property
    def risk(self) -> float:
        """Quote, its own: lost at the stop before costs."""
        return self.quantity * (self.entry - self.stop)

    @property
    def sound(self) -> bool:
        """Whether it buys something above a stop, and its exits can be simulated."""
        exits = self.exits
        follows = isinstance(exits, Followed) and (self.atr > 0 or not exits.reads_atr)
        return self.quantity > 0 and self.stop < self.entry and follows


def plan_order(scenario: Scenario) -> Order:
    """The agent's plan; its quantity is NaN when it is no long."""
    plan, candidate = scenario.plan, scenario.candidate
    targets = (*sorted(plan.targets), *[np.inf] * MOST_TARGETS)[:MOST_TARGETS]
    long = candidate.direction is Direction.LONG
    return Order(
        candidate.symbol,
        scenario.second,
        plan.entry,
        plan.stop,
        targets,
        np.nan if candidate.atr is None else candidate.atr,
        plan.quantity if long else np.nan,
        plan.risk,
        scenario.exits,
    )


@dataclass(frozen=True, eq=False)
class Orders(Columns):
    """The fields of `Order`, each as an array of shape (N,); targets (N, 3)."""

    symbol: NDArray[np.str_]
    as_of: Times
    entry: Floats
    stop: Floats
    targets: Floats
    atr: Floats
    quantity: Floats
    plan_risk: Floats
    exits: NDArray[np.object_]

    @classmethod
    def of(cls, orders: Sequence[Order]) -> Self:
        """Several orders."""
        return cls(
            np.array([order.symbol for order in orders], dtype=np.str_),
            np.array([order.as_of for order in orders], dtype=np.int64),
            np.array([order.entry for order in orders], dtype=np.float64),
            np.array([order.stop for order in orders], dtype=np.float64),
            np.array([order.targets for order in orders]).reshape(-1, MOST_TARGETS),
            np.array([order.atr for order in orders], dtype=np.float64),
            np.array([order.quantity for order in orders], dtype=np.float64),
            np.array([order.plan_risk for order in orders], dtype=np.float64),
            np.array([order.exits for order in orders], dtype=np.object_),
        )

    @property
    def placed(self) -> Flags:
        """(N,) whether anything is bought."""
        return np.isfinite(self.quantity)

    @property
    def sound(self) -> Flags:
        """(N,) as of `Order`."""
        follows = np.zeros(len(self), dtype=bool)
        for exits, rows in self.by_exits():
            if isinstance(exits, Followed):
                follows[rows] = (self.atr[rows] > 0) | (not exits.reads_atr)
        return (self.quantity > 0) & (self.stop < self.entry) & follows

    @property
    def longest(self) -> Times:
        """(N,) seconds that a trade lasts at most; 0 where none can be followed."""
        seconds = np.zeros(len(self), dtype=np.int64)
        for exits, rows in self.by_exits():
            seconds[rows] = exits.seconds if isinstance(exits, Followed) else 0
        return seconds

    def by_exits(self) -> list[tuple[Exits, Rows]]:
        """The different exits, each with the rows that follow it."""
        # A contest has millions of orders and few objects: those are compared by what they say, all
        # others by which object they have.
        objects = np.fromiter(map(id, self.exits), dtype=np.int64, count=len(self))
        _, first, which = np.unique(objects, return_index=True, return_inverse=True)
        numbers: dict[Exits, int] = {}
        number = [numbers.setdefault(self.exits[row], len(numbers)) for row in first]
        group = np.array(number, dtype=np.int64)[which]
        return [(exits, np.flatnonzero(group == place)) for exits, place in numbers.items()]

    def only(self, keep: Flags) -> Self:
        """The same orders where `keep` is set; nothing is bought elsewhere."""
        return replace(self, quantity=np.where(keep, self.quantity, np.nan))
