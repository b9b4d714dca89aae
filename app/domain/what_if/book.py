"""The agent's account, had other orders been refused, or other costs been paid."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from heapq import heappop, heappush
from typing import NamedTuple

from app.domain.scenario import Account
from app.domain.what_if.past import Past

FORGET = timedelta(hours=24)
"""After a loss, when nothing more is traded."""


class _Trade(NamedTuple):
    """A trade of the agent's that ends: when, with what profit as reported and in this book (0:
    nobody told), and whether the limits let it be made. In order of its end."""

    at: datetime
    reported: float
    net_pnl: float
    symbol: str
    taken: bool


class Book:
    """The agent's account, had it obeyed some limits.

    What the record reports stands, less the trades that these limits refused: their positions are
    closed, their profit of the day is taken back, losses in a row are counted over the trades that
    were left, and forgotten `forget` after the last one: a rule that stops trading would otherwise
    stop it for ever, where a person lets it go on. A trade that would have earned otherwise counts
    with what it would have earned. Drawdown stays as reported, and nothing is opened in the place
    of what was refused.
    """

    def __init__(self, forget: timedelta = FORGET) -> None:
        self._forget = forget
        self._differs = False
        self._own_losses = False
        """Whether some trade did not end as reported: losses in a row are counted here since."""
        self._ending: list[_Trade] = []
        self._never_opened: Counter[str | None] = Counter()
        self._more: defaultdict[date, float] = defaultdict(float)
        """Profit of each day beyond what was reported, quote currency."""
        self._in_a_row = 0
        self._lost_at: datetime | None = None

    def account(self, past: Past) -> Account:
        """The account that this decision would have seen; the reported one itself when nothing that
        went otherwise shows in it. Decisions come in order of time."""
        reported, now = past.decision.scenario.account, past.decision.scenario.as_of
        while self._ending and self._ending[0].at <= now:
            self._end(heappop(self._ending))
        if not self._differs:
            return reported
        changes = self._positions(reported) | self._losses(reported, now)
        changes |= self._day(reported, now)
        other = {name: value for name, value in changes.items() if value != getattr(reported, name)}
        return reported.model_copy(update=other) if other else reported

    def note(self, past: Past, approved: bool, net_pnl: float | None) -> None:
        """What the limits did to a trade that the agent made, and what it earned in this book,
        quote currency; None where that is not known."""
        if not past.agent_approves:
            return
        scenario = past.decision.scenario
        symbol = scenario.candidate.symbol
        if not approved:
            self._differs = True
            self._never_opened[symbol] += 1
        if past.closed_at is not None:
            at, reported = max(past.closed_at, scenario.as_of), past.net_pnl or 0.0
            earned = reported if net_pnl is None else net_pnl
            self._differs |= earned != reported
            heappush(self._ending, _Trade(at, reported, earned, symbol, approved))

    def _end(self, trade: _Trade) -> None:
        earned = trade.net_pnl if trade.taken else 0.0
        if earned != trade.reported:
            self._more[trade.at.astimezone(UTC).date()] += earned - trade.reported
        if not trade.taken:
            self._never_opened[trade.symbol] -= 1
            self._own_losses = True
            return
        self._own_losses |= (earned < 0) != (trade.reported < 0)
        if earned < 0:
            self._in_a_row, self._lost_at = self._in_a_row + 1, trade.at
        else:
            self._in_a_row = 0

    def _positions(self, reported: Account) -> dict[str, object]:
        if reported.positions is None:
            return {}
        gone: Counter[str | None] = Counter()
        left = []
        for position in reported.positions:
            if gone[position.symbol] < self._never_opened[position.symbol]:
                gone[position.symbol] += 1
            else:
                left.append(position)
        return {"positions": tuple(left)}

    def _losses(self, reported: Account, now: datetime) -> dict[str, object]:
        """Losses in a row, and seconds since the last one: as reported until a trade did not end as
        it was; from then on over the trades that were taken."""
        if reported.consecutive_losses is None or not self._own_losses:
            return {}
        if self._lost_at is None or now - self._lost_at > self._forget:
            return {"consecutive_losses": 0, "seconds_since_loss": None}
        since = (now - self._lost_at).total_seconds()
        return {"consecutive_losses": self._in_a_row, "seconds_since_loss": since}

    def _day(self, reported: Account, now: datetime) -> dict[str, object]:
        if reported.day_pnl_fraction is None or not reported.equity:
            return {}
        more = self._more.get(now.astimezone(UTC).date(), 0.0)
        return {"day_pnl_fraction": reported.day_pnl_fraction + more / reported.equity}
