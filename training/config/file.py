"""Configuration of a whole rebuild, and of how its result is judged and watched: one TOML file, all
faults together."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from app.domain.fields import describe
from training.arrays import HELD_OUT_FROM
from training.config.data import SETTINGS_OF, MarketConfig, OutcomesConfig, ScenariosConfig
from training.config.judging import (
    DriftConfig,
    EvaluateConfig,
    GateConfig,
    PublishConfig,
    RefreshConfig,
    WalkForwardConfig,
)
from training.config.learning import (
    AdapterConfig,
    Algorithm,
    EncodeConfig,
    ExpectedConfig,
    PreferencesConfig,
    TargetsConfig,
    TeacherConfig,
    WarmUpConfig,
)
from training.config.section import ConfigError, HomePath, Section, home


class RebuildConfig(Section):
    """A whole rebuild."""

    artifacts: HomePath = Field(default_factory=lambda: home() / "artifacts")
    threads: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model is read and trained; auto: on a GPU if there is one"
    )
    market: MarketConfig = MarketConfig()
    scenarios: ScenariosConfig = ScenariosConfig()
    outcomes: OutcomesConfig = OutcomesConfig()
    encode: EncodeConfig = EncodeConfig()
    teacher: TeacherConfig = TeacherConfig()
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
    walk_forward: WalkForwardConfig = WalkForwardConfig()

    @model_validator(mode="after")
    def nothing_is_trained_on_that_judges(self) -> Self:
        """The held-out part begins where training ends: on `scenarios.until`, or with the held-out
        period."""
        since, ends = self.evaluate.held_out.since, self.scenarios.until or HELD_OUT_FROM
        if since is not None and since < ends:
            raise ValueError(
                f"evaluate.held_out.since is {since}: what lies before {ends} may have been trained"
                " on; scenarios.until says where training ends"
            )
        return self

    @model_validator(mode="after")
    def judges_by_the_exits_that_it_trains_on(self) -> Self:
        """A model is not judged by other exits than those it learned."""
        if self.evaluate.held_out.exits != self.scenarios.exits:
            raise ValueError("evaluate.held_out.exits differs from scenarios.exits: write the same")
        return self

    @model_validator(mode="after")
    def what_is_left_out_is_said_by_numbers(self) -> Self:
        """A version that reads text alone has to read all of it."""
        if self.encode.leave_out and not self.adapter.numbers:
            raise ValueError("encode.leave_out needs adapter.numbers above 0")
        return self

    @model_validator(mode="after")
    def delays_are_an_ablation(self) -> Self:
        """Splits and embargo reckon with orders that come at once; evaluation delays them in its
        own ablation."""
        if self.outcomes.delay_s or (self.evaluate.outcomes and self.evaluate.outcomes.delay_s):
            raise ValueError(
                "outcomes.delay_s must be 0: evaluation sets it in its ablation with late orders"
            )
        return self


def read_config(path: Path, overrides: Sequence[str] = ()) -> RebuildConfig:
    """A configuration from a TOML file. Relative paths in it are relative to the current directory;
    one that begins with `var/` lies under HOME (`ADVISOR_HOME`).

    `overrides` are lines of TOML with dotted keys, such as `market.length="4h"`; they win over the
    file. With another `market.source` the file's settings of its own source go.

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
    over: dict[str, Any] = {}
    for line in overrides:
        try:
            _merge(over, tomllib.loads(line))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f'{line!r} sets nothing ({error}): write it as section.key="text" or key=1'
            ) from error
    _leave_source(document.get("market"), over.get("market"))
    _merge(document, over)
    _judge_as_trained(document)
    try:
        return RebuildConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error.errors(), RebuildConfig)}") from error


def _leave_source(market: Any, over: Any) -> None:
    """Take the settings of the file's source out of its market, when an override names another."""
    if isinstance(market, dict) and isinstance(over, dict) and "source" in over:
        for source, names in SETTINGS_OF.items():
            for name in names if source != over["source"] else ():
                market.pop(name, None)


def _judge_as_trained(document: dict[str, Any]) -> None:
    """Costs to judge by that are not named are those of training, not defaults."""
    match document:
        case {"outcomes": dict(trained), "evaluate": {"outcomes": dict(judged)} as evaluate}:
            evaluate["outcomes"] = trained | judged


def _merge(document: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(document.get(key, {}), dict):
            _merge(document.setdefault(key, {}), value)
        else:
            document[key] = value
