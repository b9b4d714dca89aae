"""Direct preference optimisation (Rafailov et al. 2023, eq. 7) on pairs of actions.

A completion is one letter, so all pairs of a scenario share one forward pass: both
log-probabilities stand in the same row. TRL's DPOTrainer on the same pairs gives the same loss and
gradient (tests/training/learning/algorithms/test_trl_equality.py).

Deviations: the completion ends at the letter, without an end-of-turn token; the reference is the
supervised warm-up's policy (as in the paper, section 4, though the warm-up's target is the
closed-form optimum, not the chosen answers) and its log-probabilities are computed once; pairs are
the teacher's, weighted by its certainty and their scenario's weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.policy.in_process.label_reader import LabelReader
from training.arrays import Progress, silent
from training.config.learning import AdapterConfig, DpoConfig
from training.learning.algorithms import losses
from training.learning.algorithms.run import (
    TrainedPolicy,
    batches,
    beside_the_action,
    finish,
    started,
    step,
)
from training.learning.targets.problem import Problem, TrainingError


def train(
    problem: Problem,
    config: DpoConfig,
    adapter: AdapterConfig,
    reader: LabelReader,
    folder: Path,
    progress: Progress = silent,
) -> TrainedPolicy:
    """Train, judge and save. Raises `TrainingError` without pairs in the training rows, and
    `CollapsedPolicy`."""
    pairs = PairTable.of(problem)
    with started(problem, config, adapter, reader, folder, progress) as run:
        for rows in batches(run, pairs.rows, config.epochs, config.learning_rate):
            with run.accelerator.accumulate(run.policy):
                output = run.read(rows)
                log_policy = run.log_policy(output)
                loss = pairs.loss(log_policy, run.to(run.reference, rows), rows, config.beta)
                loss = loss + beside_the_action(run, output, rows)
                step(run, loss, log_policy, output.labels, rows)
        return finish(run, folder)


class PairTable:
    """The training rows' pairs, by row and padded: `chosen`, `rejected`, `weight` are (N, most
    pairs of a row)."""

    def __init__(
        self,
        rows: NDArray[np.int64],
        chosen: Tensor,
        rejected: Tensor,
        weight: Tensor,
        mean_pairs: float,
    ):
        self.rows = rows
        self.chosen, self.rejected, self.weight = chosen, rejected, weight
        self.mean_pairs = mean_pairs

    @classmethod
    def of(cls, problem: Problem) -> PairTable:
        """Pairs of training rows; each weighs its own weight times its scenario's."""
        if problem.pairs is None or not np.isin(problem.pairs[:, 0], problem.train_rows).any():
            raise TrainingError(
                "DPO needs preference pairs in the training rows: lower preferences.margin, or add"
                " data"
            )
        kept = np.isin(problem.pairs[:, 0], problem.train_rows)
        pairs = problem.pairs[kept]
        own = np.ones(len(kept)) if problem.pair_weights is None else problem.pair_weights
        return cls.weighted(pairs, own[kept], problem.weights)

    @classmethod
    def weighted(
        cls, pairs: NDArray[np.int64], own: NDArray[np.floating], of_rows: NDArray[np.floating]
    ) -> PairTable:
        """Pairs (P, 3) with weights of their own (P,), scaled to mean 1, and of all rows (N,)."""
        weights = own / own.mean() * of_rows[pairs[:, 0]]
        rows, counts = np.unique(pairs[:, 0], return_counts=True)
        shape = (len(of_rows), int(counts.max()))
        chosen = torch.zeros(shape, dtype=torch.int64)
        rejected = torch.zeros(shape, dtype=torch.int64)
        weight = torch.zeros(shape, dtype=torch.float64)  # 0 where a row has no more pairs
        filled = np.zeros(len(of_rows), np.int64)
        for (row, better, worse), value in zip(pairs, weights, strict=True):
            place = row, filled[row]
            chosen[place], rejected[place], weight[place] = int(better), int(worse), float(value)
            filled[row] += 1
        return cls(rows, chosen, rejected, weight, float(counts.mean()))

    def loss(self, log_policy: Tensor, reference: Tensor, rows: Tensor, beta: float) -> Tensor:
        """Weighted mean of the pairs' losses. The divisor is the mean number of pairs times the
        rows, not the batch's own count, so that parts of a batch average to the whole."""
        at = rows.cpu()
        chosen, rejected = (
            self.chosen[at].to(log_policy.device),
            self.rejected[at].to(log_policy.device),
        )
        weight = self.weight[at].to(log_policy)
        losses_of_pairs = losses.dpo_loss(
            log_policy.gather(1, chosen),
            log_policy.gather(1, rejected),
            reference.gather(1, chosen),
            reference.gather(1, rejected),
            beta,
        )
        return (weight * losses_of_pairs).sum() / (self.mean_pairs * len(rows))
