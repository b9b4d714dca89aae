"""What faults are done to: a Postgres and a Valkey that sync to disk, replicas of the API and
writers, all of them real processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import redis

from app.journal.drain import GROUP as WRITERS
from app.journal.keys import EVENTS, REQUESTS
from app.journal.later import GROUP as ADVISORS
from app.local.servers import EmbeddedPostgres, EmbeddedValkey
from app.shadow_log.log import ShadowLog
from app.shadow_log.schema.migrate import upgrade
from tests.conftest import administration
from tests.service.journal.journal_events import client
from tests.service.processes import Child, bearer, descriptors, environment
from tests.service.running import until

RECOVERY_S = 60.0
"""What has not recovered by then is a fault of its own."""
ABANDONED_MS = 600_000
"""Longer than any consumer waits before it takes over what another holds."""
_databases = count()


class Stack:
    """Servers and processes of one life: a new database, an empty Valkey, so many replicas and as
    many writers. The processes live while the block does."""

    def __init__(
        self, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, home: Path, pairs: int = 2
    ) -> None:
        self.postgres = postgres
        self.valkey = valkey
        name = f"chaos_{os.getpid()}_{next(_databases)}"
        with administration(postgres.url) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self.database_url = postgres.url.rsplit("/", 1)[0] + f"/{name}"
        upgrade(self.database_url)
        numbers = range(1, pairs + 1)
        self.replicas = [self._child("serve", home / f"replica-{n}") for n in numbers]
        self.writers = [self._child("writer", home / f"writer-{n}") for n in numbers]
        self.http = httpx.AsyncClient(timeout=5, headers=bearer())

    def _child(self, command: str, home: Path) -> Child:
        home.mkdir(parents=True)
        variables = environment(home, database_url=self.database_url, redis_url=self.valkey.url)
        return Child(command, variables, home / "log")

    @property
    def children(self) -> list[Child]:
        """Replicas, then writers."""
        return [*self.replicas, *self.writers]

    async def __aenter__(self) -> Self:
        for child in self.children:
            child.start()
        for child in self.children:
            await child.ready()
        return self

    async def __aexit__(self, *error: object) -> None:
        for child in self.children:
            child.kill()
        await self.http.aclose()

    @contextmanager
    def valkey_client(self) -> Iterator[redis.Redis]:
        """One of our own, which shows what is there."""
        with client(self.valkey.url) as connection:
            yield connection

    def connection(self, *, autocommit: bool = False) -> psycopg.Connection:
        """One of our own to the database."""
        url = self.database_url.replace("+psycopg", "")
        return psycopg.connect(url, autocommit=autocommit)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """One statement of our own."""
        with self.connection(autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def shadow_log(self) -> AsyncIterator[ShadowLog]:
        """The log, over connections of its own: earlier ones may have died with the server."""
        log = ShadowLog.connect(self.database_url, patience_s=None)
        try:
            yield log
        finally:
            await log.aclose()

    async def readiness(self, replica: Child) -> dict[str, Any]:
        """Its word about itself; `away` when it gives none."""
        try:
            reply = await self.http.get(f"{replica.url}/readyz", timeout=2)
        except httpx.TransportError:
            return {"status": "away"}
        return dict(reply.json())

    async def recovered(self) -> None:
        """Wait until both replicas are ready, nothing waits on disk, and what the stream holds now
        has left it."""

        async def ready_and_drained() -> bool:
            words = [await self.readiness(replica) for replica in self.replicas]
            return all(word["status"] == "ready" and word["spool_depth"] == 0 for word in words)

        await until(ready_and_drained, RECOVERY_S)
        with self.valkey_client() as connection:
            newest: Any = connection.xrevrange(EVENTS, count=1)
            if not newest:
                return

            async def moved() -> bool:
                return not connection.xrange(EVENTS, max=newest[0][0], count=1)

            await until(moved, RECOVERY_S)

    async def quiet(self) -> None:
        """Wait until nothing is under way anywhere, with nobody asking any more."""
        await self.recovered()
        self.hand_over(REQUESTS, ADVISORS)
        with self.valkey_client() as connection:

            async def nothing_waits() -> bool:
                return connection.xlen(EVENTS) == connection.xlen(REQUESTS) == 0

            await until(nothing_waits, RECOVERY_S)

    def begun(self) -> set[bytes]:
        """Entries that writers took and did not finish."""
        return {entry["message_id"] for entry in self._held(EVENTS, WRITERS)}

    async def writer_in_copy(self) -> Child:
        """A writer that waits for a lock at the beginning of a COPY."""
        ports: list[tuple[Any, ...]] = []

        async def waits() -> bool:
            ports[:] = self.sql(
                "SELECT client_port FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'COPY decisions %' AND wait_event_type = 'Lock'"
            )
            return bool(ports)

        await until(waits)
        return next(child for child in self.writers if ports[0][0] in _local_ports(child.pid))

    def hand_over(self, stream: str, group: str) -> int:
        """Make what a group took look abandoned, and say how much that is: others take it over
        after a time that nobody waits for here."""
        held = self._held(stream, group)
        with self.valkey_client() as connection:
            for entry in held:
                owner, ids = entry["consumer"], [entry["message_id"]]
                connection.xclaim(stream, group, owner, 0, ids, idle=ABANDONED_MS, justid=True)
        return len(held)

    def _held(self, stream: str, group: str) -> list[dict[str, Any]]:
        """Nothing in a server so new that nobody has made the group yet."""
        with self.valkey_client() as connection:
            try:
                entries: Any = connection.xpending_range(stream, group, "-", "+", 10_000)
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                return []
            return list(entries)


@asynccontextmanager
async def living(home: Path) -> AsyncIterator[Stack]:
    """A stack of its own servers, until the block ends."""
    home.chmod(0o755)  # An embedded Postgres under root is another user.
    with EmbeddedPostgres(home / "postgres") as postgres, EmbeddedValkey(home / "valkey") as valkey:
        async with Stack(postgres, valkey, home) as stack:
            yield stack


def _local_ports(pid: int) -> set[int]:
    """Of a process' TCP connections."""
    mine = descriptors(pid)
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if f"socket:[{row[9]}]" in mine}
