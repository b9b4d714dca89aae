"""What an order that waits in the book would be worth: `python -m bench.learning.maker --market
DIRECTORY`.

Every candidate's plan is bought by a limit order some part of an ATR below its entry, which waits
for one bar. It is filled where price trades below it within that bar, else nothing is traded: who
waits buys what falls and misses what rises. A trade that would have ended with a profit within the
bar is taken for missed, since it may have risen before it fell. Buying costs the maker's fee alone;
stops, trails and time exits sell as takers do, targets as makers do.

Controls: every order filled at its price and both sides at the maker's fee, as on paper; the same
filled plans bought as takers buy, which says what is selected; the plans that were missed. Interval
over days. `--develop` asks about 2018-2022 instead of the held-out period, `--since` and `--until`
about later days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import polars as pl
import typer

from bench.asked import SINCE, UNTIL, Since, Until, entry, period_of, tell_beyond
from bench.learning.teacher import interval
from training.arrays import DAY_S, HELD_OUT_FROM, Flags, Floats, Rows, instant
from training.cli.options import meter
from training.config.data import MarketConfig, OutcomesConfig, ScenariosConfig
from training.config.section import at_home
from training.market.bars import Bars
from training.outcomes.labels import AGENT, Labels, labels
from training.scenarios.history import load_history, of_history
from training.scenarios.table import ScenarioSet
from training.stages.workshop import Workshop
from training.statistics.bootstrap import Cluster, compare_means

MAKER_FEE = 0.0004
"""Of notional, each side."""
BELOW = (0.0, 0.1, 0.25, 0.5)
"""ATR below entry."""
TAKER, PAPER = "taker, every plan", "on paper: all filled, maker's fee on both sides"


class Traded(NamedTuple):
    """N plans that were followed from the bar after their decision. Prices before costs, per unit;
    risk is the distance from entry to stop."""

    days: Rows
    entry: Floats
    atr: Floats
    risk: Floats
    bought: Floats
    sold: Floats
    low: Floats
    """(N,) of the bar in which a taker buys."""
    quick: Flags
    """(N,) ended within that bar."""
    by_target: Flags


def earned(them: Traded, price: Floats, buying: Floats | float, selling: Floats | float) -> Floats:
    """(N,) R of buying at a price, with costs as shares of both notionals."""
    profit = them.sold * (1 - selling) - price * (1 + buying)
    return np.asarray(profit / them.risk)


def filled(them: Traded, limit: Floats) -> Flags:
    """(N,) whether price surely traded below the limit while it waited and the plan was open."""
    missed = them.quick & (them.sold > them.bought)
    return np.asarray((them.low < limit) & ~missed)


def arms(them: Traded, taker: float) -> dict[str, tuple[Floats, Flags]]:
    """What each way of trading earns of every plan, 0 where nothing is traded, and where it
    trades."""
    whole = np.ones(len(them.days), bool)
    selling = np.where(them.by_target, MAKER_FEE, taker)
    by_taker = earned(them, them.bought, taker, taker)
    told = {
        TAKER: (by_taker, whole),
        PAPER: (earned(them, them.bought, MAKER_FEE, MAKER_FEE), whole),
    }
    for part in BELOW:
        limit = np.minimum(them.entry - part * them.atr, them.bought)
        there = filled(them, limit)
        name = f"limit {part:g} ATR below entry"
        told[name] = (np.where(there, earned(them, limit, MAKER_FEE, selling), 0.0), there)
        told[f"{name}: its fills bought as takers do"] = (np.where(there, by_taker, 0.0), there)
        told[f"{name}: what it missed, by takers"] = (np.where(there, 0.0, by_taker), ~there)
    return told


def table(told: Mapping[str, tuple[Floats, Flags]], days: Rows) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| who buys | trades | R a candidate | R a trade |"
    yield "|---|---|---|---|"
    for name, (values, traded) in told.items():
        cells = []
        for rows in (np.ones(len(days), bool), traded):
            means, _ = compare_means(
                {name: values[rows]}, np.ones(rows.sum()), Cluster(days[rows], days[rows]), name
            )
            cells.append(interval(means[name]))
        yield f"| {name} | {traded.mean():.1%} | {' | '.join(cells)} |"


def traded(scenarios: ScenarioSet, fates: Labels, bars: Mapping[str, Bars]) -> Traded:
    """Plans that bars can judge, with the bar that each was bought in."""
    plans = fates.table.filter(pl.col("action") == AGENT).sort("row")
    rows = np.flatnonzero(plans["sold"].is_not_null().to_numpy())
    known = plans[rows]
    whole = scenarios.scenarios()
    them = [whole[row] for row in rows]
    entered, ended = known["entered_at"].to_numpy(), known["exited_at"].to_numpy()
    low = np.full(len(rows), np.inf)
    for symbol, series in bars.items():
        mine = np.flatnonzero(scenarios.symbols[rows] == symbol)
        at = np.searchsorted(series.closed_at, entered[mine] + series.seconds)
        there = at < len(series.low)
        there[there] = series.closed_at[at[there]] == entered[mine][there] + series.seconds
        low[mine[there]] = series.low[at[there]]
    seconds = next(iter(bars.values())).seconds
    return Traded(
        days=scenarios.as_of[rows] // DAY_S,
        entry=np.array([each.plan.entry for each in them]),
        atr=np.array([each.candidate.atr or 0.0 for each in them]),
        risk=np.array([abs(each.plan.entry - each.plan.stop) for each in them]),
        bought=known["bought"].to_numpy(),
        sold=known["sold"].to_numpy(),
        low=low,
        quick=ended <= entered + seconds,
        by_target=known["exit"].str.starts_with("target").to_numpy(),
    )


def main(
    market: Annotated[Path, typer.Option(help="folder of bars: SYMBOL_1h.parquet")],
    develop: Annotated[bool, typer.Option(help="2018-2022 instead of the held-out")] = False,
    folder: Annotated[Path, typer.Option(callback=at_home, help="where artefacts are kept")] = Path(
        "var/artifacts"
    ),
    since: Since = SINCE,
    until: Until = UNTIL,
) -> None:
    """Print the table."""
    asked_about = period_of(since, until)
    shop, outcomes = Workshop(folder, typer.echo, meter), OutcomesConfig()
    source = MarketConfig(source="directory", directory=market)
    settings = ScenariosConfig() if develop else asked_about
    history = load_history(source, instant(HELD_OUT_FROM) if develop else None)
    if not develop:
        tell_beyond(asked_about, history)
    made = shop.make(of_history, market=history, settings=settings)
    fates = shop.make(labels, scenarios=made, market=history, settings=outcomes)
    bars = {each.symbol: each for each in history.bars}
    them = traded(ScenarioSet.open(made), Labels.open(fates), bars)
    for line in table(arms(them, outcomes.fee + outcomes.slippage), them.days):
        typer.echo(line)


if __name__ == "__main__":
    entry(main)
