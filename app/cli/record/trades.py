"""The command `import`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.cli.options import AsJson, console, database_url, finite, tell
from app.settings import read_settings


def import_trades(
    files: Annotated[list[Path], typer.Argument(help="Databases and tables of trades.")],
    source: Annotated[
        str,
        typer.Option("--from", help="freqtrade, spot-ai-agent, or the path of a mapping file."),
    ],
    bars: Annotated[
        Path | None, typer.Option(help="Folder of SYMBOL_1h.parquet or .csv: what files lack.")
    ] = None,
    stoploss: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="freqtrade: the strategy's, as -0.05, for files without."
        ),
    ] = None,
    roi: Annotated[
        float | None,
        typer.Option(callback=finite, help="freqtrade: the first minimal_roi, as 0.04."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add trades that other programs recorded. They are no decisions of this service and count
    nowhere as such; complete ones can train. What is there already stays as it is."""
    from app.shadow_log.importing.imports import add, exits_told, source_named

    url = None if dry_run else database_url(read_settings())
    named = source_named(source, exits_told(stoploss, roi))
    with Progress(console=console, transient=True) as progress:
        coverage, added = asyncio.run(add(url, named, files, bars, progress))
    if as_json:
        tell({"source": named.name, "added": added, "found": dict(coverage.lines())})
        return
    table = Table("what", "how many", box=SIMPLE_HEAD, title=f"import of {named.name}")
    for what, count in coverage.lines():
        table.add_row(escape(what), escape(count))
    if not dry_run:
        table.add_row("added", f"{added}; the others were there")
    Console().print(table)
