"""What the commands share: where they ask, how they print."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from app.operator_client import OperatorClient
from app.settings import Settings, SettingsError, read_settings

console = Console(stderr=True)


WIDE = 120
"""Columns of a table that a narrower window would tear apart."""


Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the API answers. Default: ADVISOR_HOST and ADVISOR_PORT."),
]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


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


def operator(url: str | None) -> OperatorClient:
    """The running service that `url`, or else the environment, names."""
    settings = read_settings()
    return OperatorClient(url or f"http://{settings.host}:{settings.port}", settings.admin_token)
