"""The commands `token ...`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from app.api.tokens import TokenFile, last_use, write_private
from app.cli.options import AsJson, group, say, tell
from app.domain.principal import Role
from app.settings import SettingsError, read_settings

token_app = group("Who may ask the service what.")
MOST_OVERLAP_MINUTES = 366 * 24 * 60


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
    as_json: AsJson = False,
) -> None:
    """Make a token, and show it this once. A running service knows it at once."""
    end = expires.replace(tzinfo=UTC) if expires else None
    if end is not None and end <= datetime.now(UTC):
        raise typer.BadParameter(
            f"{end:%Y-%m-%d} has begun: nobody could use it", param_hint="--expires"
        )
    made = token_file().create(name, role, of=of or (), expires_at=end)
    hand_over(made, out, as_json)


@token_app.command("list")
def token_list(as_json: AsJson = False) -> None:
    """Show who holds tokens, and when they were used last; the tokens themselves are not kept."""
    uses = read_settings().token_uses
    if as_json:
        shown = ("name", "id", "roles", "of", "created_at", "expires_at")
        tell(
            [
                {name: getattr(token, name) for name in shown} | {"last_use": last_use(uses, token)}
                for token in token_file().tokens()
            ]
        )
        return
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
        int,
        typer.Option(
            min=0,
            max=MOST_OVERLAP_MINUTES,
            help="Minutes for which the earlier ones are still good.",
        ),
    ] = 60,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Make a new token with the roles of a principal's newest one, which soon ends."""
    hand_over(token_file().rotate(name, timedelta(minutes=overlap)), out, as_json)


@token_app.command("revoke")
def token_revoke(
    name: Holder,
    token_id: Annotated[
        str | None, typer.Option("--id", help="Only the one with this id, as `list` shows it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a principal's tokens away, from the next request on."""
    revoked = token_file().revoke(name, token_id)
    if as_json:
        tell({"revoked": revoked})
    else:
        say(f"revoked: {revoked}")


def token_file() -> TokenFile:
    """The file of tokens that the settings name."""
    return TokenFile(read_settings().tokens_file)


def hand_over(token: str, out: Path | None, as_json: bool) -> None:
    """Show a new token on standard output, or put it where only its owner reads it."""
    if out is None:
        if as_json:
            tell({"token": token})
        else:
            typer.echo(token)
    else:
        try:
            write_private(out, token + "\n")
        except OSError as error:
            raise SettingsError(f"{out} cannot be written: {error.strerror}") from error
        if as_json:
            tell({"written_to": out})
        else:
            say(f"written to {out}")
