"""Which rewards a policy is trained on: realised, foretold, or both; centred, or dealt out at
random as a control."""

from __future__ import annotations

import numpy as np

from training.arrays import Floats, Rows
from training.config.learning import TargetsConfig


def targets(realised: Floats, predicted: Floats, train: Rows, config: TargetsConfig) -> Floats:
    """(N, 10) rewards to train on; NaN rows stay NaN.

    The reward model averages away an outcome's luck, the outcome knows what the model does not: the
    mean of both is the default. Centred, the mean over the training rows is 0 for every action.
    """
    known = np.where(np.isfinite(realised), predicted, np.nan)
    choices: dict[str, Floats] = {
        "outcomes": realised,
        "model": known,
        "mean": (realised + known) / 2,
    }
    mixed = choices[config.source]
    if not config.centre:
        return mixed
    return np.asarray(mixed - np.nanmean(mixed[train], axis=0))


def dealt_out(rewards: Floats, pairs: Rows, train: Rows, seed: int) -> tuple[Floats, Rows]:
    """Rewards (N, 10) and pairs (P, 3) with the training rows' fates dealt to each other at random.

    Prompts keep nothing of their own fate, and each fate stays whole, so that actions are worth
    what they were on average. Rows that do not train, and their pairs, stay as they are.
    """
    source = np.random.default_rng(seed).permutation(train)
    shuffled = rewards.copy()
    shuffled[train] = rewards[source]
    now_of = np.arange(len(rewards))
    now_of[source] = train
    moved = pairs.copy()
    moved[:, 0] = now_of[pairs[:, 0]]
    return shuffled, moved
