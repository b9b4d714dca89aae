"""Supervised warm-up: a target of one's own or of the agent's, the format of the answer, the
agent's words.

Preference losses start from its result, because they rank actions that the base model hardly
distinguishes. The target is the closed-form optimum of expected utility under KL (`optimum`,
Rafailov et al. 2023, eq. 4, with an indifferent reference), or one letter per scenario: the action
with the highest expectation (`best`), as one would tune on the chosen answers before DPO, or, as a
control, the agent's own (`agent`). `optimum` is what `expected` distils: what a preference loss
adds is to be counted from the warm-up's result on.

Deviation from token cross-entropy: the label's bias stays removed, and the mass on labels is asked
for by a term of its own; see losses.format_loss.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.config.data import OutcomesConfig
from training.config.learning import AdapterConfig, TargetsConfig, WarmUpConfig
from training.learning.algorithms import losses
from training.learning.algorithms.run import (
    TrainedPolicy,
    batches,
    beside_the_action,
    finish,
    started,
    step,
)
from training.learning.model.answers import choices
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.targets.preferences import Preferences
from training.learning.targets.problem import Problem, TrainingError, problem_of
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.table import ScenarioSet
from training.stages.declared import stage
from training.stages.store import Facts


@stage("warm_up")
def warm_up(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    encoded: Encoded,
    taught: Predictions,
    preferences: Preferences,
    base: Base,
    *,
    settings: WarmUpConfig,
    adapter: AdapterConfig,
    targets: TargetsConfig,
    outcomes: OutcomesConfig,
    seed: int,
    progress: Progress = silent,
) -> Facts:
    """What all preference algorithms of the same targets start from."""
    problem = problem_of(
        scenarios,
        labels,
        encoded,
        taught,
        preferences,
        base,
        targets,
        seed,
        outcomes=outcomes,
    )
    trained = train(problem, settings, adapter, base.reader, folder, progress)
    return {"metrics": trained.metrics, "steps": len(trained.history)}


def train(
    problem: Problem,
    config: WarmUpConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train, judge and save. Raises `TrainingError` without the agent's actions where they are the
    target, and `CollapsedPolicy`."""
    imitated = (
        None if config.target == "optimum" else torch.from_numpy(imitated_by(problem, config))
    )
    with started(problem, config, adapter, reader, folder, progress) as run:
        for rows in batches(run, problem.train_rows, config.epochs, config.learning_rate):
            with run.accelerator.accumulate(run.policy):
                output = run.read(rows)
                log_policy = run.log_policy(output)
                rewards, weight = run.to(problem.rewards, rows), run.to(problem.weights, rows)
                letters = None
                if imitated is not None:
                    letters = imitated[rows.cpu()].to(log_policy.device)
                loss = objective(log_policy, rewards, weight, letters, config.beta)
                loss = loss + beside_the_action(run, output, rows)
                step(run, loss, log_policy, output.labels, rows)
        return finish(run, folder)


def objective(
    log_policy: Tensor, rewards: Tensor, weight: Tensor, letters: Tensor | None, beta: float
) -> Tensor:
    """A batch's loss: cross-entropy to the optimum of `rewards` (B, A), or to `letters` (B,), where
    they are given."""
    if letters is not None:
        return losses.supervised_loss(log_policy, letters, weight)
    target = losses.closed_form(losses.indifferent(log_policy), rewards, beta)
    return losses.distillation_loss(log_policy, target, weight)


def imitated_by(problem: Problem, config: WarmUpConfig) -> NDArray[np.int64]:
    """(N,) index of the action to imitate; 0 where no reward is known (such rows do not train)."""
    if config.target == "best":
        return choices(np.nan_to_num(problem.rewards))
    if problem.demonstrations is None:
        raise TrainingError(
            "target = 'agent' needs the agent's actions: give demonstrations, or use target ="
            " 'best'"
        )
    return problem.demonstrations.labels
