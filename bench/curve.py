"""How many prompts does a policy need? `python -m bench.curve --config cpu --set ...`

Of a configuration's training prompts ever more, evenly spread over time, and Spearman's correlation
with the teacher on its validation prompts, which nobody trained on: of what the best approval is
worth beyond rejecting. Three readers of the same prompts stand beside the adapter: ridge
regressions of the teacher's number on what the frozen base makes of them (its last state, the means
of its states by line) and, without any language model, on the numbers themselves. Nothing of the
held-out period is read. Makes what the configuration's rebuild makes before its policy, or finds
it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.history import record
from training.arrays import Floats, Rows
from training.cli.options import meter
from training.config.file import RebuildConfig, read_config
from training.learning.algorithms.measures import rank_agreement
from training.learning.algorithms.preferences import Preferences, preferences
from training.learning.algorithms.problem import Problem, problem_of
from training.learning.algorithms.table import TRAINS
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.pipeline.rebuild import base_of, market_of, taught_by_all
from training.scenarios.table import ScenarioSet, evenly
from training.stages.workshop import Workshop

CONFIGS = Path("training/config")
STRENGTHS = tuple(10.0**power for power in range(1, 7))
NUMBERS, LINE_MEANS, LAST_STATE = "numbers", "means by line", "last state"


def problem(config: RebuildConfig, shop: Workshop, base: Base) -> tuple[Problem, ScenarioSet]:
    """What the configuration's policy would be trained on."""
    made = taught_by_all(config, market_of(config), base, shop, None)
    pairs = shop.make(
        preferences,
        **{name: made[name] for name in ("scenarios", "labels", "taught")},
        settings=config.preferences,
        targets=config.targets,
    )
    scenarios = ScenarioSet.open(made["scenarios"])
    given = problem_of(
        scenarios,
        Labels.open(made["labels"]),
        Encoded.open(made["encoded"]),
        Predictions.open(made["taught"]),
        Preferences.open(pairs),
        base,
        config.targets,
        config.scenarios.seed,
    )
    return given, scenarios


def readers(given: Problem, scenarios: ScenarioSet) -> dict[str, Floats]:
    """(N, F) what each reader knows of the prompts."""
    numbers = scenarios.features()
    known = np.isfinite(numbers)
    train = given.train_rows
    total, count = np.where(known, numbers, 0.0)[train].sum(0), known[train].sum(0)
    mean = total / np.maximum(count, 1)
    hidden = np.asarray(given.encoded.hidden, np.float64).reshape(len(numbers), -1)
    return {
        NUMBERS: np.where(known, numbers, mean),
        LINE_MEANS: hidden,
        LAST_STATE: np.asarray(given.encoded.last, np.float64),
    }


def read(inputs: Floats, given: Problem, train: Rows) -> float:
    """Rank agreement of a ridge regression, its strength chosen within the training rows."""
    worth = given.rewards[:, 1:].max(axis=1) - given.rewards[:, 0]
    model = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS))
    model.fit(inputs[train], worth[train], ridgecv__sample_weight=given.weights[train])
    said = np.zeros((len(given.validate_rows), 2))
    said[:, 1] = model.predict(inputs[given.validate_rows])
    return rank_agreement(said, given.rewards[given.validate_rows])


def tuned(config: RebuildConfig, given: Problem, train: Rows, base: Base) -> dict[str, float]:
    """The metrics of the configuration's policy, trained on these rows."""
    with tempfile.TemporaryDirectory() as folder, meter(f"{len(train):,} prompts") as progress:
        some = replace(given, train_rows=train)
        train_policy = TRAINS[config.policy.algorithm]
        done = train_policy(
            some, config.policy, config.adapter, base.reader, Path(folder), progress
        )
    return done.metrics


def lines(
    config: RebuildConfig, given: Problem, scenarios: ScenarioSet, base: Base, counts: list[int]
) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Rank agreement by reader, and the adapter's, for every number of prompts."""
    known = readers(given, scenarios)
    for count in sorted(counts):
        train = given.train_rows[evenly(len(given.train_rows), count)]
        figures = {name: read(inputs, given, train) for name, inputs in known.items()}
        yield len(train), figures | {"adapter": tuned(config, given, train, base)["rank"]}


def main(
    counts: Annotated[list[int], typer.Argument(help="of training prompts, variants included")],
    config: Annotated[str, typer.Option(help="of training/config")] = "cpu",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
) -> None:
    """Print the table."""
    settings = read_config(CONFIGS / f"{config}.toml", overrides or ())
    torch.set_num_threads(settings.threads)
    shop = Workshop(settings.artifacts, typer.echo, meter)
    base = base_of(settings, shop)
    given, scenarios = problem(settings, shop, base)
    typer.echo(f"| prompts | adapter | {LAST_STATE} | {LINE_MEANS} | {NUMBERS} |\n|{'---|' * 5}")
    for count, figures in lines(settings, given, scenarios, base, counts):
        shown = [figures[name] for name in ("adapter", LAST_STATE, LINE_MEANS, NUMBERS)]
        typer.echo(f"| {count:,} | {' | '.join(f'{figure:.2f}' for figure in shown)} |")
        record("curve", {"prompts": count, **figures})


if __name__ == "__main__":
    typer.run(main)
