"""What the commands share: where they ask, how they print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.operator_client import OperatorClient, addresses
from app.settings import Settings, SettingsError, read_settings, with_environment

console = Console(stderr=True)
DRIVER = "+psycopg"
"""What SQLAlchemy wants in an address, and libpq does not."""


def group(text: str) -> typer.Typer:
    """A group of commands. Help is Markdown: what stands in square brackets is kept."""
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )


WIDE = 120
"""Columns of a table that a narrower window would tear apart."""


Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the API answers. Default: ADVISOR_HOST and ADVISOR_PORT."),
]


def finite(number: float | None) -> float | None:
    """The callback of an option that is a number: neither infinite nor none at all."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no finite number.")
    return number


def folder(name: str) -> Path:
    """The parser of an argument that is a folder to write to: one without a name, as of a variable
    that is not set, would be the folder that the command runs in."""
    if not name.strip():
        raise typer.BadParameter("the folder has no name; `.` is this one")
    return Path(name)


By = Annotated[
    str,
    typer.Option(help="Who says so: recorded in the reason, beside the name of the token."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
AlwaysJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, as without it.")]


def say(text: str) -> None:
    """Print text that may hold anything: as it is, on one line however long it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def tell(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, default=str))


def database_url(settings: Settings, *, owner: bool = False) -> str:
    """DATABASE_URL, else the one that `advisor up` left under ADVISOR_HOME: the service's, or the
    owner's for who changes the schema. Or a clear error."""
    if settings.database_url:
        return settings.database_url
    left = addresses(settings.home)
    name = "OWNER_DATABASE_URL" if owner else "DATABASE_URL"
    if name not in left:
        raise SettingsError(
            "DATABASE_URL is not set: point it at Postgres, or run `advisor up`, whose addresses"
            f" are found in {settings.home / 'addresses'}"
        )
    return left[name]


def for_programs(url: str) -> tuple[str, dict[str, str]]:
    """A database as programs of Postgres are told it: a target without password, which everybody
    may see in a list of processes, and the environment with it."""
    import psycopg
    import psycopg.conninfo

    try:
        parts = psycopg.conninfo.conninfo_to_dict(url.replace(DRIVER, "", 1))
    except psycopg.Error as error:
        raise SettingsError(f"DATABASE_URL cannot be read: {type(error).__name__}") from error
    password = parts.pop("password", None)
    target = psycopg.conninfo.make_conninfo("", **{name: str(parts[name]) for name in parts})
    return target, with_environment({"PGPASSWORD": str(password)} if password else {})


def operator(url: str | None) -> OperatorClient:
    """The running service that `url`, or else the environment, names."""
    settings = read_settings()
    return OperatorClient(url or f"http://{settings.host}:{settings.port}", settings.admin_token)
