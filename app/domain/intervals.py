"""How sure one may be of a share, an agreement or a mean: closed forms that need no library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

Z = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""
FEWEST_DAYS = 8
"""Of fewer days no interval of a mean is shown: their spread says too little."""


class Share(NamedTuple):
    """A proportion with its interval of 95 %, all within [0, 1]."""

    value: float
    low: float
    high: float


class Mean(NamedTuple):
    """A mean with its interval of 95 %; the bounds are None of too few days."""

    value: float
    low: float | None
    high: float | None


class Day(NamedTuple):
    """Of one day: how many values, and their sum."""

    values: int
    total: float


def wilson(successes: int, of: int) -> Share | None:
    """Wilson's score interval (1927) of a proportion; None of nothing."""
    if of == 0:
        return None
    share, width = successes / of, Z * Z / of
    middle = (share + width / 2) / (1 + width)
    half = Z * sqrt(share * (1 - share) / of + width / (4 * of)) / (1 + width)
    return Share(share, max(0.0, middle - half), min(1.0, middle + half))


def kappa(compared: int, agreements: int, first: int, second: int) -> float | None:
    """Cohen's kappa of two who approve `first` and `second` of `compared` decisions; None where
    agreement by chance is certain. Same definition as the view `agreement_daily`."""
    by_chance = first * second + (compared - first) * (compared - second)
    possible = compared * compared - by_chance
    return None if possible == 0 else (compared * agreements - by_chance) / possible


def mean_of_days(days: Iterable[Day]) -> Mean | None:
    """Mean of values that days hold together, so that values of one day count as one observation
    of its sum (cluster-robust, as Liang and Zeger 1986, with days / (days - 1)); None of nothing.
    """
    filled = [day for day in days if day.values]
    count = sum(day.values for day in filled)
    if count == 0:
        return None
    mean = sum(day.total for day in filled) / count
    if len(filled) < FEWEST_DAYS:
        return Mean(mean, None, None)
    apart = sum((day.total - mean * day.values) ** 2 for day in filled)
    half = Z * sqrt(apart * len(filled) / (len(filled) - 1)) / count
    return Mean(mean, mean - half, mean + half)


def running_means(days: Iterable[Day]) -> list[Mean | None]:
    """`mean_of_days` of the days up to each, from running sums: with t the totals and v the numbers
    of values, the squares about m are sum(t^2) - 2 m sum(tv) + m^2 sum(v^2)."""
    means: list[Mean | None] = []
    filled = count = 0
    total = squares = products = counts = 0.0
    for day in days:
        if day.values:
            filled, count, total = filled + 1, count + day.values, total + day.total
            squares += day.total**2
            products += day.total * day.values
            counts += day.values**2
        if not count:
            means.append(None)
            continue
        mean = total / count
        if filled < FEWEST_DAYS:
            means.append(Mean(mean, None, None))
            continue
        apart = max(squares - 2 * mean * products + mean**2 * counts, 0.0)
        half = Z * sqrt(apart * filled / (filled - 1)) / count
        means.append(Mean(mean, mean - half, mean + half))
    return means


def running(totals: Sequence[float]) -> list[float]:
    """Running sums."""
    sums, so_far = [], 0.0
    for total in totals:
        so_far += total
        sums.append(so_far)
    return sums
