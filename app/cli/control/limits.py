"""The commands `limits ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.options import WIDE, AsJson, By, Url, console, group, operator, tell
from app.domain.rules.limits import changes, limits_text, parse_limits, read_limits
from app.operator_client import OperatorClient
from app.settings import SettingsError

limits_app = group("Limits: what judges, what others would change, letting others judge.")


Profile = Annotated[str, typer.Option(help="Whose limits. Default: the general ones.")]


Why = Annotated[str, typer.Option(help="Why; recorded.")]


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
        tell([change._asdict() for change in found])
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
    """Show which limits judge, and the newest adoptions in the place of a file."""
    document = operator(url).limits()
    now = _limits_of(document, profile)
    told = [each for each in document["history"] if each["profile"] == profile]
    if as_json:
        tell({"in_force": document["in_force"], "history": told})
        return
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
def limits_adopt(
    file: New, reason: Why, by: By, profile: Profile = "", url: Url = None, as_json: AsJson = False
) -> None:
    """Let a file's limits judge, on every replica within a second, in the place of the service's
    own file: until that is edited by hand."""
    service = operator(url)
    text = limits_text(file)
    parse_limits(text, str(file))
    seen = _limits_in_force(service, profile)["hash"]
    made = service.adopt_limits(text, reason, by, profile=profile, seen=seen)
    _say_adoption(made, as_json)


@limits_app.command("rollback")
def limits_rollback(
    reason: Why,
    by: By = "advisor limits rollback",
    profile: Profile = "",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the limits that judged before, at last to the file."""
    service = operator(url)
    seen = _limits_in_force(service, profile)["hash"]
    made = service.roll_back_limits(reason, by, profile=profile, seen=seen)
    _say_adoption(made, as_json)


def _say_adoption(made: dict[str, Any], as_json: bool) -> None:
    what = "the file" if made["toml"] is None else made["hash"]
    if as_json:
        tell(made)
    else:
        typer.echo(f"adoption {made['id']}: {what} judges")


def _limits_in_force(service: OperatorClient, profile: str) -> dict[str, Any]:
    return _limits_of(service.limits(), profile)


def _limits_of(document: dict[str, Any], profile: str) -> dict[str, Any]:
    in_force: dict[str, dict[str, Any]] = document["in_force"]
    if profile not in in_force:
        names = ", ".join(filter(None, in_force)) or "none"
        raise SettingsError(f"the service has no limits of {profile!r}; its profiles: {names}")
    return in_force[profile]
