"""Does it learn? Every algorithm on a planted rule, beside a linear probe.

The prompts are of made-up scenarios. The rule is visible in the prompt and nowhere else: approving
earns the edge unless Bitcoin trends down or sellers lead the flow, and loses as much otherwise, in
both cases less what trading costs; with an edge of 0 nothing is to be found but that. Realised
rewards carry skewed noise, common to all actions of a scenario, as one price path is: losses small
and frequent, gains large and rare. Training sees what a teacher that knows the rule's states makes
of the other scenarios' realised rewards; the held-out rows are scored by the rule itself: those
beside the training rows, which settings were tuned on, or with --fresh N others that no tuning saw.
The line `warm-up` is the
supervised warm-up that DPO, PPO and RRHF start from: what they add is counted from there. Nothing
here says anything about markets.

`--edge` and `--seeds` repeat all of it on the same prompts, for other edges and other noise; tables
at the end have means over seeds, with intervals over prompts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import Prompt, lines_of, prompt_of
from app.policy.calibration import random_scenarios
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import LabelReader
from app.policy.versions.store import load_manifest
from bench.asked import entry
from bench.history import record
from bench.learning.teacher import interval
from training.cli.options import meter
from training.config.learning import ALGORITHMS as SETTINGS
from training.config.learning import (
    AdapterConfig,
    EncodeConfig,
    ExpectedConfig,
    TrainingConfig,
    WarmUpConfig,
)
from training.config.section import at_home
from training.learning.algorithms import warm_up
from training.learning.algorithms.measures import CollapsedPolicy
from training.learning.algorithms.probe import fit_probe
from training.learning.algorithms.run import TrainedPolicy
from training.learning.algorithms.table import TRAINS
from training.learning.model.answers import Answers, choices
from training.learning.model.base_pass import Encoded, build_encoded
from training.learning.targets.problem import Problem
from training.stages.store import Store
from training.statistics.bootstrap import Cluster, compare_means

DEFAULT = EncodeConfig()
EDGE, COST, NOISE, FOLDS = 0.8, 0.05, 0.5, 5
"""R of a whole plan; of the noise, the deviation."""
STOP_SHARE = {1.0: 0.6, 1.5: 1.0, 2.5: 0.8}
"""Share of the edge that a stop distance keeps: one of them is best."""
PROMPT_SEED = 31
Train = Callable[..., TrainedPolicy]
WARM_UP = "warm-up"
STARTED_WARM = ("dpo", "ppo", "rrhf")
ALGORITHMS: dict[str, tuple[Train, TrainingConfig]] = {
    WARM_UP: (warm_up.train, WarmUpConfig()),
    **{name: (TRAINS[name], settings()) for name, settings in SETTINGS.items()},
    "gradient": (TRAINS["expected"], ExpectedConfig(objective="gradient")),
}


class Planted(NamedTuple):
    """(N,) whether approving pays; (N, 10) mean rewards, realised ones, and those that a teacher
    expects out of fold, R."""

    pays: NDArray[np.bool_]
    mean: NDArray[np.float64]
    realised: NDArray[np.float64]
    expected: NDArray[np.float64]


def plant(prompts: list[Prompt], seed: int, edge: float = EDGE) -> Planted:
    """Rewards of every action, from what the prompt says."""
    pays = np.array(
        ["btc down" not in prompt.user and "flow sellers" not in prompt.user for prompt in prompts]
    )
    size = np.array([action.risk_fraction for action in ACTIONS])
    share = np.array([STOP_SHARE.get(action.stop_atr, 0.0) for action in ACTIONS])
    mean = np.where(pays, edge, -edge)[:, None] * size * np.where(pays[:, None], share, 1.0)
    mean -= COST * size
    source = np.random.default_rng(seed)
    noise = NOISE * (source.exponential(1.0, len(prompts)) - 1)
    realised = mean + noise[:, None] * size
    return Planted(pays, mean, realised, taught(pays, realised, source))


def taught(
    pays: NDArray[np.bool_], realised: NDArray[np.float64], source: np.random.Generator
) -> NDArray[np.float64]:
    """(N, 10) mean realised rewards of the other folds' scenarios in the same state."""
    fold = source.permutation(np.arange(len(pays)) % FOLDS)
    expected = np.empty_like(realised)
    for row, (state, own) in enumerate(zip(pays, fold, strict=True)):
        expected[row] = realised[(pays == state) & (fold != own)].mean(0)
    return expected


def pairs_of(
    rewards: NDArray[np.float64], margin: float, each: int, seed: int
) -> NDArray[np.int64]:
    """Up to `each` random pairs of actions per row whose rewards differ by more than `margin`: (P,
    3)."""
    source, pairs = np.random.default_rng(seed), []
    for row, worth in enumerate(rewards):
        better, worse = np.nonzero(worth[:, None] - worth[None, :] > margin)
        for i in source.permutation(len(better))[:each]:
            pairs.append((row, better[i], worse[i]))
    return np.array(pairs, np.int64)


def encode_planted(
    folder: Path, base: Path, reader: LabelReader, count: int, settings: EncodeConfig
) -> tuple[list[Prompt], Encoded]:
    """Prompts and their base pass, cached in `folder`."""
    texts = [lines_of(scenario) for scenario in random_scenarios(count, PROMPT_SEED)]
    prompts = [prompt_of(lines) for lines in texts]

    def build(target: Path) -> dict[str, object]:
        with meter("base pass") as progress:
            return build_encoded(target, texts, reader, base, settings, folder / "cache", progress)

    store, depends = Store(folder / "artifacts"), {"prompts": [prompt.hash for prompt in prompts]}
    made = store.find("encode", depends) or store.build("encode", depends, build)
    return prompts, Encoded.open(made)


def planted_problem(
    folder: Path,
    base: Path,
    reader: LabelReader,
    count: int,
    seed: int,
    fresh: int = 0,
    settings: EncodeConfig = DEFAULT,
    edge: float = EDGE,
) -> tuple[Problem, Planted]:
    """Of `count` rows three quarters train, the rest validates; `fresh` rows more come after
    them."""
    prompts, encoded = encode_planted(folder, base, reader, count + fresh, settings)
    planted, rows = plant(prompts, seed, edge), np.arange(count)
    manifest = load_manifest(base)
    problem = Problem(
        encoded,
        planted.expected,
        np.ones(count + fresh),
        rows[: 3 * count // 4],
        rows[3 * count // 4 :],
        manifest.calibration,
        manifest.model_version,
        pairs=pairs_of(planted.expected, 0.02, len(ACTIONS) ** 2, seed),
    )
    return problem, planted


class Score(NamedTuple):
    """What a policy is worth on the rows that it is tried on, by the rule itself."""

    of_best: float
    """Share of the best achievable reward, by the likeliest action; NaN where there is none."""
    reward: float
    """Its reward, R."""
    right: float
    """Share of right approvals."""
    sampled: float
    """Share of the best achievable reward that is expected of a sampled action."""
    same: float
    """Share of the most frequent action."""
    entropy: float
    """Nats."""

    def line(self) -> str:
        """Aligned below `HEADING`."""
        return (
            f"{self.of_best:8.2f} {self.reward:8.3f} {self.right:8.2f} {self.sampled:8.2f}"
            f" {self.same:8.2f} {self.entropy:8.2f}"
        )


HEADING = f"{'':10} " + " ".join(
    f"{name:>8}" for name in ("of best", "reward", "right", "sampled", "same", "entropy", "CPU-s")
)


def score(planted: Planted, rows: NDArray[np.int64], log_policy: NDArray[np.floating]) -> Score:
    """Of (N, 10) log-probabilities, on some rows."""
    taken = choices(log_policy[rows])
    mean = planted.mean[rows]
    sampled = (np.exp(log_policy[rows]) * mean).sum(1).mean()
    reward, best = mean[np.arange(len(rows)), taken].mean(), mean.max(1).mean() or np.nan
    right = ((taken > 0) == planted.pays[rows]).mean()
    entropy = -(np.exp(log_policy[rows]) * log_policy[rows]).sum(1).mean()
    largest = np.bincount(taken, minlength=len(ACTIONS)).max() / len(rows)
    return Score(*map(float, (reward / best, reward, right, sampled / best, largest, entropy)))


class Trial(NamedTuple):
    """The planted problem, and where each algorithm is scored; `figures` go into the history,
    `taken` is the action of every such row."""

    problem: Problem
    planted: Planted
    rows: NDArray[np.int64]
    figures: dict[str, float]
    taken: dict[str, NDArray[np.int64]]

    def earned(self, name: str) -> NDArray[np.float64]:
        """Of every row, R by the rule."""
        return np.asarray(self.planted.mean[self.rows, self.taken[name]])

    def tell(self, name: str, log_policy: NDArray[np.floating], more: str = "") -> None:
        """One line."""
        scored = score(self.planted, self.rows, log_policy)
        print(f"{name:10} {scored.line()} {more}", flush=True)
        self.taken[name] = choices(log_policy[self.rows])
        told = {"of_best": scored.of_best, "sampled": scored.sampled, "reward": scored.reward}
        self.figures.update(
            {f"{name}: {what}": value for what, value in told.items() if np.isfinite(value)}
        )

    def base_and_probe(self) -> None:
        """What the algorithms start from, and the linear probe."""
        problem = self.problem
        untuned = Answers(problem.encoded.label_log_probs, problem.untempered)
        self.tell("base", untuned.log_policy)
        began = time.process_time()
        probe = fit_probe(problem, ExpectedConfig().beta)
        seconds = time.process_time() - began
        self.tell("probe", probe.log_policy, f"{seconds:8.0f}  C={probe.strength}")

    def algorithm(
        self, name: str, changes: dict[str, str], reader: LabelReader, into: Path
    ) -> None:
        """Train it in a folder beside the warm-up that it starts from. One that collapses, or whose
        warm-up did, takes nothing, and the others go on."""
        if name in STARTED_WARM and WARM_UP not in self.taken:
            print(f"{name:10} has no warm-up to start from", flush=True)
            return
        train, config = ALGORITHMS[name]
        config = type(config).model_validate(config.model_dump() | changes)
        problem = replace(self.problem, warm_up=None if name == WARM_UP else into / WARM_UP)
        began = time.process_time()
        try:
            with meter(name) as progress:
                trained = train(problem, config, AdapterConfig(), reader, into / name, progress)
        except CollapsedPolicy as error:
            print(f"{name:10} {error}", flush=True)
            return
        seconds = time.process_time() - began
        log_policy = Answers(trained.answers.raw, problem.untempered).log_policy
        self.tell(name, log_policy, f"{seconds:8.0f}  T={trained.answers.calibration.temperature}")
        self.figures[f"{name}: cpu_s"] = seconds

    def run(self, names: list[str], changes: dict[str, str], reader: LabelReader) -> None:
        """All of them, one line each; `changes` are to configurations, but the warm-up's."""
        print(f"edge {self.figures['edge']:g}, seed {self.figures['seed']:g}\n{HEADING}")
        self.base_and_probe()
        with tempfile.TemporaryDirectory() as made:
            for name in names:
                own = {} if name == WARM_UP else changes
                seeded = {"seed": f"{self.figures['seed']:g}"} | own
                self.algorithm(name, seeded, reader, Path(made))
        record("planted", self.figures)


def summary(edge: float, trials: list[Trial]) -> Iterator[str]:
    """Lines of Markdown: means over trials that differ by their noise, with 95 % intervals over
    prompts; of a policy, over those in which it did not collapse."""
    best = float(np.mean([t.planted.mean[t.rows].max(1).mean() for t in trials]))
    yield f"\nedge {edge:g}, {len(trials)} seeds: the best earns {best:.3f} R a scenario\n"
    yield "| policy | R a scenario | of best, by seed | approves | adds to the warm-up, R |"
    yield "|---|---|---|---|---|"
    for name in dict.fromkeys(name for trial in trials for name in trial.taken):
        kept = [trial for trial in trials if name in trial.taken]
        beside = WARM_UP if name in STARTED_WARM else name
        pair = {who: np.concatenate([t.earned(who) for t in kept]) for who in (name, beside)}
        prompts = np.tile(np.arange(len(kept[0].rows)), len(kept))
        means, added = compare_means(pair, np.ones(len(prompts)), Cluster(prompts, prompts), name)
        approves = float(np.mean([(trial.taken[name] > 0).mean() for trial in kept]))
        more = interval(added[WARM_UP]) if name in STARTED_WARM else ""
        shares = ", ".join(_share(trial, name, best) for trial in trials)
        yield f"| {name} | {interval(means[name])} | {shares} | {approves:.0%} | {more} |"


def _share(trial: Trial, name: str, best: float) -> str:
    if name not in trial.taken:
        return "collapsed"
    return f"{trial.earned(name).mean() / best:.2f}" if best else "-"


def main(
    scenarios: Annotated[int, typer.Option(min=1, help="Training and validation rows.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise and of training.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="So many, from that one on.")] = 1,
    edges: Annotated[
        list[float] | None, typer.Option("--edge", help="R; may be repeated; none: 0.8.")
    ] = None,
    fresh: Annotated[int, typer.Option(min=0, help="Score so many further scenarios instead.")] = 0,
    folder: Annotated[Path, typer.Option(callback=at_home, help="Keeps the base pass.")] = Path(
        "var/bench/planted"
    ),
    models: Annotated[
        Path, typer.Option(callback=at_home, help="Where the small model is.")
    ] = Path("var/models"),
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="After the warm-up; may be repeated.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: changes to their configuration; may be repeated."),
    ] = None,
) -> None:
    """Print one line per algorithm."""
    torch.set_num_threads(threads)
    base = import_smollm2(models, print)
    reader = LabelReader.load(base)
    names = [WARM_UP, *only] if only else list(ALGORITHMS)
    changes = dict(setting.split("=", 1) for setting in overrides or ())
    tables: list[str] = []
    for edge in edges or [EDGE]:
        trials = []
        for number in range(seed, seed + seeds):
            problem, planted = planted_problem(
                folder, base, reader, scenarios, number, fresh, edge=edge
            )
            rows = np.arange(scenarios, len(problem.encoded)) if fresh else problem.validate_rows
            figures = {"scenarios": scenarios, "seed": number, "fresh": fresh, "edge": edge}
            trials.append(Trial(problem, planted, rows, figures, {}))
            trials[-1].run(names, changes, reader)
        tables += summary(edge, trials)
    print("\n".join(tables))


if __name__ == "__main__":
    entry(main)
