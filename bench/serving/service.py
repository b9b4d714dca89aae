"""What the service costs, in one run (`make bench`). Figures depend on the machine; compare ratios.

1. rules: time of one review of a candidate and of the control;
2. journal: time to make one decision durable;
3. overhead: `/advise` over HTTP with the scripted policy and the journal on, 1 and 32 clients;
4. model: decisions per second through the service against bare forward passes of the same batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Annotated, Any, NamedTuple

import httpx
import redis
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from app.api.tokens import TokenFile
from app.domain import principal
from app.domain.canonical import decision_id
from app.domain.model.manifest import Calibration
from app.domain.record.decision import (
    Decision,
    Role,
    Version,
    conclude,
    prepare,
    review_control,
)
from app.domain.record.event import Event
from app.domain.rules.case import Case, TradingState, agents_order
from app.domain.rules.limits import read_limits
from app.domain.rules.review import review
from app.domain.scenario import Scenario
from app.journal.keys import EVENTS
from app.journal.stream import StreamJournal
from app.local.servers import EmbeddedPostgres, EmbeddedValkey, die_with_parent, free_port
from app.policy.scripted import reading_of
from app.schemas import EXAMPLE, AdviseRequest
from app.shadow_log.schema.migrate import upgrade
from bench.history import record, repeated
from bench.serving.load import Load, load

ROOT = Path(__file__).parents[2]
BATCH = 4
REPEATS = 3
STARTS_WITHIN_S = 600.0
TAKEN_S = 0.25
ASKED_EVERY_S = 0.05
console = Console()


def document(number: int, run: str, prompts: bool = False) -> bytes:
    """The n-th request; with `prompts`, scenarios differ, so that forward passes do too."""
    request: dict[str, Any] = json.loads(json.dumps(EXAMPLE))
    now = datetime.now(UTC).isoformat()
    request["request_id"] = f"bench-{run}-{number}"
    request["candidate"]["ts"] = request["market"]["bar_closed_at"] = now
    request["deadline_ms"] = 60_000
    if prompts:
        request["candidate"]["rsi"] = 20 + number % 60
        request["candidate"]["adx"] = 10 + number % 37
    return json.dumps(request).encode()


def scenario() -> Scenario:
    """The example as a scenario."""
    return AdviseRequest.model_validate(EXAMPLE).scenario()


class Measured:
    """Rows for people, figures for the history."""

    def __init__(self) -> None:
        self.table = Table(title=f"shadow-advisor on {os.cpu_count()} cores", title_justify="left")
        self.table.add_column("what")
        self.table.add_column("measured")
        self.figures: dict[str, float] = {}

    def times(self, what: str, name: str, load: Load) -> None:
        """Quantiles of latencies, and the rate."""
        p50, p99 = (1e3 * load.quantile(share) for share in (0.5, 0.99))
        self.table.add_row(what, f"p50 {p50:.3f} ms, p99 {p99:.3f} ms, {load.rate:,.2f} /s")
        self.figures |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99, f"{name}_per_s": load.rate}


def bench_rules(repeats: int) -> Load:
    s, limits = scenario(), read_limits(ROOT / "limits.toml")
    case = Case(s, agents_order(s), TradingState.ACTIVE, s.as_of, 0.9)
    samples = []
    for number in range(repeats):
        # Of a decision of its own: what looks at no order is remembered for the orders of one.
        another = case._replace(now=case.now + timedelta(microseconds=number))
        begin = perf_counter()
        review(another, limits)
        samples.append(perf_counter() - begin)
    return Load(samples, sum(samples))


def a_decision(number: int) -> Decision:
    """A complete decision, as the journal gets it."""
    s, limits = scenario(), read_limits(ROOT / "limits.toml")
    prompt, state = prepare(s), TradingState.ACTIVE
    version = Version("bench", "sha256:" + "0" * 64, Calibration(), Role.PRIMARY)
    return Decision(
        decision_id=decision_id(f"bench-{number}"),
        request_id=f"bench-{number}",
        request_hash=s.hash(),
        received_at=s.as_of,
        evaluated_at=s.as_of,
        state=state,
        scenario=s,
        prompt=prompt,
        prompt_hash=prompt.hash,
        limits=limits,
        limits_hash=limits.hash(),
        control_review=review_control(s, limits, state, s.as_of),
        advices=(conclude(s, reading_of("H"), version, limits, state=state, now=s.as_of),),
    )


async def bench_journal(redis_url: str, appends: int) -> tuple[Load, Load]:
    """One append after the other, then from 32 tasks at once."""
    journal = StreamJournal(redis_url)
    base = Event.of_decision(a_decision(0))

    async def task(name: str, count: int, latencies: list[float]) -> None:
        for number in range(count):
            begin = perf_counter()
            await journal.append(base._replace(key=f"{name}-{number}"))
            latencies.append(perf_counter() - begin)

    alone: list[float] = []
    together: list[float] = []
    await task("alone", appends, alone)
    begin = perf_counter()
    await asyncio.gather(*(task(f"task-{n}", appends // 8, together) for n in range(32)))
    seconds = perf_counter() - begin
    await journal.aclose()
    return Load(alone, sum(alone)), Load(together, seconds)


class Served(NamedTuple):
    """Where a service answers, and whom; its process."""

    url: str
    token: str
    pid: int

    def cpu_s(self) -> float:
        """Seconds of CPU that the process has taken, and those that it started."""
        started = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return cpu_s([self.pid, *map(int, started)])


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds of CPU that processes took, with those of theirs that have ended."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue  # It ended since; its parent has its time.
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def servers() -> Iterator[tuple[Path, EmbeddedPostgres, EmbeddedValkey]]:
    """A folder, and both servers in it; afterwards nothing of them is left, also where Postgres
    went elsewhere."""
    with tempfile.TemporaryDirectory(prefix="advisor-bench-") as name:
        folder = Path(name)
        postgres = EmbeddedPostgres(folder / "postgres")
        try:
            with postgres, EmbeddedValkey(folder / "valkey") as valkey:
                yield folder, postgres, valkey
        finally:
            postgres.remove()


def variables(folder: Path, postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> dict[str, str]:
    """What the processes of a service are told: servers, shipped limits, tokens of its own."""
    return {
        **os.environ,
        "DATABASE_URL": postgres.url,
        "REDIS_URL": valkey.url,
        "ADVISOR_LIMITS": str(ROOT / "limits.toml"),
        "ADVISOR_TOKENS": str(folder / "tokens.json"),
    }


@contextmanager
def taken(redis_url: str) -> Iterator[None]:
    """Events leave the stream soon after they come, as a writer takes them, until the block ends.
    Where nobody takes them the service packs what it appends, which costs a decision more CPU."""
    ended = threading.Event()

    def take() -> None:
        with redis.Redis.from_url(redis_url) as stream:
            while not ended.wait(TAKEN_S):
                stream.xtrim(EVENTS, maxlen=0, approximate=False)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    try:
        yield
    finally:
        ended.set()
        taker.join()


@contextmanager
def serving(environment: dict[str, str], **more: str) -> Iterator[Served]:
    """The API as a process of its own, with a token for an agent; its events are taken."""
    with taken(environment["REDIS_URL"]):
        yield from _serving(environment, more)


def _serving(environment: dict[str, str], more: dict[str, str]) -> Iterator[Served]:
    token = TokenFile(Path(environment["ADVISOR_TOKENS"])).create("agent", [principal.Role.AGENT])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"],
        env={**environment, "ADVISOR_PORT": str(port), "ADVISOR_LOG_LEVEL": "error", **more},
        preexec_fn=die_with_parent,
        stdout=subprocess.DEVNULL,
    )
    try:
        await_ready(url, lambda: process.poll() is None)
        yield Served(url, token, process.pid)
    finally:
        process.terminate()
        process.wait()


def await_ready(url: str, alive: Callable[[], bool]) -> None:
    """Wait until a service that starts is ready. Asking takes CPU that the start needs, and a busy
    machine takes minutes for one."""
    until = monotonic() + STARTS_WITHIN_S
    with httpx.Client(base_url=url) as client:
        while True:
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                if not alive() or monotonic() > until:
                    raise
            sleep(ASKED_EVERY_S)


def drive(served: Served, clients: int, requests: int, run: str, prompts: bool = False) -> Load:
    """Load from this process, on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            load(
                served.url,
                served.token,
                clients,
                requests,
                lambda number: document(number, run, prompts),
            )
        )


def bare_rate(model: Path, threads: int, batch: int, batches: int) -> float:
    """Decisions per second of forward passes alone, on the service's own prompts and batch size."""
    import torch

    from app.policy.in_process.label_reader import LabelReader

    torch.set_num_threads(threads)
    reader = LabelReader.load(model)
    requests = [
        AdviseRequest.model_validate_json(document(n, "bare", True)) for n in range(batch * batches)
    ]
    rows = [reader.encoder.encode(prepare(request.scenario())) for request in requests]
    reader.read(rows[:batch])
    begin = perf_counter()
    for start in range(0, len(rows), batch):
        reader.read(rows[start : start + batch])
    return len(rows) / (perf_counter() - begin)


def main(
    requests: Annotated[
        int, typer.Option(help="Requests per load, with the scripted policy.")
    ] = 4000,
    decisions: Annotated[
        int, typer.Option(help="Decisions through the real model; 0 leaves it out.")
    ] = 48,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    processes: Annotated[int, typer.Option(help="API processes, with the scripted policy.")] = 1,
) -> None:
    """Measure the service on this machine."""
    measured = Measured()
    measured.times("review of one order by all rules", "review", bench_rules(20_000))
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        environment = variables(folder, postgres, valkey)
        alone, together = asyncio.run(bench_journal(valkey.url, 1000))
        measured.times("journal append, fsynced, one at a time", "append", alone)
        measured.times("journal appends from 32 tasks", "append_32_tasks", together)
        home = str(folder / "home")
        told = {"ADVISOR_HOME": home, "ADVISOR_PROCESSES": str(processes)}
        with serving(environment, MODEL="scripted", **told) as served:
            drive(served, 8, 400, "warm")
            for clients in (1, 32):
                each = requests if clients > 1 else requests // 4
                _bench_advise(measured, served, clients, each, processes)
        if decisions:
            _bench_model(measured, environment, decisions, threads)
    console.print(measured.table)
    record("service", measured.figures)


def _bench_advise(
    measured: Measured, served: Served, clients: int, requests: int, processes: int
) -> None:
    """`/advise` without the model, `REPEATS` times: medians, and the service's CPU."""
    runs, cpu = [], []
    for repeat in range(REPEATS):
        before = served.cpu_s()
        runs.append(drive(served, clients, requests, f"c{clients}-{repeat}"))
        cpu.append(1e3 * (served.cpu_s() - before) / requests)
    name = f"advise_{clients}_clients" + (f"_{processes}_processes" if processes > 1 else "")
    figures = {
        **repeated(f"{name}_p50_ms", [1e3 * run.quantile(0.5) for run in runs]),
        **repeated(f"{name}_p99_ms", [1e3 * run.quantile(0.99) for run in runs]),
        **repeated(f"{name}_per_s", [run.rate for run in runs]),
        **repeated(f"{name}_cpu_ms", cpu),
    }
    p50, p99, rate, each = (
        figures[f"{name}_{unit}"] for unit in ("p50_ms", "p99_ms", "per_s", "cpu_ms")
    )
    measured.table.add_row(
        f"/advise without the model, {clients} client{'s' if clients > 1 else ''}"
        + (f", {processes} processes" if processes > 1 else ""),
        f"p50 {p50:.3f} ms, p99 {p99:.3f} ms, {rate:,.2f} /s, {each:.3f} ms of CPU each",
    )
    measured.figures |= figures


def _bench_model(
    measured: Measured, environment: dict[str, str], decisions: int, threads: int
) -> None:
    from app.main import DEFAULT_MODEL
    from app.policy.in_process.importer import import_smollm2
    from app.settings import read_settings

    settings = read_settings()
    import_smollm2(settings.models_dir, console.print, threads=threads)
    model = settings.models_dir / DEFAULT_MODEL
    clients = 2 * BATCH  # One batch waits while the other is computed.
    before = bare_rate(model, threads, BATCH, decisions // BATCH)
    with serving(environment, ADVISOR_THREADS=str(threads), ADVISOR_MAX_BATCH=str(BATCH)) as served:
        drive(served, clients, 2 * clients, "model-warm", True)
        done = drive(served, clients, decisions, "model", True)
    after = bare_rate(model, threads, BATCH, decisions // BATCH)
    bare = 2 / (1 / before + 1 / after)
    what = f"decisions through the service, real model, {clients} clients"
    measured.times(what, "model", done)
    measured.table.add_row(
        f"bare forward passes of {BATCH}, before and after", f"{before:.2f} /s, {after:.2f} /s"
    )
    measured.table.add_row("service / bare", f"{done.rate / bare:.1%}")
    measured.figures |= {"bare_per_s": bare, "service_of_bare": done.rate / bare}


if __name__ == "__main__":
    typer.run(main)
