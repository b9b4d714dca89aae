"""What one would write first: one order after the other, bar by bar, by the same conventions.

The simulation of all orders at once is held against it, and timed against it by
`bench.learning.labels`.
"""

from __future__ import annotations

from typing import NamedTuple

from app.domain.exits import TRAIL
from training.market.bars import Bars
from training.outcomes.orders import Orders
from training.outcomes.simulate import COSTS, Costs, Exit


class PlainFate(NamedTuple):
    """What became of one order; net profit per base unit."""

    exit: Exit
    sold: float
    net: float


def follow_plainly(bars: Bars, orders: Orders, n: int, costs: Costs = COSTS) -> PlainFate:
    """One order, bar by bar."""
    first = next(
        (i for i, t in enumerate(bars.closed_at) if t - bars.seconds >= orders.as_of[n]), len(bars)
    )
    return walk(bars, orders, n, first, costs)


def walk(bars: Bars, orders: Orders, n: int, first: int, costs: Costs) -> PlainFate:
    """From the bar `first` on, which is the first that opens after the decision."""
    unknown = PlainFate(Exit.UNRESOLVED, float("nan"), float("nan"))
    if first >= len(bars) or bars.closed_at[first] - bars.seconds - orders.as_of[n] >= bars.seconds:
        return unknown
    bought = peak = float(bars.open[first])
    opened = bars.closed_at[first] - bars.seconds
    stop, passed = float(orders.stop[n]), 0
    for i in range(first, len(bars)):
        if bars.low[i] <= stop:
            return _sold(bought, min(float(bars.open[i]), stop), Exit(Exit.STOP + passed), costs)
        peak = max(peak, float(bars.high[i]))
        if bars.closed_at[i] - opened >= TRAIL.seconds:
            return _sold(bought, float(bars.close[i]), Exit.TIME, costs)
        passed = sum(peak >= target for target in orders.targets[n])
        if passed:
            stop = max(
                stop,
                peak - TRAIL.atr[passed - 1] * float(orders.atr[n]),
                bought + TRAIL.keep * (peak - bought),
            )
    return unknown


def _sold(bought: float, sold: float, how: Exit, costs: Costs) -> PlainFate:
    paid, received = bought * (1 + costs.slippage), sold * (1 - costs.slippage)
    return PlainFate(how, sold, received - paid - costs.fee * (paid + received))
