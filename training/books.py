"""Two books on the same candidates: what the agent did, and what the advice would have done."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from app.domain.agent_action import Arm, Outcome, OutcomeCode, OutcomeSource
from app.domain.scenario import Account, Position
from training.market import Bars
from training.outcomes import OUTCOME_CODES, Exit, Fates, Orders, simulate

DAY_S = 86_400


class Trade(NamedTuple):
    """An order and what became of it. Prices and money in quote currency, times in seconds since 1970 UTC."""

    symbol: str
    quantity: float
    entry: float
    stop: float
    opened_at: int
    exited_at: int | None
    """None while the bars do not tell."""
    net: float
    r: float
    outcome: dict[str, object]
    """Fields of an `Outcome`; empty while the bars do not tell."""


def follow(
    bars: Bars, as_of: int, entry: float, stop: float, targets: tuple[float, ...], atr: float, quantity: float
) -> Trade:
    """Simulate one order on the bars after `as_of`. The stop lies below the entry."""
    orders = Orders(
        np.array([as_of]),
        np.array([entry]),
        np.array([stop]),
        np.array([targets], dtype=float),
        np.array([atr]),
    )
    fates = simulate(bars, orders)
    if fates.exit[0] == Exit.UNRESOLVED:
        return Trade(bars.symbol, quantity, entry, stop, as_of, None, 0.0, 0.0, {})
    net, r = float(fates.net[0]) * quantity, float(fates.r[0])
    exited = int(fates.exited_at[0])
    return Trade(bars.symbol, quantity, entry, stop, as_of, exited, net, r, _outcome(fates, quantity))


def _outcome(fates: Fates, quantity: float) -> dict[str, object]:
    bought = float(fates.bought[0])
    how = Exit(int(fates.exit[0]))
    return {
        "outcome": OUTCOME_CODES[how],
        "exit_time": datetime.fromtimestamp(int(fates.exited_at[0]), UTC),
        "exit_price": float(fates.sold[0]),
        "exit_reason": how.name.lower(),
        "fees": float(fates.fees[0]) * quantity,
        "slippage": float(fates.slippage[0]) * quantity,
        "net_pnl": float(fates.net[0]) * quantity,
        "pnl_pct": 100 * float(fates.net[0]) / bought,
        "r_multiple": float(fates.r[0]),
        "mae_r": min(float(fates.mae[0]), 0.0),
        "mfe_r": max(float(fates.mfe[0]), 0.0),
        "max_price": float(fates.highest[0]),
        "holding_seconds": float(fates.exited_at[0] - fates.entered_at[0]),
    }


def outcome(trade: Trade | None, arm: Arm, model_version: str | None, *, traded: bool) -> Outcome | None:
    """The outcome to report for an arm; None while the bars do not tell.

    `traded` is false for the agent's plan that nobody traded: its outcome is what it would have been.
    """
    if trade is None:
        ended: dict[str, object] = {"outcome": OutcomeCode.NOT_TRADED, "net_pnl": 0.0, "r_multiple": 0.0}
    elif trade.exited_at is None:
        return None
    else:
        ended = trade.outcome
    return Outcome.from_json(
        {
            **ended,
            "arm": arm,
            "model_version": model_version,
            "source": OutcomeSource.SIMULATED,
            "extra": {"traded": traded},
        }
    )


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

    @property
    def flat(self) -> bool:
        """Whether no trade is open."""
        return self._open is None

    def take(self, trade: Trade) -> None:
        """Open a trade. Raises ValueError when one is open."""
        if self._open is not None:
            raise ValueError(f"{self._open.symbol} is still open")
        self._open = trade
        self.trades.append(trade)

    def account(self, now: int) -> Account:
        """The book as the agent reports it at `now`; settle first."""
        peak = max(self._peak, self.equity)
        today = sum(t.net for t in self._closed if t.exited_at is not None and t.exited_at > now - now % DAY_S)
        return Account(
            equity=self.equity,
            day_pnl_fraction=today / (self.equity - today),
            drawdown_fraction=1 - self.equity / peak,
            consecutive_losses=self._losses,
            seconds_since_loss=None if self._lost_at is None else float(now - self._lost_at),
            positions=() if self._open is None else (_position(self._open),),
        )


def _position(trade: Trade) -> Position:
    return Position(
        symbol=trade.symbol,
        quantity=trade.quantity,
        entry=trade.entry,
        stop=trade.stop,
        opened_at=datetime.fromtimestamp(trade.opened_at, UTC),
    )
