"""The commands `state` and `alias`: what a running service does."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.options import AlwaysJson, By, Url, operator, say, tell
from app.domain.model.aliases import NOTHING
from app.settings import SettingsError


def state(
    new: Annotated[
        str | None, typer.Argument(help="ACTIVE, REDUCING or HALTED; none shows the state.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    by: By = "",
    url: Url = None,
    _: AlwaysJson = False,
) -> None:
    """Show or change the trading state of a running service. HALTED refuses every trade at once."""
    if new is None:
        document = operator(url).state()
    elif not reason or not by:
        raise SettingsError("a change of state needs --reason and --by: both are recorded")
    else:
        document = operator(url).set_state(new.upper(), reason, by)
    tell(document)


def alias(
    name: Annotated[
        str | None, typer.Argument(help="`shadow` is the primary, `shadow-...` are beside it.")
    ] = None,
    version: Annotated[
        str | None, typer.Argument(help="Model version to point it at, or `none`.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    by: By = "",
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to where it pointed before.")
    ] = False,
    seen: Annotated[
        str | None,
        typer.Option(help="`changed_at` as it was shown: refused when somebody moved it since."),
    ] = None,
    url: Url = None,
    _: AlwaysJson = False,
) -> None:
    """Show the aliases of model versions, or move one: a running service follows without a
    restart. Nobody asks the gate here, `advisor-train promote` does."""
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
        document = service.move_alias(name, version, reason, by, seen=seen)
        if version != NOTHING:
            say("nobody asks the gate here, `advisor-train promote` does")
    tell(document)
