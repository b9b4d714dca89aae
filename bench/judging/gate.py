"""How often is the gate wrong? Simulated markets without edge, and power with a stated one.

1. Four markets without edge, 500 histories of two years each: promotions when asked once, and
   whether the anytime-valid bounds ever rose above 0 when consulted every day (no live promotion
   happens without). The same for promotions as a veto, where refusals have no skill.
2. What comes of consulting the bounds for one look again and again.
3. How often the best of eight versions without skill shows a confident Sharpe ratio.
4. How often a version that acts steps back by itself, where it is no worse, and where it is
   (`advisor-train drift --demote`), asked every day.
5. Power against the number of decisions, for three skills, as a trader and as a veto.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.asked import entry
from bench.history import record
from bench.judging.gate_power import (
    FLAGS,
    NO_EDGE,
    NO_SAVING,
    NO_WORSE,
    TRIES,
    WORSE,
    PowerPoint,
    Share,
    World,
    best_of_many,
    demotions,
    power_curve,
    runs,
    shares,
)
from training.config.judging import DriftConfig, GateConfig

DECISIONS = 2920
"""Two years at four a day."""
SKILLS = (0.35, 0.5, 0.65)
COUNTS = (500, 1000, 2000, 4000, 8000)
AS_TRADER, AS_VETO = FLAGS[:4], FLAGS[4:]
COLUMNS = ("fixed: promoted", "fixed: bounds alone", "live: promoted", "live: bounds, any day")
VETO_COLUMNS = ("as a veto, fixed", "as a veto, live")
LUCKY = 4000
console = Console(width=160)


def percent(share: Share) -> str:
    """`2.4 [1.4, 4.1]`, in per cent."""
    low, high = share.interval
    return f"{100 * share.share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def false_promotions(
    count: int, config: GateConfig, workers: int, figures: dict[str, float]
) -> Table:
    """One row per market without edge."""
    table = Table("market without edge", *COLUMNS, *VETO_COLUMNS)
    for world in dict.fromkeys((*NO_EDGE, *NO_SAVING)):
        asked = runs(world, DECISIONS, count, config, workers=workers)
        # What has an edge as the other kind may be promoted as that: it is no error.
        flags = (AS_TRADER if world in NO_EDGE else ()) + (AS_VETO if world in NO_SAVING else ())
        promoted = {flag: shares(world.name, asked, (flag,))[0] for flag in flags}
        cells = [percent(promoted[flag]) if flag in promoted else "-" for flag in FLAGS]
        table.add_row(world.name, *cells)
        figures |= {share.name: share.share for share in promoted.values()}
    return table


def repeated_looks(count: int, config: GateConfig, workers: int) -> Share:
    """The second market, the fixed bounds every 20 days."""
    asked = runs(NO_EDGE[1], DECISIONS, count, config, repeated=True, workers=workers)
    return shares(NO_EDGE[1].name, asked, ("repeated",))[0]


def stepping_back(count: int, workers: int, figures: dict[str, float]) -> Table:
    """One row per market, the first three without a reason to step back."""
    lengths = (500, 1000, DECISIONS)
    table = Table("market", *(f"within {decisions:,} decisions" for decisions in lengths))
    for world in (*NO_WORSE, *WORSE):
        found = [
            demotions(world, decisions, count, DriftConfig(), workers) for decisions in lengths
        ]
        table.add_row(world.name, *map(percent, found))
        figures[f"demoted: {world.name}"] = found[-1].share
    return table


def power_table(curve: list[PowerPoint]) -> Table:
    """One row per skill and number of decisions."""
    table = Table("edge, R a decision", "R a trade", "decisions", *COLUMNS, *VETO_COLUMNS)
    for point in curve:
        row = (f"{point.edge:+.3f}", f"{point.per_trade:+.3f}", f"{point.decisions}")
        table.add_row(*row, *(percent(getattr(point, flag)) for flag in FLAGS))
    return table


def main(
    histories: Annotated[
        int, typer.Option("--runs", min=1, help="Histories per market without edge.")
    ] = 500,
    power_runs: Annotated[
        int, typer.Option(min=1, help="Histories per point of the power curve.")
    ] = 60,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    only_demotion: Annotated[
        bool, typer.Option("--demotion", help="Only how often a version steps back by itself.")
    ] = False,
) -> None:
    """False promotions and power of the gate on simulated markets."""
    config = GateConfig(draws=400)
    begin = time.monotonic()
    if only_demotion:
        console.print(stepping_back(histories, workers, {}))
        return
    figures: dict[str, float] = {"runs": histories, "power_runs": power_runs}
    console.print(
        f"{histories} histories of {DECISIONS} decisions; per cent, in brackets their 95 % interval"
    )
    console.print(false_promotions(histories, config, workers, figures))
    again = repeated_looks(histories // 4, config, workers)
    console.print(f"bounds for one look, consulted every 20 days, {again.name}: {percent(again)} %")
    figures[again.name] = again.share
    for lucky in best_of_many(TRIES, LUCKY, config):
        console.print(f"{lucky.name}: a confident Sharpe ratio in {percent(lucky)} %")
        figures[lucky.name] = lucky.share
    console.print(stepping_back(histories, workers, figures))
    curve = power_curve(World("power"), SKILLS, COUNTS, power_runs, config, workers=workers)
    console.print(power_table(curve))
    figures |= {
        share.name: share.share
        for point in curve
        for share in (point.fixed, point.live, point.veto)
    }
    figures["seconds"] = time.monotonic() - begin
    console.print(f"{figures['seconds']:.0f} s")
    record("gate", figures)


if __name__ == "__main__":
    entry(main)
