"""How often is the gate wrong? `python -m bench.gate`: simulated markets without edge, and power
with a stated one.

1. Four markets without edge, 500 histories of two years each: promotions when asked once, and
   whether the anytime-valid bounds ever rose above 0 when consulted every day (no live promotion
   happens without).
2. What comes of consulting the bounds for one look again and again.
3. Power against the number of decisions, for three skills.
"""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from bench.gate_power import FLAGS, NO_EDGE, PowerPoint, Share, World, power_curve, runs, shares
from training.config.judging import GateConfig

DECISIONS = 2920
"""Two years at four a day."""
SKILLS = (0.35, 0.5, 0.65)
COUNTS = (500, 1000, 2000, 4000, 8000)
COLUMNS = ("fixed: promoted", "fixed: bounds alone", "live: promoted", "live: bounds, any day")
console = Console(width=130)


def percent(share: Share) -> str:
    """`2.4 [1.4, 4.1]`, in per cent."""
    low, high = share.interval
    return f"{100 * share.share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def false_promotions(count: int, config: GateConfig, workers: int) -> Table:
    """One row per market without edge."""
    table = Table("market without edge", *COLUMNS)
    for world in NO_EDGE:
        found = runs(world, DECISIONS, count, config, workers=workers)
        table.add_row(world.name, *map(percent, shares(world.name, found, FLAGS)))
    return table


def repeated_looks(count: int, config: GateConfig, workers: int) -> Share:
    """The second market, the fixed bounds every 20 days."""
    found = runs(NO_EDGE[1], DECISIONS, count, config, repeated=True, workers=workers)
    return shares(NO_EDGE[1].name, found, ("repeated",))[0]


def power_table(curve: list[PowerPoint]) -> Table:
    """One row per skill and number of decisions."""
    table = Table("edge, R a decision", "R a trade", "decisions", *COLUMNS)
    for point in curve:
        row = (f"{point.edge:+.3f}", f"{point.per_trade:+.3f}", f"{point.decisions}")
        table.add_row(
            *row, *map(percent, (point.fixed, point.fixed_bounds, point.live, point.live_bounds))
        )
    return table


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description="False promotions and power of the gate on simulated markets"
    )
    parser.add_argument("--runs", type=int, default=500, help="histories per market without edge")
    parser.add_argument(
        "--power-runs", type=int, default=60, help="histories per point of the power curve"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    config = GateConfig(draws=400)
    begin = time.monotonic()
    console.print(
        f"{arguments.runs} histories of {DECISIONS} decisions; per cent, in brackets their 95 %"
        " interval"
    )
    console.print(false_promotions(arguments.runs, config, arguments.workers))
    again = repeated_looks(arguments.runs // 4, config, arguments.workers)
    console.print(f"bounds for one look, consulted every 20 days, {again.name}: {percent(again)} %")
    base = World("power")
    curve = power_curve(
        base, SKILLS, COUNTS, arguments.power_runs, config, workers=arguments.workers
    )
    console.print(power_table(curve))
    console.print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
