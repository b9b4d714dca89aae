"""The commands on the record: `verify`, `compare`, `prove`, `replay`, `retention`."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.progress import Progress

from app.cli.options import AlwaysJson, AsJson, console, database_url, say, tell
from app.domain.text import counted
from app.settings import SettingsError, read_settings

if TYPE_CHECKING:
    from app.domain.record.decision import Decision
    from app.shadow_log.log import ShadowLog


def verify(
    sample: Annotated[int, typer.Option(help="How many findings to print.")] = 20,
    checkpoints: Annotated[
        str | None,
        typer.Option(help="File or bucket of signed checkpoints to hold the log against."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Public key (hex) that must have signed them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Re-hash and replay every stored decision, follow every chain; exit 1 when anything does not
    match."""
    from app.shadow_log.proof.checkpoint import check_log, read_checkpoints
    from app.shadow_log.proof.places import place_at
    from app.shadow_log.proof.verify import verify_log

    settings = read_settings()
    signed, cut = (None, 0) if checkpoints is None else read_checkpoints(place_at(checkpoints), key)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("verifying", total=None)
        report = asyncio.run(
            verify_log(
                database_url(settings),
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        )
    if signed is not None:
        asyncio.run(check_log(database_url(settings), signed, report))
        signers = ", ".join({str(each["key"]) for each in signed}) or "nobody"
        say(f"{len(signed)} checkpoints, signed by {signers}" + (f"; {cut} are cut" if cut else ""))
    summary = filter(None, (report.summary(), report.chain_summary(), report.told_summary()))
    if as_json:
        tell({"summary": list(summary), "findings": [str(each) for each in report.findings]})
    else:
        for line in (*summary, *(f"  {finding}" for finding in report.findings[:sample])):
            say(line)
    raise typer.Exit(1 if report.findings else 0)


def compare(as_json: AsJson = False) -> None:
    """Make the flat table that the comparing views read anew from decisions, advices and reports.
    Whoever appends keeps it; this mends it, beside a running service."""
    from app.shadow_log.comparisons import compare_all

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparing", total=None)
        decisions, changed = asyncio.run(
            compare_all(
                database_url(read_settings(), owner=True),
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        )
    if as_json:
        tell({"decisions": decisions, "changed": changed})
    else:
        say(f"{counted(decisions, 'decision')}, {counted(changed, 'row')} changed")


def prove(
    decision_id: Annotated[UUID, typer.Argument(help="Id of a stored decision.")],
    checkpoints: Annotated[
        str | None, typer.Option(help="Where checkpoints are. Default: what the writer was told.")
    ] = None,
    _: AlwaysJson = False,
) -> None:
    """Print a proof that a decision is in the log as it was at a signed checkpoint, for
    `python -m shadow_advisor_client.proof`; of one whose month retention dropped, that its hash
    is."""
    from app.domain.canonical import canonical_json
    from app.shadow_log.log import ShadowLog
    from app.shadow_log.proof.checkpoint import proof, read_checkpoints
    from app.shadow_log.proof.places import place_at

    settings = read_settings()
    place = checkpoints or settings.checkpoints_here
    if place is None:
        raise SettingsError("say where they are with --checkpoints, or set ADVISOR_CHECKPOINTS")
    signed = read_checkpoints(place_at(place))[0]

    async def made() -> dict[str, Any]:
        log = ShadowLog.connect(database_url(settings))
        try:
            stored = await log.decision(decision_id)
            if stored is None:
                say(f"{await _gone(log, decision_id)}; the proof holds its hash")
            record = None if stored is None else canonical_json(stored.as_json())
            return await proof(log.engine, decision_id, record, signed)
        finally:
            await log.aclose()

    tell(asyncio.run(made()))


def replay(
    decision_id: Annotated[UUID, typer.Argument(help="Id of a stored decision.")],
    as_json: AsJson = False,
) -> None:
    """Derive one stored decision again from its inputs and show every difference; exit 1 when there
    is one."""
    from app.shadow_log.log import ShadowLog

    async def fetched() -> Decision:
        log = ShadowLog.connect(database_url(read_settings()))
        try:
            stored = await log.decision(decision_id)
            if stored is None:
                raise SettingsError(await _gone(log, decision_id))
            return stored
        finally:
            await log.aclose()

    stored = asyncio.run(fetched())
    before, after = stored.as_json(), stored.replayed().as_json()
    changed = {
        key: {"stored": before[key], "replayed": after[key]}
        for key in before
        if before[key] != after[key]
    }
    if as_json:
        tell({"decision_id": decision_id, "differences": changed})
        raise typer.Exit(1 if changed else 0)
    for key, each in changed.items():
        stood, came = json.dumps(each["stored"]), json.dumps(each["replayed"])
        say(f"{key}:\n  stored   {stood}\n  replayed {came}")
    advice = stored.primary
    say(
        f"{stored.scenario.candidate.symbol} at {stored.scenario.as_of:%Y-%m-%d %H:%M} UTC:"
        f" {advice.status.value}, {advice.action or 'no action'}; "
        + ("differs" if changed else "replays to the same record")
    )
    raise typer.Exit(1 if changed else 0)


def retention(
    before: Annotated[
        datetime,
        typer.Option(formats=["%Y-%m"], metavar="YYYY-MM", help="The first month to keep, in UTC."),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Drop them. Without it, only show what would go.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Drop the months of decisions before one; there is no way back but a backup. Without --yes,
    only show them."""
    from app.shadow_log.log import ShadowLog

    if before.replace(tzinfo=UTC) > datetime.now(UTC):
        raise SettingsError(
            f"--before {before:%Y-%m} is in the future: the month under way is not for dropping"
        )

    async def months() -> dict[str, int]:
        log = ShadowLog.connect(database_url(read_settings(), owner=True), patience_s=None)
        try:
            look = log.drop_months_before if yes else log.months_before
            return await look(before.replace(tzinfo=UTC))
        finally:
            await log.aclose()

    held = asyncio.run(months())
    if as_json:
        tell({"dropped": yes, "months": {f"{key[:4]}-{key[4:]}": held[key] for key in held}})
        return
    for month, decisions in held.items():
        told = counted(decisions, "decision ", "decisions")
        say(f"{month[:4]}-{month[4:]} {told:>22}".rstrip())
    if not held:
        say(f"no month before {before:%Y-%m} holds decisions")
    else:
        done = "dropped" if yes else "nothing is dropped without --yes:"
        say(f"{done} {counted(len(held), 'month')}, {counted(sum(held.values()), 'decision')}")


async def _gone(log: ShadowLog, decision_id: UUID) -> str:
    """Why the log has no such record. Raises `SettingsError` where nothing had the id."""
    if await log.claim(decision_id) is None:
        raise SettingsError(f"no decision has the id {decision_id}")
    return (
        f"the record of decision {decision_id} is not in the log any more: its month was dropped"
        " by retention, or `advisor verify` names it"
    )
