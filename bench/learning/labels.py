"""How fast labels are made: all of a symbol at once against one order after the other.

The market is synthetic, as large as eleven symbols over seven years of hours. The plain loop is the
one that tests hold the simulation against.
"""

from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from app.domain.model.actions import ACTIONS
from bench.asked import entry
from bench.history import record
from tests.training.outcomes.plain import walk
from training.agent.reference import Agent, chart, opportunities
from training.config.data import SyntheticConfig
from training.market.synthetic import synthetic_bars
from training.outcomes.labels import judge, plan_orders, shares_of
from training.outcomes.simulate import COSTS
from training.scenarios.table import NEUTRAL

SYMBOLS, YEARS, HOURS_PER_YEAR = 11, 7, 8766
PLAIN = 300
PATHS = 4
"""Simulated per scenario: the plan, and three stop distances that serve nine actions."""


def labels_bench(hours: int = YEARS * HOURS_PER_YEAR, symbols: int = SYMBOLS) -> dict[str, float]:
    """Scenarios per second of both ways, their ratio, and seconds for the whole market: of CPU, so
    that a neighbour hardly counts.

    The plain loop is given a few hundred scenarios, and where its first bar is: finding it is not
    what is compared.
    """
    market = synthetic_bars(SyntheticConfig(edge=0.2, symbols=symbols, bars=hours, seed=5))
    agent = Agent([chart(bars) for bars in market])
    scenarios = [agent.scenario(found, NEUTRAL) for found in opportunities(agent.charts)]
    plans, shares = plan_orders(scenarios), shares_of(scenarios)
    series = {bars.symbol: [bars] for bars in market}
    begin = process_time()
    judge(series, plans, shares, COSTS).rewards()
    together = process_time() - begin
    bars = market[0]
    some = plans.at(plans.symbol == bars.symbol)
    begin = process_time()
    count = min(PLAIN, len(some))
    for n in range(count):
        first = int(np.searchsorted(bars.closed_at, some.as_of[n] + bars.seconds))
        for stop in (
            some.stop,
            *(some.entry - distance * some.atr for distance in (1.0, 1.5, 2.5)),
        ):
            walk(bars, replace(some, stop=stop), n, first, COSTS)
    plainly = (process_time() - begin) / count
    return {
        "scenarios": len(scenarios),
        "seconds_for_all": together,
        "scenarios_per_s": len(scenarios) / together,
        "scenario_actions_per_s": len(ACTIONS) * len(scenarios) / together,
        "plain_scenarios_per_s": 1 / plainly,
        "ratio": plainly * len(scenarios) / together,
    }


def main(
    hours: Annotated[int, typer.Option(min=1, help="Bars of each symbol.")] = YEARS
    * HOURS_PER_YEAR,
    symbols: Annotated[int, typer.Option(min=1, help="Of the synthetic market.")] = SYMBOLS,
) -> None:
    """Measure, print, remember."""
    measured = labels_bench(hours, symbols)
    Console().print(
        f"{measured['scenarios']:,.0f} scenarios of {symbols} symbols x {hours:,} hours in"
        f" {measured['seconds_for_all']:.2f} s of CPU: {measured['scenarios_per_s']:,.0f}"
        f" scenarios/s, {measured['scenario_actions_per_s']:,.0f} scenario-actions/s"
        f" ({PATHS} paths, {len(ACTIONS)} actions each); plain loop"
        f" {measured['plain_scenarios_per_s']:,.0f}/s, ratio {measured['ratio']:.0f}x"
    )
    record("labels", measured)


if __name__ == "__main__":
    entry(main)
