"""`advisor`: run the service, look after it, check its record. Commands import what they need when
they run, so that help and the halt switch are light."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.api.tokens import TokenFile, last_use, write_private
from app.domain.actions import ACTIONS
from app.domain.errors import AdvisorError
from app.domain.limits import changes, limits_text, parse_limits, read_limits
from app.domain.manifest import MANIFEST_NAME
from app.domain.principal import Role
from app.domain.what_if import Tally
from app.operator_client import OperatorClient, OperatorError
from app.settings import Settings, SettingsError, read_settings
from app.telemetry import configure_log

app = typer.Typer(
    help="Shadow-mode advice on trades: run it, look after it, check its record.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Model versions on disk.", no_args_is_help=True)
app.add_typer(model_app, name="model")
token_app = typer.Typer(help="Who may ask the service what.", no_args_is_help=True)
app.add_typer(token_app, name="token")
limits_app = typer.Typer(
    help="Limits: what judges, what others would change, letting others judge.",
    no_args_is_help=True,
)
app.add_typer(limits_app, name="limits")
console = Console(stderr=True)
WIDE = 120
"""Columns of a table that a narrower window would tear apart."""
PRIVATE = 0o077
"""What a process of the service writes is for its own user."""
Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the API answers. Default: ADVISOR_HOST and ADVISOR_PORT."),
]


def say(text: str) -> None:
    """Print text that may hold anything: as it is, on one line however long it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def database_url(settings: Settings, *, owner: bool = False) -> str:
    """DATABASE_URL, else the one that `advisor up` left under ADVISOR_HOME: the service's, or the
    owner's for who changes the schema. Or a clear error."""
    if settings.database_url:
        return settings.database_url
    name, place = "OWNER_DATABASE_URL" if owner else "DATABASE_URL", settings.home / "addresses"
    try:
        lines = place.read_text().splitlines()
    except OSError:
        lines = []
    addresses = dict(line.split("=", 1) for line in lines if "=" in line)
    if name not in addresses:
        raise SettingsError(
            "DATABASE_URL is not set: point it at Postgres, or run `advisor up`, whose addresses"
            f" are found in {place}"
        )
    return addresses[name]


@app.command()
def up(
    then: Annotated[
        str | None, typer.Option(help="Command to run once all is ready; it gets ADVISOR_URL.")
    ] = None,
    leave: Annotated[
        bool, typer.Option("--exit", help="End after that command, with its status.")
    ] = False,
) -> None:
    """Start Postgres and Valkey from wheels, migrate, import the small model, serve and write; stay
    until Ctrl-C."""
    from app.local.up import run_up

    raise typer.Exit(run_up(read_settings(), then, leave))


@app.command()
def serve() -> None:
    """Serve the API on ADVISOR_HOST:ADVISOR_PORT, with Postgres at DATABASE_URL and Valkey at
    REDIS_URL."""
    from app.main import serve as serve_api

    os.umask(PRIVATE)
    serve_api(read_settings())


@app.command()
def writer() -> None:
    """Move events from the journal into Postgres until stopped. As many may run as are needed."""
    from app.writer import run_writer

    os.umask(PRIVATE)
    asyncio.run(run_writer(read_settings()))


@app.command("import")
def import_trades(
    files: Annotated[list[Path], typer.Argument(help="Databases and tables of trades.")],
    source: Annotated[
        str,
        typer.Option("--from", help="freqtrade, spot-ai-agent, or the path of a mapping file."),
    ],
    bars: Annotated[
        Path | None, typer.Option(help="Folder of SYMBOL_1h.parquet or .csv: what files lack.")
    ] = None,
    stoploss: Annotated[
        float | None, typer.Option(help="freqtrade: the strategy's, as -0.05, for files without.")
    ] = None,
    roi: Annotated[
        float | None, typer.Option(help="freqtrade: the first minimal_roi, as 0.04.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there.")] = False,
) -> None:
    """Add trades that other programs recorded. They are no decisions of this service and count
    nowhere as such; complete ones can train. What is there already stays as it is."""
    from app.shadow_log.importing.imports import add, exits_told, source_named

    url = None if dry_run else database_url(read_settings())
    name, trades_of = source_named(source, exits_told(stoploss, roi))
    with Progress(console=console, transient=True) as progress:
        coverage, added = asyncio.run(add(url, name, trades_of, files, bars, progress))
    table = Table("what", "how many", box=SIMPLE_HEAD, title=f"import of {name}")
    for what, count in coverage.lines():
        table.add_row(escape(what), escape(count))
    if not dry_run:
        table.add_row("added", f"{added}; the others were there")
    Console().print(table)


@app.command()
def migrate() -> None:
    """Bring the database at DATABASE_URL to the newest schema, and let its roles log in with
    ADVISOR_WRITER_PASSWORD, ADVISOR_READER_PASSWORD and ADVISOR_ANALYST_PASSWORD, where they are
    set."""
    from app.shadow_log.logins import give_logins
    from app.shadow_log.migrate import current, upgrade

    settings = read_settings()
    url = database_url(settings, owner=True)
    upgrade(url)
    give_logins(url, settings.logins)
    console.print(f"database is at revision {current(url)}")


@app.command()
def verify(
    sample: Annotated[int, typer.Option(help="How many findings to print.")] = 20,
    checkpoints: Annotated[
        str | None,
        typer.Option(help="File or bucket of signed checkpoints to hold the log against."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Public key (hex) that must have signed them.")
    ] = None,
) -> None:
    """Re-hash and replay every stored decision, follow every chain; exit 1 when anything does not
    match."""
    from app.shadow_log.checkpoint import check_log, read_checkpoints
    from app.shadow_log.places import place_at
    from app.shadow_log.verify import verify_log

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
    say(report.summary())
    say(report.chain_summary())
    if told := report.told_summary():
        say(told)
    for finding in report.findings[:sample]:
        say(f"  {finding}")
    raise typer.Exit(1 if report.findings else 0)


@app.command()
def compare() -> None:
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
    say(f"{decisions:,} decisions, {changed:,} rows changed")


@app.command()
def prove(
    decision_id: Annotated[UUID, typer.Argument(help="Id of a stored decision.")],
    checkpoints: Annotated[
        str | None, typer.Option(help="Where checkpoints are. Default: ADVISOR_CHECKPOINTS.")
    ] = None,
) -> None:
    """Print a proof that a decision is in the log as it was at a signed checkpoint, for
    deploy/check_proof.py."""
    from app.domain.canonical import canonical_json
    from app.shadow_log.checkpoint import proof, read_checkpoints
    from app.shadow_log.log import ShadowLog
    from app.shadow_log.places import place_at

    settings = read_settings()
    place = checkpoints or settings.checkpoints
    if place is None:
        raise SettingsError("say where they are with --checkpoints, or set ADVISOR_CHECKPOINTS")
    signed, _ = read_checkpoints(place_at(place))

    async def made() -> dict[str, Any]:
        log = ShadowLog.connect(database_url(settings))
        try:
            stored = await log.decision(decision_id)
            if stored is None:
                raise SettingsError(f"no decision has the id {decision_id}")
            record = canonical_json(stored.as_json())
            return await proof(log.engine, decision_id, record, signed)
        finally:
            await log.aclose()

    typer.echo(json.dumps(asyncio.run(made()), indent=2))


@app.command()
def replay(decision_id: Annotated[UUID, typer.Argument(help="Id of a stored decision.")]) -> None:
    """Derive one stored decision again from its inputs and show every difference; exit 1 when there
    is one."""
    from app.shadow_log.log import ShadowLog

    async def fetch() -> int:
        log = ShadowLog.connect(database_url(read_settings()))
        try:
            stored = await log.decision(decision_id)
        finally:
            await log.aclose()
        if stored is None:
            raise SettingsError(f"no decision has the id {decision_id}")
        before, after = stored.as_json(), stored.replayed().as_json()
        changed = [key for key in before if before[key] != after[key]]
        for key in changed:
            say(
                f"{key}:\n  stored   {json.dumps(before[key])}\n  replayed {json.dumps(after[key])}"
            )
        advice = stored.primary
        say(
            f"{stored.scenario.candidate.symbol} at {stored.scenario.as_of:%Y-%m-%d %H:%M} UTC:"
            f" {advice.status.value}, {advice.action or 'no action'}; "
            + ("differs" if changed else "replays to the same record")
        )
        return 1 if changed else 0

    raise typer.Exit(asyncio.run(fetch()))


@app.command("what-if")
def what_if(
    limits: Annotated[Path, typer.Option("--limits", help="Limits to try, a TOML file.")],
    against: Annotated[
        Path | None,
        typer.Option(help="Limits to compare with. Default: those each decision was made with."),
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="First time of a decision, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Time to end before, UTC.")] = None,
    forget_hours: Annotated[
        float,
        typer.Option(min=0, help="After these without a trade, losses in a row are forgotten."),
    ] = 24.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    show: Annotated[int, typer.Option(help="How many changed decisions to print.")] = 10,
) -> None:
    """What other limits would have refused, approved and earned, on the record, in R. Nothing is
    changed."""
    from app.domain.what_if import Judge
    from app.shadow_log.what_if import Asked, tallied

    before = None if against is None else read_limits(against)
    judge = Judge(read_limits(limits), before, timedelta(hours=forget_hours))
    begin, end = (at and at.replace(tzinfo=at.tzinfo or UTC) for at in (since, until))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replaying", total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        url = database_url(read_settings())
        tally = asyncio.run(tallied(url, judge, Asked(begin, end), tell))
    if as_json:
        typer.echo(json.dumps(tally.as_json(), indent=2))
    else:
        _say_tally(tally, show)


def _say_tally(tally: Tally, show: int) -> None:
    """What changed, in three tables."""
    if not tally.arms:
        say("no decision is recorded in this span")
        return
    arms = Table(
        "arm", "decisions", "approved", "R", "gain, R a decision", "grades", box=SIMPLE_HEAD
    )
    for name, arm in tally.arms.items():
        gain = "" if arm.gain is None else f"{arm.gain.value:+.4f}"
        if arm.gain is not None and arm.gain.low is not None:
            gain += f" [{arm.gain.low:+.4f}, {arm.gain.high:+.4f}]"
        grades = ", ".join(f"{count} {grade}" for grade, count in arm.grades.items())
        approved = f"{arm.approved_before} -> {arm.approved_after}"
        earned = f"{arm.r_before:+.2f} -> {arm.r_after:+.2f} (of {arm.judged})"
        arms.add_row(name, str(arm.decisions), approved, earned, gain, grades)
    codes = Table("veto", "refused", "R saved on the agent's orders", box=SIMPLE_HEAD)
    for code, tallied in sorted(tally.codes.items()):
        refused = f"{tallied.refused_before} -> {tallied.refused_after}"
        codes.add_row(
            code, refused, f"{tallied.r_saved_before:+.2f} -> {tallied.r_saved_after:+.2f}"
        )
    changed = Table("time", "symbol", "arm", "before", "after", "R", "grade", box=SIMPLE_HEAD)
    for judged in list(tally.changed)[-show:]:
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
    for table in (arms, codes, changed):
        if table.row_count:
            Console(width=max(WIDE, console.width)).print(table)


@app.command()
def retention(
    before: Annotated[
        datetime,
        typer.Option(formats=["%Y-%m"], metavar="YYYY-MM", help="The first month to keep, in UTC."),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Drop them. Without it, only show what would go.")
    ] = False,
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
    for month, decisions in held.items():
        say(f"{month[:4]}-{month[4:]} {decisions:>12,} decisions")
    if not held:
        say(f"no month before {before:%Y-%m} holds decisions")
    else:
        done = "dropped" if yes else "nothing is dropped without --yes:"
        say(
            f"{done} {len(held)} month{'s' if len(held) > 1 else ''}, {sum(held.values()):,}"
            " decisions"
        )


@app.command()
def state(
    new: Annotated[
        str | None, typer.Argument(help="ACTIVE, REDUCING or HALTED; none shows the state.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    by: Annotated[str, typer.Option(help="Who; recorded.")] = "",
    url: Url = None,
) -> None:
    """Show or change the trading state of a running service. HALTED refuses every trade at once."""
    if new is None:
        document = operator(url).state()
    elif not reason or not by:
        raise SettingsError("a change of state needs --reason and --by: both are recorded")
    else:
        document = operator(url).set_state(new.upper(), reason, by)
    typer.echo(json.dumps(document, indent=2))


@app.command()
def alias(
    name: Annotated[
        str | None, typer.Argument(help="`shadow` is the primary, `shadow-...` are beside it.")
    ] = None,
    version: Annotated[
        str | None, typer.Argument(help="Model version to point it at, or `none`.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    by: Annotated[str, typer.Option(help="Who; recorded.")] = "",
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to where it pointed before.")
    ] = False,
    url: Url = None,
) -> None:
    """Show the aliases of model versions, or move one: a running service follows without a
    restart."""
    service = operator(url)
    if rollback:
        if name is None or version is not None:
            raise SettingsError(
                "--rollback needs the alias, and no version: advisor alias shadow --rollback"
            )
        document = service.roll_back(name, reason, by or "advisor alias --rollback")
    elif name is None or version is None:
        shown = service.aliases()
        document = {
            "aliases": {key: at for key, at in shown["aliases"].items() if name in (None, key)},
            "history": [move for move in shown["history"] if name in (None, move["alias"])],
        }
    elif not reason or not by:
        raise SettingsError("moving an alias needs --reason and --by: both are recorded")
    else:
        document = service.move_alias(name, version, reason, by)
    typer.echo(json.dumps(document, indent=2))


def operator(url: str | None) -> OperatorClient:
    """The running service that `url`, or else the environment, names."""
    settings = read_settings()
    return OperatorClient(url or f"http://{settings.host}:{settings.port}", settings.admin_token)


Profile = Annotated[str, typer.Option(help="Whose limits. Default: the general ones.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Why = Annotated[str, typer.Option(help="Why; recorded.")]
Who = Annotated[str, typer.Option(help="Who; recorded.")]
New = Annotated[Path, typer.Argument(help="Limits, a TOML file.")]


@limits_app.command("diff")
def limits_diff(
    file: New,
    against: Annotated[
        Path | None, typer.Option(help="Another file. Default: the limits in force.")
    ] = None,
    profile: Profile = "",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show every limit of a file that differs; `advisor what-if` says what it would do."""
    after = read_limits(file)
    if against is not None:
        before = read_limits(against)
    else:
        before = parse_limits(
            _limits_in_force(operator(url), profile)["toml"], "the limits in force"
        )
    found = changes(before, after)
    if as_json:
        typer.echo(json.dumps([change._asdict() for change in found], indent=2))
        return
    table = Table("limit", "now", "then", box=SIMPLE_HEAD)
    for change in found:
        told = ("-" if value is None else str(value) for value in change[1:])
        table.add_row(change.name, *map(escape, told))
    if found:
        Console(width=max(WIDE, console.width)).print(table)
    else:
        typer.echo("nothing differs")


@limits_app.command("history")
def limits_history(profile: Profile = "", url: Url = None, as_json: AsJson = False) -> None:
    """Show which limits judge, and every adoption in the place of a file, the newest first."""
    document = operator(url).limits()
    told = [each for each in document["history"] if each["profile"] == profile]
    if as_json:
        typer.echo(json.dumps({"in_force": document["in_force"], "history": told}, indent=2))
        return
    now = _limits_of(document, profile)
    origin = "the file" if now["adopted"] is None else f"adoption {now['adopted']}"
    typer.echo(f"in force: {now['version']} ({now['hash']}), by {origin}")
    if profile in document["overruled"]:
        typer.echo("what was adopted last does not judge: the file is another one since")
    table = Table("id", "time", "what judged from then on", "by", "reason", box=SIMPLE_HEAD)
    for each in told:
        what = "the file" if each["toml"] is None else each["hash"][:19]
        when = each["changed_at"][:19].replace("T", " ")
        table.add_row(
            str(each["id"]), when, what, escape(each["changed_by"]), escape(each["reason"])
        )
    if told:
        Console(width=max(WIDE, console.width)).print(table)


@limits_app.command("adopt")
def limits_adopt(file: New, reason: Why, by: Who, profile: Profile = "", url: Url = None) -> None:
    """Let a file's limits judge, on every replica within a second, in the place of the service's
    own file: until that is edited by hand."""
    service = operator(url)
    text = limits_text(file)
    parse_limits(text, str(file))
    seen = _limits_in_force(service, profile)["hash"]
    made = service.adopt_limits(text, reason, by, profile=profile, seen=seen)
    typer.echo(f"adoption {made['id']}: {made['hash']} judges")


@limits_app.command("rollback")
def limits_rollback(
    reason: Why, by: Who = "advisor limits rollback", profile: Profile = "", url: Url = None
) -> None:
    """Go back to the limits that judged before, at last to the file."""
    service = operator(url)
    seen = _limits_in_force(service, profile)["hash"]
    made = service.roll_back_limits(reason, by, profile=profile, seen=seen)
    what = "the file judges" if made["toml"] is None else f"{made['hash']} judges"
    typer.echo(f"adoption {made['id']}: {what}")


def _limits_in_force(service: OperatorClient, profile: str) -> dict[str, Any]:
    return _limits_of(service.limits(), profile)


def _limits_of(document: dict[str, Any], profile: str) -> dict[str, Any]:
    in_force: dict[str, dict[str, Any]] = document["in_force"]
    if profile not in in_force:
        names = ", ".join(filter(None, in_force)) or "none"
        raise SettingsError(f"the service has no limits of {profile!r}; its profiles: {names}")
    return in_force[profile]


Holder = Annotated[str, typer.Argument(help="Name of the principal: a-z, 0-9 and `-`.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="File to write the token to, with mode 0600, instead of showing it."
    ),
]


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Option("--name", help="Who: a-z, 0-9 and `-`.")],
    role: Annotated[list[Role], typer.Option("--role", help="What it may do; repeat it for more.")],
    of: Annotated[
        list[str] | None,
        typer.Option("--of", help="Of a reporter: whose decisions it reports on; `*` is all."),
    ] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="First day without it, UTC."),
    ] = None,
    out: Out = None,
) -> None:
    """Make a token, and show it this once. A running service knows it at once."""
    end = expires.replace(tzinfo=UTC) if expires else None
    made = token_file().create(name, role, of=of or (), expires_at=end)
    hand_over(made, out)


@token_app.command("list")
def token_list() -> None:
    """Show who holds tokens, and when they were used last; the tokens themselves are not kept."""
    uses = read_settings().token_uses
    table = Table("name", "id", "roles", "of", "created", "expires", "last use", box=SIMPLE_HEAD)
    for token in token_file().tokens():
        times = (token.created_at, token.expires_at, last_use(uses, token))
        table.add_row(
            token.name,
            token.id,
            ", ".join(token.roles),
            ", ".join(token.of),
            *(f"{at:%Y-%m-%d %H:%M}" if at else "never" for at in times),
        )
    Console().print(table)


@token_app.command("rotate")
def token_rotate(
    name: Holder,
    overlap: Annotated[
        int, typer.Option(min=0, help="Minutes for which the earlier ones are still good.")
    ] = 60,
    out: Out = None,
) -> None:
    """Make a new token with the roles of a principal's newest one, which soon ends."""
    hand_over(token_file().rotate(name, timedelta(minutes=overlap)), out)


@token_app.command("revoke")
def token_revoke(
    name: Holder,
    token_id: Annotated[
        str | None, typer.Option("--id", help="Only the one with this id, as `list` shows it.")
    ] = None,
) -> None:
    """Take a principal's tokens away, from the next request on."""
    say(f"revoked: {token_file().revoke(name, token_id)}")


def token_file() -> TokenFile:
    """The file of tokens that the settings name."""
    return TokenFile(read_settings().tokens_file)


def hand_over(token: str, out: Path | None) -> None:
    """Show a new token on standard output, or put it where only its owner reads it."""
    if out is None:
        typer.echo(token)
    else:
        try:
            write_private(out, token + "\n")
        except OSError as error:
            raise SettingsError(f"{out} cannot be written: {error.strerror}") from error
        say(f"written to {out}")


@model_app.command("import")
def model_import(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A Hugging Face causal LM directory. Default: the bundled small model."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Model version to give it. Default: the directory's name.")
    ] = None,
) -> None:
    """Make a model servable: verify its labels, measure their bias, hash its files, write its
    manifest."""
    from app.policy.in_process.importer import import_directory, import_smollm2
    from app.policy.store import read_manifest

    settings = read_settings()
    if path is None:
        path = import_smollm2(settings.models_dir, console.print, threads=settings.threads)
        manifest = read_manifest(path / MANIFEST_NAME)
    else:
        manifest = import_directory(path, settings.manifests_dir, name, threads=settings.threads)
    _show_proposals(manifest.provenance.get("illustrative_proposals"))
    say(f"version {manifest.model_version}, manifest {manifest.hash()}")
    say(f"ready: MODEL={path}")


def _show_proposals(shown: Any) -> None:
    """What removing the label bias does: how often each action was proposed on made-up scenarios,
    before and after."""
    if not isinstance(shown, dict) or not {"raw", "corrected"} <= shown.keys():
        return  # A published version need not carry it.
    table = Table(
        title="Proposals on made-up scenarios",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    for heading in ("label", "action", "before calibration", "after"):
        table.add_column(heading, justify="left" if heading in ("label", "action") else "right")
    for action in ACTIONS:
        before, after = (shown[which].get(action.label, 0) for which in ("raw", "corrected"))
        table.add_row(action.label, action.name, str(before), str(after))
    console.print(table)


def main() -> None:
    """Entry point: expected failures are one line, with status 2."""
    configure_log()
    try:
        app()
    except (AdvisorError, OperatorError) as error:
        console.print(
            f"[bold red]advisor:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
