"""`advisor`: run the service, look after it, check its record. Commands import what they need when
they run, so that help and the halt switch are light."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.markup import escape

from app.cli.control.limits import limits_app
from app.cli.control.model import model_app
from app.cli.control.state import alias, state
from app.cli.control.token import token_app
from app.cli.health.doctor import doctor
from app.cli.health.notices import notices_app
from app.cli.options import console, group, tell
from app.cli.record.checks import compare, prove, replay, retention, verify
from app.cli.record.drill import drill
from app.cli.record.export import export
from app.cli.record.query import psql, query
from app.cli.record.trades import import_trades
from app.cli.record.what_if import what_if
from app.cli.running import migrate, serve, up, writer
from app.cli.settings import show_settings
from app.domain.errors import AdvisorError
from app.operator_client import OperatorError
from app.telemetry import configure_log

app = group(
    "Shadow-mode advice on trades: run it, look after it, check its record.\n\n"
    "Exit status: 0, done, and nothing is wrong; 1, something is wrong with what was looked at"
    " (`verify`, `replay`, `doctor`); 2, it could not be done, or was asked wrongly: one line says"
    ' why. With `--json` standard output holds one document, then `{"error": ...}`.'
)
app.command()(up)
app.command()(serve)
app.command()(writer)
app.command("import")(import_trades)
app.command()(migrate)
app.command()(verify)
app.command()(compare)
app.command()(prove)
app.command()(replay)
app.command()(drill)
app.command("what-if")(what_if)
app.command()(export)
app.command()(retention)
app.command()(state)
app.command()(alias)
app.command()(doctor)
app.command()(query)
app.command(context_settings={"ignore_unknown_options": True})(psql)
app.command("settings")(show_settings)
app.add_typer(model_app, name="model")
app.add_typer(token_app, name="token")
app.add_typer(limits_app, name="limits")
app.add_typer(notices_app, name="notices")


def show_version(wanted: bool) -> None:
    """Print the version of this package, and end."""
    if wanted:
        typer.echo(f"shadow-advisor {version('shadow-advisor')}")
        raise typer.Exit


@app.callback()
def advisor(
    _: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What holds for every command."""


def main() -> None:
    """Entry point: expected failures are one line, with status 2. Who asked for JSON gets a
    document on standard output then too, `{"error": ...}`."""
    as_json = "--json" in sys.argv
    configure_log(to=sys.stderr if as_json else None)
    try:
        sys.exit(app(standalone_mode=not as_json))
    except typer.TyperException as error:  # A wrong command; without --json typer tells it.
        why = error.format_message()
    except (AdvisorError, OperatorError) as error:
        why = str(error)
    except UnicodeEncodeError as error:  # An argument that is no UTF-8.
        why = f"what was written is no text: {error.reason}"
    if as_json:
        tell({"error": why})
    console.print(f"[bold red]advisor:[/] {escape(why)}", highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
