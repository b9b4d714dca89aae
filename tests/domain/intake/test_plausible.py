"""What a report may say: bounds that no market and no clock passes, each on its last value that
passes and on the next one."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import nextafter
from typing import Any

import pytest

from app.domain.errors import InvalidRecord
from app.domain.intake.plausible import ZONE, plausible
from app.domain.intake.reception import Received
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Fault
from tests.domain.scenarios import AS_OF

NOW = AS_OF + timedelta(days=2)


def outcome(**fields: Any) -> Outcome:
    return Outcome.from_json({"arm": "agent", "outcome": "sl", **fields})


def action(**fields: Any) -> AgentAction:
    return AgentAction.from_json({"decision": True, **fields})


def told(report: Any, now: datetime, as_of: datetime | None = None) -> dict[str, str]:
    """What is left out of a report, and why; everything else stays."""
    kept = plausible(Received(report), now, as_of)
    gone = {field.field: field.why for field in kept.left_out}
    assert kept.record == report.model_copy(update=dict.fromkeys(gone))
    assert all(field.fault is Fault.TIME for field in kept.left_out)
    return gone


@pytest.mark.parametrize(
    ("field", "most", "says"),
    [
        ("r_multiple", 1000.0, "r_multiple: 1000 is beyond 1000 times its own risk"),
        ("mfe_r", 1000.0, "mfe_r: 1000 is beyond 1000 times its own risk"),
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
    told(outcome(**{field: most}), NOW)
    with pytest.raises(InvalidRecord) as refused:
        told(outcome(**{field: nextafter(most, 2 * most)}), NOW)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("field", "most"), [("quantity", 1e15), ("size_usd", 1e12), ("entry", 1e12), ("stop", 1e12)]
)
def test_an_action_has_the_bounds_of_prices_money_and_size(field: str, most: float) -> None:
    told(action(**{field: most}), NOW)
    with pytest.raises(InvalidRecord, match=f"^{field}: .* is beyond"):
        told(action(**{field: nextafter(most, 2 * most)}), NOW)


def test_a_loss_has_the_bounds_of_a_profit() -> None:
    assert told(outcome(r_multiple=-1000.0, mae_r=-1000.0, net_pnl=-1e12), NOW) == {}
    with pytest.raises(InvalidRecord, match="r_multiple: -1001 is beyond 1000 times its own risk"):
        told(outcome(r_multiple=-1001.0), NOW)


def test_a_clock_may_be_an_hour_ahead_and_no_more() -> None:
    hour, more = NOW + timedelta(hours=1), NOW + timedelta(hours=1, microseconds=1)
    assert told(outcome(exit_time=hour), NOW) == {}
    assert told(action(decided_at=hour), NOW) == {}
    ahead = f"it is in the future; {ZONE}"
    assert told(outcome(exit_time=more, net_pnl=-50.0), NOW) == {"exit_time": ahead}
    assert told(action(decided_at=more), NOW) == {"decided_at": ahead}


def test_nothing_ends_before_it_was_decided_where_that_is_known() -> None:
    early = outcome(exit_time=AS_OF - timedelta(microseconds=1), net_pnl=-50.0)
    assert told(outcome(exit_time=AS_OF), NOW, AS_OF) == {}
    assert told(early, NOW) == {}
    assert told(early, NOW, AS_OF) == {
        "exit_time": f"it is before the decision, 2026-11-23T09:00:00+00:00; {ZONE}"
    }


def test_no_trade_is_held_for_longer_than_from_its_decision_to_its_end() -> None:
    ended = {"exit_time": AS_OF + timedelta(minutes=90)}
    assert told(outcome(**ended, holding_seconds=5400.0), NOW, AS_OF) == {}
    assert told(outcome(**ended, holding_seconds=5_400_000.0), NOW) == {}
    most = "from the decision to exit_time there are 5400 s"
    assert told(outcome(**ended, holding_seconds=5_400_000.0), NOW, AS_OF) == {
        "holding_seconds": f"likely milliseconds: {most}"
    }
    assert told(outcome(**ended, holding_seconds=9001.0), NOW, AS_OF) == {"holding_seconds": most}


def test_every_number_that_cannot_be_is_told_at_once() -> None:
    with pytest.raises(InvalidRecord) as refused:
        told(outcome(r_multiple=1.7e308, fees=2e12), NOW, AS_OF)
    assert str(refused.value) == (
        "r_multiple: 1.7e+308 is beyond 1000 times its own risk;"
        " fees: 2e+12 is beyond 1e+12 quote currency"
    )
