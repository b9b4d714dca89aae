"""The synthetic market: fair without an edge, worth knowing with one, and as rough as a real
one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from app.domain.charts.indicators import indicators
from app.domain.model.prompt import render
from training.agent.reference import Agent, chart, opportunities
from training.config.data import OutcomesConfig, SyntheticConfig
from training.judging.contest.oracle import oracle, sample, states
from training.market.bars import Bars, MarketDataError, bars_from_frame
from training.market.synthetic import strength, synthetic_bars, volume_ratio
from training.scenarios.table import NEUTRAL

FREE = OutcomesConfig(fee=0, slippage=0, clip_r=100)
COLUMNS = ("closed_at", "open", "high", "low", "close", "volume")


@pytest.fixture(scope="module")
def fair() -> list[Bars]:
    return synthetic_bars(SyntheticConfig(edge=0, symbols=3, bars=9000, seed=1))


def test_bars_are_such_as_any_source_must_bring(fair: list[Bars]) -> None:
    for bars in fair:
        frame = pl.DataFrame({name: getattr(bars, name) for name in COLUMNS})
        frame = frame.with_columns(pl.from_epoch("closed_at"))
        checked = bars_from_frame(frame, bars.symbol, bars.seconds, "synthetic")
        assert len(checked) == 9000
        assert (bars.volume > 0).all()
        assert bars.missing == 0


def test_a_seed_gives_the_same_market_and_another_one_another() -> None:
    config = SyntheticConfig(edge=0.5, symbols=1, bars=1000, seed=3)
    (one,), (two,) = synthetic_bars(config), synthetic_bars(config)
    assert all(getattr(one, name).tobytes() == getattr(two, name).tobytes() for name in COLUMNS)
    (other,) = synthetic_bars(config.model_copy(update={"seed": 4}))
    assert other.close[-1] != one.close[-1]


def test_finer_bars_are_of_the_same_prices() -> None:
    config = SyntheticConfig(edge=0.5, symbols=1, bars=1000, seed=3)
    (hours,), (halves,) = synthetic_bars(config), synthetic_bars(config, 1800)
    joined = halves.resampled(3600)
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(joined, name), getattr(hours, name))
    with pytest.raises(MarketDataError, match="multiple of 5m"):
        synthetic_bars(config, 60)


def test_noise_is_realistic(fair: list[Bars]) -> None:
    """Fat tails, and volatility that stays: squared returns correlate, returns do not."""
    for bars in fair:
        returns = np.diff(bars.close) / bars.close[:-1]
        assert ((returns - returns.mean()) ** 4).mean() / returns.var() ** 2 > 4
        assert np.corrcoef(returns[:-1] ** 2, returns[1:] ** 2)[0, 1] > 0.05
        assert abs(np.corrcoef(returns[:-1], returns[1:])[0, 1]) < 4 / np.sqrt(9000)
        assert 0.005 < returns.std() < 0.02


def test_an_edge_is_in_units_of_the_atr() -> None:
    """The drift at full strength is `edge` ATR per bar, as the indicator measures it; within 10 %.

    A small edge: a large one widens the bars, and with them the ATR.
    """
    config = SyntheticConfig(edge=0.2, symbols=4, bars=9000, seed=2)
    drifts = []
    for bars in synthetic_bars(config):
        signs = indicators(bars)
        full = np.abs(strength(signs.volume_ratio)) == 1
        full[:30] = full[-1] = False
        at = np.flatnonzero(full)
        moves = (bars.close[at + 1] - bars.close[at]) / signs.atr[at]
        drifts.append((moves * np.sign(signs.volume_ratio[at])).mean())
    assert np.mean(drifts) == pytest.approx(0.2, rel=0.1)


def test_the_state_is_what_the_indicator_and_the_prompt_show(fair: list[Bars]) -> None:
    agent = Agent([chart(bars) for bars in fair])
    found = opportunities(agent.charts)
    made = [agent.scenario(one, NEUTRAL) for one in found]
    assert len(made) >= 3 * 400
    for number, bars in enumerate(fair):
        np.testing.assert_allclose(
            volume_ratio(bars.volume)[30:], agent.charts[number].signs.volume_ratio[30:]
        )
    shown = [" volume " in f" {render(scenario).user}".replace("\n", " ") for scenario in made]
    assert all(shown)
    planted = states(made)
    assert set(planted) == set(range(7))
    ratios = np.array([scenario.candidate.volume_ratio for scenario in made])
    assert ratios[planted == 0].max() < ratios[planted == 3].min() < ratios[planted == 6].min()


def test_without_an_edge_no_state_earns_or_loses_before_costs() -> None:
    state, rewards, _ = sample(SyntheticConfig(edge=0, symbols=4, bars=20_000, seed=9), FREE)
    assert len(state) > 3000
    for one in range(7):
        mine = rewards[state == one][:, 1:]
        assert len(mine) > 100
        z = mine.mean(axis=0) / (mine.std(axis=0, ddof=1) / np.sqrt(len(mine)))
        assert np.abs(z).max() < 4
    everything = rewards[:, 1:]
    assert (
        np.abs(everything.mean(axis=0) / (everything.std(axis=0) / np.sqrt(len(state)))).max() < 4
    )


def test_with_an_edge_knowing_the_state_pays_and_more_edge_pays_more() -> None:
    best = []
    for edge in (0.0, 0.3, 0.6):
        known = oracle(
            SyntheticConfig(edge=edge, seed=11), OutcomesConfig(), bars=12_000, symbols=3
        )
        best.append(known.best)
        assert known.expected(np.array([0, 6])).shape == (2, 10)
        if edge:
            assert known.best > 5 * known.best_error
            assert known.best > 1.5 * max(known.constant, known.agent, 0)
            assert known.mean[6, 8] > 0 > known.mean[0, 8]
            assert known.mean[0].argmax() == 0
    assert best[0] < 0.02
    assert best[0] < best[1] < best[2]
