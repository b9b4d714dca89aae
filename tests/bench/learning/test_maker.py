"""Orders that wait, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench.learning.maker import MAKER_FEE, PAPER, TAKER, Traded, arms, filled, table

THREE = Traded(
    days=np.array([1, 2, 3]),
    entry=np.full(3, 100.0),
    atr=np.full(3, 2.0),
    risk=np.full(3, 3.0),
    bought=np.array([100.0, 100.5, 99.9]),
    sold=np.array([103.0, 97.0, 104.0]),
    low=np.array([99.7, 96.9, 99.5]),
    quick=np.array([False, False, True]),
    by_target=np.array([True, False, False]),
)
"""One that dips and wins at a target, one that falls, and one that wins within its first bar."""


def test_an_order_is_filled_where_price_trades_below_it_and_a_quick_win_counts_as_missed() -> None:
    assert filled(THREE, np.full(3, 100.0)).tolist() == [True, True, False]
    assert filled(THREE, np.full(3, 99.7)).tolist() == [False, True, False]


def test_what_each_way_of_buying_earns_by_hand() -> None:
    told = arms(THREE, 0.0015)
    values, whole = told[TAKER]
    assert whole.all()
    assert values[0] == pytest.approx((103 * 0.9985 - 100 * 1.0015) / 3)
    assert told[PAPER][0][1] == pytest.approx((97 * (1 - MAKER_FEE) - 100.5 * (1 + MAKER_FEE)) / 3)
    waited, there = told["limit 0.1 ATR below entry"]
    assert there.tolist() == [True, True, False]
    # 0.2 below 100; the winner sells by a target, the loser as takers do.
    assert waited.tolist() == pytest.approx([
        (103 * (1 - MAKER_FEE) - 99.8 * (1 + MAKER_FEE)) / 3,
        (97 * 0.9985 - 99.8 * (1 + MAKER_FEE)) / 3,
        0.0,
    ])  # fmt: skip
    missed, of_them = told["limit 0.1 ATR below entry: what it missed, by takers"]
    assert of_them.tolist() == [False, False, True]
    assert missed.tolist() == [0, 0, values[2]]


def test_a_limit_is_never_above_what_a_taker_pays() -> None:
    waited, _ = arms(THREE._replace(low=np.full(3, 90.0)), 0.0015)["limit 0 ATR below entry"]
    assert waited[1] == pytest.approx((97 * 0.9985 - 100.0 * (1 + MAKER_FEE)) / 3)


def test_the_table_has_r_by_candidate_and_by_trade() -> None:
    lines = list(
        table({"half": (np.array([1.0, 0, 0]), np.array([True, False, False]))}, THREE.days)
    )
    assert lines[2].startswith("| half | 33.3% | +0.333 [")
    assert "| +1.000 [" in lines[2]
