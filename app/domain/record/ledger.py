"""The ledger: what a principal has reported of its own trades, by decision, and the account that
follows from it.

It tells what was reported and no more: equity and drawdown are not in it, and a trade that nobody
reported on is not either.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field, ValidationError

from app.domain.candidate import Direction
from app.domain.fields import Instant, Number, Record, ShortText
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Account, Derived, Plan, Position

MAX_POSITIONS = 256
OPEN_FOR = timedelta(days=30)
"""How long a trade counts as open, when nobody tells its end."""


LIVE_FOR = timedelta(hours=1)
"""How far a candidate's time may lie behind its arrival and still be now: a bar may be an hour."""


def came_late(as_of: datetime, arrived_at: datetime) -> bool:
    """Whether a candidate was asked about after its time: by a back-test, or out of a queue."""
    return arrived_at - as_of > LIVE_FOR


def is_replay(as_of: datetime, arrived_at: datetime) -> bool:
    """Whether a candidate is one of history: its market time lies further back than an account
    reaches. What is reported of it was never a part of the live account."""
    return arrived_at - as_of > OPEN_FOR


class Opened(Record):
    """A trade that the agent says it made."""

    symbol: ShortText
    quantity: Number
    """Base units; below 0: a short."""
    entry: Number
    stop: Number
    at: Instant


class Closed(Record):
    """How it ended, as the agent says."""

    at: Instant
    net: Number | None = Field(None, description="quote; not known when nobody told")
    traded: bool = True


class Note(NamedTuple):
    """What the ledger holds of one decision: its trade and its end, and when it was last told of
    it."""

    told_at: datetime
    opened: Opened | None = None
    closed: Closed | None = None

    def until(self, moment: datetime) -> Note | None:
        """What of it had happened by a moment; None when its trade had not. What tells of no trade
        has no time."""
        trade = self.opened if self.opened is not None and self.opened.at <= moment else None
        end = self.closed if self.closed is not None and self.closed.at <= moment else None
        if (trade, end) == (None, None) != (self.opened, self.closed):
            return None
        return self._replace(opened=trade, closed=end)


class Offer(NamedTuple):
    """What of a decision says what its trade is, where the agent's report does not."""

    symbol: str
    direction: Direction
    plan: Plan


def opened(action: AgentAction, offer: Offer, told_at: datetime) -> Opened | None:
    """The trade of an action; None when it is none, or nothing of it was filled."""
    if not action.decision:
        return None
    size = offer.plan.quantity if action.quantity is None else action.quantity
    if size == 0:
        return None
    return Opened(
        symbol=offer.symbol,
        quantity=-size if offer.direction is Direction.SHORT else size,
        entry=action.entry or offer.plan.entry,
        stop=action.stop or offer.plan.stop,
        at=action.decided_at or told_at,
    )


def closed(outcome: Outcome, trade: Opened | None, told_at: datetime) -> Closed:
    """The end of a trade. Money is what was told, or follows from the return on own risk."""
    net = outcome.net_pnl
    if net is None and outcome.r_multiple is not None and trade is not None:
        net = outcome.r_multiple * abs(trade.quantity) * abs(trade.entry - trade.stop)
    traded = outcome.outcome.value != "not_traded" and not outcome.exogenous_skip
    return Closed(at=outcome.exit_time or told_at, net=net, traded=traded)


def completed(
    sent: Account, ledger: Iterable[Note], as_of: datetime, now: datetime, names: Container[str]
) -> Account:
    """The account that was sent, with what it leaves open, of `names`, as the ledger has it. What
    was sent wins; what is derived is named, with the age of the newest report. An empty ledger
    tells nothing. A candidate that came late knows what had happened by its own time, no more."""
    notes = list(ledger)
    if came_late(as_of, now):
        notes = [seen for note in notes if (seen := note.until(as_of)) is not None]
    if not notes:
        return sent
    ended = sorted(
        (note.closed for note in notes if note.closed is not None and note.closed.traded),
        key=lambda end: end.at,
    )
    values: dict[str, object] = {
        "positions": _positions(notes, as_of),
        "day_pnl_fraction": _day(ended, sent.equity, as_of),
        **_losses(ended, as_of),
    }
    derived = {
        name: value
        for name, value in values.items()
        if value is not None
        and getattr(sent, name) is None
        and name in names
        and _can_be(name, value)
    }
    if not derived:
        return sent
    age_s = max((now - max(note.told_at for note in notes)).total_seconds(), 0.0)
    mark = Derived(fields=tuple(sorted(derived)), age_s=age_s)
    return sent.model_copy(update=derived | {"derived": mark})


def _can_be(name: str, value: object) -> bool:
    """Whether an account may say so: what an equity that fits no report makes of a day is not
    known."""
    try:
        Account.model_validate({name: value})
    except ValidationError:
        return False
    return True


def _positions(notes: Iterable[Note], as_of: datetime) -> tuple[Position, ...] | None:
    trades = [
        note.opened
        for note in notes
        if note.opened is not None and note.closed is None and as_of - note.opened.at <= OPEN_FOR
    ]
    if len(trades) > MAX_POSITIONS:
        return None
    return tuple(
        Position(
            symbol=trade.symbol,
            quantity=trade.quantity,
            entry=trade.entry,
            stop=trade.stop,
            opened_at=min(trade.at, as_of),
        )
        for trade in sorted(trades, key=lambda trade: trade.at)
    )


def _day(ended: Iterable[Closed], equity: float | None, as_of: datetime) -> float | None:
    """The day's net over the equity that the day began with; None without an equity, or when a
    trade's net was not told."""
    midnight = as_of.replace(hour=0, minute=0, second=0, microsecond=0)
    nets = [end.net for end in ended if end.at >= midnight]
    if equity is None or any(net is None for net in nets):
        return None
    total = sum(net for net in nets if net is not None)
    began = equity - total
    return total / began if began > 0 and total / began >= -1 else None


def _losses(ended: list[Closed], as_of: datetime) -> Mapping[str, float | int | None]:
    """Losing trades in a row, and how long ago the last was; unknown from a trade on whose net was
    not told."""
    losses = 0
    for end in reversed(ended):
        if end.net is None:
            return {}
        if end.net >= 0:
            break
        losses += 1
    if not losses:
        return {"consecutive_losses": 0}
    since = max((as_of - ended[-1].at).total_seconds(), 0.0)
    return {"consecutive_losses": losses, "seconds_since_loss": since}
