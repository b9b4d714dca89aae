"""The command `settings`: every setting with its value, and the table of docs/settings.md."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, NamedTuple

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.options import WIDE, AsJson, console, tell
from app.settings import SECRETS, Settings, read_settings, variable, with_environment

HIDDEN = "(set, not shown)"
PAGE = """# Settings

Every environment variable that `advisor` reads; `advisor settings` shows their values here and now.
An empty variable is as one that is not set.
A variable that begins with `ADVISOR_` and is none of these is refused, with the nearest name.
Callers of the service read `ADVISOR_URL`, `ADVISOR_TOKEN` and `ADVISOR_TOKEN_FILE` instead
([connect](connect.md)). HOME is the folder that `ADVISOR_HOME` names. This page is made by
`advisor settings --page > docs/settings.md`.

| variable | default | meaning |
|---|---|---|
"""


class Setting(NamedTuple):
    """One setting as it stands."""

    variable: str
    value: str
    origin: str
    meaning: str


def all_settings(settings: Settings) -> list[Setting]:
    """Every setting with its value; secrets only as set or not."""
    given = {name.upper() for name, value in with_environment({}).items() if value}
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        hidden = name in SECRETS and bool(value)
        origin = "environment" if variable(name) in given else "default"
        text = HIDDEN if hidden else written(value)
        rows.append(Setting(variable(name), text, origin, field.description or ""))
    return rows


def page() -> str:
    """The text of docs/settings.md."""
    rows = (
        f"| `{variable(name)}` | {_code(written(field.default))} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )
    return PAGE + "\n".join(rows) + "\n"


def written(value: Any) -> str:
    """A value as a variable would hold it; nothing for none."""
    if value is None:
        return ""
    return str(value.value if isinstance(value, Enum) else value)


def show_settings(
    as_json: AsJson = False,
    as_page: Annotated[
        bool, typer.Option("--page", help="Print docs/settings.md: defaults and meanings.")
    ] = False,
) -> None:
    """Show every setting: its value, whether the environment sets it, what it means. Secrets are
    hidden."""
    if as_page:
        typer.echo(page(), nl=False)
        return
    settings = all_settings(read_settings())
    if as_json:
        tell([setting._asdict() for setting in settings])
        return
    table = Table("variable", "value", "from", "meaning", box=SIMPLE_HEAD)
    for setting in settings:
        table.add_row(*map(escape, setting))
    Console(width=max(WIDE, console.width)).print(table)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
