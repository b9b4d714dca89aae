"""Choosing among many: superior predictive ability, confidence sets, deflated Sharpe, the
probability of overfitting, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.special import ndtr, ndtri

from training.arrays import Floats
from training.statistics.bootstrap import (
    DRAWS,
    SAME,
    StatisticsError,
    block_length,
    is_constant,
    require_finite,
    resamples,
    times_drawn,
)

Name = TypeVar("Name", bound=Hashable)


class Spa(NamedTuple):
    """p-values of "no arm beats the benchmark": consistent is the one to read, the others bound
    it."""

    lower: float | None
    consistent: float | None
    upper: float | None
    n: int
    reason: str = ""


def superior_predictive_ability(
    benchmark: Floats,
    arms: Floats,
    *,
    draws: int = DRAWS,
    block: float | None = None,
    seed: int = 0,
) -> Spa:
    """Hansen 2005, "A Test for Superior Predictive Ability", sections 2.2 and 2.3.

    The statistic is the largest studentised mean lead over the benchmark. It is compared with the
    same of bootstrap samples, whose means are centred as if no arm were better: all of them at 0
    (upper), those that are far worse left where they are (consistent), or all that are worse
    (lower). Standard errors are the bootstrap's own.

    benchmark : (N,) returns or R; arms : (N, K), the more the better. Arms equal to the benchmark
    tell nothing and are left out.
    """
    require_finite(benchmark, "SPA benchmark")
    require_finite(arms, "SPA arms")
    n, leads = len(benchmark), arms - benchmark[:, None]
    leads = leads[:, [k for k in range(leads.shape[1]) if not is_constant(leads[:, k])]]
    if n < 8 or not leads.shape[1]:
        return Spa(None, None, None, n, "no arm differs from the benchmark on 8 rows or more")
    if block is None:
        block = max(block_length(lead) for lead in leads.T)
    mean, sampled = leads.mean(0), _sampled_means(leads, block, draws, seed)
    error = sampled.std(0)
    largest = (mean / error).max()
    far_worse = mean < -error * math.sqrt(2 * math.log(math.log(n)))

    def p_value(centre: Floats) -> float:
        return float((((sampled - centre) / error).max(1) >= largest).mean())

    return Spa(
        lower=p_value(np.maximum(mean, 0)),
        consistent=p_value(np.where(far_worse, 0, mean)),
        upper=p_value(mean),
        n=n,
    )


def _sampled_means(columns: Floats, block: float, draws: int, seed: int) -> Floats:
    """(draws, K) means of (N, K) in stationary bootstrap samples."""
    parts = resamples(len(columns), block, draws, seed)
    return np.concatenate([times_drawn(rows) @ columns for rows in parts]) / len(columns)


def model_confidence_set(
    arms: Mapping[str, Floats],
    *,
    draws: int = DRAWS,
    block: float | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """p-value of each arm's being among the best; those above a size form the set at confidence 1 -
    size.

    Hansen, Lunde & Nason 2011, section 3.1.2, statistic T_R. `arms` are (N,) each, the more the
    better. Arms that are the same everywhere share a p-value.
    """
    names = list(arms)
    columns = np.stack([arms[name] for name in names], axis=1)
    require_finite(columns, "model confidence set")
    # A constant distance to another arm is a certain ranking; the test, which divides by its
    # variance, cannot take it. So of arms that keep their distance only the best is tested.
    groups: list[list[int]] = []
    for k in range(len(names)):
        for group in groups:
            if is_constant(columns[:, group[0]] - columns[:, k]):
                group.append(k)
                break
        else:
            groups.append([k])
    leader_of: dict[int, int] = {}
    for group in groups:
        leader = max(group, key=lambda k: columns[0, k])
        leader_of |= dict.fromkeys(group, leader)
    distinct = sorted(set(leader_of.values()))
    p_values = {distinct[0]: 1.0}
    if len(distinct) > 1:
        first = columns[:, distinct[0]]
        block = (
            max(block_length(columns[:, k] - first) for k in distinct) if block is None else block
        )
        sampled = _sampled_means(columns[:, distinct], block, draws, seed)
        eliminated = _eliminated(columns[:, distinct].mean(0), sampled)
        p_values = dict(zip(distinct, eliminated, strict=True))
    p_value_of = {}
    for k, name in enumerate(names):
        leader = leader_of[k]
        p_value_of[name] = p_values[leader] if is_same(columns[:, k], columns[:, leader]) else 0.0
    return p_value_of


def _eliminated(mean: Floats, sampled: Floats) -> list[float]:
    """p-values of K arms by elimination; `mean` (K,), `sampled` (draws, K) of bootstrap samples.

    As long as two are left, the largest studentised distance between any two of them is compared
    with the same of the samples; the arm that lies so far behind goes, with that p-value, or an
    earlier higher one. The last arm has 1.
    """
    behind = mean - mean[:, None]
    sampled_behind = sampled[:, None, :] - sampled[:, :, None] - behind
    error = np.sqrt((sampled_behind**2).mean(0))
    np.fill_diagonal(error, 1.0)
    behind, sampled_behind = behind / error, sampled_behind / error
    p_values, left, reached = np.ones(len(mean)), list(range(len(mean))), 0.0
    while len(left) > 1:
        square = np.ix_(left, left)
        largest = behind[square].max()
        largest_sampled = sampled_behind[:, left][:, :, left].max((1, 2))
        reached = max(reached, float((largest_sampled > largest).mean()))
        worst = left[int(behind[square].max(1).argmax())]
        p_values[worst] = reached
        left.remove(worst)
    return [float(p) for p in p_values]


def is_same(column: Floats, other: Floats) -> bool:
    """Whether two columns are equal, but for rounding."""
    return bool(np.abs(column - other).max() <= SAME)


class DeflatedSharpe(NamedTuple):
    """confidence : probability that the true Sharpe exceeds what the best of `trials` without skill
    would show."""

    confidence: float | None
    sharpe: float | None
    """Of one period."""
    threshold: float | None
    n: int
    reason: str = ""


def deflated_sharpe(
    returns: Floats, trial_sharpes: Sequence[float], trials: int = 1
) -> DeflatedSharpe:
    """Bailey & López de Prado 2014, "The Deflated Sharpe Ratio", equations 1 (expected maximum) and
    2.

    returns : (T,) per period. trial_sharpes : Sharpe ratios per period of everything that was
    tried, this one too, as far as they are known. trials : how many were tried, if more. With one
    trial nothing is deflated, and the result is the probabilistic Sharpe ratio against 0.
    """
    require_finite(returns, "returns")
    n = len(returns)
    if n < 3 or is_constant(returns):
        return DeflatedSharpe(
            None, None, None, n, "constant returns have no Sharpe ratio" if n else "no returns"
        )
    centred = returns - returns.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    skew, kurtosis = (
        float((centred**3).mean()) / deviation**3,
        float((centred**4).mean()) / deviation**4,
    )
    sharpe = float(returns.mean() / returns.std(ddof=1))
    threshold = expected_maximum_sharpe(trial_sharpes, trials, 1 / math.sqrt(n - 1))
    variance = 1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2
    if variance <= 0:
        return DeflatedSharpe(
            None, sharpe, threshold, n, "returns too skewed for the Sharpe ratio's standard error"
        )
    return DeflatedSharpe(
        float(ndtr((sharpe - threshold) * math.sqrt((n - 1) / variance))), sharpe, threshold, n
    )


def expected_maximum_sharpe(
    trial_sharpes: Sequence[float], trials: int = 1, error: float = 0.0
) -> float:
    """What the best of so many independent trials shows without skill (equation 1 there); 0 for one
    trial.

    error : standard error of a ratio without skill, which stands for the deviation between trials
        where fewer than two are known.
    """
    trials = max(trials, len(trial_sharpes))
    if trials < 2:
        return 0.0
    deviation = np.std(trial_sharpes, ddof=1) if len(trial_sharpes) > 1 else error
    likely = (1 - np.euler_gamma) * ndtri(1 - 1 / trials) + np.euler_gamma * ndtri(
        1 - 1 / (trials * math.e)
    )
    return float(deviation * likely)


@dataclass(frozen=True, eq=False)
class Overfitting:
    """pbo : probability that the arm chosen in sample is below the median out of sample; logits
    (C,) of its ranks."""

    pbo: float | None
    logits: Floats
    reason: str = ""


def probability_of_overfitting(returns: Floats, parts: int = 16) -> Overfitting:
    """Combinatorially symmetric cross-validation: Bailey, Borwein, López de Prado & Zhu 2017,
    section 3.

    returns : (T, K) per period of K arms (configurations tried). The T rows are cut into `parts`
    consecutive parts (an even number; rows left over at the start are not used); each half of them
    chooses by Sharpe, the other half judges. An arm without variation in a half has a Sharpe of 0
    there. Ties share the mean rank.
    """
    require_finite(returns, "returns")
    rows, arms = returns.shape
    if parts < 2 or parts % 2:
        raise StatisticsError(f"parts is {parts}: it must be even, 2 or more")
    if arms < 2 or rows < 2 * parts:
        return Overfitting(
            None,
            np.empty(0),
            f"{arms} arms and {rows} rows: 2 arms and {2 * parts} rows are needed",
        )
    used = returns[rows % parts :].reshape(parts, -1, arms)
    chosen = np.zeros((math.comb(parts, parts // 2), parts))
    for row, members in enumerate(combinations(range(parts), parts // 2)):
        chosen[row, list(members)] = 1
    length = used.shape[1] * parts // 2
    inside = _sharpes(chosen, used, length)
    outside = _sharpes(1 - chosen, used, length)
    best = inside.argmax(1)
    score = outside[np.arange(len(best)), best][:, None]
    rank = (outside < score).sum(1) + ((outside == score).sum(1) + 1) / 2
    relative = rank / (arms + 1)
    logits = np.log(relative / (1 - relative))
    return Overfitting(float((logits <= 0).mean()), logits)


def _sharpes(chosen: Floats, used: Floats, length: int) -> Floats:
    """(C, K) Sharpe ratios over the parts that each row of `chosen` (C, parts) names."""
    mean = chosen @ used.sum(1) / length
    square = chosen @ (used**2).sum(1) / length
    variance = square - mean**2
    flat = variance <= SAME * square
    return np.where(flat, 0.0, mean / np.sqrt(np.where(flat, 1.0, variance)))


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p-values of a family of tests: Holm 1979, step-down; reject those at or below the
    level."""
    adjusted, worst = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, p * (len(p_values) - place)))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}
