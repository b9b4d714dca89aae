"""Masked twins: `python -m bench.learning.twins VERSION --market DIRECTORY`.

Candidates of the held-out period are shown to a version again with their symbol disguised, without
what tells the date (fear and greed, dominance, news), with both, and with the options of the prompt
in another order. How many decisions turn, and what the difference is worth: a model that knows by
heart what became of a coin, or likes a letter, is betrayed by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from app.domain.model.actions import ACTIONS
from app.domain.record.decision import cautious, prepare
from app.domain.scenario import Scenario
from app.policy.in_process.label_reader import LabelReader
from bench.asked import SINCE, UNTIL, Since, Until, entry, looked, period_of, tell_beyond
from bench.history import record
from bench.learning.text import BATCH, Loaded, loaded, markdown, ordered, read_batch
from training.arrays import Floats, Rows
from training.cli.options import meter
from training.config.data import HeldOutConfig, MarketConfig, OutcomesConfig
from training.config.section import at_home
from training.outcomes.labels import judge, plan_orders, shares_of
from training.outcomes.simulate import Costs
from training.scenarios.history import History, find_scenarios, load_history
from training.scenarios.table import evenly
from training.statistics.bootstrap import mean_intervals

NOBODY = "MASKUSDT"
"""A coin that no list has."""
DATED = (
    "fear_greed",
    "fear_greed_age_s",
    "btc_dominance",
    "btc_dominance_age_s",
    "news_summary",
    "symbol_news_summary",
)
"""Fields of a candidate that tell when it was."""
AS_IT_IS, OPTIONS = "as it is", "options reversed"
COLUMNS = ("twin", "decisions turned", "approves", "R a scenario", "difference, R a scenario")


class Judged(NamedTuple):
    """Scenarios that bars can judge, and what every action would have earned in each."""

    scenarios: list[Scenario]
    rewards: Floats


def twins(scenario: Scenario) -> dict[str, Scenario]:
    """The scenario and its disguises, by name."""
    undated = dict.fromkeys(DATED)
    return {
        AS_IT_IS: scenario,
        "symbol": _disguised(scenario, {"symbol": NOBODY}),
        "date": _disguised(scenario, undated),
        "symbol and date": _disguised(scenario, {"symbol": NOBODY, **undated}),
    }


def _disguised(scenario: Scenario, changes: Mapping[str, str | None]) -> Scenario:
    return scenario.model_copy(update={"candidate": scenario.candidate.model_copy(update=changes)})


def judged_of(history: History, count: int, period: HeldOutConfig) -> Judged:
    """So many candidates, evenly spread over the period."""
    found, _ = find_scenarios(history, period)
    scenarios = [found[place].scenario for place in evenly(len(found), count)]
    costs = Costs.of(OutcomesConfig())
    shares, plans = shares_of(scenarios), plan_orders(scenarios)
    rewards = judge(history.series(), plans, shares, costs).rewards()
    known = np.flatnonzero(np.isfinite(rewards).all(axis=1))
    return Judged([scenarios[row] for row in known], rewards[known])


def decided(reader: LabelReader, version: Loaded, scenarios: Sequence[Scenario], name: str) -> Rows:
    """(N,) the action that each is answered with, before rules."""
    taken = []
    with meter(name) as progress:
        for begin in range(0, len(scenarios), BATCH):
            part = scenarios[begin : begin + BATCH]
            prompts = [prepare(scenario) for scenario in part]
            for reading in read_batch(reader, version.adapter, prompts, part):
                taken.append(ACTIONS.index(cautious(reading, version.calibration).action))
            progress(min(begin + BATCH, len(scenarios)), len(scenarios))
    return np.array(taken, np.int64)


def lines(
    taken: Mapping[str, Rows], given: Judged, draws: int = 1000
) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table; differences are paired by scenario, with 95 % intervals over days."""
    rows, own = np.arange(len(given.scenarios)), taken[AS_IT_IS]
    as_of = np.array([scenario.second for scenario in given.scenarios])
    shown = []
    for name, actions in taken.items():
        earned = given.rewards[rows, actions]
        gap = mean_intervals(
            (earned - given.rewards[rows, own])[:, None], as_of=as_of, draws=draws
        )[0]
        difference = f"{gap.value:+.3f}" if gap.value is not None else "none"
        if gap.low is not None:
            difference += f" [{gap.low:+.3f}, {gap.high:+.3f}]"
        turned, approves = (actions != own).mean(), (actions > 0).mean()
        shown.append(
            (name, f"{turned:.0%}", f"{approves:.0%}", f"{earned.mean():+.3f}", difference)
        )
    return shown


def main(
    version: Annotated[Path, typer.Argument(help="a version's directory, an activated adapter's")],
    market: Annotated[Path, typer.Option(help="folder of bars")],
    count: Annotated[int, typer.Option(min=1, help="candidates of the held-out period")] = 200,
    models: Annotated[list[Path] | None, typer.Option(help="where its base lies")] = None,
    since: Since = SINCE,
    until: Until = UNTIL,
) -> None:
    """Read, and print the table."""
    period = period_of(since, until)
    model = loaded(version, models or [at_home(Path("var/models")), Path("models")])
    source = MarketConfig(source="directory", directory=market)
    history = load_history(source, None)
    tell_beyond(period, history)
    looked(version.name, source, period, at_home(Path("var/models")))
    given = judged_of(history, count, period)
    disguised = [twins(scenario) for scenario in given.scenarios]
    taken = {
        name: decided(model.reader, model, [every[name] for every in disguised], name)
        for name in disguised[0]
    }
    taken[OPTIONS] = decided(ordered(model, 1), model, given.scenarios, OPTIONS)
    typer.echo(f"{version.name}, {len(given.scenarios)} candidates of the held-out period\n")
    typer.echo(markdown(COLUMNS, lines(taken, given)))
    own = taken[AS_IT_IS]
    record("twins", {f"{name}: turned": float((own != it).mean()) for name, it in taken.items()})


if __name__ == "__main__":
    entry(main)
