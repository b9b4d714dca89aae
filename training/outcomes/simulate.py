"""What later bars did to an order: stop, trail and time exit as the agent trades them, net of
costs. Vectorised.

Conventions, once and for all:

- Entry is the open of the first bar that opens at the decision or later. The stop is the price that
  was planned.
- Within a bar the stop comes before any favourable move: a bar's own high never saves it from its
  own low.
- A bar that opens beyond the stop exits at its open.
- No target is sold at. From target 1 on, a trailing stop follows the highest high of the bars
  before: 1.5 ATR below it, 1.0 from target 2, 0.5 from target 3, and never lower than entry + 75 %
  of the move.
- Six hours after entry the rest is sold at the close of the bar that completes them.
- Fee and slippage are paid on both sides.
- A fate is in money, for the order's whole quantity. It becomes R where it is divided by the risk
  of the agent's plan, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from app.domain.record.outcome import OutcomeCode
from training.agent.reference import TIME_EXIT_S
from training.arrays import Columns, Floats, Times
from training.config.data import OutcomesConfig
from training.market.bars import Bars
from training.outcomes.orders import Orders

TRAIL_ATR = (1.5, 1.0, 0.5)
KEEP = 0.75


class Exit(IntEnum):
    """How an order ended. UNRESOLVED: the bars end, or leave a hole, before it did."""

    UNRESOLVED = 0
    STOP = 1
    TRAIL_1 = 2
    TRAIL_2 = 3
    TRAIL_3 = 4
    TIME = 5


OUTCOME_CODES = {
    Exit.STOP: OutcomeCode.SL,
    Exit.TRAIL_1: OutcomeCode.TRAILING_SL,
    Exit.TRAIL_2: OutcomeCode.TRAILING_SL,
    Exit.TRAIL_3: OutcomeCode.TRAILING_SL,
    Exit.TIME: OutcomeCode.TIME_EXIT,
}
"""In the agent's words."""


@dataclass(frozen=True)
class Costs:
    """As fractions of notional, on each side."""

    fee: float
    slippage: float

    @classmethod
    def of(cls, outcomes: OutcomesConfig) -> Self:
        """As configured."""
        return cls(outcomes.fee, outcomes.slippage)


COSTS = Costs.of(OutcomesConfig())
"""Where nothing else is said."""


class Fate(NamedTuple):
    """What became of an order. Prices and money in quote currency, money for its whole quantity."""

    exit: Exit
    entered_at: int
    """Opening of the entry bar; seconds since 1970 UTC."""
    exited_at: int
    """Close of the exit bar."""
    bought: float
    sold: float
    """Prices before costs."""
    fees: float
    slippage: float
    net: float
    """Profit after costs."""
    mae: float
    mfe: float
    """Worst (<= 0) and best (>= 0) excursion from entry before the exit, before costs."""
    highest: float
    """Highest price while open."""


@dataclass(frozen=True, eq=False)
class Fates(Columns):
    """The fields of `Fate`, each as an array of shape (N,).

    Where an order is UNRESOLVED, or nothing was bought, times are 0 and numbers NaN.
    """

    exit: NDArray[np.int8]
    entered_at: Times
    exited_at: Times
    bought: Floats
    sold: Floats
    fees: Floats
    slippage: Floats
    net: Floats
    mae: Floats
    mfe: Floats
    highest: Floats

    @classmethod
    def unknown(cls, count: int) -> Self:
        """Of orders that nobody followed yet."""
        numbers = ("bought", "sold", "fees", "slippage", "net", "mae", "mfe", "highest")
        return cls(
            exit=np.full(count, Exit.UNRESOLVED, dtype=np.int8),
            entered_at=np.zeros(count, dtype=np.int64),
            exited_at=np.zeros(count, dtype=np.int64),
            **{name: np.full(count, np.nan) for name in numbers},
        )

    def row(self, number: int) -> Fate | None:
        """One of them; None while the bars do not tell."""
        if self.exit[number] == Exit.UNRESOLVED:
            return None
        values = {name: column[number].item() for name, column in vars(self).items()}
        return Fate(**(values | {"exit": Exit(values["exit"])}))


def simulate(bars: Bars, orders: Orders, costs: Costs = COSTS) -> Fates:
    """Follow each order through the bars after its decision; those that buy nothing have no fate.

    Cost: one pass over six hours of bars, for all at once. `bars` are those of the orders' symbol.

    Raises
    ------
    ValueError : a stop is not below its planned entry, or an ATR or a quantity is not positive.
    """
    if not (orders.sound | ~orders.placed).all():
        raise ValueError("every stop must lie below its entry, and every ATR and quantity above 0")
    walk = _Walk(bars, orders)
    step = 0
    while walk.open.any():
        walk.step(step)
        step += 1
    return walk.fates(costs)


class _Walk:
    """State of all orders while time goes on, one bar a step."""

    def __init__(self, bars: Bars, orders: Orders) -> None:
        count = len(orders.entry)
        self.bars, self.orders = bars, orders
        # A bar that was already under way when the decision fell opened too early: its open is a
        # price of the past.
        self.first = np.searchsorted(bars.closed_at, orders.as_of + bars.seconds, side="left")
        # The entry bar must open within one bar of the decision: after an outage nobody knows what
        # would have happened.
        nearby = np.minimum(self.first, len(bars) - 1)
        opened = bars.closed_at[nearby] - bars.seconds
        soon = (self.first < len(bars)) & (opened - orders.as_of < bars.seconds)
        self.open = soon & orders.placed
        self.bought = np.where(self.open, bars.open[nearby], np.nan)
        self.entered_at = opened
        self.stop = orders.stop.copy()
        self.passed = np.zeros(count, dtype=np.int8)
        self.peak = self.bought.copy()
        self.trough = self.bought.copy()
        self.sold = np.full(count, np.nan)
        self.exited_at = np.zeros(count, dtype=np.int64)
        self.exit = np.full(count, Exit.UNRESOLVED, dtype=np.int8)

    def step(self, step: int) -> None:
        """One bar for every order that is still open."""
        bars = self.bars
        here = np.flatnonzero(self.open)
        at = self.first[here] + step
        beyond = at >= len(bars)
        self.open[here[beyond]] = False
        here, at = here[~beyond], at[~beyond]
        stopped = bars.low[at] <= self.stop[here]
        self._leave(
            here[stopped],
            at[stopped],
            np.minimum(bars.open[at], self.stop[here])[stopped],
            trailing=True,
        )
        here, at = here[~stopped], at[~stopped]
        self.peak[here] = np.maximum(self.peak[here], bars.high[at])
        self.trough[here] = np.minimum(self.trough[here], bars.low[at])
        expired = bars.closed_at[at] - self.entered_at[here] >= TIME_EXIT_S
        self._leave(here[expired], at[expired], bars.close[at[expired]], trailing=False)
        self._trail(here[~expired])

    def _leave(
        self, who: NDArray[np.int64], at: NDArray[np.int64], price: Floats, *, trailing: bool
    ) -> None:
        self.sold[who] = price
        self.trough[who] = np.minimum(self.trough[who], price)
        self.exited_at[who] = self.bars.closed_at[at]
        self.exit[who] = Exit.STOP + self.passed[who] if trailing else Exit.TIME
        self.open[who] = False

    def _trail(self, who: NDArray[np.int64]) -> None:
        """Raise the stops, for the bars to come, of orders that have passed a target."""
        peak, bought = self.peak[who], self.bought[who]
        passed = (peak[:, None] >= self.orders.targets[who]).sum(axis=1)
        self.passed[who] = passed
        distance = np.array([np.inf, *TRAIL_ATR])[passed] * self.orders.atr[who]
        kept = np.where(passed > 0, bought + KEEP * (peak - bought), -np.inf)
        self.stop[who] = np.maximum(self.stop[who], np.maximum(peak - distance, kept))

    def fates(self, costs: Costs) -> Fates:
        unresolved = self.exit == Exit.UNRESOLVED
        bought, sold = (np.where(unresolved, np.nan, price) for price in (self.bought, self.sold))
        paid, received = bought * (1 + costs.slippage), sold * (1 - costs.slippage)
        fees = costs.fee * (paid + received)
        quantity = self.orders.quantity
        return Fates(
            exit=self.exit,
            entered_at=np.where(unresolved, 0, self.entered_at),
            exited_at=self.exited_at,
            bought=bought,
            sold=sold,
            fees=fees * quantity,
            slippage=costs.slippage * (bought + sold) * quantity,
            net=(received - paid - fees) * quantity,
            mae=(self.trough - bought) * quantity,
            mfe=(self.peak - bought) * quantity,
            highest=np.where(unresolved, np.nan, self.peak),
        )
