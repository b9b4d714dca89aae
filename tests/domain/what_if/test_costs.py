"""Trades at other costs, worked out by hand: 2 bought at 100 and sold at 110, a fee of 0.1 % and a
slippage of 0.05 % on each side. Paid 100.05, received 109.945; fees 0.001 x 209.995 x 2."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.exits import TRAIL, Exits, Freqtrade
from app.domain.what_if.costs import Costs, costs_of, repriced
from app.domain.what_if.past import Traded

TRADE = Traded(2.0, 95.0, 19.37001, 110.0, 0.41999, 0.21)


@pytest.mark.parametrize(
    ("costs", "net"),
    [
        (Costs(), 19.37001),
        (Costs(fee=0.001, slippage=0.0005), 19.37001),
        (Costs(fee=0.0, slippage=0.0), 20.0),
        (Costs(fee=0.002), 19.79 - 0.002 * 209.995 * 2),
        (Costs(slippage=0.001), 2 * (109.89 - 100.1) - 0.001 * 209.99 * 2),
    ],
)
def test_a_trade_at_other_costs(costs: Costs, net: float) -> None:
    assert repriced(TRADE, 1, TRAIL, costs).net == pytest.approx(net, abs=1e-9)


def test_the_costs_that_were_paid_give_what_was_told_to_the_last_digit() -> None:
    assert repriced(TRADE, 1, TRAIL, Costs(fee=0.001, slippage=0.0005)).net == TRADE.net_pnl


def test_who_sells_first_pays_the_same_on_the_way_down() -> None:
    short = TRADE._replace(exit_price=100.0)
    assert repriced(short, -1, TRAIL, Costs(0.001, 0.0005)).net == TRADE.net_pnl
    assert repriced(short, -1, TRAIL, Costs(0.0, 0.0)).net == pytest.approx(20.0)


def test_prices_of_fills_hold_their_slippage() -> None:
    """Bought at 100 and sold at 110 as filled, fees 0.42: another fee alone can be told."""
    filled = TRADE._replace(net_pnl=19.58, fees=0.42, slippage=None)
    assert repriced(filled, 1, TRAIL, Costs(fee=0.0)).net == pytest.approx(20.0)
    unknown = repriced(filled, 1, TRAIL, Costs(slippage=0.001))
    assert (unknown.net, unknown.why) == (None, "not told of its trade: slippage")


def test_where_neither_is_another_costs_are_as_paid() -> None:
    assert costs_of(None, None) is None
    assert costs_of(0.0, None) == Costs(0.0, None)
    assert costs_of(None, 0.001) == Costs(None, 0.001)


def test_no_trade_costs_nothing() -> None:
    assert repriced(TRADE._replace(bought=False), 1, TRAIL, Costs(fee=0.01)).net == 0.0


@pytest.mark.parametrize(
    ("changes", "exits", "why"),
    [
        ({"net_pnl": None, "fees": None}, TRAIL, "not told of its trade: net profit, fees"),
        ({"quantity": 0.0}, TRAIL, "not told of its trade: quantity"),
        ({"net_pnl": 500.0}, TRAIL, "does not fit"),
        ({}, Freqtrade(hours=6, minimal_roi=((0, 0.04),)), "other fees are another exit"),
    ],
)
def test_what_cannot_be_known_is_told(changes: dict[str, Any], exits: Exits, why: str) -> None:
    other = repriced(TRADE._replace(**changes), 1, exits, Costs(fee=0.002))
    assert other.net is None
    assert why in other.why


def test_exits_by_price_alone_do_not_move_with_fees() -> None:
    assert repriced(TRADE, 1, Freqtrade(hours=6), Costs(fee=0.001)).net == TRADE.net_pnl
