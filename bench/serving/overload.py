"""What the service does with three times what it can do (`make load`): who is refused, who is
answered in time, and how much memory it takes.

A policy that takes exactly `--pace-ms` a prompt, then the bundled model: the sustainable rate is
measured with a closed loop, then requests arrive by chance at 0.5, 1 and 3 times that rate. Then
how soon a second replica obeys a change of state; and `--decisions` decisions as fast as they go,
with the memory of every process (`memory.csv` and `memory.svg` in ADVISOR_HOME/bench). A million of
them: `python -m bench.serving.overload --decisions 1000000 --seconds 0`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Annotated, Any

import httpx
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from app import main as service
from app.advising.serving import Models
from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.local.servers import free_port, postgres_processes
from app.policy.in_process.importer import import_smollm2
from app.policy.scripted import ScriptedPolicy
from app.settings import Settings, read_settings
from app.shadow_log.schema.migrate import upgrade
from app.writer import run_writer
from bench.history import record
from bench.serving import memory
from bench.serving.load import Answered, Load, arrivals, load
from bench.serving.service import ROOT, await_ready, document, servers

DEADLINE_MS = 2000
TIMES = (0.5, 1.0, 3.0)
CLIENTS = 8
STEPS = 10
LARGEST_STEP = 20_000
Pids = Callable[[], Sequence[int]]
NOTHING: Mapping[str, Pids] = {}
console = Console()


def serve(settings: dict[str, Any], pace_s: float | None) -> None:
    """The API with a policy of this pace, or with the model that the settings name."""
    models = None if pace_s is None else Models(ScriptedPolicy(["H"], pace_s=pace_s))

    async def until_killed() -> None:
        async with service.running(Settings(**settings), models) as served:
            await served.answering

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_killed())


def write(settings: dict[str, Any]) -> None:
    """The writer."""
    asyncio.run(run_writer(Settings(**settings)))


@dataclass(frozen=True)
class Served:
    """A service that runs: where, and its processes by name, those of its servers among them."""

    url: str
    token: str
    processes: Mapping[str, Pids]

    def client(self) -> httpx.Client:
        """One who may do everything here."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.token}"})

    def drive(self, clients: int, requests: int, body: Callable[[int], bytes]) -> Load:
        """A closed loop."""
        done: Load = on_uvloop(load(self.url, self.token, clients, requests, body))
        return done

    def memory_mb(self) -> dict[str, float]:
        """What each process holds now; Postgres' are one."""
        return {name: memory.memory_mb(pids()) for name, pids in self.processes.items()}


@contextmanager
def running(
    settings: dict[str, Any], pace_s: float | None, beside: Mapping[str, Pids] = NOTHING
) -> Iterator[Served]:
    """API and writer, each a process of its own, until the block ends; `beside` are others whose
    memory counts."""
    tokens = settings["home"] / f"tokens-{free_port()}.json"
    token = TokenFile(tokens).create("bench", [Role.AGENT, Role.OPERATOR])
    settings = settings | {"port": free_port(), "writer_metrics_port": free_port()}
    settings["tokens"] = tokens
    url = f"http://127.0.0.1:{settings['port']}"
    context = multiprocessing.get_context("spawn")
    api = context.Process(target=serve, args=(settings, pace_s), daemon=True)
    writer = context.Process(target=write, args=(settings,), daemon=True)
    for process in (api, writer):
        process.start()
    try:
        await_ready(url, api.is_alive)
        ours = {"api": lambda: [api.pid or 0], "writer": lambda: [writer.pid or 0]}
        yield Served(url, token, {**ours, **beside})
    finally:
        for process in (api, writer):
            process.terminate()
            process.join()


def on_uvloop(work: Any) -> Any:
    """The result of a coroutine."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@dataclass(frozen=True)
class Overload:
    """What became of requests that arrived at `times` the sustainable rate; the last answer came
    after `seconds`."""

    times: float
    seconds: float
    answers: Sequence[Answered]

    @property
    def accepted(self) -> list[float]:
        """Latencies (s) of those that were let in."""
        return [answer.seconds for answer in self.answers if answer.status == 200]

    @property
    def throughput(self) -> float:
        """Advices with a reading, a second."""
        read = sum(answer.status == 200 and not answer.abstained for answer in self.answers)
        return read / self.seconds

    def share(self, *statuses: int) -> float:
        """Of all requests, those with one of these statuses."""
        return sum(answer.status in statuses for answer in self.answers) / len(self.answers)

    @property
    def abstained(self) -> float:
        """Of all requests, those that were let in and came too late."""
        return sum(answer.abstained for answer in self.answers) / len(self.answers)

    def figures(self, name: str, peak: float) -> dict[str, float]:
        """For the history."""
        loads, name = Load(self.accepted, self.seconds), f"{name}_{self.times:g}x"
        return {
            f"{name}_p50_ms": 1e3 * loads.quantile(0.5),
            f"{name}_p99_ms": 1e3 * loads.quantile(0.99),
            f"{name}_refused": self.share(503),
            f"{name}_abstained": self.abstained,
            f"{name}_failed": 1 - self.share(200, 503),
            f"{name}_of_peak": self.throughput / peak,
        }


def measure(name: str, served: Served, seconds: float, prompts: bool) -> dict[str, float]:
    """The sustainable rate, then the three loads. Prints a table."""
    served.drive(1, 5, partial(document, run=f"{name}-warm", prompts=prompts))
    guess = served.drive(CLIENTS, 24, partial(document, run=f"{name}-guess", prompts=prompts)).rate
    count = max(int(guess * seconds / 2), 3 * CLIENTS)
    peak = served.drive(CLIENTS, count, partial(document, run=f"{name}-peak", prompts=prompts)).rate
    title = f"{name}: {peak:,.1f} decisions/s sustained, deadline {DEADLINE_MS} ms"
    table = Table(title=title, title_justify="left")
    for column in ("load", "offered/s", "refused", "abstained", "failed", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    table.add_column("read/s, of peak", justify="right")
    figures = {f"{name}_peak_per_s": peak}
    for times in TIMES:
        body = partial(document, run=f"{name}-{times:g}", prompts=prompts)
        answers, took = on_uvloop(
            arrivals(served.url, served.token, times * peak, seconds, body, DEADLINE_MS)
        )
        overload = Overload(times, took, answers)
        figures |= overload.figures(name, peak)
        row = list(overload.figures(name, peak).values())
        table.add_row(
            f"{times:g}x",
            f"{len(answers) / seconds:,.1f}",
            *(f"{share:.1%}" for share in row[2:5]),
            *(f"{ms:,.0f}" for ms in row[:2]),
            f"{overload.throughput:,.1f}, {row[5]:.0%}",
        )
    console.print(table)
    return figures


def watch_memory(served: Served, decisions: int) -> dict[str, float]:
    """Memory of each process over so many decisions: a line for each step, then where the numbers
    and the curve lie."""
    steps = max(STEPS, decisions // LARGEST_STEP)
    looks = [memory.Look(0, served.memory_mb(), 0.0)]
    for step in range(1, steps + 1):
        done = served.drive(32, decisions // steps, partial(document, run=f"memory-{step}"))
        looks.append(memory.Look(step * (decisions // steps), served.memory_mb(), done.rate))
        held = ", ".join(f"{name} {mb:,.0f} MB" for name, mb in looks[-1].mb.items())
        console.print(
            f"{looks[-1].decisions:>9,} of {decisions:,}: {held}; {done.rate:,.0f}/s",
            soft_wrap=True,
        )
    table, curve = memory.write(looks, read_settings().home / "bench")
    console.print(f"numbers in {table}, curve in {curve}", soft_wrap=True)
    return memory.figures(looks)


def halts(settings: dict[str, Any], changes: int = 40) -> dict[str, float]:
    """How long a change of state on one replica takes to reach another. Prints a line."""
    took = []
    other = settings | {"home": settings["home"] / "other"}
    with running(settings, 0.0) as one, running(other, 0.0) as two:
        replicas = [one.client(), two.client()]
        for number in range(changes):
            setter, follower = replicas[number % 2], replicas[(number + 1) % 2]
            state = ("HALTED", "ACTIVE")[number // 2 % 2] if number % 2 else "REDUCING"
            change = {"state": state, "reason": "bench", "changed_by": "bench"}
            begin = monotonic()
            setter.put("/state", json=change).raise_for_status()
            while follower.get("/state").raise_for_status().json()["state"] != state:
                pass
            took.append(monotonic() - begin)
    console.print(
        f"a halt reaches another replica in {1e3 * sorted(took)[len(took) // 2]:.0f} ms in the"
        f" median, {1e3 * max(took):.0f} ms at most, of {len(took)}"
    )
    return {"halt_p50_ms": 1e3 * sorted(took)[len(took) // 2], "halt_max_ms": 1e3 * max(took)}


def main(
    pace_ms: Annotated[float, typer.Option(help="Time of the scripted policy for a prompt.")] = 20,
    seconds: Annotated[float, typer.Option(help="Length of each load; 0 leaves them out.")] = 20,
    decisions: Annotated[
        int, typer.Option(help="Decisions over which memory is watched; 0: none.")
    ] = 50_000,
    model: Annotated[bool, typer.Option(help="Load the bundled model too.")] = True,
) -> None:
    """Overload the service on this machine."""
    figures: dict[str, float] = {"pace_ms": pace_ms, "seconds": seconds}
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        settings = {
            "database_url": postgres.url,
            "redis_url": valkey.url,
            "limits": ROOT / "limits.toml",
            "home": folder / "home",
            "log_level": "error",
        }
        if seconds:
            with running(settings, pace_ms / 1000) as served:
                figures |= measure("paced", served, seconds, prompts=False)
            if model:
                home = read_settings().home.absolute()
                import_smollm2(home / "models", console.print)
                with running(settings | {"home": home}, None) as served:
                    figures |= measure("model", served, seconds, prompts=True)
            figures |= halts(settings)
        if decisions:
            beside = {
                "valkey": lambda: [valkey.pid or 0],
                "postgres": lambda: postgres_processes(postgres.directory / "cluster"),
            }
            with running(settings, 0.0, beside) as served:
                figures |= {"decisions": decisions, **watch_memory(served, decisions)}
    record("overload", figures)


if __name__ == "__main__":
    typer.run(main)
