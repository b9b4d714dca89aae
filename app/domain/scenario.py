"""A scenario: everything knowable at `as_of`, immutable. Prices and money are in quote currency,
times in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field, model_validator

from app.domain.candidate import SYMBOL_PATTERN, Candidate
from app.domain.fields import Instant, Number, Record, Whole, measure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bar(Record):
    """One OHLCV bar, stamped at its close."""

    closed_at: Instant
    open: Number = Field(gt=0)
    high: Number = Field(gt=0)
    low: Number = Field(gt=0)
    close: Number = Field(gt=0)
    volume: Number = Field(ge=0)


class Plan(Record):
    """What the agent would trade, before anybody objects. Its risk is quantity x |entry - stop|."""

    entry: Number = measure("price", "expected fill", gt=0)
    stop: Number = measure("price", "initial stop", gt=0)
    targets: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        min_length=1,
        max_length=8,
        description="take-profit prices, nearest first",
        json_schema_extra={"unit": "price"},
    )
    quantity: Number = measure("base units", "size", gt=0)

    @property
    def notional(self) -> float:
        """Quantity x entry, in quote currency."""
        return self.quantity * self.entry

    @property
    def risk(self) -> float:
        """Quantity x |entry - stop|, in quote currency: one R of the agent."""
        return self.quantity * abs(self.entry - self.stop)


class Position(Record):
    """An open position."""

    symbol: str = Field(
        pattern=SYMBOL_PATTERN, description="pair", json_schema_extra={"unit": "label"}
    )
    quantity: Number = measure("base units", "size", gt=0)
    entry: Number = measure("price", "average entry", gt=0)
    stop: Number | None = measure("price", "stop in force", gt=0, null="no stop is set")
    opened_at: Instant | None = measure("time", "when it was opened", null="not recorded")

    @property
    def notional(self) -> float:
        """Quantity x entry, in quote currency."""
        return self.quantity * self.entry


class Account(Record):
    """The agent's book at `as_of`."""

    equity: Number | None = measure("quote", "account value", gt=0, null="not reported")
    day_pnl_fraction: Number | None = measure(
        "fraction of equity",
        "profit since 00:00 UTC; -0.03 is a loss of 3 %",
        ge=-1,
        le=100,
        null="not reported",
    )
    drawdown_fraction: Number | None = measure(
        "fraction of peak equity",
        "fall from the peak; 0.1 is 10 % below",
        ge=0,
        le=1,
        null="not reported",
    )
    consecutive_losses: Whole | None = measure(
        "count", "losing trades in a row", ge=0, null="not reported"
    )
    seconds_since_loss: Number | None = measure(
        "s",
        "since the last losing trade closed",
        ge=0,
        null="not reported; with consecutive_losses 0, none",
    )
    positions: tuple[Position, ...] | None = Field(
        None,
        max_length=256,
        description="all open positions",
        json_schema_extra={"unit": "objects", "null": "not reported"},
    )


class Surroundings(Record):
    """How the symbol and the market around it moved until `as_of`, by complete bars alone.

    Volatility is the square root of the mean of ln(high / low)^2 / (4 ln 2) (Parkinson 1980), per
    hour. A return is ln(close / close before).
    """

    volatility_1h: Number | None = measure(
        "fraction per hour", "of the last hour", ge=0, null="not computed"
    )
    volatility_6h: Number | None = measure(
        "fraction per hour", "of six hours", ge=0, null="not computed"
    )
    volatility_24h: Number | None = measure(
        "fraction per hour", "of a day", ge=0, null="not computed"
    )
    volatility_7d: Number | None = measure(
        "fraction per hour", "of a week", ge=0, null="not computed"
    )
    volatility_same_hours: Number | None = measure(
        "fraction per hour",
        "of the six hours of the day that come next, on the last 14 days",
        ge=0,
        null="not computed",
    )
    return_6h: Number | None = measure("log return", "over six hours", null="not computed")
    return_24h: Number | None = measure("log return", "over a day", null="not computed")
    return_7d: Number | None = measure("log return", "over a week", null="not computed")
    return_30d: Number | None = measure("log return", "over 30 days", null="not computed")
    momentum_rank: Number | None = measure(
        "fraction 0-1",
        "share of the other symbols with a lower return over a day",
        ge=0,
        le=1,
        null="fewer than two others",
    )
    volatility_rank: Number | None = measure(
        "fraction 0-1",
        "share of the other symbols with a lower volatility of a day",
        ge=0,
        le=1,
        null="fewer than two others",
    )
    market_return_24h: Number | None = measure(
        "log return", "mean of all symbols over a day", null="fewer than two others"
    )
    market_volatility_24h: Number | None = measure(
        "fraction per hour",
        "mean of all symbols' volatility of a day",
        ge=0,
        null="fewer than two others",
    )
    btc_return_1h: Number | None = measure("log return", "BTCUSDT, an hour", null="no BTC bars")
    btc_return_6h: Number | None = measure("log return", "BTCUSDT, six hours", null="no BTC bars")
    btc_return_24h: Number | None = measure("log return", "BTCUSDT, a day", null="no BTC bars")
    btc_volatility_24h: Number | None = measure(
        "fraction per hour", "BTCUSDT, a day", ge=0, null="no BTC bars"
    )


class Market(Record):
    """The symbol's market at `as_of`."""

    last_close: Number = measure("price", "close of the last complete bar", gt=0)
    bar_closed_at: Instant = measure("time", "when that bar closed")
    bar_seconds: Number = measure("s", "length of that bar", gt=0, le=604_800)
    volume_24h: Number | None = measure(
        "quote", "traded in the last 24 h", ge=0, null="not reported"
    )
    surroundings: Surroundings | None = Field(
        None,
        # Records and requests of before have no such key, and keep their hashes.
        exclude_if=lambda value: value is None,
        description="how the symbol and the market around it moved",
        json_schema_extra={"unit": "object", "null": "not computed"},
    )


class Scenario(Record):
    """Everything knowable at `as_of`. Nothing later may enter; every field may carry its age."""

    candidate: Candidate
    plan: Plan
    account: Account = Account()
    market: Market
    ages: dict[str, Annotated[Number, Field(ge=0)]] = Field(
        default_factory=dict,
        max_length=128,
        description="age of a candidate field at ts, by field name",
        json_schema_extra={"unit": "s"},
    )

    @property
    def as_of(self) -> datetime:
        """The decision time: nothing in the scenario is later."""
        return self.candidate.ts

    @property
    def second(self) -> int:
        """`as_of` in seconds since 1970 UTC, rounded up: no order is filled before its decision.

        Nothing else rounds a decision's time. A bar that opens at this second or later is the
        earliest that an order of this scenario can enter with.
        """
        return -((_EPOCH - self.as_of) // timedelta(seconds=1))

    @model_validator(mode="after")
    def nothing_later_than_as_of(self) -> Scenario:
        """Refuse times in the future and ages of fields that do not exist."""
        if self.market.bar_closed_at > self.as_of:
            raise ValueError(
                f"market.bar_closed_at {self.market.bar_closed_at.isoformat()} is later than"
                f" candidate.ts {self.as_of.isoformat()}: send the last *complete* bar, stamped at"
                " its close"
            )
        for number, position in enumerate(self.account.positions or ()):
            if position.opened_at and position.opened_at > self.as_of:
                raise ValueError(
                    f"account.positions[{number}].opened_at is later than candidate.ts"
                )
        unknown = sorted(self.ages.keys() - Candidate.model_fields.keys())
        if unknown:
            raise ValueError(
                f"ages names fields that a candidate does not have: {', '.join(unknown)}"
            )
        return self
