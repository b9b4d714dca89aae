"""Boosted trees as arrays: fitted by scikit-learn, read and kept without it.

A pickle may run code, and scikit-learn has no other file of its own for these trees, so that their
nodes are taken over as arrays. `predict` walks them; a test holds it equal to the library's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from training.arrays import Floats, Rows
from training.config.learning import TeacherConfig

_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Boosting:
    """The nodes of all trees, one after the other.

    roots : (T,) node at which each tree begins. feature, left, right : (M,) of each node; `left`
        and `right` are nodes. threshold : (M,) values up to it go left. missing_left : (M,) whether
        what is not known goes left. leaf : (M,). value : (M,) of leaves.
    level, chance : (1,); the sum begins with `level`, and a chance is its logistic function.
    """

    roots: Rows
    feature: Rows
    left: Rows
    right: Rows
    threshold: Floats
    missing_left: NDArray[np.bool_]
    leaf: NDArray[np.bool_]
    value: Floats
    level: Floats
    chance: Floats

    @classmethod
    def fit(
        cls, inputs: Floats, answer: Floats, weight: Floats, config: TeacherConfig, chance: bool
    ) -> Self:
        """On rows whose answer is known."""
        vary = varying(inputs)
        model = fitted(inputs[:, vary], answer, weight, config, chance and bool(np.ptp(answer) > 0))
        return cls.of(model, vary)

    @classmethod
    def of(cls, model: Any, columns: Rows) -> Self:
        """The trees of a model of scikit-learn that was fitted to these columns of the inputs."""
        trees = [tree.nodes for (tree,) in model._predictors]
        sizes = np.array([len(nodes) for nodes in trees], dtype=np.int64)
        roots = np.cumsum(sizes) - sizes
        nodes = np.concatenate(trees)
        begins = np.repeat(roots, sizes)
        chance = isinstance(model, HistGradientBoostingClassifier)
        return cls(
            roots,
            columns[nodes["feature_idx"]],
            nodes["left"].astype(np.int64) + begins,
            nodes["right"].astype(np.int64) + begins,
            nodes["num_threshold"].astype(np.float64),
            nodes["missing_go_to_left"].astype(np.bool_),
            nodes["is_leaf"].astype(np.bool_),
            nodes["value"].astype(np.float64),
            np.asarray(model._baseline_prediction, dtype=np.float64).reshape(1),
            np.array([float(chance)]),
        )

    def predict(self, inputs: Floats) -> Floats:
        """(N,)"""
        parts = [
            self._sums(inputs[begin : begin + _CHUNK]) for begin in range(0, len(inputs), _CHUNK)
        ]
        raw = np.concatenate([np.empty(0), *parts]) + self.level[0]
        return np.asarray(expit(raw) if self.chance[0] else raw)

    def _sums(self, inputs: Floats) -> Floats:
        """Every row stands at a node of every tree, and all step down until each is at a leaf."""
        at = np.tile(self.roots, (len(inputs), 1))  # (n, T)
        row = np.arange(len(inputs))[:, None]
        while not self.leaf[at].all():
            value = inputs[row, self.feature[at]]
            missing = np.isnan(value)
            left = (missing & self.missing_left[at]) | (~missing & (value <= self.threshold[at]))
            below = np.where(left, self.left[at], self.right[at])
            at = np.where(self.leaf[at], at, below)
        return np.asarray(self.value[at].sum(1))


def varying(inputs: Floats) -> Rows:
    """Columns with two values or more: scikit-learn refuses those that are never known."""
    finite = np.isfinite(inputs)
    least = np.where(finite, inputs, np.inf).min(0)
    most = np.where(finite, inputs, -np.inf).max(0)
    return np.flatnonzero(least < most)


def fitted(
    inputs: Floats, answer: Floats, weight: Floats, config: TeacherConfig, chance: bool
) -> Any:
    """scikit-learn's model."""
    kind = HistGradientBoostingClassifier if chance else HistGradientBoostingRegressor
    model = kind(
        learning_rate=config.learning_rate,
        max_iter=config.trees,
        max_leaf_nodes=config.leaves,
        min_samples_leaf=config.least_rows,
        l2_regularization=config.l2,
        early_stopping=False,
        random_state=config.seed,
    )
    # One thread: several that wait for each other beside other work are up to a hundred times
    # slower, and scikit-learn's own lose the filters of warnings to each other.
    with threadpool_limits(1):
        return model.fit(inputs, answer, weight)
