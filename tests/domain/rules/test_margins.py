"""What rules observed, by hand and by the rules themselves."""

from __future__ import annotations

import pytest
from hypothesis import given

from app.domain.rules.limits import Limits
from app.domain.rules.margins import margins
from app.domain.rules.review import review
from app.domain.rules.vetoes import VetoCode
from app.domain.scenario import Scenario
from tests.domain.scenarios import case, sane_scenarios, scenario

LIMITS = Limits(version="test")


def test_the_spread_is_four_below_its_limit() -> None:
    judged = case(scenario(candidate__spread_bps=6.0))
    [spread] = [m for m in margins(judged, LIMITS) if m.code is VetoCode.SPREAD]
    assert (spread.name, spread.limit, spread.observed) == ("spread.max_bps", 10.0, 6.0)
    assert spread.room == pytest.approx(4.0)
    assert not spread.caps


def test_what_exceeds_its_limit_has_less_than_no_room() -> None:
    judged = case(scenario(candidate__spread_bps=12.5))
    [spread] = [m for m in margins(judged, LIMITS) if m.code is VetoCode.SPREAD]
    assert (spread.observed, spread.room) == (12.5, -2.5)


def test_a_stop_is_told_in_atr_and_as_a_share_of_price() -> None:
    """Entry 2000, stop 1970: 30, with an ATR of 20 one and a half."""
    told = {m.name: m for m in margins(case(scenario(candidate__atr=20.0)), LIMITS)}
    assert told["stop_distance.min_atr"].observed == pytest.approx(1.5)
    assert told["stop_distance.max_atr"].room == pytest.approx(1.5)
    assert told["stop_distance.max_fraction"].observed == pytest.approx(0.015)


def test_what_a_limit_caps_is_no_refusal() -> None:
    judged = case(scenario(plan__quantity=100.0))
    told = {m.name: m for m in margins(judged, LIMITS)}
    assert told["risk_per_trade.max_equity_fraction"].caps


def test_a_missing_input_has_no_margin() -> None:
    told = margins(case(scenario(candidate__spread_bps=None)), LIMITS)
    assert VetoCode.SPREAD not in {m.code for m in told}


@given(sane_scenarios())
def test_less_than_no_room_is_a_veto_or_a_cap(drawn: Scenario) -> None:
    judged = case(drawn)
    refused = {veto.code for veto in review(judged, LIMITS).vetoes}
    for margin in margins(judged, LIMITS):
        assert margin.room >= 0 or margin.caps or margin.code in refused, margin
