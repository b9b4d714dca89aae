"""How fast labels are made: `python -m bench.labels`. All of a symbol at once against one order
after the other.

The market is synthetic, as large as eleven symbols over seven years of hours. The plain loop is
what one would write first; it follows the same conventions, and a test holds the two against each
other.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import numpy as np
from rich.console import Console

from training.agent.reference import Agent, chart, opportunities
from training.config.data import SyntheticConfig
from training.market.bars import Bars
from training.market.synthetic import synthetic_bars
from training.outcomes.labels import judge, plans
from training.outcomes.simulate import COSTS, KEEP, TIME_EXIT_S, TRAIL_ATR, Costs, Exit, Orders
from training.scenarios.table import NEUTRAL

SYMBOLS, YEARS, HOURS_PER_YEAR = 11, 7, 8766
PLAIN = 300
PATHS = 4
"""Simulated per scenario: the plan, and three stop distances that serve nine actions."""


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
    return _walk(bars, orders, n, first, costs)


def _walk(bars: Bars, orders: Orders, n: int, first: int, costs: Costs) -> PlainFate:
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
        if bars.closed_at[i] - opened >= TIME_EXIT_S:
            return _sold(bought, float(bars.close[i]), Exit.TIME, costs)
        passed = sum(peak >= target for target in orders.targets[n])
        if passed:
            stop = max(
                stop,
                peak - TRAIL_ATR[passed - 1] * float(orders.atr[n]),
                bought + KEEP * (peak - bought),
            )
    return unknown


def _sold(bought: float, sold: float, how: Exit, costs: Costs) -> PlainFate:
    paid, received = bought * (1 + costs.slippage), sold * (1 - costs.slippage)
    return PlainFate(how, sold, received - paid - costs.fee * (paid + received))


def labels_bench(hours: int = YEARS * HOURS_PER_YEAR, symbols: int = SYMBOLS) -> dict[str, float]:
    """Scenarios per second of both ways, their ratio, and seconds for the whole market.

    The plain loop is given a few hundred scenarios, and where its first bar is: finding it is not
    what is compared.
    """
    market = synthetic_bars(SyntheticConfig(edge=0.2, symbols=symbols, bars=hours, seed=5))
    agent = Agent([chart(bars) for bars in market])
    found = opportunities(agent.charts)
    by_symbol = [[one for one in found if one.chart == number] for number in range(symbols)]
    given = [
        plans(
            [agent.scenario(one, NEUTRAL) for one in mine],
            np.array([one.as_of for one in mine], dtype=np.int64),
        )
        for mine in by_symbol
    ]
    begin = perf_counter()
    for bars, many in zip(market, given, strict=True):
        judge([bars], many, COSTS).rewards()
    together = perf_counter() - begin
    bars, some = market[0], given[0]
    begin = perf_counter()
    count = min(PLAIN, len(some.as_of))
    for n in range(count):
        first = int(np.searchsorted(bars.closed_at, some.as_of[n] + bars.seconds))
        for stop in (
            some.stop,
            *(some.entry - distance * some.atr for distance in (1.0, 1.5, 2.5)),
        ):
            _walk(bars, some.orders(stop), n, first, COSTS)
    plainly = (perf_counter() - begin) / count
    return {
        "scenarios": len(found),
        "seconds_for_all": together,
        "scenarios_per_s": len(found) / together,
        "plain_scenarios_per_s": 1 / plainly,
        "ratio": plainly * len(found) / together,
    }


def main() -> None:
    measured = labels_bench()
    Console().print(
        f"{measured['scenarios']:,.0f} scenarios of {SYMBOLS} symbols x {YEARS} years in"
        f" {measured['seconds_for_all']:.2f} s: {measured['scenarios_per_s']:,.0f} scenarios/s"
        f" ({PATHS} simulated paths, 10 actions each); plain loop"
        f" {measured['plain_scenarios_per_s']:,.0f}/s, ratio {measured['ratio']:.0f}x"
    )


if __name__ == "__main__":
    main()
