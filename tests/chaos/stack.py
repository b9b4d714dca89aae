"""What faults are done to: a Postgres and a Valkey that sync to disk, two replicas of the API and
two writers, all of them real processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

from app.journal.journal import GROUP as WRITERS
from app.journal.later import GROUP as ADVISORS
from app.journal.later import REQUESTS
from app.journal.stream import EVENTS
from app.local.servers import EmbeddedPostgres, EmbeddedValkey
from app.shadow_log.log import ShadowLog
from app.shadow_log.migrate import upgrade
from tests.conftest import administration
from tests.service.journal.journal_events import client
from tests.service.processes import Child, bearer, environment
from tests.service.running import until

RECOVERY_S = 60.0
"""What has not recovered by then is a fault of its own."""
_databases = count()


class Stack:
    """Servers and processes of one life: a new database, an empty Valkey."""

    def __init__(self, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, home: Path) -> None:
        self.postgres = postgres
        self.valkey = valkey
        name = f"chaos_{os.getpid()}_{next(_databases)}"
        with administration(postgres.url) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self.database_url = postgres.url.rsplit("/", 1)[0] + f"/{name}"
        upgrade(self.database_url)
        self.replicas = [self._child("serve", home / f"replica-{n}") for n in (1, 2)]
        self.writers = [self._child("writer", home / f"writer-{n}") for n in (1, 2)]
        self.http = httpx.AsyncClient(timeout=5, headers=bearer())

    def _child(self, command: str, home: Path) -> Child:
        home.mkdir(parents=True)
        variables = environment(home, database_url=self.database_url, redis_url=self.valkey.url)
        return Child(command, variables, home / "log")

    @property
    def children(self) -> list[Child]:
        """Replicas, then writers."""
        return [*self.replicas, *self.writers]

    async def start(self) -> None:
        for child in self.children:
            child.start()
        for child in self.children:
            await child.ready()

    async def aclose(self) -> None:
        for child in self.children:
            child.kill()
        await self.http.aclose()

    @contextmanager
    def valkey_client(self) -> Iterator[redis.Redis]:
        """One of our own, which shows what is there."""
        with client(self.valkey.url) as connection:
            yield connection

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """One statement of our own."""
        url = self.database_url.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
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

    async def all_ready(self) -> bool:
        return all(
            [(await self.readiness(replica))["status"] == "ready" for replica in self.replicas]
        )

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
        self.hand_over_requests()
        with self.valkey_client() as connection:

            async def nothing_waits() -> bool:
                return connection.xlen(EVENTS) == connection.xlen(REQUESTS) == 0

            await until(nothing_waits, RECOVERY_S)

    def begun(self) -> set[bytes]:
        """Entries that writers took and did not finish."""
        with self.valkey_client() as connection:
            held: Any = connection.xpending_range(EVENTS, WRITERS, "-", "+", 10_000)
            return {entry["message_id"] for entry in held}

    def hand_over_requests(self) -> None:
        """Make accepted requests that a replica took look abandoned: another takes them over after
        a minute, which rounds do not wait for."""
        with self.valkey_client() as connection:
            held: Any = connection.xpending_range(REQUESTS, ADVISORS, "-", "+", 10_000)
            for entry in held:
                owner, ids = entry["consumer"], [entry["message_id"]]
                connection.xclaim(REQUESTS, ADVISORS, owner, 0, ids, idle=600_000, justid=True)


@asynccontextmanager
async def living(home: Path) -> AsyncIterator[Stack]:
    """A stack of its own servers, until the block ends."""
    home.chmod(0o755)  # An embedded Postgres under root is another user.
    with EmbeddedPostgres(home / "postgres") as postgres, EmbeddedValkey(home / "valkey") as valkey:
        stack = Stack(postgres, valkey, home)
        try:
            await stack.start()
            yield stack
        finally:
            await stack.aclose()
