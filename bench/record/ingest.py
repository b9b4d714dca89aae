"""How fast writers move events from the stream into Postgres, against a raw binary COPY of the very
rows that they wrote.

Events are decisions with an action and both outcomes, as agents report them. Writers are processes
of their own; their time runs from their first transaction to their last.
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Annotated

import psycopg
import redis
import typer
from rich.console import Console
from rich.table import Table

from app.domain.canonical import digest
from app.domain.record.event import Event
from app.domain.record.link import Link, Producer
from app.journal.keys import EVENTS
from app.journal.stream import StreamJournal
from app.local.servers import EmbeddedPostgres, die_with_parent, free_port
from app.shadow_log.schema import tables
from app.shadow_log.schema.migrate import upgrade
from bench.history import record, repeated
from bench.record.questions import events
from bench.serving.service import servers

PATIENCE_S = 240.0
EACH = 4
"""Events of a decision."""
WRITTEN = ("decision_keys", "links", "agent_actions", "outcomes", *tables.PARTITIONED)


def plain(url: str) -> str:
    """As libpq wants it."""
    return url.replace("+psycopg", "")


def database(postgres: EmbeddedPostgres, name: str) -> str:
    """The URL of a new, migrated database."""
    with psycopg.connect(plain(postgres.url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = postgres.url.rsplit("/", 1)[0] + f"/{name}"
    upgrade(url)
    return url


async def fill(url: str, batch: list[Event]) -> None:
    """Put events into the stream, numbered and chained as the service does."""
    journal, producer = StreamJournal(url), Producer()

    async def part(first: int) -> None:
        for event in batch[first::32]:
            said = producer.link(event.kind.value, event.key, event.claim, digest(event.payload))
            await journal.append(event._replace(link=Link(*said[:3])))

    await asyncio.gather(*map(part, range(32)))
    await journal.aclose()


def written(url: str, redis_url: str, folder: Path, writers: int) -> float:
    """Events per second of so many writers, until the stream is empty."""
    variables = {
        **os.environ,
        "DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "ADVISOR_OPEN": "loopback",
    }
    variables |= {"ADVISOR_HOME": str(folder / "home"), "ADVISOR_LOG_LEVEL": "error"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "app.cli", "writer"],
            env=variables | {"ADVISOR_WRITER_METRICS_PORT": str(free_port())},
            preexec_fn=die_with_parent,
        )
        for _ in range(writers)
    ]
    deadline = monotonic() + PATIENCE_S
    try:
        with redis.Redis.from_url(redis_url) as stream:
            while stream.xlen(EVENTS):
                if monotonic() > deadline or any(each.poll() is not None for each in processes):
                    raise RuntimeError("the writers did not write everything")
                sleep(0.05)
    finally:
        for each in processes:
            each.terminate()
        for each in processes:
            each.wait()
    with psycopg.connect(plain(url)) as connection:
        [(decisions, seconds)] = connection.execute(
            "SELECT count(*) FILTER (WHERE recorded_in_log_at < last),"
            " extract(epoch FROM last - first) FROM decisions,"
            " (SELECT min(recorded_in_log_at) AS first, max(recorded_in_log_at) AS last"
            " FROM decisions) span GROUP BY last, first"
        ).fetchall()
    return float(EACH * decisions / float(seconds))


def copied(source: str, target: str) -> float:
    """Seconds that a binary COPY of all rows takes, a table at a time."""
    total = 0.0
    with psycopg.connect(plain(source)) as out, psycopg.connect(plain(target)) as into:
        months = out.execute("SELECT DISTINCT to_char(as_of, 'YYYYMM') FROM decisions").fetchall()
        for (month,) in months:
            into.execute("SELECT advisor_make_month(%s)", [month])
        into.commit()
        for name in WRITTEN:
            rows = io.BytesIO()
            with out.cursor().copy(f"COPY (SELECT * FROM {name}) TO STDOUT BINARY") as reading:
                for block in reading:
                    rows.write(block)
            begin = perf_counter()
            with into.cursor().copy(f"COPY {name} FROM STDIN BINARY") as writing:
                writing.write(rows.getvalue())
            into.commit()
            total += perf_counter() - begin
    return total


def main(
    decisions: Annotated[
        int, typer.Option(min=1, help="Decisions a run, four events each.")
    ] = 4_000,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, taking turns.")] = 3,
) -> None:
    """Fill the stream, write it out with one writer and with two, and copy the same rows."""
    runs: dict[str, list[float]] = {"one writer": [], "two writers": [], "binary COPY": []}
    batch = list(events(datetime.now(UTC) - timedelta(days=1), timedelta(seconds=1), decisions))
    with servers() as (folder, postgres, valkey):
        for repeat in range(repeats):
            for writers, name in ((1, "one writer"), (2, "two writers")):
                url = database(postgres, f"run_{repeat}_{writers}")
                with redis.Redis.from_url(valkey.url) as stream:
                    stream.flushall()
                asyncio.run(fill(valkey.url, batch))
                runs[name].append(written(url, valkey.url, folder, writers))
            seconds = copied(url, database(postgres, f"copy_{repeat}"))
            runs["binary COPY"].append(len(batch) / seconds)
    table = Table(title=f"{len(batch):,} events", title_justify="left")
    for column in ("what", "events/s", "from", "to", "of COPY"):
        table.add_column(column)
    floor = statistics.median(runs["binary COPY"])
    figures: dict[str, float] = {"decisions": decisions}
    for name, rates in runs.items():
        rate = statistics.median(rates)
        shown = (f"{value:,.0f}" for value in (rate, min(rates), max(rates)))
        table.add_row(name, *shown, f"{rate / floor:.2f}")
        figures |= repeated(f"{name.replace(' ', '_').lower()}_per_s", rates)
    Console().print(table)
    record("ingest", {**figures, "one_writer_per_s_floor": floor, "two_writers_per_s_floor": floor})


if __name__ == "__main__":
    typer.run(main)
