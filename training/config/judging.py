"""Configuration of how a result is judged, published, watched and made anew."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from training.arrays import HELD_OUT_FROM
from training.config.data import HeldOutConfig, OutcomesConfig
from training.config.section import HomePath, Section, home


class EvaluateConfig(Section):
    """The contest."""

    held_out: HeldOutConfig = HeldOutConfig()
    outcomes: OutcomesConfig | None = Field(
        None, description="costs to judge by; what is not named is as in training"
    )
    size: Literal["agent", "equity"] = Field(
        "agent",
        description=(
            "portfolios trade the agent's quantities, or a share of all equity where it trades"
            " whole"
        ),
    )
    capital: float = Field(1000.0, gt=0, description="quote; the agent trades 400 to 500 at a time")
    max_open: int = Field(1, ge=1, description="trades open at a time, as the agent has it")
    refit_days: float = Field(
        91.0, ge=1, description="the simple rivals are fitted anew so often, on all before"
    )
    workers: int = Field(
        2, ge=1, description="processes, or with ray tasks, that measure portfolios"
    )
    backend: Literal["processes", "ray"] = Field(
        "processes", description="ray: on a cluster, needs the extra `ray`"
    )
    draws: int = Field(1000, ge=100, description="bootstrap samples")
    random_vetoes: int = Field(200, ge=20)
    limits: Path = Field(
        Path("deploy/limits.replay.toml"), description="of the rules that all arms stand behind"
    )
    seed: int = Field(0, ge=0)


class PublishConfig(Section):
    """The version."""

    name: str = Field("advisor", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    models: HomePath = Field(
        default_factory=lambda: home() / "models",
        description="where versions live; the service reads the same folder",
    )
    shipped: Path = Field(Path("models"), description="where those lie that come with a release")


class WalkForwardConfig(Section):
    """Retrained before each period and judged on it, all before the held-out period: a procedure,
    not a version."""

    first: date = Field(date(2021, 1, 1), description="day on which the first judged period begins")
    until: date = Field(HELD_OUT_FROM, description="no decision on or after this day")
    period_days: int = Field(365, ge=1, le=36_500)
    limit: int | None = Field(
        None, ge=1, description="at most so many judged scenarios, drawn evenly over time"
    )

    @model_validator(mode="after")
    def periods_lie_before_the_held_out_one(self) -> Self:
        """Development may look at these days as often as it likes; at the held-out period it may
        not."""
        if not self.first < self.until <= HELD_OUT_FROM:
            raise ValueError(
                f"{self.first} to {self.until}: first, until and {HELD_OUT_FROM} must follow each"
                " other"
            )
        return self


class DriftConfig(Section):
    """When a served model is to be watched, and when it is to be made anew. docs/drift.md says why
    these."""

    recent_days: float = Field(
        14.0, gt=0, description="the window that is judged, up to the last decision"
    )
    reference_days: float = Field(
        56.0, gt=0, description="the window before it, which it is compared with"
    )
    min_decisions: int = Field(
        100, ge=20, description="in each window; with fewer nothing is concluded"
    )
    min_outcomes: int = Field(
        50, ge=20, description="approvals with an outcome, for anything about reward"
    )
    alpha: float = Field(
        0.01, gt=0, lt=0.5, description="chance of any false alarm of one look (Holm)"
    )
    psi_watch: float = Field(0.1, gt=0)
    psi_refresh: float = Field(0.25, gt=0)
    features_refresh: float = Field(
        0.1, gt=0, le=1, description="share of features beyond psi_refresh"
    )
    rate_watch: float = Field(
        0.1, gt=0, le=1, description="change of agreement, approvals or abstentions"
    )
    rate_refresh: float = Field(0.25, gt=0, le=1)
    reward_watch: float = Field(0.1, gt=0, description="loss of mean reward per approval, in R")
    reward_refresh: float = Field(0.25, gt=0)
    clip_r: float = Field(
        3.0, gt=0, description="rewards are clipped to +- this for the online detector"
    )
    adwin_delta: float = Field(
        0.001, gt=0, lt=0.5, description="ADWIN's chance of a false alarm per cut"
    )
    retrain_days: float = Field(30.0, gt=0, description="age at which a new version is due")
    expiry_days: float = Field(
        90.0, gt=0, description="age beyond which a version is not to be trusted"
    )

    demote_confidence: float = Field(
        0.975, gt=0.5, lt=1, description="of the bound by which the acting version is worse"
    )
    demote_min_days: int = Field(
        20, ge=2, description="settled days with decisions, before anything steps back"
    )
    demote_settle_days: int = Field(
        3, ge=1, description="the newest days, whose outcomes may still come"
    )
    demote_after_days: float = Field(
        7.0, gt=0, description="so long every look must have asked for a new version"
    )

    @model_validator(mode="after")
    def refresh_lies_beyond_watch(self) -> Self:
        """A threshold for refresh is never below that for watch."""
        pairs = (
            ("psi_watch", "psi_refresh"),
            ("rate_watch", "rate_refresh"),
            ("reward_watch", "reward_refresh"),
        )
        for low, high in (*pairs, ("retrain_days", "expiry_days")):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(
                    f"{high} {getattr(self, high)} is below {low} {getattr(self, low)}"
                )
        return self


class Kind(StrEnum):
    """What a version is to be promoted as."""

    TRADER = "trader"
    """It decides: it has to beat everybody, not trading too."""
    VETO = "veto"
    """It only refuses trades of the agent's: it has to save R, against the agent and against
    refusals dealt at random at its rate."""


class GateConfig(Section):
    """What a version must show before it is promoted."""

    confidence: float = Field(
        0.975, gt=0.5, lt=1, description="of each lower bound on a mean difference, one-sided"
    )
    deflated_sharpe: float = Field(
        0.95, gt=0.5, lt=1, description="least confidence that the Sharpe ratio is no luck"
    )
    min_scenarios: int = Field(500, ge=2)
    min_trades: int = Field(100, ge=2, description="scenarios that the policy trades")
    min_days: int = Field(
        120, ge=2, description="days with scenarios: what happens on one day hangs together"
    )
    max_calibration_error: float = Field(
        0.1, gt=0, lt=1, description="expected calibration error of each thing that it foretells"
    )
    bound_r: float = Field(
        3.0, gt=0, description="live: every return lies within +- this, R; as outcomes.clip_r"
    )
    block_days: int = Field(
        1, ge=1, description="live: days that one bet of the anytime-valid bound takes together"
    )
    draws: int = Field(1000, ge=100)
    seed: int = Field(0, ge=0)


class RefreshConfig(Section):
    """A sliding window over the shadow log."""

    train_days: int = Field(365, ge=1, le=36_500, description="decisions that train and validate")
    judge_days: int = Field(90, ge=1, le=36_500, description="the newest decisions, which judge")
    alias: str = Field(
        "shadow-candidate",
        pattern=r"^shadow-[a-z0-9-]{1,40}$",
        description="where the challenger is left: served in shadow beside the primary",
    )
