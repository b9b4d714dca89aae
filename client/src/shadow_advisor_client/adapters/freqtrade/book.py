"""The bot's account as rules need it, kept up trade by trade: a back-test has thousands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any


@dataclass
class Book:
    """Closed trades: what they earned, in stake currency, in the order in which they closed."""

    earned: float = 0.0
    most_earned: float = 0.0
    day: date | None = None
    earned_today: float = 0.0
    losses: int = 0
    last_loss: datetime | None = None

    def close(self, profit: float, at: datetime) -> None:
        """A trade was closed."""
        if at.date() != self.day:
            self.day, self.earned_today = at.date(), 0.0
        self.earned += profit
        self.earned_today += profit
        self.most_earned = max(self.most_earned, self.earned)
        if profit < 0:
            self.losses, self.last_loss = self.losses + 1, at
        else:
            self.losses = 0

    def account(self, equity: float, at: datetime) -> dict[str, Any]:
        """Fields of the account: `equity` is what it is worth now."""
        if equity <= 0:
            return {"consecutive_losses": self.losses}
        fallen = self.most_earned - self.earned
        today = self.earned_today if at.date() == self.day else 0.0
        waited = None if self.last_loss is None else (at - self.last_loss).total_seconds()
        return {
            "equity": equity,
            # Of what it was worth when the day began.
            "day_pnl_fraction": max(today / (equity - today), -1.0) if equity > today else None,
            "drawdown_fraction": fallen / (equity + fallen),
            "consecutive_losses": self.losses,
            "seconds_since_loss": None if waited is None or waited < 0 else waited,
        }
