"""Looks at the shadow log for drift: read two windows, compare, show, write."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console

from app.domain.errors import AdvisorError
from app.domain.features import features
from app.domain.scenario import Scenario
from training.arrays import Floats
from training.config.judging import DriftConfig
from training.live.drift.look import Drift, Span, Subject, Window, look
from training.live.drift.metrics import DriftMetrics
from training.live.drift.tables import print_drift
from training.log import judged_between, reading, served
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact

MOST_TRAINED_ON = 5000
"""Scenarios of an artefact that are looked at, evenly over time: enough for any distribution."""
console = Console()


class DriftReference(AdvisorError):
    """The reference is no artefact of scenarios, or none of it trains."""


def show_look(
    database: str,
    version: str | None,
    config: DriftConfig,
    trained_on: tuple[str, Floats] | None,
    metrics: DriftMetrics,
    output: Path | None,
    textfile: Path | None,
) -> None:
    found = observe(database, version, config, datetime.now(UTC), trained_on)
    print_drift(console, found)
    metrics.show(found)
    if output is not None:
        draft = output.with_name(f".{output.name}.{os.getpid()}")
        draft.write_text(
            json.dumps(found.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        draft.replace(output)
    if textfile is not None:
        metrics.write(textfile)


def observe(
    database: str,
    version: str | None,
    config: DriftConfig,
    now: datetime,
    trained_on: tuple[str, Floats] | None = None,
) -> Drift:
    """One look at a version of the log, or at the one that decided last. Windows end at its last
    decision.

    Raises
    ------
    ShadowLogUnavailable : the log cannot be read, or has no advice of that version.
    """
    with reading(database) as connection:
        who = served(connection, version)
        split = who.last - timedelta(days=config.recent_days)
        begin = split - timedelta(days=config.reference_days)
        before, recent = (
            Window.of_rows(
                chain.from_iterable(judged_between(connection, who.model_version, *span))
            )
            for span in ((begin, split), (split, who.last))
        )
    return look(
        Subject(who.model_version, who.created_at or who.first),
        before,
        recent,
        config,
        now,
        spans=(Span(begin, split, len(before)), Span(split, who.last, len(recent))),
        trained_on=trained_on,
    )


def trained_on_rows(path: Path) -> tuple[str, Floats]:
    """Name and features of the real training rows of a scenarios artefact.

    Raises
    ------
    ArtifactError, ScenarioError, DriftReference : it is no finished scenarios artefact, or it has
        no row that trains.
    """
    scenarios = ScenarioSet.open(Artifact.open(path, "scenarios"))
    rows = scenarios.rows("train", real_only=True)
    if not len(rows):
        raise DriftReference(
            f"{path}: no scenario of it trains; name the artefact that the model was trained on"
        )
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_TRAINED_ON).astype(int))]
    vectors = [
        features(Scenario.from_json(json.loads(text)))
        for text in scenarios.table["scenario"].gather(chosen)
    ]
    return f"artefact {path.name}", np.array(vectors, dtype=float)
