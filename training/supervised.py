"""Supervised warm-up: the letter of a good or of the agent's own action, the format of the answer, the agent's words.

Cross-entropy on one label per scenario. Preference losses start from its result because they rank actions that the
base model hardly distinguishes (design: DPO and RRHF from the base stay near its majority action). The label is the
action with the highest reward in the training rows (`best`), as one would tune on the chosen answers before DPO, or
the agent's own (`agent`). Deviation from token cross-entropy: the label's bias stays removed, and the mass on labels
is asked for by a term of its own; see losses.format_loss.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training import losses
from training.optimise import Run, TrainingError, batches, read_rows, step, words_loss


def warm_up(run: Run) -> None:
    """Train on labels (and dialogues), then make the result the reference policy. Nothing when it starts as `base`."""
    config, problem = run.config, run.problem
    if config.start == "base" or not config.supervised_epochs:
        return
    target = torch.from_numpy(target_labels(run))
    said = problem.demonstrations
    for rows in batches(run, problem.train_rows, config.supervised_epochs, config.supervised_learning_rate):
        with run.accelerator.accumulate(run.policy):
            output = run.policy(rows)
            log_policy = run.log_policy(output)
            labels = target[rows.cpu()].to(log_policy.device)
            loss = losses.supervised_loss(log_policy, labels, run.to(problem.weights, rows))
            loss = loss + losses.format_loss(output.labels)
            if said is not None and config.dialogues:
                loss = loss + config.supervised * words_loss(run, rows[: config.dialogues], said)
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
