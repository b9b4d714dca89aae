"""The command `refresh`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from app.operator_client import OperatorClient
from training.cli.evaluate import print_verdict
from training.cli.options import (
    Config,
    Log,
    Set,
    Token,
    Url,
    chosen,
    meter,
    point,
    tell,
)
from training.stages.workshop import Workshop

Champion = Annotated[
    str,
    typer.Option(
        help="the version to beat; default: what the alias champion, else shadow, points at"
    ),
]
IfDue = Annotated[
    bool,
    typer.Option(
        "--if-due", help="only when drift or the schedule ask for it (advisor-train drift)"
    ),
]
Leave = Annotated[
    bool,
    typer.Option("--leave/--keep", help="leave the challenger in shadow, or keep it on disk only"),
]


def refresh(
    database: Log,
    url: Url,
    config: Config = "cpu",
    overrides: Set = None,
    token: Token = None,
    champion: Champion = "",
    if_due: IfDue = False,
    leave: Leave = True,
) -> None:
    """Rebuild on the log's newest decisions, judge what comes out against the champion, leave a
    challenger in shadow.

    The challenger decides in shadow beside the primary from then on; `advisor-train promote` moves
    the champion's alias when the gate passes it. Bars come from the configuration's market, which
    must reach up to the last decision.
    """
    from training.live.drift.look import observe
    from training.live.drift.verdict import DriftVerdict
    from training.log import reading, served
    from training.pipeline.evaluate import evaluate
    from training.pipeline.refresh import champion_of, refreshed, span_before

    settings, now = chosen(config, overrides), datetime.now(UTC)
    if if_due:
        drift = observe(database, None, settings.drift, now)
        tell(f"drift: {drift.verdict.value}")
        if drift.verdict is not DriftVerdict.REFRESH:
            return
    with reading(database) as connection:
        last = served(connection, None).last
    span = span_before(last, settings.refresh)
    tell(
        f"trains on decisions of {span.since} to {span.judged_since}, judges on those before"
        f" {span.until}"
    )
    rival = champion or champion_of(_aliases(url, token))
    tell(f"champion: {rival or 'none yet'}")
    shop = Workshop(settings.artifacts, tell, meter)
    done = evaluate(refreshed(settings, span), shop, now, (), database, rival)
    print_verdict(done.report["verdict"])
    tell(f"version {done.version.name}")
    tell(f"report  {done.artifact / 'report.html'}")
    if leave:
        point(url, token, settings.refresh.alias, done.version.name, "refresh", "")


def _aliases(url: str, token: str | None) -> dict[str, str]:
    """Where each alias points."""
    moves = OperatorClient(url, token).aliases()["aliases"]
    return {alias: move["model_version"] for alias, move in moves.items()}
