"""How long a contest takes once the model's probabilities are known.

Every candidate of eleven synthetic symbols over two years, after one year that the rivals are
fitted on: all arms, walking forward, portfolios and bootstraps included. Probabilities are made up,
so the result means nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Annotated, TypeVar

import numpy as np
import typer
from rich.console import Console

from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import Calibration
from app.domain.rules.limits import read_limits
from bench.asked import entry
from bench.history import record
from training.config.data import HeldOutConfig, OutcomesConfig, ScenariosConfig, SyntheticConfig
from training.config.judging import EvaluateConfig
from training.judging.contest.arms import BASE_MODEL, POLICY
from training.judging.contest.contest import Contest, Trained, hold_contest, refitted
from training.learning.model.answers import Answers
from training.market.context import KnownContext
from training.market.synthetic import synthetic_bars
from training.outcomes.labels import Labels, labels
from training.scenarios.history import History, of_history
from training.scenarios.table import ScenarioSet
from training.stages.workshop import Workshop

HOURS_PER_YEAR = 8766
EMBARGO_S = 86_400.0
Result = TypeVar("Result")
console = Console()


def market(symbols: int, years: int) -> History:
    """Hourly bars that end with the held-out period's last year."""
    begins = date(2025 - years, 1, 1)
    return History(
        tuple(
            synthetic_bars(
                SyntheticConfig(
                    symbols=symbols, bars=years * HOURS_PER_YEAR, begins=begins, edge=0.3
                )
            )
        ),
        {},
        KnownContext(),
    )


def scenarios_and_labels(
    shop: Workshop, given: History, config: ScenariosConfig
) -> tuple[ScenarioSet, Labels]:
    """Every candidate of the period, labelled."""
    scenarios = shop.make(of_history, market=given, settings=config)
    made = shop.make(labels, scenarios=scenarios, market=given, settings=OutcomesConfig())
    return ScenarioSet.open(scenarios), Labels.open(made)


def timed(what: str, work: Callable[[], Result]) -> tuple[Result, float]:
    """Do it, and say how long it took, s."""
    begin = perf_counter()
    made = work()
    seconds = perf_counter() - begin
    console.print(f"{what}: {seconds:.1f} s")
    return made, seconds


def answers(count: int, versions: int) -> dict[str, Answers]:
    """Made-up probabilities of so many scenarios: the base model's and those of some policies."""
    source = np.random.default_rng(0)
    names = [POLICY, BASE_MODEL, *(f"{POLICY} {number}" for number in range(2, versions + 1))]
    return {
        name: Answers(np.log(source.dirichlet(np.ones(len(ACTIONS)), count)), Calibration())
        for name in names
    }


def main(
    symbols: Annotated[int, typer.Option(min=1, help="Of the synthetic market.")] = 11,
    versions: Annotated[int, typer.Option(min=1, help="Policies, beside the base model.")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Prepare, run, print."""
    with tempfile.TemporaryDirectory() as folder:
        shop, given = Workshop(Path(folder)), market(symbols, 3)
        (before, (held_out, labels)), _ = timed(
            "not counted: scenarios and labels",
            lambda: [
                scenarios_and_labels(shop, given, config)
                for config in (ScenariosConfig(), HeldOutConfig())
            ],
        )
        policies = answers(len(held_out), versions)
        console.print(
            f"{len(held_out):,} held-out candidates, {len(before[0]):,} before them,"
            f" {len(policies)} versions"
        )
        config = EvaluateConfig(workers=workers)
        limits = read_limits(config.limits)

        def contest() -> Contest:
            trained = Trained(*before, embargo_s=EMBARGO_S)
            periods = refitted(held_out, labels, policies, trained, config.refit_days)
            return hold_contest(held_out, given, periods, limits, config, OutcomesConfig())

        _, seconds = timed("contest of all arms", contest)
    record(
        "contest",
        {"candidates": len(held_out), "versions": len(policies), "contest_s": seconds},
    )


if __name__ == "__main__":
    entry(main)
