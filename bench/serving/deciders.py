"""What decision models cost the reply (`make bench-deciders`). Figures depend on the machine.

1. panel: `/advise` at a steady rate, with the scripted policy and with none, one and three decision
   models elsewhere beside it: stand-ins in processes of their own, one for each protocol, over real
   HTTP. Both services run, and take turns, so that whatever else the machine does hits both.
2. rivals: the time in which a threshold, a logistic regression and boosted trees read a scenario.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from time import monotonic, perf_counter
from typing import Annotated

import httpx
import typer

from app.domain.features import FEATURE_NAMES
from app.domain.model.inquiry import full_size
from app.local.servers import die_with_parent, free_port
from app.policy.rivals import Boosting, Logistic, Rival, RivalPolicy, Threshold, Tree
from app.policy.scripted import SCRIPTED_MANIFEST
from app.shadow_log.schema.migrate import upgrade
from bench.history import record
from bench.serving.load import Load
from bench.serving.service import (
    ROOT,
    Measured,
    Served,
    console,
    document,
    scenario,
    servers,
    serving,
    variables,
)

PROTOCOLS = ("systemone", "decisions", "chat")
THINKING_S = 0.05


@contextmanager
def stand_ins() -> Iterator[list[str]]:
    """One process for each protocol; their addresses."""
    ports = [free_port() for _ in PROTOCOLS]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.serving.stand_in", str(port), str(THINKING_S)],
            cwd=ROOT,
            preexec_fn=die_with_parent,
        )
        for port in ports
    ]
    try:
        yield [f"http://127.0.0.1:{port}" for port in ports]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def table_of(urls: list[str]) -> str:
    """A table for each address."""
    tables = zip(PROTOCOLS, urls, strict=True)
    lines = (
        f'[{protocol}]\nprotocol = "{protocol}"\nurl = "{url}"\nmodel = "m"\nper_day = 1000000\n'
        for protocol, url in tables
    )
    return "\n".join(lines)


async def steady(
    served: Served, run: str, first: int, requests: int, every_s: float
) -> list[float]:
    """Seconds of each request, sent on a clock: one that is late does not delay the next."""
    headers = {"Authorization": f"Bearer {served.token}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=60) as client:

        async def timed(number: int) -> float:
            body = document(number, run)
            began = perf_counter()
            (await client.post("/advise", content=body)).raise_for_status()
            return perf_counter() - began

        begin, tasks = monotonic(), []
        for number in range(requests):
            await asyncio.sleep(max(begin + number * every_s - monotonic(), 0))
            tasks.append(asyncio.create_task(timed(first + number)))
        return await asyncio.gather(*tasks)


async def turns(
    without: Served, beside: Served, rounds: int, requests: int, every_s: float
) -> tuple[list[float], list[float]]:
    """Latencies of both, measured in turns; which begins changes with each round."""
    samples: dict[str, list[float]] = {"without": [], "beside": []}
    pairs = [("without", without), ("beside", beside)]
    for turn in range(rounds + 1):
        for name, served in pairs if turn % 2 else pairs[::-1]:
            found = await steady(served, name, turn * requests, requests, every_s)
            if turn:  # The first round warms both up.
                samples[name] += found
    return samples["without"], samples["beside"]


def bench_panel(measured: Measured, rounds: int, requests: int, every_s: float) -> None:
    """Both services at a steady rate; the p50's difference, with an interval over rounds."""
    with servers() as (folder, postgres, valkey), stand_ins() as urls, ExitStack() as stack:
        upgrade(postgres.url)
        table = folder / "deciders.toml"
        table.write_text(table_of(urls))

        def service(name: str, **more: str) -> Served:
            own = {"MODEL": "scripted", "ADVISOR_HOME": str(folder / name)}
            environment = variables(folder, postgres, valkey)
            return stack.enter_context(serving(environment, **own, **more))

        without, beside = service("without"), service("beside", ADVISOR_DECIDERS=str(table))
        plain, panel = asyncio.run(turns(without, beside, rounds, requests, every_s))
        rate = f"{1 / every_s:g}/s"
        measured.times(f"/advise at {rate}, no model elsewhere", "panel_0", Load(plain, 1))
        measured.times(f"/advise at {rate}, three models elsewhere", "panel_3", Load(panel, 1))
        low, high = interval(plain, panel, requests)
        slower = median(panel) / median(plain) - 1
        measured.table.add_row(
            "p50 slower by", f"{slower:+.1%}, 95 % interval {low:+.1%} to {high:+.1%} over rounds"
        )
        measured.figures |= {"panel_slower": slower, "panel_slower_high": high}


def interval(plain: list[float], panel: list[float], per_round: int) -> tuple[float, float]:
    """95 % of the ratio of medians less 1, rounds drawn with replacement."""
    rounds = range(len(plain) // per_round)
    draw, ratios = random.Random(0), []
    for _ in range(1000):
        drawn = [draw.choice(rounds) for _ in rounds]
        parts = [slice(n * per_round, (n + 1) * per_round) for n in drawn]
        both = [[x for part in parts for x in samples[part]] for samples in (plain, panel)]
        ratios.append(median(both[1]) / median(both[0]) - 1)
    ratios.sort()
    return ratios[25], ratios[974]


def rivals() -> dict[str, Rival]:
    """One of each kind, as large as training makes them: every feature, 80 trees of 8 leaves."""
    source = random.Random(1)
    count = len(FEATURE_NAMES)
    width = 2 * count
    shared = {
        "features": FEATURE_NAMES,
        "medians": (0.0,) * count,
        "flagged": tuple(range(count)),
        "cut": 0.4,
    }

    def tree() -> Tree:
        """Seven splits, eight leaves, in levels."""
        inner = [source.randrange(width) for _ in range(7)]
        return Tree(
            column=(*inner, *(0,) * 8),
            threshold=tuple(float(source.randrange(62)) for _ in range(15)),
            left=(*(2 * n + 1 for n in range(7)), *range(7, 15)),
            right=(*(2 * n + 2 for n in range(7)), *range(7, 15)),
            value=tuple(source.gauss(0, 0.1) for _ in range(15)),
        )

    ones = (1.0,) * width
    edges = tuple(sorted(source.gauss(0, 1) for _ in range(62)))
    return {
        "threshold": Threshold(feature="rsi", cut=50.0),
        "logistic regression": Logistic(
            **shared, means=ones, scales=ones, weights=ones, intercept=0.0
        ),
        "boosted trees": Boosting(
            **shared,
            edges=(edges,) * width,
            baseline=0.0,
            trees=tuple(tree() for _ in range(80)),
        ),
    }


def bench_rivals(measured: Measured, repeats: int) -> None:
    """Features included."""
    about = scenario()
    assert full_size(about).approve
    for name, rival in rivals().items():
        policy = RivalPolicy(SCRIPTED_MANIFEST, rival)
        samples = []
        for _ in range(repeats):
            begin = perf_counter()
            policy.read(about)
            samples.append(perf_counter() - begin)
        what = f"a scenario read by a rival, {name}"
        measured.times(what, f"rival_{name.replace(' ', '_')}", Load(samples, sum(samples)))


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of both services.")] = 10,
    requests: Annotated[int, typer.Option(help="Requests of each in a round.")] = 60,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 10.0,
    repeats: Annotated[int, typer.Option(help="Scenarios that each rival reads.")] = 2000,
) -> None:
    """Measure what decision models cost the reply."""
    measured = Measured()
    bench_rivals(measured, repeats)
    if rounds:
        bench_panel(measured, rounds, requests, 1 / rate)
    console.print(measured.table)
    record("deciders", measured.figures)
    console.print(json.dumps(measured.figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
