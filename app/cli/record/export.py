"""The command `export`."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from app.cli.options import AsJson, console, database_url, folder, say, tell
from app.domain.text import counted
from app.settings import read_settings


def export(
    to: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", parser=folder, help="Folder for `day=.../symbol=.../rows.parquet`."
        ),
    ],
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Day to end before, UTC.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the comparing view as Parquet, by day and symbol. An interrupted export goes on; days
    that are written stay, unless the record says something else of them by now."""
    from app.shadow_log.reading.export import export as write_days

    if since is not None and until is not None and since >= until:
        raise typer.BadParameter("it is not after --since", param_hint="--until")

    span = {name: at.date() for name, at in (("since", since), ("until", until)) if at is not None}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("exporting", total=None)

        def counted_up(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        url = database_url(read_settings())
        made = asyncio.run(write_days(url, to, progress=counted_up, **span))
    if as_json:
        tell({"folder": to, **made._asdict()})
        return
    say(
        f"{to}: {counted(made.rows, 'row')} of {counted(made.days, 'day')} written,"
        f" {counted(made.kept, 'day was', 'days were')} there"
    )
