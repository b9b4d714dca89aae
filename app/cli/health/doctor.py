"""The command `doctor`: what is wrong, where, and how to mend it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.options import WIDE, AsJson, console, finite, say, tell
from app.operator_client import addresses
from app.settings import Settings, SettingsError, read_settings

COLOURS = {"ok": "green", "watch": "yellow", "wrong": "bold red"}


def doctor(
    free_gb: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Less free disk than this is wrong, in GB."),
    ] = 2.0,
    prometheus: Annotated[
        str | None, typer.Option(help="Its address, to tell which alerts fire.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at everything that the service depends on: what is wrong, where, how to mend it; exit 1
    when anything is. Nothing is changed. It looks from here, with the settings of this shell."""
    from app.cli.health.examination import Bounds, Finding, State, examine

    try:
        settings = _with_addresses()
    except SettingsError as error:
        findings = [Finding("settings", State.WRONG, str(error), "docs/settings.md")]
    else:
        findings = asyncio.run(examine(settings, Bounds(free_gb, prometheus)))
    wrong = sum(finding.state is State.WRONG for finding in findings)
    if as_json:
        tell([finding._asdict() for finding in findings])
        raise typer.Exit(1 if wrong else 0)
    table = Table("check", "", "what is there", "how to mend it", box=SIMPLE_HEAD)
    for check, state, what, mend in findings:
        mark = f"[{COLOURS[state]}]{state}[/]"
        table.add_row(escape(check), mark, escape(what), escape(mend))
    Console(width=max(WIDE, console.width)).print(table)
    say(f"{wrong} wrong of {len(findings)}" if wrong else "nothing is wrong")
    raise typer.Exit(1 if wrong else 0)


def _with_addresses() -> Settings:
    """The settings, with the servers that `advisor up` left where the environment names none."""
    settings = read_settings()
    left = addresses(settings.home)
    missing = {
        name: left.get(name.upper())
        for name in ("database_url", "redis_url")
        if getattr(settings, name) is None
    }
    return read_settings(**missing)
