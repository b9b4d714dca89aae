"""How long `advisor serve` takes until it is ready, as after a restart: wall and CPU.

The same folders each time, so that what a first start writes is there. Starts with one API process
and with several take turns. With several, one process reads for all (docs/scaling.md), and what it
imports and loads is done beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.policy.in_process.importer import import_smollm2
from app.settings import read_settings
from app.shadow_log.schema.migrate import upgrade
from bench.history import record, repeated
from bench.serving.service import servers, serving, variables

console = Console()


class Start(NamedTuple):
    """Seconds until it was ready, by the clock and of all its processes' CPU."""

    wall_s: float
    cpu_s: float


def started(environment: dict[str, str], processes: int) -> Start:
    """One start, and its end."""
    began = monotonic()
    with serving(environment, ADVISOR_PROCESSES=str(processes)) as served:
        return Start(monotonic() - began, served.cpu_s())


def main(
    starts: Annotated[int, typer.Option(min=1, help="Starts that are measured, of each.")] = 5,
    processes: Annotated[
        list[int], typer.Option(help="API processes; several times for several sorts.")
    ] = [1, 2],  # noqa: B006  # Typer takes a list only.
) -> None:
    """Measure on this machine."""
    settings = read_settings()
    import_smollm2(settings.models_dir, console.print, threads=settings.threads)
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        environment = variables(folder, postgres, valkey)
        turns = [*processes * (1 + starts)]
        taken = [started(environment, each) for each in track(turns, "starts", console=console)]
    by_sort = {each: taken[at :: len(processes)][1:] for at, each in enumerate(processes)}
    table = Table(title="until it is ready, the first start of each not counted")
    for column in ("API processes", "s, median [least, most]", "s of CPU, median"):
        table.add_column(column)
    figures: dict[str, float] = {}
    for each, times in by_sort.items():
        walls, cpus = [start.wall_s for start in times], [start.cpu_s for start in times]
        wall, cpu = repeated(f"ready_{each}_s", walls), repeated(f"ready_{each}_cpu_s", cpus)
        figures |= wall | cpu
        table.add_row(str(each), _told(walls, wall), f"{cpu[f'ready_{each}_cpu_s']:.2f}")
    console.print(table)
    record("start", figures)


def _told(seconds: Sequence[float], figures: dict[str, float]) -> str:
    middle = next(iter(figures.values()))
    return f"{middle:.2f} [{min(seconds):.2f}, {max(seconds):.2f}]"


if __name__ == "__main__":
    typer.run(main)
