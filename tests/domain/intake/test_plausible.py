"""What a report may say: bounds that no market and no clock passes, each on its last value that
passes and on the next one."""

from __future__ import annotations

from datetime import timedelta
from math import nextafter
from typing import Any

import pytest

from app.domain.errors import InvalidRecord
from app.domain.intake.plausible import require_plausible
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from tests.domain.scenarios import AS_OF

NOW = AS_OF + timedelta(days=2)


def outcome(**fields: Any) -> Outcome:
    return Outcome.from_json({"arm": "agent", "outcome": "sl", **fields})


def action(**fields: Any) -> AgentAction:
    return AgentAction.from_json({"decision": True, **fields})


@pytest.mark.parametrize(
    ("field", "most", "says"),
    [
        ("r_multiple", 1000.0, "r_multiple: 1000 is beyond 1000 R"),
        ("mfe_r", 1000.0, "mfe_r: 1000 is beyond 1000 R"),
        ("net_pnl", 1e12, "net_pnl: 1e+12 is beyond 1e+12 quote currency"),
        ("fees", 1e12, "fees: 1e+12 is beyond 1e+12 quote currency"),
        ("slippage", 1e12, "slippage: 1e+12 is beyond 1e+12 quote currency"),
        ("exit_price", 1e12, "exit_price: 1e+12 is beyond 1e+12 quote currency"),
        ("max_price", 1e12, "max_price: 1e+12 is beyond 1e+12 quote currency"),
        ("pnl_pct", 1e6, "pnl_pct: 1e+06 is beyond 1e+06 percent"),
        ("holding_seconds", 316_224_000.0, "holding_seconds: 3.16224e+08 is beyond"),
    ],
)
def test_an_outcome_says_nothing_that_no_market_can_give(
    field: str, most: float, says: str
) -> None:
    require_plausible(outcome(**{field: most}), NOW)
    with pytest.raises(InvalidRecord) as refused:
        require_plausible(outcome(**{field: nextafter(most, 2 * most)}), NOW)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("field", "most"), [("quantity", 1e15), ("size_usd", 1e12), ("entry", 1e12), ("stop", 1e12)]
)
def test_an_action_has_the_bounds_of_prices_money_and_size(field: str, most: float) -> None:
    require_plausible(action(**{field: most}), NOW)
    with pytest.raises(InvalidRecord, match=f"^{field}: .* is beyond"):
        require_plausible(action(**{field: nextafter(most, 2 * most)}), NOW)


def test_a_loss_has_the_bounds_of_a_profit() -> None:
    require_plausible(outcome(r_multiple=-1000.0, mae_r=-1000.0, net_pnl=-1e12), NOW)
    with pytest.raises(InvalidRecord, match="r_multiple: -1001 is beyond 1000 R"):
        require_plausible(outcome(r_multiple=-1001.0), NOW)


def test_a_clock_may_be_an_hour_ahead_and_no_more() -> None:
    hour, more = NOW + timedelta(hours=1), NOW + timedelta(hours=1, microseconds=1)
    require_plausible(outcome(exit_time=hour), NOW)
    require_plausible(action(decided_at=hour), NOW)
    with pytest.raises(InvalidRecord, match=r"exit_time: 2026-11-25T10:00:00\.000001.* the future"):
        require_plausible(outcome(exit_time=more), NOW)
    with pytest.raises(
        InvalidRecord, match=r"decided_at: 2026-11-25T10:00:00\.000001.* the future"
    ):
        require_plausible(action(decided_at=more), NOW)


def test_nothing_ends_before_it_was_decided_where_that_is_known() -> None:
    early = outcome(exit_time=AS_OF - timedelta(microseconds=1))
    require_plausible(outcome(exit_time=AS_OF), NOW, AS_OF)
    require_plausible(early, NOW)
    with pytest.raises(InvalidRecord, match=r"exit_time: 2026-11-23T08:59:59\.999999.* is before"):
        require_plausible(early, NOW, AS_OF)


def test_no_trade_is_held_for_longer_than_from_its_decision_to_its_end() -> None:
    ended = {"exit_time": AS_OF + timedelta(minutes=90)}
    require_plausible(outcome(**ended, holding_seconds=5400.0), NOW, AS_OF)
    require_plausible(outcome(**ended, holding_seconds=5_400_000.0), NOW)
    with pytest.raises(InvalidRecord, match=r"holding_seconds: 5\.4e\+06 \(likely milliseconds\)"):
        require_plausible(outcome(**ended, holding_seconds=5_400_000.0), NOW, AS_OF)
    with pytest.raises(InvalidRecord, match=r"holding_seconds: 9001, and .* 5400 s"):
        require_plausible(outcome(**ended, holding_seconds=9001.0), NOW, AS_OF)


def test_every_fault_of_a_report_is_told_at_once() -> None:
    late = NOW + timedelta(days=1)
    with pytest.raises(InvalidRecord) as refused:
        require_plausible(outcome(r_multiple=1.7e308, fees=2e12, exit_time=late), NOW, AS_OF)
    assert str(refused.value) == (
        "r_multiple: 1.7e+308 is beyond 1000 R; fees: 2e+12 is beyond 1e+12 quote currency; "
        "exit_time: 2026-11-26T09:00:00+00:00 is in the future"
    )
