"""Several processes of the service on one port, for tests: who answers, and who can be killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.service.processes import START_S, Child, environment
from tests.service.running import until

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Several:
    """`advisor serve` by two processes."""

    def __init__(self, child: Child) -> None:
        self.child, self.url = child, child.url

    def client(self) -> httpx.AsyncClient:
        """One connection of its own, which stays with the process that took it."""
        return httpx.AsyncClient(
            base_url=self.url, timeout=30, limits=httpx.Limits(max_connections=1)
        )

    def pids(self) -> list[int]:
        """Of the processes that the parent started, the one that multiprocessing needs left out."""
        pid = self.child.pid
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(each): Path(f"/proc/{each}/cmdline").read_bytes() for each in started}
        return [each for each, command in commands.items() if b"spawn_main" in command]

    async def ready(self) -> None:
        """Wait until every process is."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:

            async def all_ready() -> bool:
                assert self.child.runs, self.child.said
                try:
                    document = (await client.get("/readyz")).json()
                except httpx.TransportError:
                    return False
                told = document.get("processes", {})
                return document["status"] == "ready" and set(told.values()) == {"ready"}

            await until(all_ready, START_S)

    async def one_of_each(self) -> dict[str, httpx.AsyncClient]:
        """A connection to each process, by its name. Connections go to whoever is free: one that
        is not needed stays open, so that its process has one more than the others."""
        found: dict[str, httpx.AsyncClient] = {}
        spare: list[httpx.AsyncClient] = []

        async def another() -> bool:
            client = self.client()
            name = (await client.get("/healthz")).json()["process"]
            spare.append(found.setdefault(name, client) if name not in found else client)
            return len(found) == 2

        try:
            await until(another)
        finally:
            for client in spare:
                if client not in found.values():
                    await client.aclose()
        return found

    async def metrics(self, client: httpx.AsyncClient | None = None) -> Series:
        """What a scrape finds."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as own:
            reply = await (client or own).get("/metrics")
        assert reply.status_code == 200, reply.text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
        }


def value(series: Series, name: str, **labels: str) -> float:
    """One of them."""
    return series[name, frozenset(labels.items())]


@asynccontextmanager
async def several(
    home: Path, database_url: str, redis_url: str, **variables: Any
) -> AsyncIterator[Several]:
    """Two processes, until the block ends; ready when it begins."""
    home.mkdir(parents=True, exist_ok=True)
    told = {"database_url": database_url, "redis_url": redis_url, **variables}
    # Nobody is refused because the machine is busy.
    told |= {"advisor_processes": 2, "advisor_deadline_ms": 60_000}
    child = Child("serve", environment(home, **told), home / "log")
    child.start()
    service = Several(child)
    try:
        await service.ready()
        yield service
    finally:
        left = service.pids() if child.runs else []
        await asyncio.to_thread(child.kill)
        await until(lambda: gone(left))


async def gone(pids: list[int]) -> bool:
    """Whether none of these processes runs any more."""
    return not any(runs(pid) for pid in pids)


def runs(pid: int) -> bool:
    """Whether it does, and is not merely waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
