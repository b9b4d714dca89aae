"""Proximal policy optimisation (Schulman et al. 2017, eq. 7 and 9) with a KL pull to the reference.

An episode is one decision: the state is the prompt, the return is the action's expected utility,
and nothing follows. The value baseline is linear in the base model's last hidden state, which is
cached, so it costs no pass.

Deviations: several actions are sampled per scenario, since their returns are known (they share the
state and the forward pass); the KL to the reference is a loss of its own, computed exactly over the
actions, instead of a penalty within the sampled reward (Ziegler et al. 2019); advantages are
centred and scaled by the batch, as implementations do; the value is not clipped. The first of the
inner steps reads the old policy too: its ratio is 1, its gradient the plain one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.config.learning import AdapterConfig, PpoConfig
from training.learning.algorithms import losses
from training.learning.algorithms.run import (
    Run,
    TrainedPolicy,
    batches,
    beside_the_action,
    finish,
    started,
    step,
)
from training.learning.targets.problem import Problem


class Sample(NamedTuple):
    """Actions drawn from the policy as it was. All (B, samples)."""

    actions: Tensor
    log_old: Tensor
    advantage: Tensor
    returned: Tensor


def train(
    problem: Problem,
    config: PpoConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train, judge and save. Raises `CollapsedPolicy`."""
    with started(problem, config, adapter, reader, folder, progress) as run:
        states = standardised(problem)
        value = torch.nn.Linear(states.shape[1], 1)
        torch.nn.init.zeros_(value.weight)
        torch.nn.init.constant_(value.bias, mean_reward(run))
        value = run.accelerator.prepare(value)
        source = torch.Generator().manual_seed(config.seed + run.accelerator.process_index)
        phase = batches(
            run,
            problem.train_rows,
            config.epochs,
            config.learning_rate,
            steps_each=config.inner_epochs,
            extra=list(value.parameters()),
        )
        for rows in phase:
            sample: Sample | None = None
            for _ in range(config.inner_epochs):
                with run.accelerator.accumulate(run.policy, value):
                    output = run.read(rows)
                    log_policy = run.log_policy(output)
                    predicted = value(run.to(states, rows))
                    rewards, weight = run.to(problem.rewards, rows), run.to(problem.weights, rows)
                    if sample is None:
                        sample = draw(config, log_policy, predicted, rewards, source)
                    reference = run.to(run.reference, rows)
                    loss = objective(log_policy, reference, predicted, sample, weight, config)
                    loss = loss + beside_the_action(run, output, rows)
                    step(run, loss, log_policy, output.labels, rows)
        return finish(run, folder)


def objective(
    log_policy: Tensor,
    reference: Tensor,
    predicted: Tensor,
    sample: Sample,
    weight: Tensor,
    config: PpoConfig,
) -> Tensor:
    """A batch's loss: clipped surrogate + value loss - entropy bonus + KL to the reference,
    weighted mean over rows. `log_policy` and `reference` (B, A), `predicted` (B, 1), `weight`
    (B,)."""
    log_new = log_policy.gather(1, sample.actions)
    surrogate = losses.ppo_policy_loss(log_new, sample.log_old, sample.advantage, config.clip).mean(
        1
    )
    valued = losses.value_loss(predicted.expand_as(sample.returned), sample.returned).mean(1)
    pull = losses.kl_divergence(log_policy, reference)
    of_rows = (
        surrogate
        + config.value * valued
        - config.entropy * losses.entropy(log_policy)
        + config.beta * pull
    )
    return (weight * of_rows).mean()


def draw(
    config: PpoConfig,
    log_policy: Tensor,
    predicted: Tensor,
    rewards: Tensor,
    source: torch.Generator,
) -> Sample:
    """Sample actions of the current policy with replacement, and the advantages of their
    expectations (B, A) over the value baseline (B, 1)."""
    with torch.no_grad():
        actions = torch.multinomial(
            log_policy.exp().cpu(), config.samples, replacement=True, generator=source
        )
        actions = actions.to(log_policy.device)
        returned = rewards.gather(1, actions)
        advantage = returned - predicted
        if advantage.numel() > 1:
            advantage = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-6)
        return Sample(actions, log_policy.gather(1, actions), advantage, returned)


def mean_reward(run: Run) -> float:
    """What the starting policy earns on the training rows, R: where the value baseline begins."""
    rows = run.problem.train_rows
    expected = run.reference[rows].exp().numpy() * run.problem.rewards[rows]
    return float(expected.sum(1).mean())


def standardised(problem: Problem) -> Tensor:
    """(N, H) last hidden states, zero mean and unit variance on the training rows, divided by
    sqrt(H)."""
    states = np.asarray(problem.encoded.last, np.float32)
    train = states[problem.train_rows]
    scaled = (states - train.mean(0)) / (train.std(0) + 1e-6)
    return torch.from_numpy(scaled / np.sqrt(states.shape[1])).float()
