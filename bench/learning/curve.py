"""How many prompts does a policy need? `python -m bench.learning.curve --config cpu --set ...`

Of a configuration's training prompts ever more, evenly spread over time, and Spearman's correlation
with the teacher on its validation prompts, which nobody trained on: of what the best approval is
worth beyond rejecting, and of the adapter's answers to its questions. Three readers of the same
prompts stand beside the adapter: ridge regressions of the teacher's number on what the frozen base
makes of them (its last state, the means of its states by line) and, without any language model, on
the numbers themselves. With `--seeds` each number of prompts is drawn and trained several times,
and what is shown is the mean. Brackets are 95 % intervals, validation days drawn anew. Nothing of
the held-out period is read. Makes what the configuration's rebuild makes before its policy, or
finds it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.domain.model.questions import QuestionName
from bench.asked import entry
from bench.history import record
from training.arrays import DAY_S, Floats, Rows, Times
from training.cli.options import meter
from training.config.file import RebuildConfig, read_config
from training.learning.algorithms.run import TrainedPolicy
from training.learning.algorithms.table import TRAINS
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.targets.preferences import Preferences, preferences
from training.learning.targets.problem import Problem, problem_of
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.pipeline.rebuild import base_of, market_of, taught_by_all
from training.scenarios.table import ScenarioSet, evenly
from training.stages.workshop import Workshop
from training.statistics.bootstrap import DRAWS, Estimate

CONFIGS = Path("training/config")
STRENGTHS = tuple(10.0**power for power in range(1, 7))
NUMBERS, LINE_MEANS, LAST_STATE = "numbers", "means by line", "last state"
ADAPTER = "adapter"
READERS = (ADAPTER, LAST_STATE, LINE_MEANS, NUMBERS)
QUESTIONS = tuple(question.value for question in QuestionName)


class Point(NamedTuple):
    """What so many prompts teach."""

    prompts: int
    ranks: dict[str, Estimate]
    """Agreement with the teacher, by reader."""
    questions: dict[str, float]
    """Rank correlation of the adapter's answers, by question; none where it learns none."""

    @property
    def line(self) -> str:
        """Of Markdown."""
        shown = [shown_rank(self.ranks.get(name)) for name in READERS]
        for name in QUESTIONS:
            shown.append(f"{self.questions[name]:.2f}" if name in self.questions else "none")
        return f"| {self.prompts:,} | {' | '.join(shown)} |"

    @property
    def figures(self) -> dict[str, float]:
        """What the history keeps."""
        kept: dict[str, float] = {"prompts": float(self.prompts), **self.questions}
        for name, rank in self.ranks.items():
            kept |= {
                f"{name}{end}": value
                for end, value in (("", rank.value), (": low", rank.low), (": high", rank.high))
                if value is not None
            }
        return kept


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
        outcomes=config.outcomes,
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


def read(inputs: Floats, given: Problem, train: Rows) -> Floats:
    """(M,) what a ridge regression says of the validation rows, its strength chosen within the
    training rows."""
    model = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS))
    worth = beyond_rejecting(given.rewards[train])
    model.fit(inputs[train], worth, ridgecv__sample_weight=given.weights[train])
    return np.asarray(model.predict(inputs[given.validate_rows]), np.float64)


def beyond_rejecting(table: Floats) -> Floats:
    """(M,) of (M, 10): what the best approval has more than rejecting."""
    return np.asarray(table[:, 1:].max(axis=1) - table[:, 0], np.float64)


def agreement(said: list[Floats], worth: Floats, as_of: Times) -> Estimate:
    """Mean of Spearman's correlations of several readers with (M,) `worth`; its interval by whole
    days drawn with replacement, the same for all."""
    value = _mean_rank(said, worth)
    days = np.unique(as_of // DAY_S, return_inverse=True)[1]
    rows_of = [np.flatnonzero(days == day) for day in range(int(days.max()) + 1)]
    source, sampled = np.random.default_rng(0), []
    for _ in range(DRAWS):
        some = source.integers(0, len(rows_of), len(rows_of))
        rows = np.concatenate([rows_of[day] for day in some])
        sampled.append(_mean_rank([words[rows] for words in said], worth[rows]))
    low, high = np.quantile(sampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(worth))


def _mean_rank(said: list[Floats], worth: Floats) -> float:
    """0 for a reader that says the same of all."""
    ranks = [
        float(spearmanr(words, worth).statistic) if np.ptp(words) > 0 and np.ptp(worth) > 0 else 0.0
        for words in said
    ]
    return float(np.mean(ranks))


def drawn(rows: Rows, count: int, seed: int) -> Rows:
    """So many of the rows: evenly spread the first time, at random from then on."""
    if seed == 0:
        return rows[evenly(len(rows), count)]
    source = np.random.default_rng(seed)
    return np.sort(source.choice(rows, min(count, len(rows)), replace=False))


def tuned(
    config: RebuildConfig, given: Problem, train: Rows, base: Base, seed: int
) -> TrainedPolicy:
    """The configuration's policy, trained on these rows; one that collapsed is measured too."""
    settings = config.policy.model_copy(
        update={"seed": config.policy.seed + seed, "min_entropy": 0.0, "max_majority": 1.0}
    )
    with tempfile.TemporaryDirectory() as folder, meter(f"{len(train):,} prompts") as progress:
        train_policy = TRAINS[config.policy.algorithm]
        return train_policy(
            replace(given, train_rows=train),
            settings,
            config.adapter,
            base.reader,
            Path(folder),
            progress,
        )


def points(
    config: RebuildConfig,
    given: Problem,
    scenarios: ScenarioSet,
    base: Base,
    counts: list[int],
    seeds: int,
    train: bool,
) -> Iterator[Point]:
    """For every number of prompts, the fewest first; readers alone unless adapters are trained."""
    inputs, validate = readers(given, scenarios), given.validate_rows
    worth, as_of = beyond_rejecting(given.rewards[validate]), scenarios.as_of[validate]
    for count in sorted(counts):
        rows = [drawn(given.train_rows, count, seed) for seed in range(seeds)]
        said = {name: [read(known, given, some) for some in rows] for name, known in inputs.items()}
        trained = [
            tuned(config, given, some, base, seed) for seed, some in enumerate(rows) if train
        ]
        if trained:
            said[ADAPTER] = [
                beyond_rejecting(policy.answers.log_policy[validate]) for policy in trained
            ]
        ranks = {name: agreement(words, worth, as_of) for name, words in said.items()}
        asked = trained[0].questions if trained else ()
        questions = {
            name: float(np.mean([policy.questions[name]["rank_correlation"] for policy in trained]))
            for name in asked
        }
        yield Point(len(rows[0]), ranks, questions)


def shown_rank(rank: Estimate | None) -> str:
    """With its interval."""
    if rank is None:
        return "none"
    return f"{rank.value:.2f} [{rank.low:.2f}, {rank.high:.2f}]"


def main(
    counts: Annotated[list[int], typer.Argument(help="of training prompts, variants included")],
    config: Annotated[str, typer.Option(help="of training/config")] = "cpu",
    seeds: Annotated[int, typer.Option(min=1, help="times each is drawn and trained")] = 1,
    train: Annotated[
        bool, typer.Option(help="adapters too: minutes each; readers take none")
    ] = True,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
) -> None:
    """Print the table."""
    settings = read_config(CONFIGS / f"{config}.toml", overrides or ())
    torch.set_num_threads(settings.threads)
    shop = Workshop(settings.artifacts, typer.echo, meter)
    base = base_of(settings, shop)
    given, scenarios = problem(settings, shop, base)
    columns = ("prompts", *READERS, *QUESTIONS)
    typer.echo(f"{len(given.validate_rows)} validation prompts, draws of each number: {seeds}\n")
    typer.echo(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for point in points(settings, given, scenarios, base, counts, seeds, train):
        typer.echo(point.line)
        record("curve", {"seeds": float(seeds), **point.figures})


if __name__ == "__main__":
    entry(main)
