"""Ways to ask one small model for a decision, side by side, at 1, 8 and 32 clients: its labels read
in this process and by vLLM, and chats that write JSON under a grammar (vLLM, llama.cpp's server).

All answer the same prompts, in turns, each of them with an action and no more: no adapter, no
questions, no service in front. Servers run already: `VLLM_ONLY=serve tests/policy/start_vllm.sh`,
`llama-server --model model.gguf`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from app.domain.model.actions import LABELS
from app.domain.model.prompt import Prompt
from app.policy.backends import Backends
from app.policy.calibration import random_prompts
from app.policy.options import BackendOptions
from app.policy.port import Policy
from bench.history import record
from bench.serving.load import Load

SEED = 4712
PATIENCE_S = 600.0
ANSWER = {
    "type": "object",
    "properties": {"action": {"enum": list(LABELS)}},
    "required": ["action"],
    "additionalProperties": False,
}
"""What a chat has to write."""
Ask = Callable[[Prompt], Awaitable[None]]


def prompts(count: int, seed: int) -> list[Prompt]:
    """Made-up ones without a text part, which one way would read twice and another once."""
    return [each._replace(user=each.before) for each in random_prompts(count, seed)]


def reading(policy: Policy) -> Ask:
    """Asks for the labels' probabilities."""

    async def ask(prompt: Prompt) -> None:
        await policy.decide(prompt, monotonic() + PATIENCE_S)

    return ask


def chatting(client: httpx.AsyncClient, url: str, model: str) -> Ask:
    """Asks for a JSON object. Raises `ValueError` of an answer that is not the one."""

    async def ask(prompt: Prompt) -> None:
        body = {
            "model": model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": ANSWER, "strict": True},
            },
            "temperature": 0,
            "max_tokens": 32,
        }
        reply = await client.post(f"{url}/v1/chat/completions", json=body)
        action_of(reply.raise_for_status().json())

    return ask


def action_of(answer: Any) -> str:
    """The label in a chat's answer. Raises `ValueError`."""
    written = json.loads(answer["choices"][0]["message"]["content"])
    if not isinstance(written, dict) or written.get("action") not in LABELS:
        raise ValueError(f"{written!r} is no decision")
    return str(written["action"])


async def driven(ask: Ask, asked: Sequence[Prompt], clients: int) -> Load:
    """Every prompt once, by so many clients in a closed loop."""
    waiting, latencies = list(reversed(asked)), []

    async def client() -> None:
        while waiting:
            prompt = waiting.pop()
            begin = perf_counter()
            await ask(prompt)
            latencies.append(perf_counter() - begin)

    begin = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(latencies, perf_counter() - begin)


async def compared(
    peers: dict[str, Ask], rounds: Sequence[int], requests: int
) -> dict[tuple[str, int], Load]:
    """Loads by peer and number of clients; fresh prompts for each number, so that no trunk is kept
    from the round before, and the same ones for all peers."""
    counts = [2, *[requests] * len(rounds)]
    warm, *batches = [prompts(count, SEED + turn) for turn, count in enumerate(counts)]
    for ask in peers.values():
        await driven(ask, warm, 1)
    return {
        (name, clients): await driven(ask, batch, clients)
        for clients, batch in zip(rounds, batches, strict=True)
        for name, ask in peers.items()
    }


async def _measured(
    model: Path, vllm: str, llama: str, requests: int, threads: int
) -> dict[tuple[str, int], Load]:
    options = BackendOptions(roots=(model.parent,), threads=threads, max_queue=64)
    policies = {"in process": Backends(options).load(model)}
    if vllm:
        served = replace(options, vllm_url=vllm, vllm_model="advisor")
        policies["vLLM, labels"] = Backends(served).load(model)
    peers = {name: reading(policy) for name, policy in policies.items()}
    async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
        for name, url in (("vLLM, JSON", vllm), ("llama.cpp, JSON", llama)):
            if url:
                peers[name] = chatting(client, url, "advisor")
        loads = await compared(peers, (1, 8, 32), requests)
    for policy in policies.values():
        await policy.aclose()
    return loads


def main(
    model: Annotated[Path, typer.Argument(help="folder of the whole model that all serve")],
    vllm: Annotated[str, typer.Option(help="URL of a vLLM that serves it as `advisor`")] = "",
    llama: Annotated[str, typer.Option(help="URL of a llama.cpp server")] = "",
    requests: Annotated[int, typer.Option(help="decisions for each number of clients")] = 32,
    threads: Annotated[int, typer.Option(help="of the model in this process")] = 2,
) -> None:
    """Measure, print, remember."""
    loads = asyncio.run(_measured(model, vllm, llama, requests, threads))
    table = Table(title=f"{requests} decisions each, {threads} threads", title_justify="left")
    for column in ("how", "clients", "p50, ms", "p99, ms", "decisions/s"):
        table.add_column(column, justify="left" if column == "how" else "right")
    figures: dict[str, float] = {"requests": requests, "threads": threads}
    for (name, clients), load in loads.items():
        p50, p99 = (1e3 * load.quantile(share) for share in (0.5, 0.99))
        table.add_row(name, f"{clients}", f"{p50:,.0f}", f"{p99:,.0f}", f"{load.rate:.2f}")
        short = f"{name.replace(', ', '_').replace(' ', '_')}_{clients}"
        figures |= {f"{short}_p50_ms": p50, f"{short}_p99_ms": p99, f"{short}_per_s": load.rate}
    Console().print(table)
    record("peers", figures)


if __name__ == "__main__":
    typer.run(main)
