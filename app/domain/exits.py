"""How an agent's trades end: what it declares once, and every simulated order of it follows.

The stop is the order's own, whoever set it; what is declared is everything else. A record carries
the declaration that was in force (`Plan.exits`), so that whoever follows its orders later reads no
other. One without was written before there were declarations: it is followed by `TRAIL`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from app.domain.fields import Flag, Number, Record, Whole, measure

HOUR_S = 3600
MOST_HOURS = 720
"""A label looks no further ahead."""
MOST_TARGETS = 3
"""The exits know so many of a plan's targets; further ones are never reached for."""
Ratio = Annotated[Number, Field(ge=0, le=1)]


class Followed(Record):
    """Exits that can be simulated on bars: at the latest, the rest is sold at the close of the bar
    that completes these hours."""

    hours: Number = measure(
        "hours", "what is still open so long after entry is sold", gt=0, le=MOST_HOURS
    )

    @property
    def seconds(self) -> int:
        """The longest that a trade lasts, rounded up."""
        return -int(-self.hours * HOUR_S // 1)

    @property
    def reads_atr(self) -> bool:
        """Whether an order without an ATR cannot be followed."""
        return False


class Trail(Followed):
    """No target is sold at: from target 1 on, a stop trails below the highest high. The Spot AI
    Agent's."""

    kind: Literal["trail"] = "trail"
    hours: Number = Field(6.0, gt=0, le=MOST_HOURS, description="sold at the close after so long")
    atr: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        (1.5, 1.0, 0.5),
        min_length=1,
        max_length=MOST_TARGETS,
        description="ATR below the highest high, from target 1, 2, 3 on",
    )
    keep: Ratio = Field(0.75, description="share of the move from entry that is kept at least")

    @property
    def reads_atr(self) -> bool:
        return True


class Fixed(Followed):
    """Everything is sold at the stop or at one target, whichever comes first."""

    kind: Literal["fixed"] = "fixed"
    target: Whole = Field(1, ge=1, le=MOST_TARGETS, description="which of the plan's, nearest: 1")


class Barrier(Followed):
    """Held until the stop or the last hour; targets change nothing."""

    kind: Literal["time"] = "time"


def _steps(sent: Any) -> Any:
    """A ROI table as pairs, by minutes. Raises ValueError for keys that are no minutes."""
    if not isinstance(sent, dict):
        return sent
    if not all(str(key).isascii() and str(key).isdigit() for key in sent):
        raise ValueError('minimal_roi: minutes and ratios, { "0" = 0.04, "30" = 0.02 }')
    return tuple(
        sorted(((int(key), ratio) for key, ratio in sent.items()), key=lambda step: step[0])
    )


def _once(steps: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """Steps in order of time. Raises ValueError: of two at one minute nobody knows which holds."""
    if any(first >= then for (first, _), (then, _) in pairwise(steps)):
        raise ValueError("minimal_roi: every minute once, in order of time")
    return steps


Minutes = Annotated[int, Field(ge=0, le=10_000_000)]
Profit = Annotated[Number, Field(ge=-1)]
MinimalRoi = Annotated[
    tuple[tuple[Minutes, Profit], ...],
    BeforeValidator(_steps),
    AfterValidator(_once),
    PlainSerializer(lambda steps: {str(minutes): ratio for minutes, ratio in steps}),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
    Field(max_length=64),
]
"""Profit, by minutes since entry, from which a trade is sold."""


class Freqtrade(Followed):
    """A freqtrade strategy's, under its names. Profits are after the fees of both sides, as it
    counts them; of a trade with leverage, its ratios over the leverage."""

    kind: Literal["freqtrade"] = "freqtrade"
    minimal_roi: MinimalRoi = Field((), description="profit to sell at, by minutes since entry")
    trailing_stop: Flag = Field(False, description="the stop follows the highest high")
    trailing_stop_positive: Ratio | None = Field(
        None, description="how far below it once the offset is passed; else as far as the stop was"
    )
    trailing_stop_positive_offset: Ratio = Field(0.0, description="the profit from which it does")
    trailing_only_offset_is_reached: Flag = Field(False, description="and not before")

    @model_validator(mode="after")
    def trailing_is_on(self) -> Freqtrade:
        """Refuse settings of a trailing stop that is off: they would be followed by nobody."""
        if not self.trailing_stop and (
            self.trailing_stop_positive is not None or self.trailing_only_offset_is_reached
        ):
            raise ValueError("trailing_stop is false, and others of its settings are set")
        return self


class Reported(Record):
    """Nobody outside knows them: outcomes are those that the agent reports, none is simulated."""

    kind: Literal["reported"] = "reported"


Exits = Annotated[Trail | Fixed | Barrier | Freqtrade | Reported, Field(discriminator="kind")]
TRAIL: Final = Trail()
"""What every record without a declaration is followed by."""
REPORTED: Final = Reported()
