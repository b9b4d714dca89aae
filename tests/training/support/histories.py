"""A small history and its artefacts, for tests of scenarios and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.training.support.artifacts import made_up
from tests.training.support.candles import random_walk
from training.config.data import HeldOutConfig, OutcomesConfig, ScenariosConfig
from training.market.bars import Bars
from training.market.context import KnownContext
from training.outcomes.labels import build_labels
from training.scenarios.history import History, of_history
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact
from training.stages.workshop import Workshop


def history(*bars: Bars, context: KnownContext | None = None) -> History:
    """Two symbols that wander, when none are given."""
    return History(
        bars or (random_walk(1500, 1), random_walk(1500, 2, "ETHUSDT")),
        {},
        context or KnownContext(),
    )


def scenario_artifact(folder: Path, given: History, **config: Any) -> Artifact:
    return _scenarios(folder, given, ScenariosConfig(**config))


def held_out_artifact(folder: Path, given: History, **config: Any) -> Artifact:
    """Of 2023 and later."""
    return _scenarios(folder, given, HeldOutConfig(**config))


def _scenarios(folder: Path, given: History, settings: ScenariosConfig) -> Artifact:
    return Workshop(folder).make(of_history, market=given, settings=settings)


def scenario_set(folder: Path, given: History, **config: Any) -> ScenarioSet:
    return ScenarioSet.open(scenario_artifact(folder, given, **config))


def label_artifact(
    folder: Path, scenarios: ScenarioSet, series: Mapping[str, Sequence[Bars]], **config: Any
) -> Artifact:
    settings = OutcomesConfig(**config)

    def build(target: Path) -> dict[str, Any]:
        return build_labels(target, scenarios.scenarios(), scenarios.real, series, settings)

    return made_up(folder, "labels", build, [settings, len(scenarios)])
