"""What a rebuild takes by its number of prompts: `python -m bench.learning.growth 100 300 1000`.

Each size is a whole rebuild by `advisor-train rebuild` in a process and a folder of its own: CPU
time of its stages as their artefacts tell it, the most memory that it held, and what it left on the
disk. The line from the two largest goes on to a hundred thousand prompts in the picture, and says
so: it assumes that each further prompt takes what these did, or nothing more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import matplotlib
import typer
from matplotlib import pyplot

from bench.asked import entry
from bench.history import record
from training.config.section import ConfigError

matplotlib.use("agg")
FAR = 100_000
READING, LEARNING = "encoded", ("warm_up", "policy")


class Took(NamedTuple):
    """What a rebuild of so many prompts took."""

    prompts: int
    """Variants included."""
    reading_s: float
    """CPU seconds of the base pass."""
    learning_s: float
    """CPU seconds of warm-up and policy."""
    rest_s: float
    """CPU seconds of bars, scenarios, labels and teacher: these look at every candidate, however
    many prompts there are."""
    memory_gib: float
    disk_gib: float

    @property
    def cpu_s(self) -> float:
        """Of all stages."""
        return self.reading_s + self.learning_s + self.rest_s

    @property
    def line(self) -> str:
        """Of the table."""
        minutes = (self.cpu_s, self.reading_s, self.learning_s, self.rest_s)
        told = " | ".join(f"{seconds / 60:.1f}" for seconds in minutes)
        return f"| {self.prompts:,} | {told} | {self.memory_gib:.1f} | {self.disk_gib:.1f} |"


COLUMNS = ("prompts", "CPU min", "reading", "learning", "the rest", "memory GiB", "disk GiB")


def rebuilt(config: str, overrides: Sequence[str], scenarios: int, folder: Path) -> Took:
    """Rebuild from so many scenarios. Raises `ConfigError`: it failed, and said why."""
    settings = [*overrides, f"scenarios.limit={scenarios}", f'artifacts="{folder}"']
    command = [sys.executable, "-m", "training", "rebuild", "--config", config]
    command += [part for setting in settings for part in ("--set", setting)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ConfigError(f"the rebuild of {scenarios} scenarios failed")
    return took(folder, used.ru_maxrss / 2**20)


def took(folder: Path, memory_gib: float) -> Took:
    """What the artefacts of one rebuild tell."""
    manifests = [json.loads(path.read_text()) for path in folder.glob("*/manifest.json")]
    seconds: dict[str, float] = {}
    for manifest in manifests:
        stage = manifest["stage"]
        seconds[stage] = seconds.get(stage, 0.0) + manifest["cost"]["cpu_s"]
    prompts = [each["facts"]["prompts"] for each in manifests if each["stage"] == READING]
    learning = sum(seconds.get(stage, 0.0) for stage in LEARNING)
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Took(
        sum(prompts),
        seconds[READING],
        learning,
        sum(seconds.values()) - seconds[READING] - learning,
        memory_gib,
        files / 2**30,
    )


def draw(found: Sequence[Took], path: Path) -> None:
    """Time, memory and disk against prompts."""
    figure, (times, sizes) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    counts = [each.prompts for each in found]
    lines = (
        (times, "CPU hours", [each.cpu_s / 3600 for each in found]),
        (sizes, "memory, GiB", [each.memory_gib for each in found]),
        (sizes, "disk, GiB", [each.disk_gib for each in found]),
    )
    for axes, name, values in lines:
        (drawn,) = axes.plot(counts, values, marker="o", label=name)
        slope = max((values[-1] - values[-2]) / (counts[-1] - counts[-2]), 0.0)
        far = values[-1] + slope * (FAR - counts[-1])
        axes.plot([counts[-1], FAR], [values[-1], far], linestyle=":", color=drawn.get_color())
    for axes in (times, sizes):
        axes.set(xscale="log", yscale="log", xlabel="prompts (dotted: not measured)")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


def main(
    scenarios: Annotated[list[int], typer.Argument(help="of each rebuild, from few to many")],
    config: Annotated[str, typer.Option(help="of training/config")] = "bundled",
    picture: Annotated[Path | None, typer.Option(help="write it there, as SVG")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
) -> None:
    """Print the table."""
    if picture and len(scenarios) < 2:
        raise ConfigError("a picture needs two rebuilds")
    typer.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    found = []
    for count in scenarios:
        with tempfile.TemporaryDirectory(prefix="advisor-bench-") as name:
            found.append(rebuilt(config, overrides or (), count, Path(name)))
        typer.echo(found[-1].line)
        record("growth", {"scenarios": float(count), **found[-1]._asdict()})
    if picture:
        draw(found, picture)


if __name__ == "__main__":
    entry(main)
