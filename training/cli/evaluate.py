"""The commands `evaluate` and `promote`."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training.cli.meter import meter
from training.cli.rebuild import Database, Overrides, Settings, chosen, tell
from training.config.learning import ALGORITHMS
from training.config.section import ConfigError
from training.publish.registry import Move, register_and_alias
from training.stages.store import Artifact

DEFAULT_URL = "http://127.0.0.1:8321"
CHAMPION = "champion"
console = Console()


def evaluate(
    config: Settings = "bundled",
    overrides: Overrides = None,
    database: Database = None,
    against: Annotated[
        str, typer.Option(help="further algorithms in the contest, separated by commas; or all")
    ] = "",
    champion: Annotated[str, typer.Option(help="a published version that must be beaten too")] = "",
) -> None:
    """Judge what a configuration rebuilds on the held-out period, against the agent, simple rivals
    and chance.

    Rebuilds first if need be. Writes report.html, report.json and the gate's signed verdict, and
    counts the look.
    """
    settings = chosen(config, overrides)
    names = [*ALGORITHMS] if against == "all" else [name for name in against.split(",") if name]
    unknown = sorted(set(names) - ALGORITHMS.keys())
    if unknown:
        raise ConfigError(f"--against {', '.join(unknown)}: choose from {', '.join(ALGORITHMS)}")
    from training.pipeline.evaluate import Evaluate

    rivals = [ALGORITHMS[name]() for name in names]
    done = Evaluate(
        settings, meter, tell, datetime.now(UTC), rivals, database, champion or None
    ).run()
    print_verdict(done.report["verdict"])
    tell(f"version {done.version.name}")
    tell(f"report  {done.artifact / 'report.html'}")


def walk_forward(config: Settings = "cpu", overrides: Overrides = None) -> None:
    """Judge the procedure: retrain before each period of the training years, and judge on it. No
    held-out day is read.

    Periods stand in the section [walk_forward]. The report is that of an evaluation; nothing is
    published.
    """
    settings = chosen(config, overrides)
    from training.pipeline.walk_forward import WalkForward

    done = WalkForward(settings, meter, tell, datetime.now(UTC)).run()
    tell(f"report  {done / 'report.html'}")


def promote(
    evaluation: Annotated[Path, typer.Argument(help="a finished evaluation artefact")],
    url: Annotated[
        str, typer.Option(envvar="ADVISOR_URL", help="where the service answers")
    ] = DEFAULT_URL,
    token: Annotated[
        str | None, typer.Option(envvar="ADVISOR_ADMIN_TOKEN", show_default=False)
    ] = None,
    alias: Annotated[str, typer.Option(help="the alias that moves")] = CHAMPION,
    override: Annotated[
        bool, typer.Option("--override", help="promote against the verdict; needs --by and --why")
    ] = False,
    by: Annotated[str, typer.Option(help="who; recorded. Default: who runs this")] = "",
    why: Annotated[str, typer.Option(help="why; recorded")] = "",
) -> None:
    """Move the champion's alias to the evaluated version: only with a report that passes.

    An override is explicit: it names somebody and a reason, is sealed into a copy of the report
    beside the artefact, and stands in the alias' history.
    """
    from training.judging.gate.sealed import overridden, require_promotable

    artifact = Artifact.open(evaluation, "evaluation", deep=True)
    report: dict[str, Any] = json.loads((artifact / "verdict.json").read_text(encoding="utf-8"))
    now, who = datetime.now(UTC), by or getpass.getuser()
    reason = why or "passed the gate"
    if override:
        report = overridden(report, by=by, why=why, at=now)
        reason = f"OVERRIDE of the gate: {why}"
    version = artifact.facts["model_version"]
    require_promotable(report, version)
    if override:
        kept = artifact.path.with_name(f"{artifact.path.name}.override-{now:%Y%m%dT%H%M%S}.json")
        kept.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        tell(f"override written to {kept}")
    move: Move = register_and_alias(url, token, version, alias, f"{reason} ({report['hash']})", who)
    tell(f"{move.alias}: {move.before or 'nothing'} -> {move.now}")


def print_verdict(verdict: dict[str, Any]) -> None:
    """What the gate says, and why."""
    table = Table(
        "rival",
        "policy less rival, R per scenario",
        "lower bound",
        title="Held out",
        title_justify="left",
    )
    for name, found in verdict["differences"].items():
        low = "none" if found["low"] is None else f"{found['low']:+.4f}"
        table.add_row(name, "none" if found["value"] is None else f"{found['value']:+.4f}", low)
    console.print(table)
    if verdict["promote"]:
        console.print("the gate passes it: advisor-train promote EVALUATION")
        return
    console.print("the gate refuses it:")
    for each in verdict["refusals"]:
        numbers = "" if each["observed"] is None else f" {each['observed']:.4g}"
        numbers += "" if each["limit"] is None else f" (limit {each['limit']:.4g})"
        tell(f"  {each['code']} {each['about']}{numbers} {each['detail']}".rstrip())
