"""The command `drift`."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from prometheus_client import start_http_server
from rich.console import Console

from app.domain.errors import AdvisorError
from app.domain.features import features
from app.domain.scenario import Scenario
from training.artifacts import Artifact
from training.config import DriftConfig, read_config
from training.drift import Drift, Span, Subject, Window, look
from training.drift_metrics import DriftMetrics
from training.drift_tables import print_drift
from training.log_reader import judged_between, reading, served
from training.market import Floats
from training.scenarios import ScenarioSet

MOST_TRAINED_ON = 5000
"""Scenarios of an artefact that are looked at, evenly over time: enough for any distribution."""
console = Console()


class DriftReference(AdvisorError):
    """The reference is no artefact of scenarios, or none of it trains."""


def drift(
    database: Annotated[str, typer.Option(envvar="DATABASE_URL", help="the shadow log, read-only", show_default=False)],
    reference: Annotated[
        Path | None, typer.Option(help="scenarios artefact that the model was trained on: the features' reference")
    ] = None,
    model_version: Annotated[str, typer.Option(help="default: the one that decided last")] = "",
    config: Annotated[Path | None, typer.Option(help="TOML file of a rebuild; its section [drift] counts")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="write the look as JSON")] = None,
    textfile: Annotated[Path | None, typer.Option(help="write gauges for node_exporter's textfile collector")] = None,
    listen: Annotated[int | None, typer.Option(min=1, max=65_535, help="serve gauges at this port, and stay")] = None,
    every: Annotated[float, typer.Option(min=1, help="with --listen: minutes between looks")] = 60.0,
) -> None:
    """Has the market, or the model's behaviour in it, moved away from what the model was made for?

    Compares the last decisions in the log with those before (and, with --reference, with the training scenarios), and
    says ok, watch or refresh, with reasons. docs/drift.md explains every number.
    """
    settings = read_config(config).drift if config else DriftConfig()
    trained_on = _trained_on(reference) if reference else None
    metrics = DriftMetrics()
    if listen is not None:
        start_http_server(listen, registry=metrics.registry)
        console.print(f"gauges at port {listen}, a look every {every:g} minutes; Ctrl-C ends it")
    while True:
        try:
            _look(database, model_version or None, settings, trained_on, metrics, output, textfile)
        except AdvisorError as error:
            if listen is None:
                raise
            console.print(f"{error}; looking again in {every:g} minutes", markup=False)
        if listen is None:
            return
        time.sleep(60 * every)


def _look(
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
        draft.write_text(json.dumps(found.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
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
    """One look at a version of the log, or at the one that decided last. Windows end at its last decision.

    Raises
    ------
    ShadowLogUnavailable : the log cannot be read, or has no advice of that version.
    """
    with reading(database) as connection:
        who = served(connection, version)
        split = who.last - timedelta(days=config.recent_days)
        begin = split - timedelta(days=config.reference_days)
        before, recent = (
            Window.of_rows(chain.from_iterable(judged_between(connection, who.model_version, *span)))
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


def _trained_on(path: Path) -> tuple[str, Floats]:
    """Name and features of the real training rows of a scenarios artefact.

    Raises
    ------
    ArtifactError, ScenarioError, DriftReference : it is no finished scenarios artefact, or it has no row that trains.
    """
    scenarios = ScenarioSet.open(Artifact.open(path, "scenarios"))
    rows = scenarios.rows("train", real_only=True)
    if not len(rows):
        raise DriftReference(f"{path}: no scenario of it trains; name the artefact that the model was trained on")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_TRAINED_ON).astype(int))]
    vectors = [features(Scenario.from_json(json.loads(text))) for text in scenarios.table["scenario"].gather(chosen)]
    return f"artefact {path.name}", np.array(vectors, dtype=float)
