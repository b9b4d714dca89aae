"""RRHF (Yuan et al. 2023, eq. 2-5): candidates ranked by their reward, plus cross-entropy on the
best.

Candidates of a scenario are its best action and others drawn at random; their scores are
log-probabilities, all read from one pass.

Deviations: every action has its expectation, so the best of all actions is always among the
candidates; a letter has length 1, so length normalisation does nothing; scores are of the policy
over actions, bias removed. The method has no reference policy: the KL to the warm-up's policy is
logged, not penalised.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.config.learning import AdapterConfig, RrhfConfig
from training.learning.algorithms import losses
from training.learning.algorithms.run import (
    TrainedPolicy,
    batches,
    beside_the_action,
    finish,
    started,
    step,
)
from training.learning.targets.problem import Problem


def train(
    problem: Problem,
    config: RrhfConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train, judge and save. Raises `CollapsedPolicy`."""
    with started(problem, config, adapter, reader, folder, progress) as run:
        source = torch.Generator().manual_seed(config.seed + run.accelerator.process_index)
        for rows in batches(run, problem.train_rows, config.epochs, config.learning_rate):
            with run.accelerator.accumulate(run.policy):
                output = run.read(rows)
                log_policy = run.log_policy(output)
                rewards, weight = run.to(problem.rewards, rows), run.to(problem.weights, rows)
                loss = objective(log_policy, rewards, weight, config, source)
                loss = loss + beside_the_action(run, output, rows)
                step(run, loss, log_policy, output.labels, rows)
        return finish(run, folder)


def objective(
    log_policy: Tensor,
    rewards: Tensor,
    weight: Tensor,
    config: RrhfConfig,
    source: torch.Generator,
) -> Tensor:
    """A batch's loss. `log_policy` and `rewards` (expected utilities) are (B, A), `weight` (B,)."""
    chosen = candidates(rewards, config.candidates, source)
    scores, expected = log_policy.gather(1, chosen), rewards.gather(1, chosen)
    ranking = losses.rrhf_ranking_loss(scores, expected)
    best = losses.rrhf_best_loss(scores, expected)
    return (weight * (ranking + config.best * best)).mean()


def candidates(rewards: Tensor, count: int, source: torch.Generator) -> Tensor:
    """(B, count) different actions per row: the best first, the others at random. `rewards` is (B,
    10).

    Every action draws a lot in [0, 1), the best action's is 2; the highest lots are taken.
    """
    lots = torch.rand(rewards.shape, generator=source).to(rewards.device)
    lots.scatter_(1, rewards.argmax(1, keepdim=True), 2.0)
    return lots.argsort(1, descending=True)[:, :count]
