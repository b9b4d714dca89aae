"""What the policy learns from: the utility of every action, as the teacher expects it out of fold.

Utility is the account's, told in R of the plan, where the agent's own size is 1: mean less variance
times an aversion that grows with the plan's stake, its risk over the account's equity. For to an
account that stakes s of itself on one R, an outcome is sR, and

    (E[sR] - gamma / 2 Var[sR]) / s = E[R] - (gamma s / 2) Var[R]

with gamma the aversion to relative risk (1: growth of the logarithm, to second order). A share
scales the mean once and the variance twice, so that a small share of a risky plan may be worth more
than all of it; and of two plans alike in R the one that stakes more is taken smaller: where markets
move much, one notional is a greater risk.

Three ablations show what a run must not do: realised outcomes in the teacher's place, targets
centred by action, and targets dealt to other scenarios at random.
"""

from __future__ import annotations

import numpy as np

from training.arrays import Floats, Rows
from training.config.learning import TargetsConfig
from training.learning.teacher.predictions import Predictions


def targets(realised: Floats, taught: Predictions, train: Rows, config: TargetsConfig) -> Floats:
    """(N, 10) to train on; rows without a known outcome are NaN.

    realised : (N, 10) R, what came of each action. taught : what the teacher expects of it.

    Expectations are not centred: an action that loses on average is worth less than rejecting, and
    the policy is to say so. Centred, the mean over the training rows is 0 for every action, and a
    perfect learner approves the better half of a world in which everything loses.
    """
    mean = realised if config.source == "outcomes" else taught.expected
    worth = utility(mean, taught.sd, aversion(taught.stake, config))
    known = np.where(np.isfinite(realised), worth, np.nan)
    if not config.centre:
        return known
    return np.asarray(known - np.nanmean(known[train], axis=0))


def aversion(stake: Floats, config: TargetsConfig) -> Floats:
    """(N, 1) what a unit of variance costs plans with such stakes (N,), R. An unknown stake is a
    usual one."""
    known = np.where(np.isfinite(stake), stake, config.usual_stake)
    return np.asarray(config.risk_aversion * known[:, None] / config.usual_stake)


def utility(mean: Floats, sd: Floats, risk_aversion: Floats | float) -> Floats:
    """(N, 10) mean less so many times the variance, R; to reject is worth 0."""
    return np.asarray(mean - risk_aversion * sd**2)


def ablations(config: TargetsConfig) -> tuple[str, ...]:
    """Names of the ablations that are switched on; only a policy of none is to be served."""
    on = {
        "realised outcomes": config.source == "outcomes",
        "centred targets": config.centre,
        "shuffled targets": config.shuffled,
    }
    return tuple(name for name, switched in on.items() if switched)


def dealt_out(rewards: Floats, pairs: Rows, train: Rows, seed: int) -> tuple[Floats, Rows]:
    """Rewards (N, 10) and pairs (P, 3) with the training rows' fates dealt to each other at random.

    Prompts keep nothing of their own fate, and each fate stays whole, so that actions are worth
    what they were on average. Rows that do not train, and their pairs, stay as they are.
    """
    source = dealing(train, seed)
    shuffled = rewards.copy()
    shuffled[train] = rewards[source]
    now_of = np.arange(len(rewards))
    now_of[source] = train
    moved = pairs.copy()
    moved[:, 0] = now_of[pairs[:, 0]]
    return shuffled, moved


def dealing(train: Rows, seed: int) -> Rows:
    """Whose fate each training row is given when fates are dealt out."""
    return np.random.default_rng(seed).permutation(train)
