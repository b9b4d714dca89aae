"""What an absent part costs whoever asks: the time of `/advise` with and without it, in turns."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from statistics import median, quantiles
from time import perf_counter

import httpx

from tests.chaos.faults import FAULTS
from tests.chaos.load import Load
from tests.chaos.stack import Stack, living
from tests.service.processes import bearer
from tests.service.running import request

AGENTS = 4
PAUSE_S = 0.01
ABSENT = ("Postgres stopped", "Postgres frozen")


async def latency(turns: int, requests: int) -> str:
    """A table of p50 and p99 (ms), each turn with everything there and with each part away."""
    with tempfile.TemporaryDirectory(prefix="advisor-chaos-") as home:
        async with living(Path(home)) as stack:
            load = Load([replica.url for replica in stack.replicas], seed=1)
            took: dict[str, list[float]] = {name: [] for name in ("everything there", *ABSENT)}
            await _ask(stack, "warm", requests)
            for turn in range(turns):
                took["everything there"] += await _ask(stack, f"quiet-{turn}", requests)
                for fault in (fault for fault in FAULTS if fault.name in ABSENT):
                    async with AsyncExitStack() as mending:
                        await mending.enter_async_context(fault.do(stack, load, Random(turn)))
                        took[fault.name] += await _ask(stack, f"{fault.name}-{turn}", requests)
                    await stack.quiet()
            await load.aclose()
    return _table(took)


async def _ask(stack: Stack, name: str, requests: int) -> list[float]:
    """Times of requests (s) from some agents at once, at an even rate."""
    took: list[float] = []

    async def agent(number: int) -> None:
        async with httpx.AsyncClient(
            base_url=stack.replicas[number % 2].url, headers=bearer()
        ) as client:
            for turn in range(requests // AGENTS):
                document = request(f"{name.replace(' ', '-')}-{number}-{turn}")
                begin = perf_counter()
                (await client.post("/advise", json=document)).raise_for_status()
                took.append(perf_counter() - begin)
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(agent(number) for number in range(AGENTS)))
    return took


def _table(took: Mapping[str, Sequence[float]]) -> str:
    lines = [
        f"{'away':20} {'requests':>9} {'p50 ms':>8} {'p99 ms':>8} {'p99 ratio':>10} {'worst ms':>9}"
    ]
    base = quantiles(next(iter(took.values())), n=100)[-1]
    for name, times in took.items():
        p99 = quantiles(times, n=100)[-1]
        lines.append(
            f"{name:20} {len(times):9} {1000 * median(times):8.1f} {1000 * p99:8.1f}"
            f" {p99 / base:10.2f} {1000 * max(times):9.1f}"
        )
    return "\n".join(lines)
