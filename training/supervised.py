"""Supervised warm-up: a target of one's own or of the agent's, the format of the answer, the agent's words.

Preference losses start from its result because they rank actions that the base model hardly distinguishes. The target
is the closed-form optimum of expected reward under KL (`optimum`, Rafailov et al. 2023, eq. 4, with its own beta), or
one letter per scenario: the action with the highest reward (`best`), as one would tune on the chosen answers before
DPO, or the agent's own (`agent`). `optimum` is what train_expected distils: what a preference loss adds has to be
counted from its result on. Deviation from token cross-entropy: the label's bias stays removed, and the mass on labels
is asked for by a term of its own; see losses.format_loss.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training import losses
from training.optimise import Run, TrainingError, batches, read_rows, step, supervised_part


def warm_up(run: Run) -> None:
    """Train on the target (and dialogues), then make the result the reference policy. Nothing when it starts as
    `base`."""
    config, problem = run.config, run.problem
    if config.start == "base" or not config.supervised_epochs:
        return
    labels = None if config.start == "optimum" else torch.from_numpy(target_labels(run))
    for rows in batches(run, problem.train_rows, config.supervised_epochs, config.supervised_learning_rate):
        with run.accelerator.accumulate(run.policy):
            output = run.policy(rows)
            log_policy = run.log_policy(output)
            weight = run.to(problem.weights, rows)
            if labels is None:
                reference, rewards = run.to(run.reference, rows), run.to(problem.rewards, rows)
                target = losses.closed_form(reference, rewards, config.supervised_beta)
                loss = losses.distillation_loss(log_policy, target, weight)
            else:
                loss = losses.supervised_loss(log_policy, labels[rows.cpu()].to(log_policy.device), weight)
            loss = loss + supervised_part(run, output, rows)
            step(run, loss, log_policy, output.labels, rows)
    raw = torch.from_numpy(read_rows(run, np.arange(len(problem.encoded))))
    run.reference = losses.log_policy_of(raw, problem.bias)


def target_labels(run: Run) -> NDArray[np.int64]:
    """(N,) index of the action to imitate; 0 where no reward is known (such rows do not train)."""
    problem = run.problem
    if run.config.start == "best":
        return np.asarray(np.nan_to_num(problem.rewards, nan=-np.inf).argmax(1))
    if problem.demonstrations is None:
        raise TrainingError("start = 'agent' needs the agent's actions: give demonstrations, or use start = 'best'")
    return problem.demonstrations.labels
