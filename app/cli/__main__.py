"""`advisor`: run the service, look after it, check its record. Commands import what they need when
they run, so that help and the halt switch are light."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from app.cli.control import alias, state
from app.cli.export import export
from app.cli.limits import limits_app
from app.cli.model import model_app
from app.cli.options import console
from app.cli.record import compare, prove, replay, retention, verify
from app.cli.running import migrate, serve, up, writer
from app.cli.token import token_app
from app.cli.trades import import_trades
from app.cli.what_if import what_if
from app.domain.errors import AdvisorError
from app.operator_client import OperatorError
from app.telemetry import configure_log

app = typer.Typer(
    help="Shadow-mode advice on trades: run it, look after it, check its record.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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
app.command("what-if")(what_if)
app.command()(export)
app.command()(retention)
app.command()(state)
app.command()(alias)
app.add_typer(model_app, name="model")
app.add_typer(token_app, name="token")
app.add_typer(limits_app, name="limits")


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
