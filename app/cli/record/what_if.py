"""The command `what-if`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.cli.options import WIDE, AsJson, Url, console, database_url, finite, operator, say, tell
from app.domain.rules.limits import Limits, parse_limits, read_limits
from app.domain.what_if import AGENT, ArmTally, By, Tally
from app.settings import read_settings
from app.tasks import calm_garbage_collection

MOST_GROUPS = 20
"""Groups that a table shows, those with the most decisions; --json has all."""
CURRENT = "current"
"""In the place of a file: the limits in force."""


def what_if(
    limits: Annotated[Path, typer.Option("--limits", help="Limits to try, a TOML file.")],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Limits to compare with: a TOML file, or `current`, those in force. Default: those"
            " each decision was made with."
        ),
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="First time of a decision, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Time to end before, UTC.")] = None,
    forget_hours: Annotated[
        float,
        typer.Option(
            min=0,
            max=876_600,
            callback=finite,
            help="After these without a trade, losses in a row are forgotten.",
        ),
    ] = 24.0,
    url: Url = None,
    as_json: AsJson = False,
    by: Annotated[By, typer.Option(help="What the agent's orders are grouped by.")] = By.SYMBOL,
    show: Annotated[int, typer.Option(help="How many changed decisions to print.")] = 10,
) -> None:
    """What other limits would have refused, approved and earned, on the record, in R. Nothing is
    changed."""
    if since is not None and until is not None and _utc(since) >= _utc(until):
        raise typer.BadParameter("it is not after --since", param_hint="--until")
    from app.domain.what_if import Judge
    from app.shadow_log.reading.what_if import Asked, tallied

    calm_garbage_collection()
    before = None if against is None else _named(against, url)
    judge = Judge(read_limits(limits), before, timedelta(hours=forget_hours))
    begin, end = (at and _utc(at) for at in (since, until))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replaying", total=None)

        def counted(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        log = database_url(read_settings())
        tally = asyncio.run(tallied(log, judge, Asked(begin, end), counted, by))
    if as_json:
        tell(tally.as_json())
    else:
        _say_tally(tally, show)


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=at.tzinfo or UTC)


def _named(limits: Path, url: str | None) -> Limits:
    """The limits of a file, or, for `current`, the general ones that judge now."""
    if str(limits) != CURRENT:
        return read_limits(limits)
    return parse_limits(operator(url).limits()["in_force"][""]["toml"], "the limits in force")


def _row(name: str, arm: ArmTally) -> tuple[str, ...]:
    gain = "" if arm.gain is None else f"{arm.gain.value:+.4f}"
    if arm.gain is not None and arm.gain.low is not None:
        gain += f" [{arm.gain.low:+.4f}, {arm.gain.high:+.4f}]"
    grades = ", ".join(f"{count} {grade}" for grade, count in arm.grades.items())
    approved = f"{arm.approved_before} -> {arm.approved_after}"
    earned = f"{arm.r_before:+.2f} -> {arm.r_after:+.2f} (of {arm.judged})"
    return escape(name), str(arm.decisions), approved, earned, gain, grades


def _say_tally(tally: Tally, show: int) -> None:
    """What changed, by arm, group, rule and decision."""
    if not tally.arms:
        say("no decision is recorded in this span")
        return
    arms = Table(
        "arm", "decisions", "approved", "R", "gain, R a decision", "grades", box=SIMPLE_HEAD
    )
    for name, arm in tally.arms.items():
        arms.add_row(*_row(name, arm))
    groups = Table(
        tally.by.value,
        "decisions",
        "approved",
        "R",
        "gain, R a decision",
        "grades",
        box=SIMPLE_HEAD,
    )
    of_agent = sorted(tally.groups[AGENT].items(), key=lambda each: -each[1].decisions)
    for name, arm in of_agent[:MOST_GROUPS]:
        groups.add_row(*_row(name, arm))
    codes = Table("veto", "refused", "R saved on the agent's orders", box=SIMPLE_HEAD)
    for code, tallied in sorted(tally.codes.items()):
        refused = f"{tallied.refused_before} -> {tallied.refused_after}"
        codes.add_row(
            code, refused, f"{tallied.r_saved_before:+.2f} -> {tallied.r_saved_after:+.2f}"
        )
    changed = Table("time", "symbol", "arm", "before", "after", "R", "grade", box=SIMPLE_HEAD)
    turned = [each for each in tally.changed if each.before.approves or each.after.approves]
    for judged in turned[-show:] if show > 0 else []:
        scenario = judged.past.decision.scenario
        verdicts = [
            " ".join(verdict.codes) or ("approve" if verdict.approves else "reject")
            for verdict in (judged.before, judged.after)
        ]
        earned = " -> ".join("?" if r is None else f"{r:+.2f}" for r in judged[4:6])
        when = f"{scenario.as_of:%Y-%m-%d %H:%M}"
        changed.add_row(
            when, scenario.candidate.symbol, judged.arm, *verdicts, earned, judged.grade
        )
    for table in (arms, groups, codes, changed):
        if table.row_count:
            Console(width=max(WIDE, console.width)).print(table)
    if still := len(tally.changed) - len(turned):
        say(f"{still} more refused before and after, by other rules: --json has them")
