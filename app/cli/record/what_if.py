"""The command `what-if`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.cli.options import WIDE, AsJson, Url, console, database_url, finite, operator, say, tell
from app.domain.rules.limits import Limits, parse_limits, read_limits
from app.domain.text import counted
from app.domain.what_if.costs import MOST_COST
from app.domain.what_if.past import AGENT
from app.domain.what_if.tally import ArmTally, By, Tally
from app.settings import read_settings
from app.tasks import calm_garbage_collection

if TYPE_CHECKING:
    from app.domain.what_if.judge import Judge

MOST_GROUPS = 20
"""Groups that a table shows, those with the most decisions; --json has all."""
MOST_WHYS = 6
CURRENT = "current"
"""In the place of a file: the limits in force."""


Tried = Annotated[
    Path | None,
    typer.Option(
        "--limits",
        help="Limits to try: a TOML file, or `current`, those in force. Default: those compared"
        " with.",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        help="Limits to compare with: a TOML file, or `current`, those in force. Default: those"
        " each decision was made with."
    ),
]
Instead = Annotated[
    str | None,
    typer.Option(help="Let this version's readings advise in the place of the primary's."),
]
Read = Annotated[
    int,
    typer.Option(
        min=0,
        help="Decisions without a reading of --version that it reads now, at most, evenly over"
        " the span; each takes about 0.1 s.",
    ),
]
Fee = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=MOST_COST,
        callback=finite,
        help="Had each side cost this fee, a fraction of notional (0.001 is 0.1 %).",
    ),
]
Slippage = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=MOST_COST,
        callback=finite,
        help="Had each side slipped by this, a fraction of notional.",
    ),
]
Since = Annotated[datetime | None, typer.Option(help="First time of a decision, UTC.")]
Until = Annotated[datetime | None, typer.Option(help="Time to end before, UTC.")]
Hours = Annotated[
    float,
    typer.Option(
        min=0,
        max=876_600,
        callback=finite,
        help="After these without a trade, losses in a row are forgotten.",
    ),
]
Groups = Annotated[By, typer.Option(help="What the agent's orders are grouped by.")]
Show = Annotated[int, typer.Option(help="How many changed decisions to print.")]


def what_if(
    limits: Tried = None,
    against: Against = None,
    version: Instead = None,
    read: Read = 0,
    fee: Fee = None,
    slippage: Slippage = None,
    since: Since = None,
    until: Until = None,
    forget_hours: Hours = 24.0,
    url: Url = None,
    as_json: AsJson = False,
    by: Groups = By.SYMBOL,
    show: Show = 10,
) -> None:
    """What other limits, another version or other costs would have refused, approved and earned, on
    the record, in R. Nothing is changed."""
    _require_sense(limits, version, read, fee, slippage, since, until)
    from app.domain.what_if.costs import costs_of
    from app.domain.what_if.judge import Judge

    calm_garbage_collection()
    before, after = _named(against, url), _named(limits, url)
    forget = timedelta(hours=forget_hours)
    judge = Judge(after, before, forget, version=version, costs=costs_of(fee, slippage))
    span = since and _utc(since), until and _utc(until)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replaying", total=None)

        def step(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        tally = asyncio.run(_tallied(judge, span, step, by, read))
    if as_json:
        tell(judge.as_json() | tally.as_json())
    else:
        _say_tally(tally, show)


def _require_sense(
    limits: Path | None,
    version: str | None,
    read: int,
    fee: float | None,
    slippage: float | None,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Raises `typer.BadParameter`."""
    if all(each is None for each in (limits, version, fee, slippage)):
        raise typer.BadParameter(
            "say what would be otherwise: --limits, --version, --fee or --slippage"
        )
    if read and version is None:
        raise typer.BadParameter("it needs --version", param_hint="--read")
    if since is not None and until is not None and _utc(since) >= _utc(until):
        raise typer.BadParameter("it is not after --since", param_hint="--until")


async def _tallied(
    judge: Judge,
    span: tuple[datetime | None, datetime | None],
    step: Callable[[int, int], None],
    by: By,
    read: int,
) -> Tally:
    from app.shadow_log.reading.what_if import Asked, Missing, tallied

    settings = read_settings()
    log = database_url(settings)
    if not read or judge.version is None:
        return await tallied(log, judge, Asked(*span), step, by)
    from app.advising.hindsight import Hindsight
    from app.main import backend_options

    reader = Hindsight(judge.version, backend_options(settings))
    try:
        return await tallied(log, judge, Asked(*span), step, by, Missing(reader, read))
    finally:
        await reader.aclose()


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=at.tzinfo or UTC)


def _named(limits: Path | None, url: str | None) -> Limits | None:
    """The limits of a file, or, for `current`, the general ones that judge now."""
    if limits is None:
        return None
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
    for name, arm in tally.arms.items():
        for why, count in arm.whys.most_common(MOST_WHYS):
            say(f"{name}: {why} ({counted(count, 'decision')})")
    if still := len(tally.changed) - len(turned):
        say(f"{still} more refused before and after, by other rules: --json has them")
