"""One engine for all arms: candle tables by hand, the same orders in vectorbt, and rules as
properties."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.exits import TRAIL
from tests.training.support.candles import HOUR, START, random_walk, table
from training.judging.contest.portfolio import (
    Book,
    Clock,
    Curve,
    PortfolioError,
    Refused,
    Size,
    Trades,
    buy_and_hold,
    drawdown,
    trade,
)
from training.market.bars import Bars
from training.outcomes.orders import Orders
from training.outcomes.simulate import Costs, simulate

VECTORBT = Path(__file__).parents[3] / "golden" / "vectorbt.json"
FREE = Costs(0.0, 0.0)
Row = tuple[int, int, int, float, float]


def trades(*rows: Row, size: float = 1.0, r: float = 0.5) -> Trades:
    """Rows of (symbol, hour of entry, hour of exit, bought, sold); hour 0 is the open of the first
    bar."""
    symbol, entered, exited, bought, sold = (np.array(column) for column in zip(*rows, strict=True))
    many = np.ones(len(rows))
    return Trades(
        symbol, START + HOUR * entered, START + HOUR * exited, bought.astype(float),
        sold.astype(float), many * r,
        many * size,
    )  # fmt: skip


def flat(*closes: float, symbol: str = "BTCUSDT") -> Bars:
    """Bars whose four prices are the close."""
    return replace(table(*[(c, c, c, c) for c in closes]), symbol=symbol)


def counted(book: Book) -> dict[str, int]:
    return {reason.value: count for reason, count in book.refused.items() if count}


def test_equity_is_marked_at_every_close_and_ends_with_the_profit_after_costs() -> None:
    # Two units bought at 100: price 101 with 1 % slippage, fee 0.2 % -> 101.202 each, 202.404 in
    # all. Sold at 110: 108.9 with slippage, less the fee 108.6822 -> 217.3644. Profit 14.9604.
    clock = Clock([flat(100, 104, 98, 110, 110)])
    book = trade(
        clock,
        trades((0, 1, 4, 100, 110), size=2.0),
        capital=1000,
        costs=Costs(fee=0.002, slippage=0.01),
    )
    assert book.curve.value == pytest.approx(
        [1000, 797.596 + 208, 797.596 + 196, 1014.9604, 1014.9604]
    )
    assert book.pnl == pytest.approx([14.9604])
    assert book.r.tolist() == [0.5]
    assert book.exposed == pytest.approx([0, 208, 196, 0, 0])
    assert book.notional == pytest.approx([420])
    assert book.held_s.tolist() == [3 * HOUR]


def test_a_trade_that_enters_and_leaves_within_one_bar_is_seen_only_by_its_profit() -> None:
    book = trade(Clock([flat(100, 100, 100)]), trades((0, 1, 2, 100, 97)), capital=1000, costs=FREE)
    assert book.curve.value == pytest.approx([1000, 997, 997])
    assert not book.exposed.any()


def test_what_leaves_in_a_bar_makes_room_at_the_next_open_and_not_before() -> None:
    clock = Clock([flat(*[100] * 6), flat(*[50] * 6, symbol="ETHUSDT")])
    orders = trades((0, 0, 3, 100, 101), (1, 2, 4, 50, 60), (1, 3, 5, 50, 52))
    book = trade(clock, orders, capital=1000, costs=FREE)
    assert book.taken.tolist() == [0, 2]
    assert counted(book) == {"max_open": 1}
    assert book.curve.value == pytest.approx([1000, 1000, 1001, 1001, 1003, 1003])


def test_with_more_open_trades_a_symbol_still_has_one_at_a_time() -> None:
    clock = Clock([flat(*[100] * 6), flat(*[50] * 6, symbol="ETHUSDT")])
    orders = trades((0, 0, 4, 100, 101), (0, 1, 3, 100, 99), (1, 1, 3, 50, 60))
    book = trade(clock, orders, capital=1000, max_open=2, costs=FREE)
    assert book.taken.tolist() == [0, 2]
    assert counted(book) == {"symbol_open": 1}


def test_orders_of_one_moment_are_taken_as_they_are_listed() -> None:
    clock = Clock([flat(*[100] * 4), flat(*[50] * 4, symbol="ETHUSDT")])
    one, other = (0, 1, 3, 100.0, 101.0), (1, 1, 3, 50.0, 60.0)
    assert trade(clock, trades(one, other), capital=1000, costs=FREE).pnl.tolist() == [1.0]
    assert trade(clock, trades(other, one), capital=1000, costs=FREE).pnl.tolist() == [10.0]


def test_size_rules_follow_equity_at_entry_and_cash_bounds_them() -> None:
    clock = Clock([flat(*[100] * 8)])
    rows = trades((0, 1, 2, 100, 110), (0, 3, 4, 100, 90), size=0.5)
    spent = trade(clock, rows, capital=1000, size=Size.OF_EQUITY, costs=FREE)
    assert spent.quantity == pytest.approx([5.0, 5.25])  # half of 1000, half of 1050
    bounded = trade(
        clock, replace(rows, size=np.full(2, 30.0)), capital=1000, costs=Costs(0.001, 0.0)
    )
    assert bounded.quantity[0] == pytest.approx(1000 / 100.1)
    # Of 30 units that would have earned 0.5 R the cash paid a third.
    assert bounded.r[0] == pytest.approx(0.5 * 1000 / 100.1 / 30)


def test_equity_at_entry_counts_open_trades_at_the_last_close_before() -> None:
    clock = Clock([flat(100, 120, 80, 80, 80), flat(*[50] * 5, symbol="ETHUSDT")])
    rows = trades((0, 0, 4, 100, 80), (1, 2, 3, 50, 50))
    book = trade(
        clock,
        replace(rows, size=np.array([0.4, 0.25])),
        capital=1000,
        size=Size.OF_EQUITY,
        max_open=2,
        costs=FREE,
    )
    # 120 is the close when the bar opens.
    assert book.quantity == pytest.approx([4.0, (600 + 4 * 120) * 0.25 / 50])


def test_without_cash_an_order_is_refused() -> None:
    clock = Clock([flat(*[100] * 6), flat(*[50] * 6, symbol="ETHUSDT")])
    rows = replace(trades((0, 0, 4, 100, 101), (1, 1, 3, 50, 60)), size=np.array([10.0, 1.0]))
    assert counted(trade(clock, rows, capital=1000, max_open=2, costs=FREE)) == {"no_cash": 1}


def test_unknown_fates_and_orders_outside_the_clock_are_counted_and_not_taken() -> None:
    bars = flat(*[100] * 10)
    clock = Clock([bars], START + 3 * HOUR, START + 8 * HOUR)
    rows = trades(
        (0, 1, 4, 100, 101), (0, 2, 4, 100, 101), (0, 5, 9, 100, 101), (0, 6, 8, 100, np.nan)
    )
    book = trade(clock, rows, capital=1000, costs=FREE)
    assert book.taken.tolist() == [1]  # it enters at the open of the clock's first bar
    assert counted(book) == {"outside": 2, "unresolved": 1}


def test_no_trades_leave_the_capital_as_it_was() -> None:
    clock = Clock([flat(*[100] * 5)])
    book = trade(clock, trades((0, 1, 2, 100, 101)).at(np.array([], dtype=np.int64)), capital=1000)
    assert book.curve.value.tolist() == [1000.0] * 5
    assert len(book.pnl) == 0
    assert set(book.refused) == set(Refused)


def test_where_bars_are_missing_the_last_close_stands() -> None:
    holed = table(*[(c, c, c, c) for c in (100, 105, 120, 121)])
    holed = replace(holed, closed_at=holed.closed_at + HOUR * np.array([0, 0, 2, 2]))
    other = flat(*[50] * 6, symbol="ETHUSDT")
    book = trade(Clock([holed, other]), trades((0, 0, 6, 100, 121)), capital=1000, costs=FREE)
    assert book.curve.value == pytest.approx([1000, 1005, 1005, 1005, 1020, 1021])


def test_before_its_first_close_a_symbol_is_worth_what_was_paid() -> None:
    late = replace(
        table((100, 100, 100, 110), (110, 110, 110, 120), seconds=2 * HOUR), symbol="ETHUSDT"
    )
    book = trade(
        Clock([flat(*[50] * 4), late]), trades((1, 0, 4, 100, 120)), capital=1000, costs=FREE
    )
    assert book.curve.value == pytest.approx([1000, 1010, 1010, 1020])


def test_buy_and_hold_puts_equal_capital_into_every_symbol_and_pays_costs_once_each_way() -> None:
    clock = Clock([flat(100, 110, 120), flat(50, 50, 25, symbol="ETHUSDT")])
    book = buy_and_hold(clock, capital=1000, costs=Costs(fee=0.001, slippage=0.0))
    units = 500 / 1.001  # money that reaches each market
    assert book.curve.value[:2] == pytest.approx([2 * units, units * 1.1 + units])
    assert np.isnan(book.r).all()
    assert book.curve.value[2] == pytest.approx((units * 1.2 + units * 0.5) * 0.999)


def test_the_curve_has_its_own_clock() -> None:
    bars = random_walk(24 * 40)
    curve = buy_and_hold(Clock([bars]), capital=1000).curve
    assert curve.begins_at == START
    assert curve.steps_per_year == pytest.approx(365.25 * 24)
    daily = curve.sampled(24 * HOUR)
    assert len(daily.at) == 40
    assert daily.at.tolist() == curve.at[23::24].tolist()
    assert daily.steps_per_year == pytest.approx(365.25)
    assert np.prod(1 + daily.returns) == pytest.approx(np.prod(1 + curve.returns))


def test_profit_and_r_are_those_of_the_outcomes() -> None:
    bars = random_walk(3000, seed=3)
    at = np.arange(60, 2900, 11)
    close, atr = bars.close[at], bars.close[at] * 0.01
    plans = Orders(
        np.full(len(at), bars.symbol),
        bars.closed_at[at],
        close,
        close - 1.5 * atr,
        close[:, None] + atr[:, None] * np.array([3.0, 4.0, 5.0]),
        atr,
        np.full(len(at), 1e-4),
        1.5 * atr * 1e-4,
        np.full(len(at), TRAIL, dtype=object),
    )
    fates = simulate(bars, plans)
    symbol = np.zeros(len(at), dtype=np.int64)
    orders = Trades.of(symbol, fates, fates.net / plans.plan_risk, plans.quantity)
    book = trade(Clock([bars]), orders, capital=1000)
    assert len(book.taken) == len(at)  # eleven hours apart: no two at a time
    assert book.r == pytest.approx(book.pnl / plans.plan_risk)
    assert book.pnl == pytest.approx(fates.net)
    assert book.curve.value[-1] == pytest.approx(1000 + fates.net.sum())


def test_a_drawdown_is_a_share_of_the_last_peak_and_the_beginning_is_one() -> None:
    value = np.array([90.0, 110, 99, 121, 60.5])
    curve = Curve(START, START + HOUR * np.arange(1, 6), value, 100.0)
    assert curve.drawdown == pytest.approx([0.1, 0.0, 0.1, 0.0, 0.5])
    assert drawdown(np.array([[50.0, 60.0], [110.0, 88.0]]), 100.0) == pytest.approx(
        np.array([[0.5, 0.4], [0.0, 0.2]])
    )


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(VECTORBT.read_text())
    return found


def test_vectorbt_makes_the_same_of_the_same_orders() -> None:
    record = recorded()
    market = [
        replace(
            table(
                *[
                    (o, max(o, c), min(o, c), c)
                    for o, c in zip(one["open"], one["close"], strict=True)
                ]
            ),
            symbol=name,
        )
        for name, one in zip(("BTCUSDT", "ETHUSDT"), record["symbols"], strict=True)
    ]
    assert record["begins_at"] == START
    rows = [
        (o["symbol"], o["hour"], o["hour"] + o["length"] + 1, o["bought"], o["sold"])
        for o in record["orders"]
    ]
    orders = replace(trades(*rows), size=np.array([o["quantity"] for o in record["orders"]]))
    costs = Costs(record["fee"], record["slippage"])
    book = trade(Clock(market), orders, capital=record["capital"], max_open=2, costs=costs)
    assert book.taken.tolist() == record["taken"]
    assert book.quantity == pytest.approx(record["quantity"], rel=1e-9)
    assert book.pnl == pytest.approx(record["pnl"], rel=1e-9)
    assert book.curve.value == pytest.approx(record["equity"], rel=1e-9)
    assert (book.quantity < orders.size[book.taken] * 0.99).any(), (
        "some order was cut down to the cash"
    )


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(list(Size)))
def test_equity_ends_with_all_profits_and_no_rule_is_broken(
    seed: int, max_open: int, size: Size
) -> None:
    source = np.random.default_rng(seed)
    bars = [
        random_walk(200, seed + k, symbol)
        for k, symbol in enumerate(("BTCUSDT", "ETHUSDT", "LTCUSDT"))
    ]
    symbol, entry = source.integers(0, 3, 60), source.integers(0, 190, 60)
    exit_ = np.minimum(entry + source.integers(1, 8, 60), 200)
    bought = np.array([bars[s].open[i] for s, i in zip(symbol, entry, strict=True)])
    rows = list(
        zip(symbol, entry, exit_, bought, bought * np.exp(source.normal(0, 0.02, 60)), strict=True)
    )
    orders = replace(trades(*rows), size=np.full(60, 0.2 if size is not Size.UNITS else 0.01))
    book = trade(Clock(bars), orders, capital=1000, max_open=max_open, size=size)
    assert book.curve.value[-1] == pytest.approx(1000 + book.pnl.sum())
    assert len(book.taken) + sum(book.refused.values()) == 60
    assert (book.curve.value > 0).all()
    for at in bars[0].closed_at:
        live = book.taken[
            (orders.entered_at[book.taken] < at) & (orders.exited_at[book.taken] >= at)
        ]
        assert len(live) <= max_open
        assert len(set(orders.symbol[live])) == len(live)


@pytest.mark.parametrize(
    "broken",
    [
        {"bought": np.array([0.0])},
        {"size": np.array([np.nan])},
        {"exited_at": np.array([START])},
        {"symbol": np.array([3])},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_trade_that_cannot_be_is_refused_loudly(broken: dict[str, Any]) -> None:
    rows = replace(trades((0, 1, 2, 100, 101)), **broken)
    with pytest.raises(PortfolioError):
        trade(Clock([flat(*[100] * 5)]), rows, capital=1000)


def test_a_portfolio_without_capital_or_bars_is_refused_loudly() -> None:
    bars = flat(*[100] * 5)
    with pytest.raises(PortfolioError, match="capital"):
        trade(Clock([bars]), trades((0, 1, 2, 100, 101)), capital=0)
    with pytest.raises(PortfolioError, match="has none"):
        Clock([bars.part(0, 0)])
    with pytest.raises(PortfolioError, match="no bar closes"):
        Clock([bars], START + 100 * HOUR)
