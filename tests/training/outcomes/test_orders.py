"""An order is made of a plan in one place, one at a time or as arrays."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from math import inf, isnan
from typing import Any

import numpy as np
import pytest

from app.domain.exits import REPORTED, TRAIL, Exits, Fixed
from tests.builders import scenario
from tests.domain.scenarios import AS_OF
from training.outcomes.orders import Order, Orders, plan_order


def test_a_plan_is_an_order_of_its_own_second_with_its_nearest_three_targets() -> None:
    subject = scenario(as_of=AS_OF + timedelta(microseconds=1), plan__targets=[9e5, 7e5, 8e5, 6e5])
    order = plan_order(subject)
    plan = subject.plan
    assert order.as_of == int(AS_OF.timestamp()) + 1
    assert order.targets == (6e5, 7e5, 8e5)
    assert (order.entry, order.stop, order.quantity) == (plan.entry, plan.stop, plan.quantity)
    assert order.risk == order.plan_risk == plan.risk
    assert plan_order(scenario(plan__targets=[9e5])).targets == (9e5, inf, inf)


def test_a_short_is_no_order_that_anybody_could_follow() -> None:
    order = plan_order(scenario(candidate__direction="short"))
    assert isnan(order.quantity)
    assert not order.sound
    assert not Orders.of([order]).placed.any()


@pytest.mark.parametrize(
    "broken", [{"stop": 100.0}, {"quantity": 0.0}, {"atr": 0.0}, {"quantity": float("nan")}]
)
def test_an_order_is_sound_alone_as_among_others(broken: dict[str, Any]) -> None:
    whole = Order("BTCUSDT", 0, 100.0, 97.0, (106.0, inf, inf), 2.0, 5.0, 15.0)
    other = whole._replace(**broken)
    assert Orders.of([whole, other]).sound.tolist() == [whole.sound, other.sound] == [True, False]


def test_a_smaller_order_risks_less_of_the_same_plan() -> None:
    whole = Order("BTCUSDT", 0, 100.0, 97.0, (106.0, inf, inf), 2.0, 5.0, 15.0)
    part = whole._replace(stop=98.0, quantity=2.0)
    assert (part.risk, part.plan_risk) == (4.0, 15.0)


def test_columns_are_taken_joined_and_kept_row_by_row() -> None:
    many = [
        Order("BTCUSDT", n, 100.0 + n, 90.0, (200.0, inf, inf), 2.0, 1.0 + n, 9.0) for n in range(5)
    ]
    orders = Orders.of(many)
    assert len(orders) == 5
    joined = Orders.joined([orders.at(np.arange(2)), orders.at(np.arange(2, 5))])
    for name, values in vars(orders).items():
        assert getattr(joined, name).tolist() == values.tolist()
    kept = orders.only(np.array([True, False, True, False, False]))
    assert kept.placed.tolist() == [True, False, True, False, False]
    assert kept.entry.tolist() == orders.entry.tolist()
    copy = replace(orders, entry=orders.entry.copy())
    copy.put(np.array([3]), orders.at(np.array([0])))
    assert copy.entry.tolist() == [100.0, 101.0, 102.0, 100.0, 104.0]


def test_orders_are_grouped_by_what_their_exits_say_whatever_object_says_it() -> None:
    whole = Order("BTCUSDT", 0, 100.0, 97.0, (106.0, inf, inf), 2.0, 5.0, 15.0)
    kinds: list[Exits] = [TRAIL, Fixed(hours=24), TRAIL, REPORTED, Fixed(hours=24), Fixed(hours=8)]
    orders = Orders.of([whole._replace(exits=exits) for exits in kinds])
    groups = {exits: rows.tolist() for exits, rows in orders.by_exits()}
    assert groups == {
        TRAIL: [0, 2],
        Fixed(hours=24): [1, 4],
        REPORTED: [3],
        Fixed(hours=8): [5],
    }
    hour = 3600
    assert orders.longest.tolist() == [6 * hour, 24 * hour, 6 * hour, 0, 24 * hour, 8 * hour]
    assert Orders.of([]).by_exits() == []


def test_what_a_scenario_declares_is_its_orders_exits() -> None:
    assert plan_order(scenario()).exits == TRAIL
    declared = {"kind": "fixed", "hours": 24.0}
    assert plan_order(scenario(plan__exits=declared)).exits == Fixed(hours=24)
    blind = plan_order(scenario(plan__exits=declared, candidate__atr=None))
    assert blind.sound
    assert not blind._replace(exits=TRAIL).sound
    assert not blind._replace(exits=REPORTED).sound
