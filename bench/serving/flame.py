"""Where the CPU of a decision goes, drawn: a flame graph of the service under load, as one SVG.

The service runs in this process, its load comes from another one. A timer of the process' own CPU
time looks at the stack; what the interpreter does in C, system calls too, counts for the function
that called it. Frames of less than `LEAST` of the whole are left out.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from app import main as service
from app.advising.serving import Models
from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.policy.scripted import ScriptedPolicy
from app.settings import Settings
from app.shadow_log.schema.migrate import upgrade
from bench.serving.load import load
from bench.serving.service import ROOT, document, servers, taken

Stack = tuple[str, ...]
EVERY_S = 0.001
LEAST, NEARLY_ALL = 0.004, 0.95
WIDTH, ROW = 1200, 17
LETTER = 6.6
COLOURS = {"app": "#e8a33d", "pydantic": "#7fb2d9", "": "#cfcfcf"}
"""By the first part of a module's name: ours, what validates and writes, all others."""


@dataclass
class Node:
    """A function on one way down to it, and the samples that it was part of."""

    samples: int = 0
    below: dict[str, Node] = field(default_factory=dict)

    def add(self, stack: Stack, samples: int) -> None:
        """Count a stack, its outermost function first."""
        self.samples += samples
        if stack:
            self.below.setdefault(stack[0], Node()).add(stack[1:], samples)

    def depth(self, least: float) -> int:
        """Rows under it that are drawn."""
        drawn = (node for node in self.below.values() if node.samples >= least)
        return max((1 + node.depth(least) for node in drawn), default=0)


@contextmanager
def sampled(stacks: Counter[Stack]) -> Iterator[None]:
    """Count the stacks of this process' main thread until the block ends."""

    def look(number: int, frame: FrameType | None) -> None:
        names = []
        while frame is not None:
            names.append(f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        stacks[tuple(reversed(names))] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tree(stacks: Counter[Stack]) -> Node:
    """Of all stacks, from where they part: not below a function that nearly all of them run in."""
    root = Node()
    for stack, samples in stacks.items():
        root.add(stack, samples)
    while root.below:
        widest = max(root.below.values(), key=lambda node: node.samples)
        if widest.samples < NEARLY_ALL * root.samples:
            break
        root = widest
    return root


def drawing(root: Node, title: str) -> str:
    """An SVG: every function as wide as its share, what it calls below it; its name and share are
    told where a pointer rests on it."""
    least = LEAST * root.samples
    height = ROW * (root.depth(least) + 2)
    boxes = "\n".join(_boxes(root, 0.0, 1, root.samples, least))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' font-family="monospace" font-size="11">\n<title>{escape(title)}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="4" y="13">{escape(title)}</text>\n{boxes}\n</svg>\n'
    )


def _boxes(node: Node, left: float, row: int, whole: int, least: float) -> Iterator[str]:
    for name, child in sorted(node.below.items()):
        if child.samples < least:
            continue
        width = WIDTH * child.samples / whole
        short = ".".join(part for part in name.split(".")[-2:] if part != "<locals>")
        room = max(int(width / LETTER) - 1, 0)
        fits = short[:room]
        colour = COLOURS.get(name.partition(".")[0].removesuffix("_core"), COLOURS[""])
        told = escape(f"{name}: {100 * child.samples / whole:.1f} %")
        yield (
            f'<g><title>{told}</title><rect x="{left:.1f}" y="{row * ROW}" width="{width:.1f}"'
            f' height="{ROW - 1}" fill="{colour}" stroke="#ffffff"/>'
            f'<text x="{left + 2:.1f}" y="{row * ROW + 12}">{escape(fits)}</text></g>'
        )
        yield from _boxes(child, left, row + 1, whole, least)
        left += width


def _drive(url: str, token: str, clients: int, requests: int, run: str) -> None:
    """In a process of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(load(url, token, clients, requests, lambda number: document(number, run)))


async def _serve_and_look(settings: Settings, token: str, clients: int, requests: int) -> Node:
    stacks: Counter[Stack] = Counter()
    spawn = multiprocessing.get_context("spawn")
    async with service.running(settings, Models(ScriptedPolicy())) as served:
        for run, into in (("warm", Counter[Stack]()), ("measured", stacks)):
            some = requests if run == "measured" else requests // 4
            driver = spawn.Process(target=_drive, args=(served.url, token, clients, some, run))
            with sampled(into):
                driver.start()
                while driver.is_alive():
                    await asyncio.sleep(0.05)
            if driver.exitcode:
                raise RuntimeError("the load did not come to its end")
    return tree(stacks)


def main(
    out: Annotated[Path, typer.Option(help="Where to draw.")] = ROOT / "docs" / "decision.svg",
    clients: Annotated[int, typer.Option(help="Who ask at the same time.")] = 32,
    requests: Annotated[int, typer.Option(help="Decisions that are looked at.")] = 6000,
) -> None:
    """Draw where the CPU of a decision goes."""
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        tokens = folder / "tokens.json"
        token = TokenFile(tokens).create("agent", [Role.AGENT])
        settings = Settings(
            database_url=postgres.url,
            redis_url=valkey.url,
            home=folder / "home",
            limits=ROOT / "limits.toml",
            tokens=tokens,
            log_level="error",
            port=0,
        )
        with (
            taken(valkey.url),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            root = runner.run(_serve_and_look(settings, token, clients, requests))
    title = f"CPU of a decision, scripted policy, {clients} clients; {root.samples:,} samples"
    out.write_text(drawing(root, title), encoding="utf-8")
    Console().print(f"{root.samples:,} samples in {out}")


if __name__ == "__main__":
    typer.run(main)
