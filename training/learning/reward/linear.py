"""The linear part of the reward model: ridge regression of every action's reward, and standing, on
standardised inputs.

An action's standing is the share of the other nine that it beats less the share that beats it: what
a comparison shows, whatever the amount. It is where the pairwise head starts from; the reward is
where the scalar head does.

It is the control that the reward model is compared with, and what the transformer adds to. While
that trains it sees cross-fitted predictions (Wolpert 1992, stacked generalisation): of each
scenario, by a ridge that saw neither it nor a label that overlaps its own, since a regression
flatters the rows that it was fitted to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from training.arrays import Rows
from training.learning.reward.network import SAME, Linear, bradley_terry_loss
from training.scenarios.splits import overlapping

STRENGTHS = tuple(10.0**power for power in range(1, 7))
"""Regularisation, the candidates; the strongest leaves each action's mean reward."""
NATS = tuple(float(value) for value in np.geomspace(0.1, 30, 31))
"""Scores per unit of standing, the candidates."""
BLOCKS = 5


class Sample(NamedTuple):
    """n rows: inputs (n, D), rewards (n, 10), weights (n,); windows (n,) of seconds and parents
    (n,)."""

    inputs: NDArray[np.float32]
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]
    as_of: Rows
    ends_at: Rows
    parent: Rows


class Fitted(NamedTuple):
    """The linear part, and its cross-fitted predictions (n, 2, 10) of the rows that it was fitted
    to."""

    linear: Linear
    cross_fitted: NDArray[np.float64]


def choose_strength(fitting: Sample, stopping: Sample) -> float:
    """The strength with the least weighted squared error on rows held back."""
    errors = {}
    for strength in STRENGTHS:
        gap = (
            predict_linear(fit_ridge(fitting, slice(None), strength), stopping.inputs)[:, 0]
            - stopping.rewards
        )
        errors[strength] = float((stopping.weights[:, None] * gap**2).sum())
    return min(errors, key=lambda strength: errors[strength])


def fit_linear(sample: Sample, strength: float) -> Fitted:
    """Fit on all rows, and cross-fit in blocks of time."""
    crossed = _cross_fitted(sample, strength)
    arrays = (crossed[:, 1], sample.rewards, sample.weights)
    standing, rewards, weights = (
        torch.from_numpy(np.asarray(array, np.float32)) for array in arrays
    )
    losses = {nats: float(bradley_terry_loss(standing * nats, rewards, weights)) for nats in NATS}
    ridge = fit_ridge(sample, slice(None), strength)
    parts = (ridge.coef_.T, ridge.intercept_, np.array(min(losses, key=lambda nats: losses[nats])))
    return Fitted(
        Linear(*(torch.from_numpy(np.array(part, np.float32)) for part in parts)), crossed
    )


def fit_ridge(sample: Sample, rows: Rows | slice, strength: float) -> Ridge:
    """scikit-learn's, on some of the rows, by their weights: rewards, then standings, 20
    columns."""
    targets = np.concatenate([sample.rewards, standings(sample.rewards)], 1)
    return Ridge(strength).fit(sample.inputs[rows], targets[rows], sample.weights[rows])


def predict_linear(ridge: Ridge, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, 2, 10): rewards in R, and standings."""
    return np.asarray(ridge.predict(inputs), np.float64).reshape(len(inputs), 2, -1)


def standings(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 10) in [-1, 1]: mean over the other actions of the sign of the difference."""
    gained = rewards[:, :, None] - rewards[:, None, :]
    return np.asarray((np.sign(gained) * (np.abs(gained) > SAME)).sum(2) / (rewards.shape[1] - 1))


def _cross_fitted(sample: Sample, strength: float) -> NDArray[np.float64]:
    """Families (a scenario and its variants) stay together; a block without anything to learn from
    gets the means."""
    targets = np.stack([sample.rewards, standings(sample.rewards)], 1)
    found = np.tile(np.average(targets, axis=0, weights=sample.weights), (len(targets), 1, 1))
    families, family = np.unique(sample.parent, return_inverse=True)
    begun = np.full(len(families), np.iinfo(np.int64).max)
    np.minimum.at(begun, family, sample.as_of)
    rank = np.empty(len(families), np.int64)
    rank[np.argsort(begun, kind="stable")] = np.arange(len(families))
    block = rank[family] * BLOCKS // len(families)
    for number in range(BLOCKS):
        out, rest = np.flatnonzero(block == number), np.flatnonzero(block != number)
        apart = rest[~overlapping(rest, out, sample.as_of, sample.ends_at)]
        if len(out) and len(apart):
            found[out] = predict_linear(fit_ridge(sample, apart, strength), sample.inputs[out])
    return found
