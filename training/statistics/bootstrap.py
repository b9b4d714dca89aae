"""How sure are we? Intervals by the stationary bootstrap.

Series are ordered in time and may be dependent. A question without an answer (no rows, constant
values) gives None and the reason, never NaN. A seed makes everything repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from arch.bootstrap import optimal_block_length

from app.domain.errors import AdvisorError
from training.arrays import DAY_S, Floats, Rows

LEVEL = 0.95
DRAWS = 1000
_FEW = 20
"""With fewer rows nobody can see dependence."""
_CELLS = 2_000_000
"""Resampled values held at once: bounds memory."""
_UNVARIED = 0.01
"""Share of bootstrap samples that may be constant. With more, most rows are alike, and quantiles of
t mean nothing."""

SAME = 1e-12
"""Values nearer than this to each other are one value with rounding: returns and R are of the order
of 1e-4 to 10."""


class StatisticsError(AdvisorError):
    """Arrays do not fit together, or hold what is not a number."""


class Estimate(NamedTuple):
    """A number with its interval and sample size, or the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    p: float | None = None
    """One-sided: how likely such a value, or a higher one, were the truth 0."""
    reason: str = ""


def none(reason: str, n: int = 0) -> Estimate:
    """There is no number, and why."""
    return Estimate(None, n=n, reason=reason)


def is_constant(values: Floats) -> bool:
    """Whether nothing varies, but for rounding."""
    return len(values) == 0 or bool(np.ptp(values) <= SAME)


def require_finite(values: Floats, what: str) -> None:
    """Raise `StatisticsError` when `values` hold NaN or infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        raise StatisticsError(
            f"{what}: {int(bad.sum())} of {values.size} values are not finite: leave those rows"
            " out, and count them"
        )


def block_length(values: Floats) -> float:
    """Mean block length that suits the stationary bootstrap of the mean of `values` (N,), at least
    1, at most N / 4.

    Politis & White 2004, section 3.2, as corrected by Patton, Politis & White 2009
    (`arch.optimal_block_length`).
    """
    if len(values) < _FEW or is_constant(values):
        return 1.0
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # where nothing happens for long, as in an arm that stops trading
        found = float(optimal_block_length(values)["stationary"].iloc[0])
    return float(np.clip(found if math.isfinite(found) else 1.0, 1.0, len(values) / 4))


def resample(n: int, block: float, draws: int, source: np.random.Generator) -> Rows:
    """Indices of `draws` stationary bootstrap samples of n rows: (draws, n).

    Politis & Romano 1994, section 2: blocks begin anywhere, their lengths are geometric with mean
    `block`, and the series wraps around.
    """
    begins = source.random((draws, n), dtype=np.float32) < 1 / block
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    length = np.diff(first, append=draws * n)
    rows = np.repeat(source.integers(0, n, len(first)) - first, length)
    rows += np.arange(draws * n)
    rows[rows >= n] -= n
    return rows.reshape(draws, n)


def resamples(n: int, block: float, draws: int, seed: int, columns: int = 1) -> Iterator[Rows]:
    """`resample` in parts that fit into memory with so many columns of data; `draws` rows in
    all."""
    source = np.random.default_rng(seed)
    part = max(1, min(draws, _CELLS // (n * columns)))
    for begin in range(0, draws, part):
        yield resample(n, block, min(part, draws - begin), source)


def interval(
    data: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    block: float | None = None,
    seed: int = 0,
) -> Estimate:
    """Percentile interval of any statistic by the stationary bootstrap.

    Parameters
    ----------
    data : (N,) or (N, K), rows in order of time; K columns are resampled together, so that pairs
        stay pairs.
    statistic : from samples (draws, N) or (draws, N, K) to values (draws,); not finite where it is
        not defined.
    block : mean block length; None chooses it from the first column.

    Draws where the statistic is not defined are left out; when they are more than 5 % there is no
    interval.
    """
    require_finite(data, "bootstrap")
    n = len(data)
    if n < 2:
        return none("fewer than two rows", n)
    value = float(statistic(data[None])[0])
    if not math.isfinite(value):
        return none("not defined on these rows", n)
    block = block_length(data if data.ndim == 1 else data[:, 0]) if block is None else block
    found = np.concatenate(
        [statistic(data[rows]) for rows in resamples(n, block, draws, seed, data[0].size)]
    )
    found = found[np.isfinite(found)]
    if len(found) < 0.95 * draws:
        return Estimate(value, n=n, reason="not defined on more than 5 % of the bootstrap samples")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def mean_intervals(
    values: Floats,
    *,
    as_of: Rows | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    block: float | None = None,
    seed: int = 0,
) -> list[Estimate]:
    """Two-sided intervals of the mean of each column, and one-sided p-values of "the mean is 0 or
    less".

    Parameters
    ----------
    values : (N, K), rows in order of time. For paired differences, pass differences.
    as_of : (N,) seconds since 1970 UTC; when given, whole days (UTC) are resampled: what happens on
        one day hangs together, whatever the symbol. Else each row stands for itself.
    block : mean number of days (rows) in a block; None takes the longest of those that suit the
        columns.

    The stationary bootstrap (Politis & Romano 1994) of the studentised mean (Efron & Tibshirani
    1993, section 12.5): trades are skewed, and percentile intervals of skewed means are too short
    on one side. Mean = sum of all / number of all, a ratio over days; its standard error is the
    linearised one for independent days. Blocks carry the dependence between days into the
    distribution of the studentised mean.
    """
    require_finite(values, "means")
    totals, counts = (
        day_totals(values, as_of) if as_of is not None else (values, np.ones(len(values)))
    )
    n, days = len(values), len(counts)
    if days < 2:
        return [
            none("fewer than two days" if as_of is not None else "fewer than two rows", n)
        ] * values.shape[1]
    means = totals.sum(0) / counts.sum()
    errors = np.sqrt(((totals - means * counts[:, None]) ** 2).sum(0)) / counts.sum()
    if block is None:
        block = max(block_length(column) for column in (totals / counts[:, None]).T)
    studentised = np.concatenate(
        [
            _studentised(_times(rows), totals, counts, means)
            for rows in resamples(days, block, draws, seed)
        ]
    )
    return [
        _studentised_interval(column, float(mean), float(error), t, level)
        for column, mean, error, t in zip(values.T, means, errors, studentised.T, strict=True)
    ]


def _studentised_interval(
    values: Floats, mean: float, error: float, studentised: Floats, level: float
) -> Estimate:
    """Of one column (N,), from its studentised means (draws,), which are infinite where a sample
    does not vary."""
    n = len(values)
    if is_constant(values) or error <= SAME:
        return Estimate(mean, n=n, reason="constant values have no interval")
    if np.isinf(studentised).mean() > _UNVARIED:
        return Estimate(mean, n=n, reason="too few rows differ for an interval")
    high, low = np.quantile(studentised, [(1 - level) / 2, (1 + level) / 2])
    p = (1 + int((studentised >= mean / error).sum())) / (1 + len(studentised))
    return Estimate(mean, mean - float(low) * error, mean - float(high) * error, n, p)


def day_totals(values: Floats, as_of: Rows) -> tuple[Floats, Floats]:
    """Sums of each column per day (D, K), and rows per day (D,). Days (UTC) without rows are left
    out."""
    days, position = np.unique(as_of // DAY_S, return_inverse=True)
    totals = np.stack(
        [np.bincount(position, column, len(days)).astype(np.float64) for column in values.T], axis=1
    )
    return totals, np.bincount(position, minlength=len(days)).astype(np.float64)


def _times(rows: Rows) -> Floats:
    """How often each row was drawn: (draws, n)."""
    draws, n = rows.shape
    flat = (rows + n * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * n).reshape(draws, n).astype(np.float64)


def _studentised(times: Floats, totals: Floats, counts: Floats, means: Floats) -> Floats:
    """(draws, K): (mean of a sample - mean) / standard error in the sample; infinite where a sample
    does not vary."""
    number = (times @ counts)[:, None]
    sampled = (times @ totals) / number
    squares = (
        times @ totals**2
        - 2 * sampled * (times @ (totals * counts[:, None]))
        + sampled**2 * (times @ counts**2)[:, None]
    )
    error = np.sqrt(np.maximum(squares, 0)) / number
    far = sampled - means
    return np.where(
        error > SAME, far / np.where(error > SAME, error, 1), np.where(far < 0, -np.inf, np.inf)
    )
