"""What numbers, links and signatures cost: CPU of each of their steps for a decision, against the
CPU that a decision takes in API, writer, Postgres and Valkey together.

The policy is scripted: what a model takes to read a prompt comes to the whole, so that the share
with one is smaller. A checkpoint is of as many links as were written, as once a minute in which
so many come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from app.domain.canonical import digest
from app.domain.record.event import Event
from app.domain.record.link import Linked, Producer
from app.journal.drain import BATCH
from app.local.servers import EmbeddedPostgres, EmbeddedValkey, postgres_processes
from app.shadow_log.appending import links
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.checkpoint import Checkpointer
from app.shadow_log.proof.places import LogPlace
from app.shadow_log.schema.migrate import upgrade
from bench.history import record
from bench.record.ingest import database
from bench.serving.overload import Pids, Served, running
from bench.serving.service import ROOT, a_decision, cpu_s, document, servers

PATIENCE_S = 120.0
console = Console()


def whole(postgres: EmbeddedPostgres, valkey: EmbeddedValkey, home: Path, count: int) -> float:
    """Microseconds of CPU of a decision, until it is in Postgres."""
    settings = {
        "database_url": postgres.url,
        "redis_url": valkey.url,
        "limits": ROOT / "limits.toml",
        "home": home,
        "log_level": "error",
    }
    beside: dict[str, Pids] = {
        "valkey": lambda: [valkey.pid or 0],
        "postgres": partial(backends, postgres),
    }
    with running(settings, 0.0, beside) as served:
        run(served, 200, "warm")
        begin = cpu_s([pid for pids in served.processes.values() for pid in pids()])
        run(served, count, "chain")
        end = cpu_s([pid for pids in served.processes.values() for pid in pids()])
    return 1e6 * (end - begin) / count


def run(served: Served, count: int, name: str) -> None:
    """So many decisions, each written."""
    served.drive(8, count, partial(document, run=name))
    until = monotonic() + PATIENCE_S
    with served.client() as client:
        while "\nadvisor_journal_backlog 0.0" not in client.get("/metrics").text:
            assert monotonic() < until, "the writer does not come to its end"
            sleep(0.1)


def backends(postgres: EmbeddedPostgres) -> list[int]:
    """Every process of a server."""
    return postgres_processes(postgres.directory / "cluster")


def numbered(events: Sequence[Event]) -> list[Linked]:
    """What the API adds to each event."""
    producer = Producer()
    return [
        producer.link(each.kind.value, each.key, each.claim, digest(each.payload))
        for each in events
    ]


async def written(log: ShadowLog, made: Sequence[Linked]) -> None:
    """What the writer adds to each batch."""
    for first in range(0, len(made), BATCH):
        async with log.engine.begin() as connection:
            await links.append_links(connection, made[first : first + BATCH])


def cost(work: Callable[[], object], servers_of: Callable[[], list[int]], count: int) -> float:
    """Microseconds of CPU of this process and of the server for one of so many."""
    there, here = cpu_s(servers_of()), process_time()
    work()
    return 1e6 * (process_time() - here + cpu_s(servers_of()) - there) / count


def steps(postgres: EmbeddedPostgres, count: int) -> dict[str, float]:
    """Microseconds of CPU of each step for a decision."""
    base, of = Event.of_decision(a_decision(0)), partial(backends, postgres)
    events = [base._replace(key=f"bench-{number}") for number in range(count)]
    made = numbered(events)
    log = ShadowLog.connect(database(postgres, "chain"))
    signer = Checkpointer(log.engine, Ed25519PrivateKey.generate(), LogPlace())
    with asyncio.Runner() as runner:
        runner.run(log.ping())
        found = {
            "numbered by the API": cost(partial(numbered, events), lambda: [], count),
            "links written": cost(lambda: runner.run(written(log, made)), of, count),
            "checkpoint signed": cost(lambda: runner.run(signer.checkpoint()), of, count),
        }
        runner.run(log.aclose())
    return found


def main(
    count: Annotated[int, typer.Option(min=100, help="Decisions.")] = 5000,
) -> None:
    """Exit 1 when chain and signatures take more than 5 % of what the rest takes."""
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        all_us = whole(postgres, valkey, folder / "home", count)
        parts = steps(postgres, count)
    chain_us = sum(parts.values())
    share = chain_us / (all_us - chain_us)
    table = Table(title=f"CPU of a decision, of {count:,}", title_justify="left")
    table.add_column("what")
    table.add_column("us", justify="right")
    for name, value in (*parts.items(), ("chain and signatures", chain_us), ("in all", all_us)):
        table.add_row(name, f"{value:,.1f}")
    console.print(table)
    console.print(f"chain and signatures add {share:.1%} to the rest, without any model's reading")
    figures = {f"{name.replace(' ', '_')}_us": value for name, value in parts.items()}
    record("chain", {**figures, "decision_us": all_us, "share": share, "decisions": count})
    raise typer.Exit(1 if share > 0.05 else 0)


if __name__ == "__main__":
    typer.run(main)
