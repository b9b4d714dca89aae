"""Statistics against `arch`, statsmodels, numbers by hand, and simulated worlds whose truth is
known."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap
from scipy import stats
from statsmodels.stats.multitest import multipletests

from training.arrays import DAY_S, Floats
from training.statistics.bootstrap import (
    StatisticsError,
    block_length,
    interval,
    mean_intervals,
    resample,
    resamples,
)
from training.statistics.selection import (
    deflated_sharpe,
    expected_maximum_sharpe,
    holm,
    model_confidence_set,
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


def test_spa_finds_a_better_arm_and_is_seldom_fooled_by_many_equal_ones() -> None:
    source = np.random.default_rng(3)
    benchmark, arms = source.normal(0, 1, 500), source.normal(0, 1, (500, 10))
    fooled = superior_predictive_ability(benchmark, arms)
    assert fooled.consistent is not None
    assert fooled.consistent > 0.05
    arms[:, 4] += 0.3
    found = superior_predictive_ability(benchmark, np.column_stack([arms, benchmark]))
    assert found.consistent is not None
    assert found.consistent < 0.01


def test_the_model_confidence_set_drops_what_is_worse_and_keeps_what_is_equal() -> None:
    source = np.random.default_rng(4)
    common = source.normal(0, 1, 600)
    arms = {
        "best": common + source.normal(0.3, 0.5, 600),
        "as good": common + source.normal(0.3, 0.5, 600),
        "worse": common + source.normal(0.0, 0.5, 600),
    }
    arms |= {"twin": arms["best"].copy(), "always less": arms["best"] - 0.01}
    found = model_confidence_set(arms)
    assert found["best"] > 0.05
    assert found["as good"] > 0.05
    assert found["worse"] < 0.05
    assert found["twin"] == found["best"]
    assert found["always less"] == 0.0
    assert model_confidence_set({"alone": np.ones(50)}) == {"alone": 1.0}


def test_the_deflated_sharpe_ratio_is_that_of_the_papers_example() -> None:
    # Bailey & López de Prado 2014, "A numerical example": 100 trials, variance of annualised Sharpe
    # ratios 1/2, T = 1250 days, annualised Sharpe 2.5, skewness -3, kurtosis 10: threshold 0.1132 a
    # day, confidence 0.9004.
    trials = np.array([-1.0, 1.0] * 50)
    trials *= math.sqrt(0.5 / 250) / trials.std(ddof=1)
    threshold = expected_maximum_sharpe(list(trials))
    assert threshold == pytest.approx(0.1132, abs=5e-5)
    daily = 2.5 / math.sqrt(250)
    variance = 1 + 3 * daily + 9 / 4 * daily**2
    assert stats.norm.cdf((daily - threshold) * math.sqrt(1249 / variance)) == pytest.approx(
        0.9004, abs=5e-5
    )


def test_the_deflated_sharpe_ratio_of_a_series_follows_its_moments() -> None:
    returns = np.random.default_rng(0).gamma(2, 0.01, 300) - 0.019
    found = deflated_sharpe(returns, [0.02, 0.1, -0.05])
    sharpe = returns.mean() / returns.std(ddof=1)
    moments = (
        1
        - stats.skew(returns) * sharpe
        + (stats.kurtosis(returns, fisher=False) - 1) / 4 * sharpe**2
    )
    threshold = expected_maximum_sharpe([0.02, 0.1, -0.05])
    assert found.confidence == pytest.approx(
        stats.norm.cdf((sharpe - threshold) * math.sqrt(299 / moments))
    )
    assert expected_maximum_sharpe([0.3]) == 0.0
    alone = deflated_sharpe(returns, [sharpe])
    assert alone.confidence is not None
    assert found.confidence is not None
    assert alone.confidence > found.confidence


def by_definition(returns: Floats, parts: int) -> float:
    """The probability of overfitting written as loops over the paper's steps."""
    blocks, below = np.split(returns, parts), []
    for inside in combinations(range(parts), parts // 2):
        train = np.concatenate([blocks[i] for i in inside])
        test = np.concatenate([blocks[i] for i in range(parts) if i not in inside])
        best = int((train.mean(0) / train.std(0)).argmax())
        rank = stats.rankdata(test.mean(0) / test.std(0))[best] / (returns.shape[1] + 1)
        below.append(math.log(rank / (1 - rank)) <= 0)
    return float(np.mean(below))


def test_the_probability_of_overfitting_follows_its_definition() -> None:
    returns = np.random.default_rng(8).normal(0, 0.01, (120, 7)) + np.linspace(0, 0.002, 7)
    assert probability_of_overfitting(returns, 6).pbo == pytest.approx(by_definition(returns, 6))


def test_choosing_among_noise_is_overfitting_and_choosing_a_true_edge_is_not() -> None:
    source = np.random.default_rng(9)
    noise = [
        probability_of_overfitting(source.normal(0, 0.01, (320, 20)), 8).pbo for _ in range(40)
    ]
    assert 0.35 < float(np.mean([each for each in noise if each is not None])) < 0.65
    edge = source.normal(0, 0.01, (320, 20))
    edge[:, 3] += 0.005
    found = probability_of_overfitting(edge)
    assert found.pbo is not None
    assert found.pbo < 0.01
    assert len(found.logits) == math.comb(16, 8)


def test_an_arm_that_never_trades_has_a_sharpe_of_nothing_in_the_cross_validation() -> None:
    returns = np.random.default_rng(1).normal(-0.01, 0.001, (64, 3))
    returns[:, 0] = 0.0
    assert probability_of_overfitting(returns, 4).pbo == 0.0
    with pytest.raises(StatisticsError, match="even"):
        probability_of_overfitting(returns, 5)


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_holm_is_that_of_statsmodels(count: int) -> None:
    p_values = [0.04, 0.5, 0.004, 0.004, 0.9, 0.021, 1.0, 0.3, 0.0, 0.011, 0.05, 0.6][:count]
    found = holm({str(k): p for k, p in enumerate(p_values)})
    assert list(found) == [str(k) for k in range(len(p_values))]
    assert list(found.values()) == pytest.approx(multipletests(p_values, method="holm")[1])


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
