"""Ways to ask one small model for a decision, side by side, at 1, 8 and 32 clients (`make
bench-peers`): its labels read in this process, by the whole service and by vLLM; chats that write
JSON under a grammar (vLLM, llama.cpp's server), llama.cpp's one letter under a grammar, and vLLM's
own `/v1/systemone`.

All answer the same prompts of real bars in float32, in turns, each with one of ten actions: no
adapter, no questions, no text. `/v1/systemone` serves no Llama, so it is asked about the same
weights under another architecture's name (`bench.serving.beside.servers`), and so is this process
once more. Servers are started and stopped here; what is not installed is left out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, NamedTuple

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.domain.errors import PolicyAbstained
from app.domain.model.prompt import render
from app.domain.scenario import Scenario
from app.policy.backends import Backends
from app.policy.encoding import PromptEncoder
from app.policy.in_process.importer import import_smollm2
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.versions.store import load_manifest
from app.settings import read_settings
from app.shadow_log.schema.migrate import upgrade
from bench.history import machine, record
from bench.serving.beside.scenarios import bundled
from bench.serving.beside.servers import (
    Llama,
    as_decision_model,
    installed_llama,
    installed_vllm,
    llama_server,
    sessions_cpu_s,
    vllm_server,
)
from bench.serving.beside.ways import (
    PATIENCE_S,
    Answer,
    Ask,
    advised,
    asking,
    chatting,
    lettering,
    reading,
)
from bench.serving.load import Load
from bench.serving.service import servers, serving, variables
from training.cli.certify import spread

ROUNDS = (1, 8, 32)
WARM_UP = 32
"""Requests to each at once, before anything is measured: every slot of a server has read the
prompt's head."""
WIDE = 150
"""Columns of the table, which is Markdown: a wrapped one is not."""
console = Console()


class Peer(NamedTuple):
    """A way to ask, and the CPU that everything which answers has taken so far (s)."""

    ask: Ask
    cpu_s: Callable[[], float]


class Turn(NamedTuple):
    """What came of a batch: latencies of all, answers in its order (None: none that is valid),
    seconds of CPU."""

    load: Load
    answers: list[Answer | None]
    cpu_s: float

    @property
    def valid(self) -> list[Answer]:
        """The answers that are one."""
        return [answer for answer in self.answers if answer is not None]


async def driven(peer: Peer, asked: Sequence[Scenario], clients: int) -> Turn:
    """Every scenario once, by so many clients in a closed loop."""
    waiting = list(enumerate(asked))[::-1]
    answers: list[Answer | None] = [None] * len(asked)
    latencies: list[float] = []

    async def client() -> None:
        while waiting:
            number, scenario = waiting.pop()
            begin = perf_counter()
            try:
                answers[number] = await peer.ask(scenario)
            except (ValueError, PolicyAbstained) as error:
                console.print(f"no answer: {error}")
            except httpx.HTTPStatusError as error:
                console.print(f"no answer: {error.response.text[:300]}")
            latencies.append(perf_counter() - begin)

    before, begin = peer.cpu_s(), perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = perf_counter() - begin
    return Turn(Load(latencies, seconds), answers, peer.cpu_s() - before)


async def compared(
    peers: dict[str, Peer],
    scenarios: Iterator[Scenario],
    rounds: Sequence[int],
    turns: int,
    requests: int,
) -> dict[tuple[str, int], list[Turn]]:
    """Turns by peer and number of clients. A turn asks every peer the same new scenarios, and
    starts with another peer than the one before; each client sends `requests` of them, a single one
    eight times as many."""
    warm = [next(scenarios) for _ in range(WARM_UP)]
    for name, peer in peers.items():
        await driven(peer, warm, WARM_UP)
        console.print(f"warm: {name}")
    found: dict[tuple[str, int], list[Turn]] = {
        (name, clients): [] for clients in rounds for name in peers
    }
    for clients in rounds:
        for turn in range(turns):
            batch = [next(scenarios) for _ in range(requests * max(clients, 8))]
            order = list(peers)
            first = turn % len(order)
            for name in order[first:] + order[:first]:
                found[name, clients].append(await driven(peers[name], batch, clients))
    return found


class Figures(NamedTuple):
    """Of one peer at one number of clients: valid answers a second in all turns, in the slowest and
    the fastest; quantiles of latency (s); seconds of CPU a valid answer; shares of valid answers,
    of the same likeliest label and of the same decision as the float32 reading; different
    decisions."""

    rate: float
    slowest: float
    fastest: float
    p50: float
    p99: float
    cpu_s: float
    valid: float
    likeliest: float
    decided: float
    labels: int


def figures(turns: Sequence[Turn], exact: Sequence[Turn]) -> Figures:
    """Of a peer's turns, beside those of the exact reading of the same scenarios."""
    seconds = sum(turn.load.seconds for turn in turns)
    load = Load([latency for turn in turns for latency in turn.load.latencies], seconds)
    rates = [len(turn.valid) / turn.load.seconds for turn in turns]
    answers = [answer for turn in turns for answer in turn.answers]
    pairs = list(zip(answers, [a for turn in exact for a in turn.answers], strict=True))
    both = [(told, right) for told, right in pairs if told is not None and right is not None]
    valid = [answer for turn in turns for answer in turn.valid]
    return Figures(
        len(valid) / seconds,
        min(rates),
        max(rates),
        load.quantile(0.5),
        load.quantile(0.99),
        sum(turn.cpu_s for turn in turns) / max(len(valid), 1),
        len(valid) / len(answers),
        sum(told.likeliest == right.likeliest for told, right in both) / max(len(both), 1),
        sum(told.decided == right.decided for told, right in both) / max(len(both), 1),
        len({answer.decided for answer in valid}),
    )


def real_scenarios(count: int) -> list[Scenario]:
    """So many candidates of the bundled bars, spread over all, without texts."""
    every = bundled("scenarios.texts=0", "scenarios.terms=0")
    if len(every) < count:
        raise ValueError(f"{len(every)} scenarios for {count} requests: ask for fewer")
    return spread([scenario for scenario in every if not render(scenario).texts], count)


class Peers:
    """Everybody who is asked, by name; whose reading is exact, by name as well."""

    def __init__(self, home: Path, model: Path, threads: int, stack: AsyncExitStack) -> None:
        self.by_name: dict[str, Peer] = {}
        self.exact: dict[str, str] = {}
        self._home, self._threads, self._stack = home, threads, stack
        self._model, self._encoder = model, PromptEncoder.from_directory(model)
        self._options = BackendOptions(roots=(model.parent,), threads=threads, max_queue=64)
        limits = httpx.Limits(max_connections=WARM_UP)
        self._client = httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, limits=limits)
        stack.push_async_callback(self._client.aclose)

    def _add(self, name: str, ask: Ask, cpu_s: Callable[[], float], exact: str) -> None:
        self.by_name[name], self.exact[name] = Peer(ask, cpu_s), exact
        console.print(f"there: {name}")

    def _policy(self, options: BackendOptions, model: Path) -> Policy:
        policy = Backends(options).load(model)
        self._stack.push_async_callback(policy.aclose)
        return policy

    def in_process(self, name: str, model: Path, folder: Path | None = None) -> None:
        """A model read here; `folder` takes the manifest of one that has none."""
        policy = self._policy(replace(self._options, manifests=folder), model)
        self._add(name, reading(policy), process_time, name)

    def service(self, name: str, exact: str) -> None:
        """The whole service, with a Postgres and a Valkey of its own."""
        folder, postgres, valkey = self._stack.enter_context(servers())
        upgrade(postgres.url)
        environment = variables(folder, postgres, valkey) | {
            "MODEL": str(self._model.absolute()),
            "ADVISOR_THREADS": str(self._threads),
            "ADVISOR_HOME": str(folder / "home"),
        }
        served = self._stack.enter_context(serving(environment))
        beside = {pid for pid in (postgres.pid, valkey.pid) if pid is not None}
        calibration = load_manifest(self._model).calibration
        ask = advised(self._client, served, calibration)
        self._add(name, ask, lambda: served.cpu_s() + sessions_cpu_s(beside), exact)

    def vllm(self, environment: Path, exact: str) -> None:
        """Labels, and JSON, of one server."""
        log = self._home / "vllm.log"
        server = vllm_server(environment, self._model, self._threads, log)
        running = self._stack.enter_context(server)
        options = replace(self._options, vllm_url=running.url, vllm_names={self._model: "advisor"})
        labels = reading(self._policy(options, self._model))
        self._add("vLLM, labels", labels, running.cpu_s, exact)
        self._add("vLLM, JSON", chatting(self._client, running.url), running.cpu_s, exact)

    def llama(self, llama: Llama, exact: str) -> None:
        """JSON and a letter, each of a server of its own: what one has read it would keep for the
        other."""
        for name in ("JSON", "letter"):
            log = self._home / f"llama-{name}.log"
            running = self._stack.enter_context(llama_server(llama, self._threads, log))
            ask = (
                chatting(self._client, running.url)
                if name == "JSON"
                else lettering(self._client, running.url, self._encoder)
            )
            self._add(f"llama.cpp, {name}", ask, running.cpu_s, exact)

    def decisions(self, environment: Path) -> None:
        """vLLM's `/v1/systemone`, and the model that it takes read here."""
        model, exact = self._home / "decision-model", "this process, as Qwen3"
        as_decision_model(self._model, model)
        self.in_process(exact, model, self._home)
        server = vllm_server(environment, model, self._threads, self._home / "systemone.log")
        running = self._stack.enter_context(server)
        ask = asking(self._client, running.url)
        self._add("vLLM, /v1/systemone, as Qwen3", ask, running.cpu_s, exact)


async def _measured(
    home: Path, model: Path, threads: int, turns: int, requests: int
) -> dict[tuple[str, int], Figures]:
    asked = sum(requests * max(clients, 8) for clients in ROUNDS)
    scenarios = iter(real_scenarios(WARM_UP + turns * asked))
    async with AsyncExitStack() as stack:
        peers, exact = Peers(home, model, threads, stack), "this process"
        peers.in_process(exact, model)
        peers.service("/advise", exact)
        vllm, llama = installed_vllm(home), installed_llama(home)
        if llama is not None:
            peers.llama(llama, exact)
        if vllm is not None:
            peers.vllm(vllm, exact)
            peers.decisions(vllm)
        found = await compared(peers.by_name, scenarios, ROUNDS, turns, requests)
    return {
        (name, clients): figures(each, found[peers.exact[name], clients])
        for (name, clients), each in found.items()
    }


def main(
    home: Annotated[
        Path,
        typer.Argument(help="where bench/serving/beside/install.sh put them; their logs go there"),
    ] = Path("var/tools/peers"),
    model: Annotated[
        Path | None, typer.Option(help="folder of the whole model that all serve")
    ] = None,
    requests: Annotated[
        int, typer.Option(help="of each client in a turn; a single one sends eight times as many")
    ] = 2,
    turns: Annotated[int, typer.Option(help="for each number of clients")] = 3,
    threads: Annotated[int, typer.Option(help="that multiply, in each of them")] = 1,
) -> None:
    """Start, measure, print, remember, stop."""
    model = model or import_smollm2(read_settings().models_dir, console.print)
    home.mkdir(parents=True, exist_ok=True)
    begun = machine()
    measured = asyncio.run(_measured(home, model, threads, turns, requests))
    ended = machine()
    Console(width=WIDE).print(shown(measured, threads, f"load {begun['load']} to {ended['load']}"))
    record("peers", told(measured) | {"requests": requests, "turns": turns, "threads": threads})


def shown(measured: Mapping[tuple[str, int], Figures], threads: int, load: str) -> Table:
    """For people."""
    here = machine()
    title = f"{here['cpu']}, {' '.join(here['features'])}; {load}; threads of each: {threads}"
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for column in ("how", "clients", "decisions/s (turns)", "p50 ms", "p99 ms", "CPU s"):
        table.add_column(column, justify="left" if column == "how" else "right")
    for column in ("valid", "likeliest", "decided", "labels"):
        table.add_column(column, justify="right")
    for (name, clients), each in measured.items():
        table.add_row(
            *(name, f"{clients}", f"{each.rate:.2f} ({each.slowest:.2f}-{each.fastest:.2f})"),
            *(f"{1e3 * each.p50:,.0f}", f"{1e3 * each.p99:,.0f}", f"{each.cpu_s:.3f}"),
            *(f"{each.valid:.1%}", f"{each.likeliest:.1%}", f"{each.decided:.1%}"),
            f"{each.labels}",
        )
    return table


def told(measured: Mapping[tuple[str, int], Figures]) -> dict[str, float]:
    """For the history."""
    figures: dict[str, float] = {}
    for (name, clients), each in measured.items():
        short = f"{'_'.join(re.findall(r'[a-z0-9]+', name.lower()))}_{clients}"
        figures |= {
            f"{short}_p50_ms": 1e3 * each.p50,
            f"{short}_p99_ms": 1e3 * each.p99,
            f"{short}_per_s": each.rate,
            f"{short}_cpu_s": each.cpu_s,
            f"{short}_decided": each.decided,
        }
    return figures


if __name__ == "__main__":
    typer.run(main)
