"""What moved around a candidate, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.charts.movements import movements
from tests.training.support.candles import HOUR, START, random_walk
from training.market.bars import Bars
from training.market.surroundings import Neighbourhood, leader, means, ranks

HALF = np.sqrt(4 * np.log(2))


def bars(symbol: str, growth: float, width: float, count: int = 800, seconds: int = HOUR) -> Bars:
    """Closes grow by `growth` a bar (log), and every bar is `width` high (log)."""
    close = 100 * np.exp(growth * np.arange(count))
    high = close * np.exp(width / 2)
    closed_at = START + seconds * np.arange(1, count + 1)
    return Bars(
        symbol, seconds, closed_at, close, high, high / np.exp(width), close, np.ones(count)
    )


def test_steady_bars_have_one_volatility_at_every_horizon_and_returns_by_its_length() -> None:
    moved = movements(bars("BTCUSDT", 0.001, 0.02))
    for name in ("1h", "6h", "24h", "7d", "same_hours"):
        assert moved[f"volatility_{name}"][-1] == pytest.approx(0.02 / HALF), name
    for name, hours in (("1h", 1), ("6h", 6), ("24h", 24), ("7d", 168), ("30d", 720)):
        assert moved[f"return_{name}"][-1] == pytest.approx(0.001 * hours), name
    assert np.isnan(moved["return_30d"][719])
    assert np.isfinite(moved["return_30d"][720])


def test_volatility_is_per_hour_whatever_the_bars_length() -> None:
    halves = movements(bars("BTCUSDT", 0.0, 0.02, seconds=HOUR // 2))
    assert halves["volatility_1h"][-1] == pytest.approx(0.02 / HALF * np.sqrt(2))
    days = movements(bars("BTCUSDT", 0.0, 0.02, seconds=24 * HOUR))
    assert np.isnan(days["volatility_1h"]).all(), "a day's bar knows nothing of an hour"
    assert days["volatility_24h"][-1] == pytest.approx(0.02 / HALF / np.sqrt(24))


def test_the_same_hours_are_those_that_come_next() -> None:
    steady = bars("BTCUSDT", 0.0, 0.01)
    wild = (steady.closed_at // HOUR) % 24 == 15  # one wild hour a day
    high = np.where(wild, steady.close * np.exp(0.05), steady.high)
    low = np.where(wild, steady.close * np.exp(-0.05), steady.low)
    moved = movements(Bars("BTCUSDT", HOUR, *(
        steady.closed_at, steady.open, high, low, steady.close, steady.volume
    )))["volatility_same_hours"]  # fmt: skip
    hour = (steady.closed_at // HOUR) % 24
    at = {h: moved[np.flatnonzero(hour == h)[-1]] for h in (8, 9, 14, 15)}
    before_it = np.sqrt((5 * 0.01**2 + 0.1**2) / 6) / HALF
    assert at[9] == pytest.approx(before_it)
    assert at[14] == pytest.approx(before_it)
    assert at[8] == pytest.approx(0.01 / HALF)
    assert at[15] == pytest.approx(0.01 / HALF), "it is over: the next comes in a day"


def test_ranks_are_shares_of_the_others_and_need_two() -> None:
    values = np.array([[3.0, 1.0, 2.0, np.nan], [3.0, 1.0, np.nan, np.nan], [1.0, 1.0, 1.0, 5.0]])
    np.testing.assert_allclose(ranks(values)[0], [1.0, 0.0, 0.5, np.nan])
    assert np.isnan(ranks(values)[1]).all()
    np.testing.assert_allclose(ranks(values)[2], [0, 0, 0, 1])
    np.testing.assert_allclose(means(values)[0], [2.0, 2.0, 2.0, np.nan])
    assert np.isnan(means(values)[1]).all()


def test_a_neighbourhood_tells_ranks_and_the_lead_of_bitcoin() -> None:
    around = Neighbourhood([
        bars("BTCUSDT", 0.001, 0.01), bars("ETHUSDT", 0.002, 0.03), bars("ADAUSDT", -0.001, 0.02)
    ])  # fmt: skip
    ada = around.at(2, 790)
    assert (ada["momentum_rank"], ada["volatility_rank"]) == (0.0, 0.5)
    assert ada["market_return_24h"] == pytest.approx(24 * (0.001 + 0.002 - 0.001) / 3)
    assert ada["btc_return_6h"] == pytest.approx(0.006)
    assert ada["btc_volatility_24h"] == pytest.approx(0.01 / HALF)
    alone = Neighbourhood([bars("ADAUSDT", -0.001, 0.02)]).at(0, 790)
    assert alone["momentum_rank"] is None
    assert "btc_return_6h" not in alone


@pytest.mark.parametrize(
    ("symbols", "place"),
    [
        (("ETHUSDT", "BTCUSDT"), 1),
        (("BTCEUR", "BTC/USDT"), 1),
        (("ETHEUR", "BTCEUR"), 1),
        (("ETHBTC", "BTCBUSD", "BTCUSDC"), 1),
        (("ETHBTC", "WBTCUSDT"), None),
    ],
)
def test_bitcoin_leads_in_whatever_it_is_quoted_dollars_first(
    symbols: tuple[str, ...], place: int | None
) -> None:
    assert leader([bars(symbol, 0.0, 0.01, 2) for symbol in symbols]) == place


def test_a_leader_that_went_silent_leads_nobody() -> None:
    silent = bars("BTCUSDT", 0.001, 0.01, count=700)
    around = Neighbourhood([silent, bars("ETHUSDT", 0.0, 0.01)])
    assert around.at(1, 701)["btc_return_1h"] == pytest.approx(0.001)
    assert "btc_return_1h" not in around.at(1, 702)


def test_no_later_bar_changes_it() -> None:
    series = [
        random_walk(1200, 1),
        random_walk(1200, 2, "ETHUSDT"),
        random_walk(1200, 3, "ADAUSDT"),
    ]
    whole = Neighbourhood(series)
    for bar in (30, 800, 1100):
        cut = Neighbourhood([one.part(0, bar + 1) for one in series])
        assert cut.at(2, bar) == whole.at(2, bar)
