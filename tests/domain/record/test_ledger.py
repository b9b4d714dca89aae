"""The account that follows from an agent's own reports, by hand."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.candidate import Direction
from app.domain.record.ledger import (
    MAX_POSITIONS,
    Closed,
    Note,
    Offer,
    Opened,
    came_late,
    closed,
    completed,
    is_replay,
    opened,
)
from app.domain.scenario import Account, Plan
from tests.builders import agent_action, outcome
from tests.domain.scenarios import AS_OF

EVERY = frozenset(Account.model_fields)
OFFER = Offer(
    "ETHUSDT", Direction.LONG, Plan(entry=2000.0, stop=1970.0, targets=(2060.0,), quantity=0.25)
)


def ago(**parts: float) -> datetime:
    return AS_OF - timedelta(**parts)


def trade(symbol: str = "ETHUSDT", at: datetime = AS_OF) -> Opened:
    return Opened(symbol=symbol, quantity=0.25, entry=2000.0, stop=1970.0, at=at)


def ended(net: float | None, **parts: float) -> Note:
    at = ago(**parts)
    return Note(at, trade(at=at), Closed(at=at, net=net))


def account(*notes: Note, **sent: Any) -> Account:
    return completed(Account.from_json(sent), notes, AS_OF, AS_OF, EVERY)


def test_an_empty_ledger_tells_nothing() -> None:
    assert account() == Account()


def test_what_is_open_is_a_position_and_what_ended_is_none() -> None:
    told = account(
        Note(ago(hours=2), trade("SOLUSDT", ago(hours=2))), ended(5.0, hours=1), equity=10_000.0
    )
    [held] = told.positions or ()
    assert (held.symbol, held.quantity, held.opened_at) == ("SOLUSDT", 0.25, ago(hours=2))
    assert told.derived is not None
    assert told.derived.age_s == 3600.0
    assert told.derived.fields == ("consecutive_losses", "day_pnl_fraction", "positions")


def test_the_days_result_is_over_the_equity_that_the_day_began_with() -> None:
    """09:00: the trade of ten hours ago was yesterday's. -30 and -20 of 10,050: 9,950 + 50."""
    told = account(
        ended(500.0, hours=10), ended(-30.0, hours=3), ended(-20.0, hours=1), equity=9950.0
    )
    assert told.day_pnl_fraction == pytest.approx(-50 / 10_000)
    assert (told.consecutive_losses, told.seconds_since_loss) == (2, 3600.0)
    assert account(ended(-30.0, hours=3)).day_pnl_fraction is None, "no equity"


def test_a_day_that_no_account_has_is_not_known() -> None:
    """995 of an equity of 1,000, which began with 5: an agent that sends what is free."""
    assert account(ended(995.0, hours=1), equity=1_000.0).day_pnl_fraction is None
    assert account(ended(900.0, hours=1), equity=1_000.0).day_pnl_fraction == 9.0


@given(
    st.floats(min_value=1e-12, max_value=1e15),
    st.lists(st.floats(min_value=-1e12, max_value=1e12), min_size=1, max_size=4),
)
def test_whatever_follows_can_be_recorded(equity: float, nets: list[float]) -> None:
    """An event that is not of its own schema is answered, and then kept apart for ever."""
    notes = [ended(net, hours=hour) for hour, net in enumerate(nets, 1)]
    told = account(*notes, equity=equity)
    assert Account.from_json(told.as_json()) == told


def test_a_gain_ends_a_run_of_losses_and_a_net_that_nobody_told_leaves_it_unknown() -> None:
    told = account(ended(-30.0, hours=3), ended(1.0, hours=2))
    assert (told.consecutive_losses, told.seconds_since_loss) == (0, None)
    unknown = account(ended(-30.0, hours=3), ended(None, hours=2), equity=1e4)
    assert (unknown.consecutive_losses, unknown.day_pnl_fraction) == (None, None)
    assert unknown.positions == ()


def test_what_was_sent_wins_and_what_was_left_out_stays_so() -> None:
    open_trade = Note(ago(hours=1), trade())
    sent = account(open_trade, positions=[], consecutive_losses=3, day_pnl_fraction=0.0)
    assert (sent.positions, sent.consecutive_losses, sent.derived) == ((), 3, None)
    kept = completed(Account(), [open_trade], AS_OF, AS_OF, EVERY - {"positions"})
    assert kept.positions is None


def test_a_trade_is_what_the_report_says_and_else_the_plan() -> None:
    plain = opened(agent_action(True), OFFER, AS_OF)
    assert plain == trade()
    own = opened(agent_action(True, quantity=0.1, entry=2001.0, stop=1980.0), OFFER, AS_OF)
    assert own is not None
    assert (own.quantity, own.entry, own.stop) == (0.1, 2001.0, 1980.0)
    short = opened(agent_action(True), OFFER._replace(direction=Direction.SHORT), AS_OF)
    assert short is not None
    assert short.quantity == -0.25
    assert opened(agent_action(False), OFFER, AS_OF) is None
    assert opened(agent_action(True, quantity=0.0), OFFER, AS_OF) is None, "nothing was filled"


def test_an_end_counts_its_money_or_its_r_over_the_orders_own_risk() -> None:
    own = Opened(symbol="ETHUSDT", quantity=0.1, entry=2000.0, stop=1980.0, at=AS_OF)
    assert closed(outcome(r=-1.0, net_pnl=-7.0), own, AS_OF).net == -7.0
    assert closed(outcome(r=-1.0, net_pnl=None), own, AS_OF).net == pytest.approx(-2.0)
    skipped = closed(outcome(r=-1.0, exogenous_skip=True), own, AS_OF)
    assert not skipped.traded
    assert account(Note(AS_OF, own, skipped)).consecutive_losses == 0


def test_more_open_trades_than_a_request_may_hold_are_not_known_rather_than_fewer() -> None:
    def held(count: int) -> int | None:
        notes = [
            Note(ago(minutes=1), trade(f"C{n}USDT", ago(minutes=1)), None) for n in range(count)
        ]
        positions = account(*notes).positions
        return None if positions is None else len(positions)

    assert held(MAX_POSITIONS) == 256
    assert held(MAX_POSITIONS + 1) is None


def test_what_was_opened_over_thirty_days_before_the_candidate_is_open_no_more() -> None:
    old, young = ago(days=30, seconds=1), ago(days=30)
    told = account(Note(AS_OF, trade("OLDUSDT", old)), Note(AS_OF, trade("NEWUSDT", young)))
    assert [position.symbol for position in told.positions or ()] == ["NEWUSDT"]
    assert account(Note(AS_OF, trade(at=old))).positions == ()


def test_a_candidate_from_further_back_than_an_account_reaches_is_one_of_a_replay() -> None:
    assert not is_replay(AS_OF, AS_OF)
    assert not is_replay(ago(days=30), AS_OF)
    assert is_replay(ago(days=30, seconds=1), AS_OF)
    assert not is_replay(AS_OF, ago(days=40)), "a candidate ahead of the clock is refused elsewhere"


def test_a_candidate_that_came_late_knows_what_had_happened_by_its_own_time() -> None:
    """A day's trades, told in any order: of two losses and two trades, one each had happened."""
    notes = [
        ended(-30.0, hours=2),
        Note(AS_OF, trade("NEXTUSDT", ago(hours=-3)), Closed(at=ago(hours=-1), net=-60.0)),
        Note(AS_OF, trade("HELDUSDT", ago(hours=4)), Closed(at=ago(hours=-2), net=-60.0)),
        Note(AS_OF, trade("LATERUSDT", ago(hours=-4))),
    ]
    sent = Account(equity=9970.0)
    told = completed(sent, notes, AS_OF, ago(days=-20), EVERY)
    assert [position.symbol for position in told.positions or ()] == ["HELDUSDT"]
    assert (told.consecutive_losses, told.seconds_since_loss) == (1, 7200.0)
    assert told.day_pnl_fraction == pytest.approx(-30 / 10_000)
    assert completed(sent, notes[3:], AS_OF, ago(days=-20), EVERY) == sent, "nothing had happened"
    skipped = completed(sent, [*notes[3:], Note(AS_OF)], AS_OF, ago(days=-20), EVERY)
    assert (skipped.positions, skipped.consecutive_losses) == ((), 0)
    at_once = completed(sent, notes, AS_OF, ago(minutes=-60), EVERY)
    assert len(at_once.positions or ()) == 1
    assert at_once.consecutive_losses == 3, "what was told before a candidate of now counts"
    assert came_late(AS_OF, ago(minutes=-61))
    assert not came_late(AS_OF, ago(minutes=-60))
