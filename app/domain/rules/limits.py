"""Limits of the rules: one table per rule in a TOML file, strict, hashed, reported with every
violation at once.

There is no switch that turns a rule off. A table may only say what happens when an input is
missing.
"""

from __future__ import annotations

import tomllib
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from app.domain.candidate import SYMBOL_PATTERN, Direction, Session, SetupType
from app.domain.errors import LimitsError
from app.domain.exits import Exits
from app.domain.fields import MAX_EXACT_INTEGER, Instant, Record, ShortText, absent, describe
from app.domain.rules.files import read_ordinary

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(gt=0, le=1)]


class RuleLimits(Record):
    """Common to every rule: what it does without an input. `calm` is `pass`, but a rule that has
    several inputs judges by those that are known, as if the others were calm. What was sent and
    left out is never taken for missing."""

    when_missing: Literal["refuse", "pass", "calm"] = "refuse"
    because: ShortText | None = Field(
        None, exclude_if=absent, description="why a missing input passes"
    )


class ExcessLimits(RuleLimits):
    """A limit on size or distance: what is above it is capped, or the whole order is refused."""

    on_excess: Literal["cap", "refuse"] = "cap"


class StaleSnapshot(RuleLimits):
    max_age_s: Positive = 30.0
    max_clock_skew_s: float = Field(5.0, ge=0)
    max_bar_age_bars: Positive = 2.0


class InputSanity(RuleLimits):
    max_atr_fraction: Part = 0.25
    max_entry_gap_fraction: Part = 0.05


class StopDistance(ExcessLimits):
    """Distance of the stop from entry. A stop beyond a maximum is clamped towards entry, never the
    other way."""

    min_atr: Positive = 0.5
    max_atr: Positive = 3.0
    min_fraction: Part = 0.001
    max_fraction: Part = 0.15

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.min_atr > self.max_atr or self.min_fraction > self.max_fraction:
            raise ValueError("a minimum is above its maximum")
        return self


class BtcTrendConflict(RuleLimits):
    allowed_setups: tuple[SetupType, ...] = (SetupType.COUNTER_TREND,)


class NewsWindow(RuleLimits):
    """`calm` takes a severity that is missing for none, and a calendar that is for clear."""

    min_minutes: float = Field(30.0, ge=0)
    systemic_severity: int = Field(3, ge=0, le=4)
    systemic_minutes: float = Field(120.0, ge=0)
    allow_unsafe_macro: bool = False


class VolatilitySpike(RuleLimits):
    max_percentile: Fraction = 0.9


class RewardRisk(RuleLimits):
    """Reward at the nearest target over risk at the stop; more is asked when volatility is high.
    `calm` takes a volatility that is missing for low."""

    min_ratio: float = Field(1.0, ge=0)
    high_volatility_percentile: Fraction = 0.75
    min_ratio_high_volatility: float = Field(1.6, ge=0)


class Spread(RuleLimits):
    max_bps: Positive = 10.0


class Liquidity(ExcessLimits):
    """Participation: the order is capped at this share of the 24 h volume, and refused below the
    volume floor."""

    max_volume_fraction: Fraction = 0.001
    min_volume_24h: float = Field(1_000_000.0, ge=0)


class RiskPerTrade(ExcessLimits):
    max_equity_fraction: Fraction = 0.02


class ForetoldRange(ExcessLimits):
    """How much of the account an order may move while price crosses the range that the version
    foretells until the time exit."""

    max_equity_fraction: Fraction = 0.001


class Exposure(ExcessLimits):
    max_symbol_fraction: Positive = 0.25
    max_total_fraction: Positive = 1.0
    max_notional: Positive = 5_000.0
    min_notional: float = Field(10.0, ge=0)


class OpenPositions(RuleLimits):
    max_count: int = Field(3, ge=0)


class DailyLoss(RuleLimits):
    max_fraction: Fraction = 0.03


class Drawdown(RuleLimits):
    max_fraction: Fraction = 0.25


class ConsecutiveLosses(RuleLimits):
    max_count: int = Field(4, ge=0)
    cool_down_s: float = Field(3600.0, ge=0)
    cool_down_after: int = Field(2, ge=1)


class RestrictedSymbols(RuleLimits):
    symbols: tuple[Annotated[str, Field(pattern=SYMBOL_PATTERN)], ...] = ()


class TradingHours(RuleLimits):
    sessions: tuple[Session, ...] = tuple(Session)
    daily_maintenance: tuple[tuple[time, time], ...] = ()
    maintenance: tuple[tuple[Instant, Instant], ...] = ()

    def closed_by(self, now: datetime) -> str | None:
        """The maintenance window that `now` (UTC) falls in, or None. A window whose end is earlier
        spans midnight."""
        clock = now.time()
        for begin, end in self.daily_maintenance:
            inside = begin <= clock < end if begin <= end else clock >= begin or clock < end
            if inside:
                return f"{begin.isoformat()}-{end.isoformat()}"
        for start, stop in self.maintenance:
            if start <= now < stop:
                return f"{start.isoformat()}/{stop.isoformat()}"
        return None


class ModelConfidence(RuleLimits):
    """What is asked of a version that approves; what is not set is not asked."""

    min_approve_probability: Fraction = 0.5
    min_win_probability: Fraction | None = Field(None, exclude_if=absent)
    min_expected_r: float | None = Field(
        None, exclude_if=absent, description="R after costs: the margin above 0"
    )


class DirectionLimits(RuleLimits):
    allowed: tuple[Direction, ...] = (Direction.LONG,)


class Cost(RuleLimits):
    """What a trade costs, entry and exit together: twice fee and slippage, and the spread where it
    is known."""

    fee: Fraction = 0.001
    slippage: Fraction = 0.0005
    max_share_of_risk: Positive = 1.0


class Limits(Record):
    """One versioned set of limits.

    Tables that may be absent came later: by limits without one, it is judged as it was before.
    """

    version: ShortText
    tolerance: Annotated[float, Field(ge=0, le=0.01)] | None = Field(
        None,
        exclude_if=absent,
        description="numbers that differ by this fraction of the limit are equal; none: exactly",
    )
    direction: DirectionLimits | None = Field(None, exclude_if=absent)
    cost: Cost | None = Field(None, exclude_if=absent)
    foretold_range: ForetoldRange | None = Field(None, exclude_if=absent)
    exits: Exits | None = Field(
        None,
        exclude_if=absent,
        description="no rule: how the agent's trades end, where its requests do not say",
    )
    stale_snapshot: StaleSnapshot = StaleSnapshot()
    input_sanity: InputSanity = InputSanity()
    stop_distance: StopDistance = StopDistance()
    btc_trend_conflict: BtcTrendConflict = BtcTrendConflict()
    news_window: NewsWindow = NewsWindow()
    volatility_spike: VolatilitySpike = VolatilitySpike()
    reward_risk: RewardRisk = RewardRisk()
    spread: Spread = Spread()
    liquidity: Liquidity = Liquidity()
    risk_per_trade: RiskPerTrade = RiskPerTrade()
    exposure: Exposure = Exposure()
    open_positions: OpenPositions = OpenPositions()
    daily_loss: DailyLoss = DailyLoss()
    drawdown: Drawdown = Drawdown()
    consecutive_losses: ConsecutiveLosses = ConsecutiveLosses()
    restricted_symbols: RestrictedSymbols = RestrictedSymbols()
    trading_hours: TradingHours = TradingHours()
    model_confidence: ModelConfidence = ModelConfidence()


def parse_limits(text: str, source: str) -> Limits:
    """Limits from TOML text. Raises `LimitsError` naming `source` and every violation."""
    try:
        document = tomllib.loads(text)
        _require_exact(document)
        return Limits.model_validate(document)
    except tomllib.TOMLDecodeError as error:
        raise LimitsError(f"{source}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise LimitsError(f"{source}: {describe(error.errors(), Limits)}") from error
    except (ValueError, RecursionError) as error:
        raise LimitsError(f"{source}: {error}") from error


def _require_exact(value: Any) -> None:
    """Raises ValueError for an integer that JSON readers do not keep: limits are part of every
    record, and are hashed."""
    if isinstance(value, dict):
        for item in value.values():
            _require_exact(item)
    elif isinstance(value, list):
        for item in value:
            _require_exact(item)
    elif isinstance(value, int) and abs(value) > MAX_EXACT_INTEGER:
        raise ValueError(f"an integer of {value.bit_length()} bits is beyond 2^53")


def limits_text(path: Path) -> str:
    """What a limits file says. Raises `LimitsError`."""
    try:
        return read_ordinary(path).decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LimitsError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def read_limits(path: Path) -> Limits:
    """Limits from a file. Raises `LimitsError`."""
    return parse_limits(limits_text(path), str(path))


class Change(NamedTuple):
    """One limit that differs; None where one side does not have it."""

    name: str
    before: Any
    after: Any


def changes(before: Limits, after: Limits) -> list[Change]:
    """Every limit that differs, by its name in the file."""
    sides = [_flat(limits.as_json()) for limits in (before, after)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    found = [Change(name, sides[0].get(name), sides[1].get(name)) for name in names]
    return [change for change in found if change.before != change.after]


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{field}": each for field, each in value.items()}
        else:
            flat[name] = value
    return flat
