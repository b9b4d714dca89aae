"""How sure are we? Intervals: of shares by Wilson's formula, of the rest by resampling.

Series are ordered in time and may be dependent. A question without an answer (no rows, constant
values) gives None and the reason, never NaN. A seed makes everything repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from app.domain.errors import AdvisorError
from app.domain.intervals import FEWEST_DAYS
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

_Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""

SAME = 1e-12
"""Values nearer than this to each other are one value with rounding: returns and R are of the order
of 1e-4 to 10."""


CONSTANT = "constant values have no interval"


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

    Politis & White 2004, section 3.2, as corrected by Patton, Politis & White 2009:
    b = (N G^2 / S^2)^(1/3), where S is the spectrum at 0, the sum of all autocovariances R(k), and
    G the same sum weighted by |k|. Both are cut by a flat-top window at M, twice the first lag from
    which on `in_a_row` autocorrelations are not significant.
    """
    n = len(values)
    if n < _FEW or is_constant(values):
        return 1.0
    in_a_row = max(5, int(math.log10(n)))
    most = math.ceil(math.sqrt(n)) + in_a_row
    centred = values - values.mean()
    covariance = np.array([centred[lag:] @ centred[: n - lag] for lag in range(most + 1)]) / n
    significant = np.abs(covariance) >= 2 * math.sqrt(math.log10(n) / n) * covariance[0]
    quiet = (
        lag for lag in range(1, most - in_a_row + 1) if not significant[lag : lag + in_a_row].any()
    )
    window = min(2 * next(quiet, most), most)
    lags = np.arange(1, window + 1)
    kept = np.minimum(1.0, 2 * (1 - lags / window)) * covariance[lags]
    spectrum = covariance[0] + 2 * kept.sum()
    weighted = 2 * (lags * kept).sum()
    if spectrum == 0:
        return 1.0
    length = (n * weighted**2 / spectrum**2) ** (1 / 3)
    return float(np.clip(length, 1.0, min(math.ceil(min(3 * math.sqrt(n), n / 3)), n / 4)))


def resample(n: int, block: float, draws: int, source: np.random.Generator) -> Rows:
    """Indices of `draws` stationary bootstrap samples of n rows: (draws, n).

    Politis & Romano 1994, section 2: blocks begin anywhere, their lengths are geometric with mean
    `block`, and the series wraps around.

    All samples are one line of draws * n places, cut into blocks: a new one begins at the start of
    each sample and elsewhere by chance. A block that begins at place s with row r holds row
    r + (p - s) at place p, less n where that is beyond the last row (a block has n rows at most).
    """
    begins = source.random((draws, n), dtype=np.float32) < 1 / block
    begins[:, 0] = True
    first_place = np.flatnonzero(begins)
    length = np.diff(first_place, append=draws * n)
    first_row = source.integers(0, n, len(first_place))
    rows = np.repeat(first_row - first_place, length) + np.arange(draws * n)
    rows[rows >= n] -= n
    return rows.reshape(draws, n)


def resamples(n: int, block: float, draws: int, seed: int, columns: int = 1) -> Iterator[Rows]:
    """`resample` in parts that fit into memory with so many columns of data; `draws` rows in
    all."""
    source = np.random.default_rng(seed)
    part = max(1, min(draws, _CELLS // (n * columns)))
    for begin in range(0, draws, part):
        yield resample(n, block, min(part, draws - begin), source)


def wilson(share: Floats, count: Floats) -> tuple[Floats, Floats]:
    """Lower and upper 95 % bounds of shares, each of `count` trials: Wilson 1927, the score
    interval. Defined and within 0-1 even when all or none happened. Equal shapes."""
    spread = _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return np.maximum(centre - reach, 0.0), np.minimum(centre + reach, 1.0)


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
    if block is None:
        block = block_length(data if data.ndim == 1 else data[:, 0])
    sampled = np.concatenate(
        [statistic(data[rows]) for rows in resamples(n, block, draws, seed, data[0].size)]
    )
    if np.isfinite(sampled).sum() < 0.95 * draws:
        return Estimate(value, n=n, reason="not defined on more than 5 % of the bootstrap samples")
    return _percentiles(value, sampled, n, level)


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
    distribution of the studentised mean. Of fewer than eight days there is no interval: resamples
    that hardly vary would make it hundreds of R wide.
    """
    require_finite(values, "means")
    totals, counts = (
        day_totals(values, as_of) if as_of is not None else (values, np.ones(len(values)))
    )
    days, means = len(counts), totals.sum(0) / max(counts.sum(), 1)
    if days < FEWEST_DAYS:
        return _of_few(values, means, days, "rows" if as_of is None else "days")
    errors = np.sqrt(((totals - means * counts[:, None]) ** 2).sum(0)) / counts.sum()
    if block is None:
        block = max(block_length(column) for column in (totals / counts[:, None]).T)
    studentised = np.concatenate(
        [
            _studentised(times_drawn(rows), totals, counts, means)
            for rows in resamples(days, block, draws, seed)
        ]
    )
    return [
        _studentised_interval(column, float(mean), float(error), t, level)
        for column, mean, error, t in zip(values.T, means, errors, studentised.T, strict=True)
    ]


def _of_few(values: Floats, means: Floats, days: int, what: str) -> list[Estimate]:
    """Means (K,) of the columns of (N, K) without intervals, and why."""
    n = len(values)
    if days < 2:
        return [none(f"fewer than two {what}", n)] * values.shape[1]
    few = f"too few {what} for an interval"
    return [
        Estimate(float(mean), n=n, reason=CONSTANT if is_constant(column) else few)
        for column, mean in zip(values.T, means, strict=True)
    ]


def _studentised_interval(
    values: Floats, mean: float, error: float, studentised: Floats, level: float
) -> Estimate:
    """Of one column (N,), from its studentised means (draws,), which are infinite where a sample
    does not vary."""
    n = len(values)
    if is_constant(values) or error <= SAME:
        return Estimate(mean, n=n, reason=CONSTANT)
    if np.isinf(studentised).mean() > _UNVARIED:
        return Estimate(mean, n=n, reason="too few rows differ for an interval")
    high, low = np.quantile(studentised, [(1 - level) / 2, (1 + level) / 2])
    p = (1 + int((studentised >= mean / error).sum())) / (1 + len(studentised))
    return Estimate(mean, mean - float(low) * error, mean - float(high) * error, n, p)


class Cluster(NamedTuple):
    """Two clusters for each of P rows, by number; the same one twice where a row is of one only."""

    first: Rows
    second: Rows


def compare_means(
    values: Mapping[str, Floats],
    weight: Floats,
    cluster: Cluster,
    subject: str,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Weighted means of named values (P,), and by how much `subject` leads each of the others.

    Percentiles of the means over samples of whole clusters, drawn with replacement (Cameron,
    Gelbach & Miller 2008, section II.B). All means are taken of the same samples, so that
    differences are paired.
    """
    n = len(weight)
    if not n:
        return {name: none("no rows") for name in values}, {}
    means = {name: float((weight * value).sum() / weight.sum()) for name, value in values.items()}
    columns = np.stack(list(values.values()), axis=1)
    by_draw = _cluster_means(columns, weight, cluster, draws, seed)
    sampled = dict(zip(values, by_draw.T, strict=True))
    leads = {}
    for name in values:
        if name != subject:
            lead, of_samples = means[subject] - means[name], sampled[subject] - sampled[name]
            leads[name] = _percentiles(lead, of_samples, n, level)
    return {name: _percentiles(means[name], sampled[name], n, level) for name in values}, leads


def _cluster_means(
    values: Floats, weight: Floats, cluster: Cluster, draws: int, seed: int
) -> Floats:
    """(draws, K) weighted means of (P, K) over samples of clusters; NaN where a sample has no row.

    A row that stands for two clusters counts as often as both are drawn together: the product of
    their counts. Rows of one cluster only count as often as it is drawn, so they are added up once.
    """
    source = np.random.default_rng(seed)
    names = np.unique(np.concatenate(cluster))
    first, second = (np.searchsorted(names, numbers) for numbers in cluster)
    size, of_one = len(names), np.array_equal(first, second)
    totals = np.column_stack([weight[:, None] * values, weight])
    if of_one:
        totals = np.stack([np.bincount(first, column, size) for column in totals.T], axis=1)
    means = np.full((draws, values.shape[1]), np.nan)
    for draw in range(draws):
        drawn = np.bincount(source.integers(0, size, size), minlength=size).astype(float)
        *sums, all_weight = (drawn if of_one else drawn[first] * drawn[second]) @ totals
        if all_weight > 0:
            means[draw] = np.array(sums) / all_weight
    return means


def _percentiles(value: float, sampled: Floats, n: int, level: float) -> Estimate:
    """Of what was sampled where it is defined."""
    there = sampled[np.isfinite(sampled)]
    if not len(there):
        return Estimate(value, n=n, reason="not defined on any sample")
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def day_totals(values: Floats, as_of: Rows) -> tuple[Floats, Floats]:
    """Sums of each column per day (D, K), and rows per day (D,). Days (UTC) without rows are left
    out."""
    days, position = np.unique(as_of // DAY_S, return_inverse=True)
    totals = np.stack(
        [np.bincount(position, column, len(days)).astype(np.float64) for column in values.T], axis=1
    )
    return totals, np.bincount(position, minlength=len(days)).astype(np.float64)


def times_drawn(rows: Rows) -> Floats:
    """How often each row is in each sample: (draws, n), of indices as `resample` gives them."""
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
