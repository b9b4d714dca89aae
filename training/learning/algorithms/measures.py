"""Measures of a policy over actions: is it alive, what does it earn, and which temperature makes it
honest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import spearmanr
from torch import Tensor

from app.domain.errors import AdvisorError
from training.arrays import Floats
from training.config.learning import TrainingConfig
from training.learning.algorithms import losses
from training.learning.model.answers import Answers, choices

Measures = dict[str, float]
_LOG_TEMPERATURES = (-3.0, 3.0)


class CollapsedPolicy(AdvisorError):
    """A policy that says nearly the same whatever it reads: a failed run, never published."""


def policy_measures(
    log_policy: Tensor, log_reference: Tensor, labels: Tensor, rewards: Tensor
) -> dict[str, Tensor]:
    """Of a batch, all inputs (B, 10); scalars.

    `entropy` and `kl` (to the reference) are means of rows in nats; `majority` is the mean
    probability of the most likely action; `same_argmax` the share of rows with the most frequent
    argmax; `label_mass` the mean probability on labels; `reward` the expected reward, R.
    """
    probabilities = log_policy.exp()
    counts = torch.bincount(log_policy.argmax(-1), minlength=log_policy.shape[1])
    return {
        "entropy": losses.entropy(log_policy).mean(),
        "majority": probabilities.mean(0).max(),
        "same_argmax": counts.max() / len(log_policy),
        "kl": losses.kl_divergence(log_policy, log_reference).mean(),
        "label_mass": labels.exp().sum(-1).mean(),
        "reward": (probabilities * rewards).sum(-1).mean(),
    }


def validation_metrics(
    answers: Answers,
    reference: NDArray[np.floating],
    rewards: Floats,
    train: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Measures:
    """`policy_measures` on validation rows, and mean rewards (R; those that are learned from, not
    what came of the actions) of deterministic choices there.

    `greedy` takes what the policy chooses, `reference_greedy` what the reference does,
    `best_constant` the one action that was best on the training rows, `oracle` each row's best
    action by the rewards. `rank` is how alike policy and rewards order the rows.
    """
    tensors = (
        torch.from_numpy(np.asarray(table[rows], np.float32))
        for table in (answers.log_policy, reference, answers.raw, rewards)
    )
    metrics = {name: float(value) for name, value in policy_measures(*tensors).items()}
    rewarded = rewards[rows]
    constant = int(rewards[train].mean(0).argmax())
    return metrics | {
        "greedy": _taken(rewarded, answers.action[rows]),
        "reference_greedy": _taken(rewarded, choices(reference[rows])),
        "best_constant": float(rewarded[:, constant].mean()),
        "oracle": float(rewarded.max(1).mean()),
        "rank": rank_agreement(answers.log_policy[rows], rewarded),
        "rows": float(len(rows)),
    }


def rank_agreement(log_policy: Floats, rewards: Floats) -> float:
    """Spearman's correlation over rows (both (N, 10)) between what the best approval has before
    rejecting in the policy and in the rewards; 0 where either is the same for all."""
    policy, worth = (table[:, 1:].max(1) - table[:, 0] for table in (log_policy, rewards))
    if np.ptp(policy) == 0 or np.ptp(worth) == 0:
        return 0.0
    return float(spearmanr(policy, worth).statistic)


def setback(history: Sequence[Measures]) -> float:
    """By how much the share of probability on the labels fell from its highest, at most, means of
    tenths of the steps: training that forgets what it has learned. 0 of fewer than ten steps."""
    mass = np.array([entry["label_mass"] for entry in history])
    if len(mass) < 10:
        return 0.0
    tenths = np.array([part.mean() for part in np.array_split(mass, 10)])
    return float((np.maximum.accumulate(tenths) - tenths).max())


def check_not_collapsed(metrics: Measures, config: TrainingConfig) -> None:
    """Raise `CollapsedPolicy` when entropy or majority on the validation rows is beyond the
    configuration's limits."""
    faults = []
    if not metrics["entropy"] >= config.min_entropy:
        faults.append(f"entropy {metrics['entropy']:.4f} nats is below {config.min_entropy}")
    if not metrics["majority"] <= config.max_majority:
        faults.append(
            f"one action has {metrics['majority']:.3f} of the probability, above"
            f" {config.max_majority}"
        )
    if faults:
        raise CollapsedPolicy(
            f"the policy collapsed on the validation rows: {'; '.join(faults)}. Raise beta, lower"
            " the learning rate, or take fewer epochs"
        )


def fit_temperature(log_policy: Floats, log_target: Floats, weights: Floats) -> float:
    """Temperature under which the policy comes nearest to a target distribution, both (N, A): least
    cross-entropy on these rows.

    As in Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2, with
    softmax(E[U] / beta) in place of a class: scores that are too sharp become utilities over beta
    again. One number, so that no decision changes.
    """
    target = np.exp(log_target)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(log_policy / np.exp(log_temperature), axis=1)
        return -float((weights * (target * scaled).sum(1)).mean())

    best = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return round(float(np.exp(best.x)), 4)


def _taken(rewards: Floats, actions: NDArray[np.int64]) -> float:
    return float(rewards[np.arange(len(rewards)), actions].mean())
