"""Does it learn? `python -m bench.learning`: every algorithm on a planted rule, beside a linear
probe.

The prompts are of made-up scenarios. The rule is visible in the prompt and nowhere else: approving
pays unless Bitcoin trends down or sellers lead the flow, and costs as much otherwise. Realised
rewards carry noise, common to all actions of a scenario, as one price path is. Training sees noisy
rewards; the held-out rows are scored by the rule itself: those beside the training rows, which
settings were tuned on, or with --fresh N others that no tuning saw. The line `warm-up` is the
supervised warm-up that DPO, PPO and RRHF start from: what they add is counted from there. Nothing
here says anything about markets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.actions import ACTIONS
from app.domain.prompt import Prompt, lines_of, prompt_of
from app.policy.calibration import random_scenarios
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import LabelReader
from app.policy.store import load_manifest
from training.config.learning import (
    AdapterConfig,
    DpoConfig,
    EncodeConfig,
    ExpectedConfig,
    PpoConfig,
    RrhfConfig,
    TrainingConfig,
    WarmUpConfig,
)
from training.learning.algorithms import dpo, expected, ppo, rrhf, warm_up
from training.learning.algorithms.probe import fit_probe
from training.learning.algorithms.run import Problem, TrainedPolicy
from training.learning.model.base_pass import Encoded, build_encoded
from training.stages.store import Workshop

EDGE, NOISE = 0.8, 0.5
STOP_SHARE = {1.0: 0.6, 1.5: 1.0, 2.5: 0.8}
"""Share of the edge that a stop distance keeps: one of them is best."""
PROMPT_SEED = 31
Train = Callable[..., TrainedPolicy]
WARM_UP = "warm-up"
ALGORITHMS: dict[str, tuple[Train, TrainingConfig]] = {
    WARM_UP: (warm_up.train, WarmUpConfig()),
    "expected": (expected.train, ExpectedConfig()),
    "gradient": (expected.train, ExpectedConfig(objective="gradient")),
    "dpo": (dpo.train, DpoConfig()),
    "ppo": (ppo.train, PpoConfig()),
    "rrhf": (rrhf.train, RrhfConfig()),
}


class Planted(NamedTuple):
    """(N,) whether approving pays; (N, 10) mean rewards; (N, 10) realised ones, R."""

    pays: NDArray[np.bool_]
    mean: NDArray[np.float64]
    realised: NDArray[np.float64]


def plant(prompts: list[Prompt], seed: int) -> Planted:
    """Rewards of every action, from what the prompt says."""
    pays = np.array(
        ["btc down" not in one.user and "flow sellers" not in one.user for one in prompts]
    )
    size = np.array([one.risk_fraction for one in ACTIONS])
    share = np.array([STOP_SHARE.get(one.stop_atr, 0.0) for one in ACTIONS])
    mean = np.where(pays, EDGE, -EDGE)[:, None] * size * np.where(pays[:, None], share, 1.0)
    noise = np.random.default_rng(seed).normal(0, NOISE, len(prompts))[:, None] * size
    return Planted(pays, mean, mean + noise)


def pairs_of(
    rewards: NDArray[np.float64], margin: float, each: int, seed: int
) -> NDArray[np.int64]:
    """Up to `each` random pairs of actions per row whose rewards differ by more than `margin`: (P,
    3)."""
    source, found = np.random.default_rng(seed), []
    for row, known in enumerate(rewards):
        better, worse = np.nonzero(known[:, None] - known[None, :] > margin)
        for i in source.permutation(len(better))[:each]:
            found.append((row, better[i], worse[i]))
    return np.array(found, np.int64)


def encode_planted(
    folder: Path, base: Path, reader: LabelReader, count: int
) -> tuple[list[Prompt], Encoded]:
    """Prompts and their base pass, cached in `folder`."""
    texts = [lines_of(scenario) for scenario in random_scenarios(count, PROMPT_SEED)]
    prompts = [prompt_of(lines) for lines in texts]

    def build(target: Path) -> dict[str, object]:
        return build_encoded(
            target, texts, reader, base, EncodeConfig(), folder / "cache", _show("base pass")
        )

    identity = [prompt.hash for prompt in prompts]
    return prompts, Encoded.open(
        Workshop(folder / "artifacts").stage("encode", identity, {}, build)
    )


def planted_problem(
    folder: Path, base: Path, reader: LabelReader, count: int, seed: int, fresh: int = 0
) -> tuple[Problem, Planted]:
    """Of `count` rows three quarters train, the rest validates; `fresh` rows more come after
    them."""
    prompts, encoded = encode_planted(folder, base, reader, count + fresh)
    planted, rows = plant(prompts, seed), np.arange(count)
    manifest = load_manifest(base)
    problem = Problem(
        encoded,
        planted.realised,
        np.ones(count + fresh),
        rows[: 3 * count // 4],
        rows[3 * count // 4 :],
        manifest.calibration,
        manifest.model_version,
        pairs=pairs_of(planted.realised, 0.25, len(ACTIONS) ** 2, seed),
    )
    return problem, planted


def score(planted: Planted, rows: NDArray[np.int64], log_policy: NDArray[np.floating]) -> str:
    """One line, of the likeliest action share of the best achievable reward, reward and share of
    right approvals; the share that is expected of a sampled action; share of the most frequent
    action; entropy."""
    taken = log_policy[rows].argmax(1)
    mean = planted.mean[rows]
    sampled = (np.exp(log_policy[rows]) * mean).sum(1).mean()
    reward, best = mean[np.arange(len(rows)), taken].mean(), mean.max(1).mean()
    right = ((taken > 0) == planted.pays[rows]).mean()
    entropy = -(np.exp(log_policy[rows]) * log_policy[rows]).sum(1).mean()
    largest = np.bincount(taken, minlength=len(ACTIONS)).max() / len(rows)
    return (
        f"{reward / best:8.2f} {reward:8.3f} {right:8.2f} {sampled / best:8.2f} {largest:8.2f}"
        f" {entropy:8.2f}"
    )


def main() -> None:
    """Print one line per algorithm."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--scenarios", type=int, default=600)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--fresh", type=int, default=0, help="score so many further scenarios instead"
    )
    options.add_argument(
        "--folder", type=Path, default=Path("var/bench/learning"), help="keeps the base pass"
    )
    options.add_argument("--models", type=Path, default=Path("var/models"))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--only", nargs="*", choices=list(ALGORITHMS), default=[], help="after the warm-up"
    )
    options.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to their configuration"
    )
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    base = import_smollm2(chosen.models, print)
    reader = LabelReader.load(base)
    problem, planted = planted_problem(
        chosen.folder, base, reader, chosen.scenarios, chosen.seed, chosen.fresh
    )
    rows = (
        np.arange(chosen.scenarios, len(problem.encoded)) if chosen.fresh else problem.validate_rows
    )
    print(
        f"{'':10} {'of best':>8} {'reward':>8} {'right':>8} {'sampled':>8} {'same':>8}"
        f" {'entropy':>8} {'CPU-s':>8}"
    )
    base_policy = torch.log_softmax(
        torch.from_numpy(np.array(problem.encoded.label_log_probs)) - problem.bias, -1
    )
    print(f"{'base':10} {score(planted, rows, base_policy.numpy())}")
    began = time.process_time()
    probe = fit_probe(problem, ExpectedConfig().beta)
    print(
        f"{'probe':10} {score(planted, rows, probe.log_policy)} {time.process_time() - began:8.0f} "
        f" C={probe.strength}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in [*ALGORITHMS] if not chosen.only else [WARM_UP, *chosen.only]:
            train, config = ALGORITHMS[name]
            changes = dict(one.split("=", 1) for one in chosen.set) if name != WARM_UP else {}
            config = type(config).model_validate(
                config.model_dump() | {"seed": chosen.seed} | changes
            )
            began = time.process_time()
            given = replace(problem, warm_up=None if name == WARM_UP else Path(folder) / WARM_UP)
            trained = train(
                given, config, AdapterConfig(), reader, Path(folder) / name, _show(name)
            )
            seconds = time.process_time() - began
            log_policy = torch.log_softmax(
                torch.from_numpy(trained.label_log_probs) - problem.bias, -1
            ).numpy()
            print(
                f"{name:10} {score(planted, rows, log_policy)} {seconds:8.0f} "
                f" T={trained.calibration.temperature}",
                flush=True,
            )


def _show(name: str) -> Callable[[int, int], None]:
    """Progress on one line of a terminal."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(
                f"\r{name} {done}/{total}",
                end="\r" if done < total else "\r\033[K",
                file=sys.stderr,
                flush=True,
            )

    return show


if __name__ == "__main__":
    main()
