"""The linear part of the reward model: ridge regression of every action's reward on standardised inputs.

It is the control that the reward model is compared with, and what the transformer adds to. While that trains it sees
cross-fitted predictions (Wolpert 1992, stacked generalisation): of each scenario, by a ridge that saw neither it nor a
label that overlaps its own, since a regression flatters the rows that it was fitted to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from training.reward_model import Linear, Rows, bradley_terry_loss
from training.splits import overlapping

STRENGTHS = tuple(10.0**power for power in range(1, 7))
"""Regularisation, the candidates; the strongest leaves each action's mean reward."""
NATS = tuple(float(value) for value in np.geomspace(0.1, 30, 31))
"""Scores per R, the candidates."""
BLOCKS = 5


class Sample(NamedTuple):
    """n rows: inputs (n, D), rewards (n, 10), weights (n,); windows (n,) of seconds and parents (n,)."""

    inputs: NDArray[np.float32]
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64]
    as_of: Rows
    ends_at: Rows
    parent: Rows


class Fitted(NamedTuple):
    """The linear part, and its cross-fitted predictions (n, 10) of the rows that it was fitted to."""

    linear: Linear
    cross_fitted: NDArray[np.float64]


def choose_strength(fitting: Sample, stopping: Sample) -> float:
    """The strength with the least weighted squared error on rows held back."""
    errors = {}
    for strength in STRENGTHS:
        gap = fit_ridge(fitting, slice(None), strength).predict(stopping.inputs) - stopping.rewards
        errors[strength] = float((stopping.weights[:, None] * gap**2).sum())
    return min(errors, key=lambda strength: errors[strength])


def fit_linear(sample: Sample, strength: float) -> Fitted:
    """Fit on all rows, and cross-fit in blocks of time."""
    crossed = _cross_fitted(sample, strength)
    tensors = [torch.from_numpy(np.asarray(each, np.float32)) for each in (crossed, sample.rewards, sample.weights)]
    losses = {nats: float(bradley_terry_loss(tensors[0] * nats, tensors[1], tensors[2])) for nats in NATS}
    ridge = fit_ridge(sample, slice(None), strength)
    parts = (ridge.coef_.T, ridge.intercept_, np.array(min(losses, key=lambda nats: losses[nats])))
    return Fitted(Linear(*(torch.from_numpy(np.array(each, np.float32)) for each in parts)), crossed)


def fit_ridge(sample: Sample, rows: Rows | slice, strength: float) -> Ridge:
    """scikit-learn's, on some of the rows, by their weights."""
    return Ridge(strength).fit(sample.inputs[rows], sample.rewards[rows], sample.weights[rows])


def _cross_fitted(sample: Sample, strength: float) -> NDArray[np.float64]:
    """Families (a scenario and its variants) stay together; a block without anything to learn from gets the means."""
    found = np.empty_like(sample.rewards)
    found[:] = np.average(sample.rewards, axis=0, weights=sample.weights)
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
            found[out] = fit_ridge(sample, apart, strength).predict(sample.inputs[out])
    return found
