"""How long `advisor what-if` takes over a large record: other limits on every decision of four
months, both arms, in order of time; and with them another version and other costs.

Decisions are recorded as the service records them and copied by Postgres
(`bench.record.questions`), with times of their own, so that the book passes from one to the next.
The limits that are tried refuse some of them, so that every later account is another one.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console

from app.domain.rules.limits import Limits, read_limits
from app.domain.what_if.costs import Costs
from app.domain.what_if.judge import Judge
from app.domain.what_if.past import Grade
from app.domain.what_if.tally import Tally
from app.shadow_log.reading.what_if import Asked, tallied
from app.shadow_log.schema.migrate import upgrade
from app.tasks import calm_garbage_collection
from bench.history import record
from bench.record.questions import fill
from bench.serving.service import ROOT, servers


def other_limits() -> Limits:
    """The shipped ones, but for the volatility that is refused."""
    limits = read_limits(ROOT / "limits.toml")
    spike = limits.volatility_spike.model_copy(update={"max_percentile": 0.5})
    return limits.model_copy(update={"version": "bench", "volatility_spike": spike})


def replayed(url: str, judge: Judge) -> tuple[Tally, float]:
    """What is otherwise does, and the seconds that finding out took."""
    calm_garbage_collection()
    begin = perf_counter()
    tally = asyncio.run(tallied(url, judge, Asked()))
    return tally, perf_counter() - begin


def everything() -> Judge:
    """Other limits, a version in the place of the primary (the same, whose readings there are), and
    twice the fee."""
    return Judge(other_limits(), version="bench", costs=Costs(fee=0.002))


def main(
    decisions: Annotated[int, typer.Option(min=1, help="How many lie in the log.")] = 100_000,
    profile: Annotated[bool, typer.Option(help="Show where the time goes, of one more run.")] = (
        False
    ),
) -> None:
    """Fill a log and try limits on it."""
    with servers() as (_, postgres, _):
        upgrade(postgres.url)
        fill(postgres.url, decisions)
        tally, seconds = replayed(postgres.url, Judge(other_limits()))
        _, all_seconds = replayed(postgres.url, everything())
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(replayed, postgres.url, everything())
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    agent = tally.arms["agent"]
    grades = {grade.value: agent.grades[grade] for grade in Grade}
    Console().print(
        f"{agent.decisions:,} decisions in {seconds:.1f} s,"
        f" {1e3 * seconds / agent.decisions:.2f} ms each; the agent's orders: {grades};"
        f" with another version and other costs {all_seconds:.1f} s"
    )
    figures = {"decisions": agent.decisions, "seconds": seconds, "all_seconds": all_seconds}
    record("what_if", figures)


if __name__ == "__main__":
    typer.run(main)
