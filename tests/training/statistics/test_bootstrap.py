"""Statistics against `arch`, statsmodels, numbers by hand, and simulated worlds whose truth is
known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap, optimal_block_length
from scipy import stats

from training.arrays import DAY_S, Floats
from training.statistics.bootstrap import (
    Cluster,
    StatisticsError,
    block_length,
    compare_means,
    interval,
    mean_intervals,
    resample,
    resamples,
    wilson,
)
from training.statistics.selection import (
    deflated_sharpe,
    probability_of_overfitting,
    superior_predictive_ability,
)

RUNS = 250


def autoregressive(count: int, carry: float, seed: int) -> Floats:
    source = np.random.default_rng(seed)
    found = source.normal(size=count)
    for t in range(1, count):
        found[t] += carry * found[t - 1]
    return found


def test_resamples_go_on_where_they_are_or_jump_with_geometric_blocks() -> None:
    rows = resample(500, 8.0, 400, np.random.default_rng(0))
    assert rows.shape == (400, 500)
    assert rows.min() == 0
    assert rows.max() == 499
    jumps = (np.diff(rows, axis=1) % 500) != 1
    # A new block begins with probability 1/8, and lands on the next row by chance once in 500.
    assert jumps.mean() == pytest.approx(1 / 8 * 499 / 500, abs=0.003)
    assert np.bincount(rows.ravel(), minlength=500) / rows.size == pytest.approx(1 / 500, rel=0.25)


def test_the_spread_of_resampled_means_is_that_of_arch() -> None:
    values = autoregressive(400, 0.6, 1)
    ours = values[resample(400, 10.0, 4000, np.random.default_rng(2))].mean(1)
    theirs = StationaryBootstrap(10, values, seed=3).apply(lambda x: x.mean(), 4000)[:, 0]
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.012)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.06)
    assert np.quantile(ours, [0.025, 0.975]) == pytest.approx(
        np.quantile(theirs, [0.025, 0.975]), abs=0.03
    )


def test_percentile_intervals_are_those_of_arch() -> None:
    values = autoregressive(300, 0.5, 4)
    ours = interval(values, lambda x: x.std(-1), block=6.0, draws=3000)
    (theirs,) = (
        StationaryBootstrap(6, values, seed=5)
        .conf_int(lambda x: x.std(), 3000, method="percentile")
        .T
    )
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.02)
    assert ours.value == pytest.approx(values.std())


def test_blocks_grow_with_dependence_and_stay_within_the_rows() -> None:
    assert block_length(np.random.default_rng(0).normal(size=800)) < 4
    assert block_length(autoregressive(800, 0.8, 0)) > 8
    assert block_length(np.arange(40.0)) <= 10
    assert block_length(np.full(100, 0.1) * 3) == 1.0
    assert block_length(np.arange(19.0)) == 1.0
    stops_early = np.concatenate([np.random.default_rng(0).normal(size=10), np.zeros(90)])
    assert 1 <= block_length(stops_early) <= 25


@pytest.mark.parametrize("carry", [-0.5, 0.0, 0.3, 0.8])
def test_block_lengths_of_long_series_are_those_of_arch(carry: float) -> None:
    """In short ones arch's correlations, which leave out another row for each lag, can be
    significant where the paper's are not."""
    for seed in range(10):
        values = autoregressive(6000, carry, seed)
        theirs = float(optimal_block_length(values)["stationary"].iloc[0])
        assert block_length(values) == pytest.approx(max(theirs, 1.0))


def test_a_block_length_by_hand() -> None:
    """Of 100 values that are 1, 1, -1, -1, ... every second correlation is significant, so the
    window has its full width, 15 lags: those up to 7 with a full weight, then 14/15, 12/15, ..."""
    values = np.tile([1.0, 1.0, -1.0, -1.0], 25)
    weights = [*[15] * 7, 14, 12, 10, 8, 6, 4, 2, 0]
    spectrum, weighted = 1.0, 0.0
    for lag, weight in enumerate(weights, 1):
        products = values[lag:] * values[:-lag]
        covariance = products.sum() / 100 * weight / 15
        spectrum, weighted = spectrum + 2 * covariance, weighted + 2 * lag * covariance
    assert block_length(values) == pytest.approx((100 * (weighted / spectrum) ** 2) ** (1 / 3))


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.01, 500, 0.0043, 0.0232), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0)],
)
def test_wilsons_interval(share: float, count: int, low: float, high: float) -> None:
    found = wilson(np.array([share]), np.array([count]))
    assert [float(bound[0]) for bound in found] == pytest.approx([low, high], abs=5e-5)


def test_means_of_clusters_are_compared_on_the_same_samples() -> None:
    """Three days; `a` is `b` and 0.1 more on every row, so the lead is certain and the means are
    not."""
    b = np.array([1.0, 3.0, 0.0, 2.0])
    day = np.array([0, 0, 5, 9])
    weight = np.array([1.0, 1.0, 2.0, 4.0])
    means, lead = compare_means({"a": b + 0.1, "b": b}, weight, Cluster(day, day), "a")
    assert means["b"].value == pytest.approx(12 / 8)
    # The extreme samples are one day three times: its own mean, 0 and 2 (twice of three days).
    assert (means["b"].low, means["b"].high) == pytest.approx((0.0, 2.0))
    assert list(lead) == ["b"]
    assert lead["b"][:3] == pytest.approx((0.1, 0.1, 0.1))


def test_a_row_of_two_clusters_counts_as_often_as_both_are_drawn_together() -> None:
    """Day 0 with day 1, and day 1 with day 2: a sample without day 1 has no row, and is left out.
    Otherwise the counts c0 c1 and c1 c2 weigh 1 and 0: the mean is c0 / (c0 + c2)."""
    cluster = Cluster(np.array([0, 1]), np.array([1, 2]))
    means, _ = compare_means({"a": np.array([1.0, 0.0])}, np.ones(2), cluster, "a", draws=4000)
    assert means["a"].value == 0.5
    assert (means["a"].low, means["a"].high) == (0.0, 1.0)


def test_the_same_seed_gives_the_same_interval_and_pairs_stay_pairs() -> None:
    values = np.random.default_rng(0).normal(size=(60, 2))
    first, second = (
        interval(values, lambda x: (x[..., 0] - x[..., 1]).mean(-1), seed=7) for _ in range(2)
    )
    assert first == second
    same = np.repeat(values[:, :1], 2, axis=1)
    paired = interval(same, lambda x: (x[..., 0] - x[..., 1]).mean(-1))
    assert (paired.low, paired.high) == (0.0, 0.0)


def test_means_over_days_are_means_of_rows() -> None:
    as_of = np.array([0, 10, 20, DAY_S, 5 * DAY_S, 5 * DAY_S + 1])
    found = mean_intervals(np.array([[1.0], [2], [3], [4], [0], [2]]), as_of=as_of)[0]
    assert found.value == pytest.approx(2.0)
    assert found.n == 6


MEAN = float(stats.norm.cdf(0.5) * -1.1 + stats.norm.expect(lambda z: min(z * 1.8, 3.0), lb=0.5))
"""Of the skewed outcomes below."""


def skewed_days(source: np.random.Generator, days: int) -> tuple[Floats, np.ndarray]:
    """Differences as a veto makes them: mostly 0, some +1.1 (a stop avoided), few -0.5 to -3 (a
    winner missed)."""
    day = np.repeat(np.arange(days), source.poisson(4, days))
    common = source.normal(size=days)
    z = math.sqrt(0.3) * common[day] + math.sqrt(0.7) * source.normal(size=len(day))
    r = np.where(z < 0.5, -1.1, np.minimum(z * 1.8, 3.0))
    return np.where(source.random(len(day)) < 0.3, MEAN - r, 0.0), day * DAY_S


def test_intervals_of_means_cover_the_truth_of_skewed_days_that_hang_together() -> None:
    source = np.random.default_rng(11)
    above = below = 0
    for number in range(RUNS):
        differences, as_of = skewed_days(source, 150)
        found = mean_intervals(differences[:, None], as_of=as_of, draws=300, seed=number)[0]
        assert found.low is not None
        assert found.high is not None
        above += found.low > 0
        below += found.high < 0
    # 2.5 % on each side is promised; three standard errors of 250 runs are 3 %.
    assert above / RUNS < 0.055
    assert below / RUNS < 0.055
    assert (above + below) / RUNS > 0.01, "an interval that never misses is too wide"


def test_the_interval_of_a_mean_follows_its_definition_sample_by_sample() -> None:
    differences, as_of = skewed_days(np.random.default_rng(3), 40)
    days = [differences[as_of == day] for day in np.unique(as_of)]

    def mean_and_error(chosen: list[Floats]) -> tuple[float, float]:
        number = sum(map(len, chosen))
        mean = sum(day.sum() for day in chosen) / number
        return mean, math.sqrt(sum((day.sum() - mean * len(day)) ** 2 for day in chosen)) / number

    mean, error = mean_and_error(days)
    studentised = []
    for rows in np.concatenate(list(resamples(len(days), 3.0, 200, 5))):
        sampled, its_error = mean_and_error([days[row] for row in rows])
        studentised.append((sampled - mean) / its_error)
    low, high = np.quantile(studentised, [0.025, 0.975])
    found = mean_intervals(differences[:, None], as_of=as_of, block=3.0, draws=200, seed=5)[0]
    assert found.low == pytest.approx(mean - high * error)
    assert found.high == pytest.approx(mean - low * error)
    assert found.p == pytest.approx((1 + sum(t >= mean / error for t in studentised)) / 201)


def test_p_values_are_small_when_the_mean_is_high() -> None:
    source = np.random.default_rng(2)
    high, zero, low = mean_intervals(source.normal([0.3, 0.0, -0.3], 1, (300, 3)))
    assert high.p is not None
    assert zero.p is not None
    assert low.p is not None
    assert high.p < 0.01 < zero.p < 0.99 < low.p


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_refused_by_name(value: float) -> None:
    values = np.array([0.1, value, 0.2] * 10)
    with pytest.raises(StatisticsError, match="10 of 30 values are not finite"):
        interval(values, lambda x: x.mean(-1))
    with pytest.raises(StatisticsError):
        mean_intervals(values[:, None])
    with pytest.raises(StatisticsError):
        deflated_sharpe(values, [0.1])
    with pytest.raises(StatisticsError):
        superior_predictive_ability(values, values[:, None])
    with pytest.raises(StatisticsError):
        probability_of_overfitting(values[:, None])


def test_nothing_to_measure_has_a_reason() -> None:
    assert interval(np.array([0.1]), lambda x: x.mean(-1)).reason == "fewer than two rows"
    constant = mean_intervals(np.full((50, 1), 0.2))[0]
    assert (constant.value, constant.low, constant.reason) == (
        pytest.approx(0.2),
        None,
        "constant values have no interval",
    )
    one_day = mean_intervals(np.ones((5, 1)), as_of=np.arange(5))[0]
    assert (one_day.value, one_day.reason) == (None, "fewer than two days")
    assert (
        deflated_sharpe(np.full(40, 0.001), [0.1]).reason == "constant returns have no Sharpe ratio"
    )
    assert deflated_sharpe(np.empty(0), [0.1]).reason == "no returns"
    assert superior_predictive_ability(np.ones(50), np.ones((50, 2))).reason
    assert probability_of_overfitting(np.ones((8, 3))).reason


def test_where_hardly_any_row_differs_there_is_no_interval() -> None:
    """Two of 60 days differ: every tenth sample has neither, and a quantile of t would be an
    artefact of that."""
    values = np.zeros((60, 1))
    values[[10, 40]] = [[0.5], [-0.4]]
    (found,) = mean_intervals(values, as_of=np.arange(60) * DAY_S)
    assert (found.low, found.high, found.reason) == (
        None,
        None,
        "too few rows differ for an interval",
    )
    assert found.value == pytest.approx(0.1 / 60)


def test_of_fewer_than_eight_days_there_is_a_mean_and_no_interval() -> None:
    """Two trades a day that win or lose about 1 R: of six such days, resamples that hardly vary
    made an interval up to 285 R."""
    values = np.tile([[-1.1], [-1.0], [1.2], [-1.05]], (4, 1))
    days = np.repeat(np.arange(8), 2) * DAY_S
    (few,) = mean_intervals(values[:14], as_of=days[:14])
    assert (few.low, few.high, few.n) == (None, None, 14)
    assert few.value == pytest.approx(values[:14].mean())
    assert few.reason == "too few days for an interval"
    (enough,) = mean_intervals(values, as_of=days)
    assert enough.low is not None
    assert enough.high is not None
    assert enough.low < enough.value < enough.high  # type: ignore[operator]
