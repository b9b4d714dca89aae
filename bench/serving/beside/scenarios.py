"""Candidates of the bars that come with the environment, for benches that ask about real ones."""

from __future__ import annotations

from app.domain.scenario import Scenario
from training.cli.options import chosen
from training.pipeline.rebuild import market_of, scenarios_of
from training.scenarios.table import ScenarioSet
from training.stages.workshop import Workshop


def bundled(*overrides: str) -> list[Scenario]:
    """All of them, in order of time, as the configuration `bundled` finds them; found in half a
    minute and kept."""
    settings = chosen("bundled", overrides)
    every = settings.scenarios.model_copy(update={"limit": None})
    settings = settings.model_copy(update={"scenarios": every})
    shop = Workshop(settings.artifacts)
    return list(
        ScenarioSet.open(scenarios_of(settings, market_of(settings), shop, None)).scenarios()
    )
