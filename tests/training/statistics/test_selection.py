"""Choosing among many: against arch and statsmodels, by the papers' definitions, and by how often
it is fooled."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from arch.bootstrap import MCS, SPA
from scipy import stats
from statsmodels.stats.multitest import multipletests

from training.arrays import Floats
from training.statistics.bootstrap import (
    StatisticsError,
)
from training.statistics.selection import (
    deflated_sharpe,
    expected_maximum_sharpe,
    holm,
    model_confidence_set,
    probability_of_overfitting,
    superior_predictive_ability,
)


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


@pytest.mark.parametrize("lead", [0.0, 0.1, -0.3])
def test_spa_of_one_arm_is_that_of_arch(lead: float) -> None:
    """With one arm it makes no difference that arch does not studentise."""
    source = np.random.default_rng(1)
    benchmark = source.normal(0, 1, 400)
    arm = source.normal(lead, 1, (400, 1))
    theirs = SPA(-benchmark, -arm, block_size=3, reps=3000, seed=1)
    theirs.compute()
    found = superior_predictive_ability(benchmark, arm, block=3.0, draws=3000)
    expected = [float(theirs.pvalues[name]) for name in ("lower", "consistent", "upper")]
    assert [found.lower, found.consistent, found.upper] == pytest.approx(expected, abs=0.03)


def test_spa_measures_leads_in_their_own_standard_errors() -> None:
    """A lead of 5 standard errors is not drowned by another arm's noise, twenty times as large."""
    source = np.random.default_rng(2)
    benchmark = source.normal(0, 1, 500)
    sure = benchmark + source.normal(0.022, 0.1, 500)
    wild = benchmark + source.normal(0, 2, 500)
    found = superior_predictive_ability(benchmark, np.column_stack([sure, wild]))
    assert found.consistent is not None
    assert found.consistent < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_model_confidence_set_is_that_of_arch(seed: int) -> None:
    source = np.random.default_rng(seed)
    common = source.normal(size=300)
    arms = np.stack([common + source.normal(m, 0.5, 300) for m in (0, 0.02, 0.06, 0.1)], axis=1)
    theirs = MCS(-arms, size=0.05, reps=3000, block_size=3, seed=1)
    theirs.compute()
    found = model_confidence_set({str(k): arms[:, k] for k in range(4)}, block=3.0, draws=3000)
    expected = [float(theirs.pvalues["Pvalue"][k]) for k in range(4)]
    assert list(found.values()) == pytest.approx(expected, abs=0.03)


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


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}
