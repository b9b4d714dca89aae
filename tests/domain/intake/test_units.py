"""Values that fit their fields, and no other value beside them."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.intake.units import doubts
from app.domain.scenario import Surroundings
from tests.domain.scenarios import scenario


def around(**values: float) -> dict[str, Any]:
    return {"market__surroundings": Surroundings(**values)}


PLAIN: list[dict[str, Any]] = [
    {},
    {"candidate__confidence": 0.0},
    {"candidate__confidence": 1.0},
    {"candidate__order_imbalance": -40.0},
    # 20 is 1 % of 2,000: a fall of 20 % in five bars is 20 ATR.
    {"candidate__price_change_pct": -0.2},
    {"candidate__next_return": 0.1},
    # A pegged coin: a quiet ATR that its stop agrees with.
    {"candidate__atr": 0.05, "plan__stop": 1999.9},
    {"plan__quantity": 100.0},
    {"account__equity": None, "plan__quantity": 450.0},
    {"account__day_pnl_fraction": -0.5, "account__drawdown_fraction": 0.55},
    {"account__day_pnl_fraction": -0.5, "account__drawdown_fraction": None},
    {"account__day_pnl_fraction": 0.5},
    around(return_24h=0.63, return_30d=3.0, volatility_1h=0.4, volatility_rank=0.9),
    {"plan__targets": (2100.0, 39_000.0)},
]


@pytest.mark.parametrize("changes", PLAIN, ids=str)
def test_what_may_be_so_is_not_doubted(changes: dict[str, Any]) -> None:
    assert doubts(scenario(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"candidate__confidence": 0.71}, "confidence", "send 7.1"),
        ({"candidate__sentiment_confidence": 0.6}, "sentiment_confidence", "send 6"),
        ({"candidate__order_imbalance": -0.4}, "order_imbalance", "send -40"),
        ({"candidate__rsi": 0.56}, "rsi", "send 56"),
        ({"candidate__adx": 0.24}, "adx", "send 24"),
        ({"candidate__btc_dominance": 0.54}, "btc_dominance", "send 54"),
        # 26 % would be 26 ATR of 1 %.
        ({"candidate__price_change_pct": 0.26}, "price_change_pct", "a fraction, 0.0026"),
        ({"candidate__next_return": 0.16}, "next_return", "a fraction, 0.0016"),
        ({"candidate__next_return": 1.5, "candidate__atr": None}, "next_return", "0.015"),
        # 0.2 is 0.01 % of 2,000 and the stop 150 ATR away; 1 % is 20, and 1.5 ATR.
        ({"candidate__atr": 0.2, "market__bar_seconds": 86_400}, "atr", "per cent of price"),
        ({"candidate__atr": 0.01}, "atr", "a fraction of price"),
        # 200 x 2,000 is 400,000: 40 times an equity of 10,000.
        ({"plan__quantity": 200.0}, "quantity", "40 times the equity: likely money"),
        # 450 x 2,000 is 900,000: 18 % of a day's 5,000,000.
        (
            {"account__equity": None, "plan__quantity": 450.0, "market__volume_24h": 5e6},
            "quantity",
            "18.00% of a day's volume",
        ),
        (
            {"account__equity": None, "plan__quantity": 4500.0, "market__volume_24h": None},
            "quantity",
            "likely money",
        ),
        ({"plan__quantity": 4e9}, "quantity", "8e+08 times the equity: too many noughts"),
        ({"candidate__atr": 1e160}, "atr", "1e+160 is beyond 1e+18"),
        ({"candidate__atr": 5e-324}, "atr", "e-324 is beyond 1e-18, and not 0: nothing"),
        ({"candidate__macd": -1e-160}, "macd", "-1e-160 is beyond 1e-18"),
        ({"candidate__macd": -1e300}, "macd", "beyond"),
        ({"plan__quantity": 1.7e308}, "quantity", "beyond"),
        ({"market__volume_24h": 1e19}, "volume_24h", "beyond"),
        (
            {"account__positions": [{"symbol": "BTCUSDT", "quantity": 1e300, "entry": 4e4}]},
            "quantity",
            "beyond",
        ),
        ({"plan__targets": (2100.0, 1e300)}, 1, "beyond"),
        (around(momentum_rank=1.0, return_6h=1e200), "return_6h", "beyond"),
        ({"account__day_pnl_fraction": -0.5}, "day_pnl_fraction", "a fraction, -0.005"),
        (around(return_24h=2.5), "return_24h", "a fraction, 0.025"),
        (around(btc_return_1h=-0.6), "btc_return_1h", "a fraction, -0.006"),
        (around(market_volatility_24h=0.63), "market_volatility_24h", "a fraction, 0.0063"),
        ({"plan__targets": (2100.0, 210_000.0)}, 1, "105 times the entry"),
    ],
    ids=str,
)
def test_the_likely_unit_is_named(changes: dict[str, Any], field: str | int, says: str) -> None:
    [doubt] = doubts(scenario(**changes))
    assert doubt.path[-1] == field
    assert says in doubt.why


def test_an_atr_that_no_unit_explains_is_not_doubted() -> None:
    """1e-6 is neither a percentage nor a fraction of 2,000 that fits its bars and its stop."""
    assert doubts(scenario(candidate__atr=1e-6)) == []
