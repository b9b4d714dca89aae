"""Expected utility under KL, exact: the teacher's expectation of every action is given, so nothing
is sampled.

`distil` (default): cross-entropy to the closed-form optimum pi* ~ exp(E[U] / beta), normalised over
the actions (Rafailov et al. 2023, eq. 4, with an indifferent reference). `gradient`: ascent on
E_pi[U] - beta KL(pi || indifferent) itself (eq. 3 there). `regress`: squared error of the scores as
utilities (Gao et al. 2024, REBEL, arXiv:2404.16767), in units of what differs between
scenarios; it starts where the base model scores every action as the targets do on average, and
weighs questions in the same units. All have the same optimum, whose scores are utilities over beta:
its likeliest action is the one of the highest expected utility.

Deviations: the partition function, intractable for texts, is a sum over the actions. The reference
is indifferent instead of the base model: what that prefers among letters is no knowledge of
trading, and would stand between scores and utilities; the language is kept by the supervised part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.config.learning import AdapterConfig, ExpectedConfig
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

LEAST_SPREAD = 0.005
"""R; what differs by less is no more worth learning for it."""


def train(
    problem: Problem,
    config: ExpectedConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train, judge and save. Raises `CollapsedPolicy`."""
    if config.objective == "regress" and config.start == "base":
        problem = problem.levelled(config.beta)
    spread = spread_of(problem)
    with started(problem, config, adapter, reader, folder, progress) as run:
        for rows in batches(run, problem.train_rows, config.epochs, config.learning_rate):
            with run.accelerator.accumulate(run.policy):
                output = run.read(rows)
                log_policy = run.log_policy(output)
                rewards, weight = run.to(problem.rewards, rows), run.to(problem.weights, rows)
                loss = objective(log_policy, rewards, weight, config, spread)
                loss = loss + beside_the_action(run, output, rows)
                step(run, loss, log_policy, output.labels, rows)
        return finish(run, folder)


def spread_of(problem: Problem) -> Tensor:
    """(A,) standard deviation of what each action is worth beyond rejecting, R."""
    rewards = problem.rewards[problem.train_rows]
    deviation = (rewards - rewards[:, :1]).std(axis=0)
    return torch.from_numpy(np.maximum(deviation, LEAST_SPREAD)).float()


def objective(
    log_policy: Tensor, rewards: Tensor, weight: Tensor, config: ExpectedConfig, spread: Tensor
) -> Tensor:
    """A batch's loss. `log_policy` and `rewards` (expected utilities) are (B, A), `weight` (B,),
    `spread` (A,) as `spread_of` has it."""
    if config.objective == "regress":
        spread = spread.to(rewards.device)
        return losses.regression_loss(log_policy, rewards, weight, spread, config.beta)
    reference = losses.indifferent(log_policy)
    if config.objective == "distil":
        target = losses.closed_form(reference, rewards, config.beta)
        return losses.distillation_loss(log_policy, target, weight)
    return losses.expected_reward_loss(log_policy, reference, rewards, weight, config.beta)
