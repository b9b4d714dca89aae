"""The newest run of each bench, a table each, beside its floor and its own history on this kind of
machine; exit 1 when something got slower than the noise explains.

A figure's unit says which way is better: `_ms`, `_us`, `_s` and `_bytes` are better when smaller,
`_per_s` when larger; others are not judged. `NAME_floor` is what a simpler thing takes for the same
(a raw COPY, the joined tables), `NAME_spread` the distance between the worst and the best of the
run's repeats, over their median.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from bench.history import HISTORY

SMALLER, LARGER = ("_ms", "_us", "_s", "_bytes"), ("_per_s",)
LEAST = 0.10
"""A change of a tenth is noise on any machine that somebody else uses."""
QUIET = 1.5
"""Runs on a machine that was busier than this (load over cores) are no history."""
EARLIER = 10
"""So many runs are looked back on."""


class Verdict(NamedTuple):
    """One figure of a bench's newest run. `change` is positive where it got worse; None without a
    history."""

    bench: str
    name: str
    value: float
    floor: float | None
    spread: float | None
    before: float | None
    change: float | None
    noise: float

    @property
    def slower(self) -> bool:
        """Whether it got worse, and more than the noise explains."""
        return self.change is not None and self.change > self.noise


def worse_when(name: str) -> int:
    """1 where a larger value is worse, -1 where a smaller one is, 0 where nobody can say."""
    if name.endswith(LARGER):
        return -1
    return 1 if name.endswith(SMALLER) else 0


def judged(runs: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The newest run of each bench against the earlier ones of its kind, oldest first."""
    newest = {run["bench"]: run for run in runs}
    return [
        _verdict(name, value, run, list(_history(runs, run, name)))
        for run in newest.values()
        for name, value in run["figures"].items()
        if worse_when(name)
    ]


def _history(
    runs: Iterable[Mapping[str, Any]], newest: Mapping[str, Any], name: str
) -> Iterable[float]:
    """What the same bench gave before, on the same processor, asked the same, while it was
    quiet."""
    for run in runs:
        machine = run["machine"]
        same = run["bench"] == newest["bench"] and _asked(run) == _asked(newest)
        alike = all(machine[part] == newest["machine"][part] for part in ("cpu", "cores"))
        if run is not newest and same and alike and machine["load"] <= QUIET * machine["cores"]:
            value = run["figures"].get(name)
            if value is not None:
                yield value


def _asked(run: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that nobody measured, such as how much was done."""
    figures = run["figures"].items()
    measured = (*SMALLER, *LARGER, "_floor", "_spread")
    return {
        name: value
        for name, value in figures
        if isinstance(value, int) and not name.endswith(measured)
    }


def _verdict(name: str, value: float, run: Mapping[str, Any], history: list[float]) -> Verdict:
    figures = run["figures"]
    floor, spread = figures.get(f"{name}_floor"), figures.get(f"{name}_spread")
    if not history:
        return Verdict(run["bench"], name, value, floor, spread, None, None, LEAST)
    recent = history[-EARLIER:]
    before = statistics.median(recent)
    scatter = statistics.median(abs(each - before) for each in recent) / before if before else 0.0
    noise = max(LEAST, 3 * 1.4826 * scatter, spread or 0.0)
    change = worse_when(name) * (value / before - 1) if before else 0.0
    return Verdict(run["bench"], name, value, floor, spread, before, change, noise)


COLUMNS: tuple[tuple[str, Callable[[Verdict], str]], ...] = (
    ("figure", lambda verdict: verdict.name),
    ("ours", lambda verdict: _number(verdict.value)),
    ("floor", lambda verdict: _number(verdict.floor)),
    ("ratio", lambda verdict: f"{verdict.value / verdict.floor:.2f}" if verdict.floor else ""),
    ("spread", lambda verdict: _share(verdict.spread, "")),
    ("before", lambda verdict: _number(verdict.before)),
    ("change", lambda verdict: _share(verdict.change, "+")),
    ("slower than its noise", lambda verdict: _share(verdict.noise, "") if verdict.slower else ""),
)


def shown(verdicts: Sequence[Verdict]) -> Table:
    """The table of one bench for people: the columns that say something."""
    rows = {name: [cell(verdict) for verdict in verdicts] for name, cell in COLUMNS}
    told = {name: cells for name, cells in rows.items() if any(cells)}
    table = Table()
    for name in told:
        left = name == "figure"
        table.add_column(
            name, justify="left" if left else "right", overflow="fold", no_wrap=not left
        )
    for cells in zip(*told.values(), strict=True):
        table.add_row(*cells)
    return table


def about(run: Mapping[str, Any]) -> str:
    """Which bench, when, of what, and on which processor, how busy."""
    machine = run["machine"]
    processor = " ".join((machine["cpu"], f"x{machine['cores']}", *machine.get("features", ())))
    when, of = run["at"][:16].replace("T", " "), run["commit"] or "no commit"
    return f"{run['bench']}, {when}, {of}, on {processor}, load {machine['load']}"


def _share(value: float | None, sign: str) -> str:
    return "" if value is None else f"{value:{sign}.0%}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def main(
    file: Annotated[Path, typer.Option(help="The history that benches append to.")] = HISTORY,
) -> None:
    """Judge the newest runs."""
    lines = file.read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    verdicts, console = judged(runs), Console()
    for run in {run["bench"]: run for run in runs}.values():
        told = [verdict for verdict in verdicts if verdict.bench == run["bench"]]
        if told:
            console.print(about(run), soft_wrap=True)
            console.print(shown(told))
    slower = [verdict for verdict in verdicts if verdict.slower]
    names = ", ".join(f"{each.bench} {each.name}" for each in slower)
    console.print(f"slower than before: {names}" if slower else "nothing got slower")
    raise typer.Exit(1 if slower else 0)


if __name__ == "__main__":
    typer.run(main)
