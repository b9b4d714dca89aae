"""Memory of each process of a service over many decisions: numbers, and a curve."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Look(NamedTuple):
    """What the processes held after so many decisions (MB, by name), and the rate until then."""

    decisions: int
    mb: dict[str, float]
    per_s: float


def memory_mb(pids: Sequence[int]) -> float:
    """What processes hold together: of pages that several share, each its part (PSS, Linux)."""
    held = 0
    for pid in pids:
        try:
            told = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue  # A session of Postgres that ended.
        held += sum(int(kb) for kb in re.findall(r"^Pss:\s+(\d+)", told, re.M))
    return held / 1024


def figures(looks: Sequence[Look]) -> dict[str, float]:
    """What each process held at the end, and by how much it grew in the second half."""
    half, last = looks[len(looks) // 2].mb, looks[-1].mb
    return {f"{name}_mb": mb for name, mb in last.items()} | {
        f"{name}_mb_grown_in_second_half": mb - half[name] for name, mb in last.items()
    }


def write(looks: Sequence[Look], folder: Path) -> tuple[Path, Path]:
    """The numbers as CSV and the curve as SVG."""
    # Not above: the processes that are measured import this module too.
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    table, curve = folder / "memory.csv", folder / "memory.svg"
    names = list(looks[0].mb)
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["decisions", *(f"{name}_mb" for name in names), "decisions_per_s"])
        for look in looks:
            values = (*look.mb.values(), look.per_s)
            rows.writerow([look.decisions, *(f"{value:.1f}" for value in values)])
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in names:
        axes.plot([look.decisions for look in looks], [look.mb[name] for look in looks], label=name)
    axes.set(xlabel="decisions", ylabel="MB (PSS)", ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend()
    figure.savefig(curve, bbox_inches="tight")
    pyplot.close(figure)
    return table, curve
