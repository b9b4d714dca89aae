"""How long a contest takes once the model's probabilities are known: `python -m bench.contest`.

Every candidate of eleven synthetic symbols over two years, after one year that the rivals are
fitted on: all arms, walking forward, portfolios and bootstraps included. Probabilities are made up,
so the result means nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console

from app.domain.actions import ACTIONS
from app.domain.limits import read_limits
from app.domain.manifest import Calibration
from training.config.data import HeldOutConfig, OutcomesConfig, ScenariosConfig, SyntheticConfig
from training.config.judging import EvaluateConfig
from training.judging.contest.contest import (
    BASE_MODEL,
    POLICY,
    Trained,
    Version,
    hold_contest,
    refitted,
)
from training.market.context import KnownContext
from training.market.synthetic import synthetic_bars
from training.outcomes.labels import Labels, build_labels
from training.pipeline.evaluate import REPLAY_LIMITS
from training.scenarios.history import History, find_scenarios
from training.scenarios.table import ScenarioSet, build_scenarios
from training.stages.store import Artifact, Workshop

HOURS_PER_YEAR = 8766
EMBARGO_S = 86_400.0
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
    found, left_out = find_scenarios(given, config)

    def scenarios(folder: Path) -> dict[str, Any]:
        return build_scenarios(folder, found, config, left_out, given.seconds)

    made = ScenarioSet.open(shop.stage("scenarios", config, {}, scenarios))

    def labels(folder: Path) -> dict[str, Any]:
        return build_labels(
            folder, made.scenarios(), made.as_of, made.real, given.series(), OutcomesConfig()
        )

    artifact: Artifact = shop.stage("labels", config, {}, labels)
    return made, Labels.open(artifact)


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do it, and say how long it took."""
    begin = perf_counter()
    found = work()
    console.print(f"{what}: {perf_counter() - begin:.1f} s")
    return found


def main() -> None:
    """Prepare, run, print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--symbols", type=int, default=11)
    options.add_argument(
        "--versions", type=int, default=4, help="policies in the contest, beside the base model"
    )
    options.add_argument("--workers", type=int, default=2)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop, given = Workshop(Path(folder)), market(chosen.symbols, 3)
        before, after = timed(
            "not counted: scenarios and labels",
            lambda: [
                scenarios_and_labels(shop, given, config)
                for config in (ScenariosConfig(), HeldOutConfig())
            ],
        )
        source = np.random.default_rng(0)
        names = [
            POLICY,
            BASE_MODEL,
            *(f"{POLICY} {number}" for number in range(2, chosen.versions + 1)),
        ]
        versions = {
            name: Version(
                np.log(source.dirichlet(np.ones(len(ACTIONS)), len(after[0]))), Calibration()
            )
            for name in names
        }
        console.print(
            f"{len(after[0]):,} held-out candidates, {len(before[0]):,} before them, {len(names)}"
            " versions"
        )
        config, limits = EvaluateConfig(workers=chosen.workers), read_limits(REPLAY_LIMITS)

        def contest() -> Any:
            periods = refitted(*after, versions, Trained(*before, EMBARGO_S), config.refit_days)
            return hold_contest(*after, given.bars, periods, limits, config, OutcomesConfig())

        timed("contest of all arms", contest)


if __name__ == "__main__":
    main()
