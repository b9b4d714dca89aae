"""Made-up scenarios for the reward model: what pays is written in one number, or in nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.actions import ACTIONS
from training.config.learning import RewardConfig
from training.learning.model.base_pass import LINES
from training.learning.reward.ensemble import RewardData
from training.learning.reward.network import RewardInputs

HOUR = 3600
BEGIN = 1_600_000_000
SIZE = np.array([action.risk_fraction for action in ACTIONS])
SMALL = RewardConfig(
    members=2, components=4, width=8, layers=1, heads=2, epochs=4, patience=2, batch=32, folds=3
)
"""Trains in a second."""


def reward_data(
    count: int = 120, signal: float = 1.0, variants: int = 0, seed: int = 0, every: int = 8
) -> RewardData:
    """`count` real scenarios, one each `every` hours, the last fifth of them to validate, and
    synthetic variants of the first `variants`. Approving earns `signal` R a unit of risk where
    number 0 is positive, and loses it elsewhere."""
    source = np.random.default_rng(seed)
    parent = np.concatenate([np.arange(count), np.arange(variants)])
    rows = len(parent)
    hidden = source.normal(size=(rows, LINES, 6)).astype(np.float16)
    lines = source.random((rows, LINES)) < 0.8
    lines[:, 0] = True
    numbers = source.normal(size=(rows, 3))
    numbers[source.random(rows) < 0.3, 1] = np.nan
    gain = signal * np.sign(numbers[:, 0]) + source.normal(0, 0.4, rows) - 0.1
    as_of = (BEGIN + every * HOUR * np.arange(count))[parent]
    train = count * 4 // 5
    return RewardData(
        RewardInputs(hidden * lines[:, :, None], lines, numbers),
        SIZE * gain[:, None],
        np.ones(rows),
        as_of,
        as_of + 7 * HOUR,
        parent,
        np.arange(train),
        np.arange(train + 2, count),
    )


def with_rewards(data: RewardData, rows: NDArray[np.int64], value: float) -> RewardData:
    """The same with other rewards in some rows."""
    rewards = data.rewards.copy()
    rewards[rows] = value * SIZE
    return replace(data, rewards=rewards)


def small(**changes: Any) -> RewardConfig:
    return RewardConfig.model_validate(SMALL.model_dump() | changes)
