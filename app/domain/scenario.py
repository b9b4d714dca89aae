"""A scenario: everything knowable at `as_of`, immutable. Prices and money are in quote currency,
times in UTC."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain.candidate import Candidate
from app.domain.exits import REPORTED, TRAIL, Exits
from app.domain.fields import Instant, Number, Record, ShortText, Whole, absent, measure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SAME_SIZE = 0.01
"""Two ways to say a size may differ by this fraction: one of them was rounded."""


@lru_cache(maxsize=1024)
def pair_of(symbol: str) -> str:
    """A symbol as it is compared: BTC/USDT:USDT, btc-usdt and BTCUSDT are one pair."""
    return "".join(c for c in symbol.partition(":")[0] if c not in "/-_").casefold()


LARGEST, SMALLEST = 1e18, 1e-18
"""Of whatever an exchange counts, in whatever unit; far from where arithmetic ends. What came in
before this was asked stays as it is."""


def _positive(value: Any, most: float = sys.float_info.max) -> bool:
    """Whether it is a number above 0 that a double holds; JSON has whole numbers of any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= most


class Bar(Record):
    """One OHLCV bar, stamped at its close."""

    closed_at: Instant
    open: Number = Field(gt=0)
    high: Number = Field(gt=0)
    low: Number = Field(gt=0)
    close: Number = Field(gt=0)
    volume: Number = Field(ge=0)


def _says_number(value: Any) -> bool:
    """Whether a text is that of a number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _with_notional(schema: dict[str, Any]) -> None:
    """What a plan may be sent with: its size in either unit."""
    schema["properties"]["notional"] = {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": LARGEST,
        "description": "size in quote currency, instead of quantity: it is recorded as"
        " notional / entry",
    }
    schema["required"] = [name for name in schema["required"] if name != "quantity"]
    schema["anyOf"] = [{"required": ["quantity"]}, {"required": ["notional"]}]


class Plan(Record):
    """What the agent would trade, before anybody objects. Its risk is quantity x |entry - stop|."""

    model_config = ConfigDict(json_schema_extra=_with_notional)

    entry: Number = measure("price", "expected fill", gt=0)
    stop: Number = measure("price", "initial stop", gt=0)
    targets: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        min_length=1,
        max_length=8,
        description="take-profit prices, nearest first",
        json_schema_extra={"unit": "price"},
    )
    quantity: Number = measure("base units", "size", gt=0)
    exits: Exits | None = Field(
        None,
        exclude_if=absent,
        description="how the trade ends, as the agent declares it",
        json_schema_extra={
            "unit": "object",
            "null": "as its limits profile declares; where that does not, the trail",
        },
    )

    @model_validator(mode="before")
    @classmethod
    def size_in_either_unit(cls, sent: Any) -> Any:
        """Take `notional`, in quote currency, instead of `quantity`. Raises ValueError when both
        are sent and are not the same size."""
        if not isinstance(sent, dict) or "notional" not in sent:
            return sent
        plan = dict(sent)
        notional, entry, quantity = plan.pop("notional"), plan.get("entry"), plan.get("quantity")
        if notional is None:
            return plan
        if not _positive(notional, LARGEST):
            # A text may be read as the number that it is; what is none is all there is of a size.
            alone = quantity is None and not _says_number(notional)
            raise PydanticCustomError(
                "size" if alone else "notional",
                "notional: a positive number of the quote currency, 1e18 at most",
                None if alone else {"at": "notional"},
            )
        if not _positive(entry):
            return plan  # It is refused for its entry.
        if quantity is None:
            plan["quantity"] = notional / entry
        elif _positive(quantity) and abs(quantity * entry / notional - 1) > SAME_SIZE:
            raise PydanticCustomError(
                "size",
                "quantity x entry is {other}, notional {notional}: send one of them",
                {"other": f"{quantity * entry:.6g}", "notional": f"{notional:.6g}"},
            )
        return plan

    @property
    def notional(self) -> float:
        """Quantity x entry, in quote currency."""
        return self.quantity * self.entry

    @property
    def risk(self) -> float:
        """Quantity x |entry - stop|, in quote currency: one R of the agent."""
        return self.quantity * abs(self.entry - self.stop)


class Position(Record):
    """An open position. One that is told in part is a position all the same: a rule that needs the
    rest of it refuses."""

    symbol: ShortText | None = measure("label", "pair, as its exchange spells it", null="not told")
    quantity: Number | None = measure("base units", "size; below 0: a short", null="not told")
    entry: Number | None = measure("price", "average entry", gt=0, null="not told")
    stop: Number | None = measure("price", "stop in force", gt=0, null="no stop is set")
    opened_at: Instant | None = measure("time", "when it was opened", null="not recorded")

    @property
    def notional(self) -> float | None:
        """|Quantity| x entry, in quote currency; None when one of them is not told."""
        if self.quantity is None or self.entry is None:
            return None
        return abs(self.quantity) * self.entry


class Derived(Record):
    """What of an account was not sent, and follows from the agent's own reports."""

    fields: tuple[ShortText, ...] = Field(
        description="fields of the account", json_schema_extra={"unit": "labels"}
    )
    age_s: Number = measure("s", "age of the newest report at as_of", ge=0)


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
    derived: Derived | None = Field(
        None,
        exclude_if=absent,
        description="which of these the service derived from the agent's reports",
        json_schema_extra={"unit": "object", "null": "none"},
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

    last_close: Number | None = measure(
        "price", "close of the last complete bar", gt=0, null="not reported"
    )
    bar_closed_at: Instant | None = measure("time", "when that bar closed", null="not reported")
    bar_seconds: Number | None = measure(
        "s", "length of that bar", gt=0, le=604_800, null="not reported"
    )
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


class Fault(StrEnum):
    """What is wrong with a value, by kind."""

    UNKNOWN = "unknown"
    INCOMPLETE = "incomplete"
    RANGE = "range"
    UNIT = "unit"
    TIME = "time"
    TYPE = "type"


class LeftOut(Record):
    """A part of a request that could not be used, and was done without."""

    field: ShortText = measure("label", "its path")
    value: ShortText = measure("text", "the beginning of what was sent")
    why: ShortText = measure("text", "what is wrong with it, and what it may have meant")
    fault: Fault = measure("label", "the same, by kind")


def _candidate_field(name: str) -> str:
    if name not in Candidate.model_fields:
        raise ValueError(f"ages names fields that a candidate does not have: {name}")
    return name


class Scenario(Record):
    """Everything knowable at `as_of`. Nothing later may enter; every field may carry its age."""

    candidate: Candidate
    plan: Plan
    account: Account = Account()
    market: Market = Market()
    ages: dict[Annotated[str, AfterValidator(_candidate_field)], Annotated[Number, Field(ge=0)]] = (
        Field(
            default_factory=dict,
            max_length=128,
            description="age of a candidate field at ts, by field name",
            json_schema_extra={"unit": "s"},
        )
    )
    computed: tuple[ShortText, ...] = Field(
        (),
        max_length=64,
        exclude_if=absent,
        description="paths of what the service computed from the bars of the request",
        json_schema_extra={"unit": "labels"},
    )
    left_out: tuple[LeftOut, ...] = Field(
        (),
        max_length=512,
        exclude_if=absent,
        description="what was sent and could not be used: to a rule it is worse than missing",
        json_schema_extra={"unit": "objects"},
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

    def lost(self, name: str) -> bool:
        """Whether a field, by its path, was sent and left out: nothing passes for want of it."""
        paths = (name, f"candidate.{name}")
        return any(
            path == gone.field or path.startswith((f"{gone.field}.", f"{gone.field}["))
            for gone in self.left_out
            for path in paths
        )

    @property
    def exits(self) -> Exits:
        """What its orders are followed by. A declaration that could not be used is none that
        anybody knows."""
        return self.plan.exits or (REPORTED if self.lost("plan.exits") else TRAIL)

    def declaring(self, exits: Exits | None) -> Scenario:
        """With the exits of the agent's profile, where the request declares none."""
        if exits is None or self.plan.exits is not None or self.lost("plan.exits"):
            return self
        return self.model_copy(update={"plan": self.plan.model_copy(update={"exits": exits})})

    @model_validator(mode="after")
    def nothing_later_than_as_of(self) -> Self:
        """Refuse times in the future."""
        closed_at = self.market.bar_closed_at
        if closed_at is not None and closed_at > self.as_of:
            raise PydanticCustomError(
                "later",
                "market.bar_closed_at {closed_at} is later than candidate.ts {as_of}: send the last"
                " *complete* bar, stamped at its close",
                {
                    "closed_at": closed_at.isoformat(),
                    "as_of": self.as_of.isoformat(),
                    "at": ("market", "bar_closed_at"),
                },
            )
        for number, position in enumerate(self.account.positions or ()):
            if position.opened_at and position.opened_at > self.as_of:
                raise PydanticCustomError(
                    "later",
                    "account.positions[{number}].opened_at is later than candidate.ts",
                    {"number": number, "at": ("account", "positions", number, "opened_at")},
                )
        return self
