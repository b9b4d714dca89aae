"""A lower confidence bound that may be consulted at any time, and again and again, without losing
its confidence.

Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting" (JRSS B 86): a
gambler who bets against "the mean is m" cannot expect to win when it is true, so by Ville's
inequality (theorem 1 there) the chance that the wealth ever reaches 1 / alpha is at most alpha.
Every m against which it has been reached is refuted for good.
"""

from __future__ import annotations

import math

import numpy as np

from app.domain.errors import AdvisorError
from training.arrays import Floats, Rows
from training.statistics.bootstrap import day_totals, require_finite

SHARES = np.geomspace(0.01, 0.95, 12)
"""Shares of the wealth that stay staked; a mixture of them does nearly as well as the best of them
in hindsight."""
_STEPS = 20
"""Halvings: a bound is exact to a millionth of its range."""


class UnboundedValues(AdvisorError):
    """A value lies beyond the bound that was promised: the confidence would not hold."""


def log_wealth(values: Floats, bound: float, mean: float = 0.0) -> Floats:
    """Log wealth after each value, of betting that the mean is higher than `mean`. Shape of
    `values`, (..., T).

    values : within +-bound, whose mean given all before is `mean` or less under the hypothesis.

    The capital process with constant stakes, averaged over a grid of them ("diversified Kelly",
    dKelly, in the paper's appendix): prod(1 - q + q (x + bound) / (mean + bound)). Deviation:
    one-sided, since only a lower bound is wanted.
    """
    require_finite(values, "anytime-valid bound")
    if values.size and np.abs(values).max() > bound:
        raise UnboundedValues(
            f"a value of {float(np.abs(values).max()):.3f} is beyond +-{bound:g}: clip rewards"
            " first"
        )
    ratio = (values + bound) / (mean + bound) - 1
    grown = np.stack([np.cumsum(np.log1p(share * ratio), axis=-1) for share in SHARES])
    most = grown.max(0)
    return np.asarray(most + np.log(np.exp(grown - most).mean(0)))


def lower_bound(values: Floats, bound: float, alpha: float) -> float:
    """The highest mean that has been refuted so far: with probability 1 - alpha it never exceeds
    the truth.

    values : (T,) within +-bound, in order of time, with one mean given all before. No values:
        -bound.
    """
    low, high = -bound, bound
    if not len(values):
        return low
    # The wealth falls with the mean that is bet against, so refuted means are an interval.
    for _ in range(_STEPS):
        middle = (low + high) / 2
        refuted = log_wealth(values, bound, middle).max() >= math.log(1 / alpha)
        low, high = (middle, high) if refuted else (low, middle)
    return low


def period_means(values: Floats, as_of: Rows, days: int = 1) -> Floats:
    """Mean of each period of so many days (UTC) that has rows: (D,).

    What happens within a day hangs together, so a gambler may bet once a day only.
    """
    totals, counts = day_totals(values[:, None], as_of // days)
    return np.asarray(totals[:, 0] / counts)
