"""The command `drift`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.domain.errors import AdvisorError
from app.operator_client import OperatorClient, OperatorError
from training.cli.options import Log, Url, chosen, console, finite, tell
from training.config.judging import DriftConfig
from training.config.section import home

if TYPE_CHECKING:
    from training.live.drift.demotion import Demoter
    from training.live.drift.look import Drift

Reference = Annotated[
    Path | None,
    typer.Option(help="scenarios artefact that the model was trained on: the features' reference"),
]
Version = Annotated[str, typer.Option(help="default: the one that decided last")]
Config = Annotated[
    str, typer.Option(help="configuration of a rebuild, as there; its section [drift] counts")
]
Json = Annotated[Path | None, typer.Option("--json", help="write the look as JSON")]
Textfile = Annotated[
    Path | None, typer.Option(help="write gauges for node_exporter's textfile collector")
]
Listen = Annotated[
    int | None, typer.Option(min=1, max=65_535, help="serve gauges at this port, and stay")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="ADVISOR_METRICS_TOKEN_FILE",
        help="with --listen: a file with the token that scrapers send; without it only this machine"
        " can scrape",
    ),
]
Demote = Annotated[
    str,
    typer.Option(
        help="with --listen: an alias (champion) that steps back by itself when its version does"
        " worse than the agent or the version before, or drifts on; asks --url as an operator"
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        envvar="ADVISOR_DRIFT",
        help="folder for the newest look at each version, which /ui/drift shows; the service reads"
        " the same one. Default: drift under ADVISOR_HOME",
    ),
]
Every = Annotated[
    float, typer.Option(min=1, callback=finite, help="with --listen: minutes between looks")
]

Until = Annotated[
    datetime | None,
    typer.Option(
        help="look as of then, UTC: at decisions before it, with what is known of them today"
    ),
]


def drift(
    database: Log,
    url: Url,
    reference: Reference = None,
    model_version: Version = "",
    config: Config = "",
    output: Json = None,
    textfile: Textfile = None,
    listen: Listen = None,
    token_file: TokenFile = None,
    every: Every = 60.0,
    demote: Demote = "",
    keep: Keep = None,
    until: Until = None,
) -> None:
    """Has the market, or the model's behaviour in it, moved away from what the model was made for?

    Compares the last decisions in the log with those before (and, with --reference, with the
    training scenarios), and says ok, watch or refresh, with reasons. docs/drift.md explains every
    number.
    """
    # scikit-learn and river take a second to load, and the light installation has neither.
    from training.live.drift.exporter import exported
    from training.live.drift.look import observe, trained_on_rows
    from training.live.drift.show import DriftMetrics, show

    settings = chosen(config).drift if config else DriftConfig()
    trained_on = trained_on_rows(reference) if reference else None
    _require_one_of(listen, demote, until)
    past = until.replace(tzinfo=UTC) if until else None
    demoter = _demoter(demote, url, database, settings) if demote else None
    metrics = DriftMetrics()
    if listen is not None:
        exported(metrics.registry, listen, token_file)
        tell(f"gauges at port {listen}, a look every {every:g} minutes; Ctrl-C ends it")
    while True:
        now, look = past or datetime.now(UTC), None
        try:
            look = observe(database, model_version or None, settings, now, trained_on, past)
            show(look, console, metrics, output, textfile)
            _keep(keep or home() / "drift", look, settings, past)
        except AdvisorError as error:
            if listen is None:
                raise
            tell(f"{error}; looking again in {every:g} minutes")
        if demoter is not None:
            _step_back(demoter, look, now)
        if listen is None:
            return
        time.sleep(60 * every)


def _require_one_of(listen: int | None, demote: str, until: datetime | None) -> None:
    if demote and listen is None:
        raise AdvisorError("--demote stays and looks again and again: it needs --listen")
    if until is not None and listen is not None:
        raise AdvisorError("--until is one look at the past, --listen stays: one of them")


def _demoter(alias: str, url: str, database: str, settings: DriftConfig) -> Demoter:
    from training.live.drift.demotion import Demoter

    return Demoter(OperatorClient(url), alias, database, settings)


def _keep(folder: Path, look: Drift, settings: DriftConfig, past: datetime | None) -> None:
    """For the page, unless it is of the past; a look is worth as much where nothing can be kept."""
    from training.live.drift.kept import keep

    if past is not None:
        return
    try:
        keep(folder, look, settings)
    except OSError as error:
        tell(f"/ui/drift will not show it: {error.filename or folder}: {error.strerror}")


def _step_back(demoter: Demoter, look: Drift | None, now: datetime) -> None:
    """What it does is told; what keeps it from looking too, and the next round looks again."""
    try:
        done = demoter.look(look, now)
    except (AdvisorError, OperatorError) as error:
        tell(f"nobody could look whether to step back: {error}")
        return
    if done is not None:
        tell(f"DEMOTED: {done}")
