"""Two books on the same candidates: what the agent did, and what the advice would have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from app.domain.exits import Followed
from app.domain.record.outcome import Arm, Outcome, OutcomeCode, OutcomeSource
from app.domain.scenario import Account, Position
from training.arrays import DAY_S
from training.market.bars import Bars
from training.outcomes.ground import fitness
from training.outcomes.orders import Order, Orders
from training.outcomes.simulate import OUTCOME_CODES, Fate, simulate


class Trade(NamedTuple):
    """An order in a book, and how it ended as far as that is known. Money in quote currency."""

    order: Order
    exited_at: int | None = None
    """Seconds since 1970 UTC; None while nobody knows."""
    net: float = 0.0
    outcome: dict[str, object] | None = None
    """Fields of an `Outcome`; None while nobody knows."""

    @property
    def r(self) -> float:
        """`net` in R of the agent's plan, also when the order is the advice's."""
        return self.net / self.order.plan_risk


def follow(bars: Bars, order: Order) -> Trade:
    """Simulate one order on the bars after its decision. The stop lies below the entry."""
    return follow_all(bars, [order])[0]


def follow_all(bars: Bars, orders: Sequence[Order]) -> list[Trade]:
    """Simulate orders on one symbol, each as if it were alone, in one pass. What ended across an
    outage, without trades or at another market's price is not known to have ended: no label would
    tell of it either.

    Raises
    ------
    ValueError : a stop is not below its entry, or an ATR or a quantity is not positive.
    """
    columns = Orders.of(orders)
    fates = simulate(bars, columns)
    fit = fitness(bars, columns, fates.exited_at) == ""
    return [
        _trade(order, fates.row(number) if fit[number] else None)
        for number, order in enumerate(orders)
    ]


def _trade(order: Order, fate: Fate | None) -> Trade:
    if fate is None:
        return Trade(order)
    return Trade(order, fate.exited_at, fate.net, _outcome(order, fate))


def _outcome(order: Order, fate: Fate) -> dict[str, object]:
    return {
        "outcome": OUTCOME_CODES[fate.exit],
        "exit_time": datetime.fromtimestamp(fate.exited_at, UTC),
        "exit_price": fate.sold,
        "exit_reason": fate.exit.name.lower(),
        "fees": fate.fees,
        "slippage": fate.slippage,
        "net_pnl": fate.net,
        "pnl_pct": 100 * fate.net / (order.quantity * fate.bought),
        "r_multiple": fate.net / order.risk,
        "mae_r": min(fate.mae / order.risk, 0.0),
        "mfe_r": max(fate.mfe / order.risk, 0.0),
        "max_price": fate.highest,
        "holding_seconds": float(fate.exited_at - fate.entered_at),
    }


def never_filled(bars: Bars, trade: Trade, now: int) -> bool:
    """Whether the bars go on past the longest trade, as does `now`, and do not tell of this one:
    nothing was bought, or nobody can say what it was sold at."""
    exits = trade.order.exits
    longest = exits.seconds if isinstance(exits, Followed) else 0
    told_by = trade.order.as_of + longest + 2 * bars.seconds
    return trade.exited_at is None and min(now, int(bars.closed_at[-1])) >= told_by


def outcome(
    trade: Trade | None, arm: Arm, model_version: str | None, *, traded: bool
) -> Outcome | None:
    """The outcome to report for an arm; None while the bars do not tell.

    `traded` tells whether the arm's book traded the order. It is false for an agent's plan that it
    rejected, and for an approval by the advice while its book had a trade open: their outcomes are
    what would have been.
    """
    if trade is None:
        ended: dict[str, object] = {
            "outcome": OutcomeCode.NOT_TRADED,
            "net_pnl": 0.0,
            "r_multiple": 0.0,
        }
    elif trade.outcome is None:
        return None
    else:
        ended = trade.outcome
    return Outcome.from_json(
        {
            **ended,
            "arm": arm,
            "model_version": model_version,
            "source": OutcomeSource.SIMULATED,
            "extra": {"traded": traded} | _followed(trade),
        }
    )


def _followed(trade: Trade | None) -> dict[str, str]:
    """Which exits the simulation followed."""
    if trade is None:
        return {}
    exits = trade.order.exits
    return {"exits": exits.kind, "exits_hash": exits.hash()}


@dataclass
class Book:
    """An account that trades one order at a time. Deterministic: time is an argument."""

    equity: float = 10_000.0
    trades: list[Trade] = field(default_factory=list)
    _closed: list[Trade] = field(default_factory=list)
    _open: Trade | None = None
    _peak: float = 0.0
    _losses: int = 0
    _lost_at: int | None = None

    def settle(self, now: int) -> None:
        """Book what has ended by `now`."""
        trade = self._open
        if trade is None or trade.exited_at is None or trade.exited_at > now:
            return
        self._peak = max(self._peak, self.equity)
        self.equity += trade.net
        self._losses = self._losses + 1 if trade.net < 0 else 0
        self._lost_at = trade.exited_at if trade.net < 0 else self._lost_at
        self._closed.append(trade)
        self._open = None

    def learn(self, trade: Trade) -> None:
        """Replace the open trade by what is known of it now; nothing happens when it is not
        open."""
        if self._open is not None and self._open.order == trade.order:
            self._open = self.trades[-1] = trade

    def cancel(self, trade: Trade) -> None:
        """Take back the open trade, which was never filled; nothing happens when it is not open."""
        if self._open is not None and self._open.order == trade.order:
            self._open = None
            self.trades.pop()

    @property
    def flat(self) -> bool:
        """Whether no trade is open."""
        return self._open is None

    def take(self, trade: Trade) -> None:
        """Open a trade. Raises ValueError when one is open."""
        if self._open is not None:
            raise ValueError(f"{self._open.order.symbol} is still open")
        self._open = trade
        self.trades.append(trade)

    def account(self, now: int) -> Account:
        """The book as the agent reports it at `now`; settle first."""
        peak = max(self._peak, self.equity)
        today = sum(
            t.net
            for t in self._closed
            if t.exited_at is not None and t.exited_at > now - now % DAY_S
        )
        return Account(
            equity=self.equity,
            day_pnl_fraction=today / (self.equity - today),
            drawdown_fraction=1 - self.equity / peak,
            consecutive_losses=self._losses,
            seconds_since_loss=None if self._lost_at is None else float(now - self._lost_at),
            positions=() if self._open is None else (_position(self._open.order),),
        )


def _position(order: Order) -> Position:
    return Position(
        symbol=order.symbol,
        quantity=order.quantity,
        entry=order.entry,
        stop=order.stop,
        opened_at=datetime.fromtimestamp(order.as_of, UTC),
    )
