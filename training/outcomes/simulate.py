"""What later bars did to an order: its stop, and the exits that its agent declares, net of costs.
Vectorised.

Conventions, once and for all:

- Entry is the open of the first bar that opens at the decision or later. The stop is the price that
  was planned.
- Within a bar the stop comes before any favourable move: a bar's own high never saves it from its
  own low.
- A bar that opens beyond the stop exits at its open.
- Everything is sold at once. A profit that is sold at is a limit order: a bar that opens beyond it
  sells at its open.
- A stop that trails follows the highest high of the bars before: 1.5 ATR below it from target 1 on,
  1.0 from target 2, 0.5 from target 3, and never lower than entry + 75 % of the move (`Trail`, with
  its defaults).
- freqtrade's trailing stop follows as in its own back-test: by a share below the highest high, that
  of the bar itself included, so that a bar which rises first and then falls to the raised stop
  sells there. In the bar of entry nobody knows how far it rose first: it sells as low as it may.
- After the declared hours the rest is sold at the close of the bar that completes them.
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

from app.domain.exits import Fixed, Followed, Freqtrade, Trail
from app.domain.record.outcome import OutcomeCode
from training.arrays import Columns, Floats, Rows, Times
from training.config.data import OutcomesConfig
from training.market.bars import Bars
from training.outcomes.orders import Orders


class Exit(IntEnum):
    """How an order ended. UNRESOLVED: the bars end, or leave a hole, before it did."""

    UNRESOLVED = 0
    STOP = 1
    TRAIL_1 = 2
    TRAIL_2 = 3
    TRAIL_3 = 4
    TIME = 5
    TARGET_1 = 6
    TARGET_2 = 7
    TARGET_3 = 8
    ROI = 9
    TRAIL = 10


OUTCOME_CODES = {
    Exit.STOP: OutcomeCode.SL,
    Exit.TRAIL_1: OutcomeCode.TRAILING_SL,
    Exit.TRAIL_2: OutcomeCode.TRAILING_SL,
    Exit.TRAIL_3: OutcomeCode.TRAILING_SL,
    Exit.TIME: OutcomeCode.TIME_EXIT,
    Exit.TARGET_1: OutcomeCode.TP1,
    Exit.TARGET_2: OutcomeCode.TP2,
    Exit.TARGET_3: OutcomeCode.TP3,
    Exit.ROI: OutcomeCode.TP1,
    Exit.TRAIL: OutcomeCode.TRAILING_SL,
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
    """Follow each order through the bars after its decision, by its exits; those that buy nothing
    have no fate.

    Cost: one pass over the longest trade's bars, for all of the same exits at once. `bars` are
    those of the orders' symbol.

    Raises
    ------
    ValueError : a stop is not below its planned entry, an ATR or a quantity is not positive, or
        exits cannot be simulated.
    """
    if not (orders.sound | ~orders.placed).all():
        raise ValueError(
            "every stop must lie below its entry, and every ATR and quantity above 0; exits must be"
            " declared"
        )
    fates = Fates.unknown(len(orders))
    for exits, rows in orders.by_exits():
        if isinstance(exits, Followed):
            fates.put(rows, _followed(bars, orders.at(rows), exits, costs))
    return fates


def _followed(bars: Bars, orders: Orders, exits: Followed, costs: Costs) -> Fates:
    walk = _Walk(bars, orders, exits, costs)
    step = 0
    while walk.open.any():
        walk.step(step)
        step += 1
    return walk.fates()


class _Walk:
    """State of all orders of the same exits while time goes on, one bar a step."""

    def __init__(self, bars: Bars, orders: Orders, exits: Followed, costs: Costs) -> None:
        count = len(orders.entry)
        self.bars, self.orders, self.exits, self.costs = bars, orders, exits, costs
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
        self.stops_as = np.full(count, Exit.STOP, dtype=np.int8)
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
        here, at = self._stop(here, at)
        here, at = self._take_profit(here, at)
        self.peak[here] = np.maximum(self.peak[here], bars.high[at])
        self.trough[here] = np.minimum(self.trough[here], bars.low[at])
        here, at = self._fall_back(here, at, entered=step == 0)
        expired = bars.closed_at[at] - self.entered_at[here] >= self.exits.seconds
        self._leave(here[expired], at[expired], bars.close[at[expired]], Exit.TIME)
        self._raise_stops(here[~expired])

    def _stop(self, here: Rows, at: Rows) -> tuple[Rows, Rows]:
        """Sell what falls to its stop; what is left."""
        stopped = self.bars.low[at] <= self.stop[here]
        price = np.minimum(self.bars.open[at], self.stop[here])[stopped]
        self._leave(here[stopped], at[stopped], price, self.stops_as[here[stopped]])
        return here[~stopped], at[~stopped]

    def _take_profit(self, here: Rows, at: Rows) -> tuple[Rows, Rows]:
        """Sell what rises to a profit that is sold at; what is left."""
        asked, how = self._asked(here, at)
        opened = self.bars.open[at]
        reached = self.bars.high[at] >= asked
        # What fell first within the bar is not known: the worst is taken, but for a bar that opens
        # where is sold.
        low = np.where(opened >= asked, opened, self.bars.low[at])
        price = np.maximum(opened, asked)[reached]
        gone = here[reached]
        self.peak[gone] = np.maximum(self.peak[gone], price)
        self.trough[gone] = np.minimum(self.trough[gone], low[reached])
        self._leave(gone, at[reached], price, how)
        return here[~reached], at[~reached]

    def _asked(self, here: Rows, at: Rows) -> tuple[Floats, Exit]:
        """The price of each order from which it is sold in its bar, and how that is called."""
        match self.exits:
            case Fixed(target=number):
                return self.orders.targets[here, number - 1], Exit(Exit.TARGET_1 + number - 1)
            case Freqtrade(minimal_roi=steps) if steps:
                opened = self.bars.closed_at[at] - self.bars.seconds
                minutes = (opened - self.entered_at[here]) // 60
                step = np.searchsorted([begin for begin, _ in steps], minutes, side="right")
                profit = np.array([np.inf, *(ratio for _, ratio in steps)])[step]
                return self._price_of(profit, here), Exit.ROI
            case _:
                return np.full(len(here), np.inf), Exit.TIME

    def _price_of(self, profit: Floats, who: Rows) -> Floats:
        """Where each order has a profit, a fraction after the fees of both sides."""
        fee = self.costs.fee
        return self.bought[who] * (1 + fee) * (1 + profit) / (1 - fee)

    def _leave(self, who: Rows, at: Rows, price: Floats, how: Exit | NDArray[np.int8]) -> None:
        self.sold[who] = price
        self.trough[who] = np.minimum(self.trough[who], price)
        self.exited_at[who] = self.bars.closed_at[at]
        self.exit[who] = how
        self.open[who] = False

    def _fall_back(self, here: Rows, at: Rows, *, entered: bool) -> tuple[Rows, Rows]:
        """Raise the stops that trail within their bar, and sell what falls to them; what is left.
        `entered`: it is the bar of entry."""
        exits = self.exits
        if not (isinstance(exits, Freqtrade) and exits.trailing_stop):
            return here, at
        share = self._trail_by_share(here, exits)
        low = self.bars.low[at]
        fallen = low <= self.stop[here]
        price = self.stop[here]
        if entered:  # It rose as little as raises the stop, and fell at once.
            ahead = 0.0
            if exits.trailing_only_offset_is_reached and exits.trailing_stop_positive:
                ahead = exits.trailing_stop_positive_offset
                share = np.full(len(here), exits.trailing_stop_positive)
            price = np.maximum(low, self.bought[here] * (1 + ahead - share))
        self._leave(here[fallen], at[fallen], price[fallen], Exit.TRAIL)
        return here[~fallen], at[~fallen]

    def _raise_stops(self, who: Rows) -> None:
        """Raise the stops that trail, for the bars to come."""
        if isinstance(self.exits, Trail):
            self._trail(who, self.exits)

    def _trail(self, who: Rows, exits: Trail) -> None:
        """Of orders that have passed a target."""
        peak, bought = self.peak[who], self.bought[who]
        passed = (peak[:, None] >= self.orders.targets[who][:, : len(exits.atr)]).sum(axis=1)
        self.stops_as[who] = Exit.STOP + passed
        distance = np.array([np.inf, *exits.atr])[passed] * self.orders.atr[who]
        kept = np.where(passed > 0, bought + exits.keep * (peak - bought), -np.inf)
        self.stop[who] = np.maximum(self.stop[who], np.maximum(peak - distance, kept))

    def _trail_by_share(self, who: Rows, exits: Freqtrade) -> Floats:
        """Of all orders, or of those whose best profit has reached the offset. How far below the
        highest high each stop is, as a share of it."""
        peak, orders = self.peak[who], self.orders
        offset = self._price_of(np.full(len(who), exits.trailing_stop_positive_offset), who)
        share = 1 - orders.stop[who] / orders.entry[who]
        if exits.trailing_stop_positive is not None:
            share = np.where(peak > offset, exits.trailing_stop_positive, share)
        trails = np.full(len(who), True)
        if exits.trailing_only_offset_is_reached:
            trails = peak >= offset
        stop = np.where(trails, peak * (1 - share), -np.inf)
        raised = stop > self.stop[who]
        self.stops_as[who[raised]] = Exit.TRAIL
        self.stop[who] = np.maximum(self.stop[who], stop)
        return share

    def fates(self) -> Fates:
        """What became of them."""
        costs = self.costs
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
