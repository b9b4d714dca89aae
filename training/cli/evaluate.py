"""The commands `evaluate` and `promote`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from training.cli.options import (
    Adopt,
    By,
    Config,
    Database,
    Set,
    Token,
    Url,
    Why,
    chosen,
    console,
    meter,
    point,
    tell,
)
from training.config.judging import Kind
from training.config.learning import ALGORITHMS
from training.config.section import ConfigError
from training.stages.store import Artifact
from training.stages.workshop import Workshop

ALIASES = {Kind.TRADER: "champion", Kind.VETO: "champion-veto"}

Against = Annotated[
    str, typer.Option(help="further algorithms in the contest, separated by commas; or all")
]
Champion = Annotated[str, typer.Option(help="a published version that must be beaten too")]
Judged = Annotated[
    str, typer.Option("--version", help="a published version to judge, in place of a rebuild")
]
Evaluation = Annotated[Path, typer.Argument(help="a finished evaluation artefact")]
Alias = Annotated[
    str, typer.Option(help="the alias that moves; none: champion, of a veto champion-veto")
]
As = Annotated[Kind, typer.Option("--as", help="what it is promoted as, each by its own verdict")]
Override = Annotated[
    bool, typer.Option("--override", help="promote against the verdict; needs --by and --why")
]


def evaluate(
    config: Config = "bundled",
    overrides: Set = None,
    database: Database = "",
    against: Against = "",
    champion: Champion = "",
    judged: Judged = "",
    adopt: Adopt = None,
) -> None:
    """Judge what a configuration rebuilds on the held-out period, against the agent, simple rivals
    and chance.

    Rebuilds first if need be; `--version` asks a published version instead, prompt by prompt as the
    service does, and goes on where it was stopped. Writes report.html, report.json and the gate's
    signed verdict, and counts the look.
    """
    settings = chosen(config, overrides)
    names = [*ALGORITHMS] if against == "all" else [name for name in against.split(",") if name]
    unknown = sorted(set(names) - ALGORITHMS.keys())
    if unknown:
        raise ConfigError(f"--against {', '.join(unknown)}: choose from {', '.join(ALGORITHMS)}")
    from training.pipeline import evaluate as pipeline

    if judged and names:
        raise ConfigError("--against rebuilds further algorithms: leave it out with --version")
    rivals = [ALGORITHMS[name]() for name in names]
    now, log = datetime.now(UTC), database or None
    shop = Workshop(settings.artifacts, tell, meter, adopt or ())
    done = pipeline.evaluate(settings, shop, now, rivals, log, champion or None, judged or None)
    print_verdict(done.report["verdict"])
    print_verdict(done.veto["verdict"])
    tell(f"version {done.version.name}")
    tell(f"report  {done.artifact / 'report.html'}")


def walk_forward(config: Config = "cpu", overrides: Set = None, adopt: Adopt = None) -> None:
    """Judge the procedure: retrain before each period of the training years, and judge on it. No
    held-out day is read.

    Periods stand in the section [walk_forward]. The report is that of an evaluation; nothing is
    published.
    """
    settings = chosen(config, overrides)
    from training.pipeline import walk_forward as pipeline

    shop = Workshop(settings.artifacts, tell, meter, adopt or ())
    done = pipeline.walk_forward(settings, shop, datetime.now(UTC))
    tell(f"report  {done / 'report.html'}")


def promote(
    evaluation: Evaluation,
    url: Url,
    token: Token = None,
    alias: Alias = "",
    kind: As = Kind.TRADER,
    override: Override = False,
    by: By = "",
    why: Why = "",
) -> None:
    """Move the champion's alias to the evaluated version: only with a report that passes.

    As a veto the version is to refuse trades of the agent's, and its size and stop are not taken.

    An override is explicit: it names somebody and a reason, is sealed into a copy of the report
    beside the artefact, and stands in the alias' history.
    """
    from training.judging.gate.sealed import overridden, require_promotable, verdict_file

    artifact = Artifact.open(evaluation, "evaluation", deep=True)
    report: dict[str, Any] = json.loads((artifact / verdict_file(kind)).read_text(encoding="utf-8"))
    now = datetime.now(UTC)
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
    point(url, token, alias or ALIASES[kind], version, f"{reason} ({report['hash']})", by)


def print_verdict(verdict: dict[str, Any]) -> None:
    """What the gate says, and why."""
    table = Table(
        "rival",
        "policy less rival, R per scenario",
        "lower bound",
        title=f"Held out, as a {verdict.get('kind', Kind.TRADER)}",
        title_justify="left",
    )
    for name, difference in verdict["differences"].items():
        table.add_row(name, _signed(difference["value"]), _signed(difference["low"]))
    console.print(table)
    if verdict["promote"]:
        asked = " --as veto" if verdict.get("kind") == Kind.VETO else ""
        console.print(f"the gate passes it: advisor-train promote EVALUATION{asked}")
        return
    console.print("the gate refuses it:")
    for refusal in verdict["refusals"]:
        observed, limit = refusal["observed"], refusal["limit"]
        numbers = "" if observed is None else f" {observed:.4g}"
        numbers += "" if limit is None else f" (limit {limit:.4g})"
        tell(f"  {refusal['code']} {refusal['about']}{numbers} {refusal['detail']}".rstrip())


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.4f}"
