"""Every fault that is done, each with what must hold: done when the block begins, mended when it
ends."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from time import monotonic

from app.journal.keys import EVENTS, REQUESTS, STATE
from app.local.servers import EmbeddedPostgres, EmbeddedValkey, postgres_processes
from tests.chaos.load import Load
from tests.chaos.stack import RECOVERY_S, Stack
from tests.service.processes import Child
from tests.service.running import until

TAKEN_OVER_S = 20.0
"""Within which another writer has what a frozen one held; longer on a busy machine is a finding."""
Server = EmbeddedPostgres | EmbeddedValkey
Doing = Callable[[Stack, Load, Random], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Parameters
    ----------
    seen : replicas must not say `ready` while it lasts.
    forgets : what the stream confirmed may be gone, and has to be counted.
    part : what it is done to. Faults of two parts may be done at once; of "all" only one.
    """

    name: str
    part: str
    do: Doing
    seen: bool = False
    forgets: bool = False


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # A session that ended by itself.


@asynccontextmanager
async def frozen(pids: Sequence[int]) -> AsyncIterator[None]:
    """Processes that keep their connections and say nothing, as behind a network that swallows
    everything."""
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGCONT)


def silence(pids: Callable[[Stack, Random], Sequence[int]]) -> Doing:
    """Processes are frozen."""

    def doing(stack: Stack, load: Load, random: Random) -> AbstractAsyncContextManager[None]:
        return frozen(pids(stack, random))

    return doing


def absence(*servers: Callable[[Stack], Server], killed: bool) -> Doing:
    """Servers end, by SIGKILL or as they should, and the last of them comes back first."""

    @asynccontextmanager
    async def doing(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
        for server in servers:
            server(stack).kill() if killed else server(stack).stop()
        yield
        for server in reversed(servers):
            server(stack).start()

    return doing


def crash(children: Callable[[Stack], Sequence[Child]]) -> Doing:
    """One of several processes is killed, and started again when the block ends."""

    @asynccontextmanager
    async def doing(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
        child = random.choice(children(stack))
        child.kill()
        yield
        await child.restart()

    return doing


def replicas(stack: Stack) -> Sequence[Child]:
    return stack.replicas


def writers(stack: Stack) -> Sequence[Child]:
    return stack.writers


def postgres(stack: Stack) -> EmbeddedPostgres:
    return stack.postgres


def valkey(stack: Stack) -> EmbeddedValkey:
    return stack.valkey


def a_replica(stack: Stack, random: Random) -> Sequence[int]:
    return [random.choice(stack.replicas).pid]


def all_of_valkey(stack: Stack, random: Random) -> Sequence[int]:
    assert stack.valkey.pid is not None
    return [stack.valkey.pid]


def all_of_postgres(stack: Stack, random: Random) -> Sequence[int]:
    return postgres_processes(stack.postgres.directory / "cluster")


async def _restart(children: Sequence[Child]) -> None:
    """All at once."""
    for child in children:
        child.kill()
        child.start()
    for child in children:
        await child.ready()


@asynccontextmanager
async def replicas_killed_in_turn(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    for child in stack.replicas:
        await child.restart()
    yield


@asynccontextmanager
async def writers_killed_with_a_batch(
    stack: Stack, load: Load, random: Random
) -> AsyncIterator[None]:
    """Both die in the middle of a transaction."""
    with stack.connection() as blocker:
        blocker.execute("LOCK TABLE decision_keys")

        async def in_their_hands() -> bool:
            return bool(stack.begun())

        await until(in_their_hands)
        for child in stack.writers:
            child.kill()
        yield
    await _restart(stack.writers)


@asynccontextmanager
async def writer_frozen_and_taken_over(
    stack: Stack, load: Load, random: Random
) -> AsyncIterator[None]:
    """It wakes up with a batch that the other one has written meanwhile."""
    async with frozen([random.choice(stack.writers).pid]):
        begun = stack.begun()

        async def taken_over() -> bool:
            return not begun & stack.begun()

        await until(taken_over, RECOVERY_S)
        yield


@asynccontextmanager
async def writer_frozen_within_a_copy(
    stack: Stack, load: Load, random: Random
) -> AsyncIterator[None]:
    """Postgres waits for the rest of its rows, and others for the keys that it took."""
    with stack.connection() as blocker:
        blocker.execute("LOCK TABLE decisions IN SHARE MODE")
        writer = await stack.writer_in_copy()
        _send([writer.pid], signal.SIGSTOP)
    try:
        begun = stack.begun()

        async def taken_over() -> bool:
            return not begun & stack.begun()

        await until(taken_over, TAKEN_OVER_S)
        yield
    finally:
        _send([writer.pid], signal.SIGCONT)


@asynccontextmanager
async def valkey_emptied(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """While no writer moves anything, so that there is something to lose."""
    async with frozen([writer.pid for writer in stack.writers]):
        await load.go_on(20)
        with stack.valkey_client() as connection:
            connection.flushall()
        yield


@asynccontextmanager
async def valkey_replaced(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """Another server without data comes back in its place, while no writer works."""
    async with frozen([writer.pid for writer in stack.writers]):
        await load.go_on(20)
        stack.valkey.kill()
        shutil.rmtree(stack.valkey.directory / "appendonlydir")
        yield
        stack.valkey.start()


@asynccontextmanager
async def valkey_evicts(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """It throws keys away, the stream among them, as soon as memory is short."""
    async with frozen([writer.pid for writer in stack.writers]):
        with stack.valkey_client() as connection:
            connection.config_set("maxmemory-policy", "allkeys-lru")
            connection.config_set("maxmemory", 2_000_000)
            yield
            connection.config_set("maxmemory", 0)
            connection.config_set("maxmemory-policy", "noeviction")


@asynccontextmanager
async def valkey_not_durable(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """`appendonly no` at run time, then a crash."""
    async with frozen([writer.pid for writer in stack.writers]):
        with stack.valkey_client() as connection:
            connection.config_set("appendonly", "no")
        yield
        stack.valkey.kill()
        stack.valkey.start()


@asynccontextmanager
async def valkey_disk_full(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """Its append-only file cannot grow: with `appendfsync always` it then ends."""
    assert stack.valkey.pid is not None
    resource.prlimit(stack.valkey.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield
    stack.valkey.kill()
    stack.valkey.start()


@asynccontextmanager
async def postgres_restarted(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    stack.postgres.stop()
    stack.postgres.start()
    yield


@asynccontextmanager
async def sessions_terminated(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    stack.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    yield


@asynccontextmanager
async def database_settings_changed(
    stack: Stack, load: Load, random: Random
) -> AsyncIterator[None]:
    """What sessions inherit is another time zone and date style."""
    name = stack.database_url.rsplit("/", 1)[1]
    stack.sql(f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'")
    stack.sql(f"ALTER DATABASE {name} SET datestyle = 'German'")
    await stack.writers[0].restart()
    yield
    stack.sql(f"ALTER DATABASE {name} RESET ALL")


@asynccontextmanager
async def spool_disk_full(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """Valkey is away and no file of the replicas can grow: nothing can be recorded, so nothing is
    answered."""
    before = load.fresh
    stack.valkey.kill()
    for child in stack.replicas:
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    await load.go_on(8)  # What was under way.
    answered = load.fresh
    yield
    if load.fresh > answered:
        load.violations.append(f"{load.fresh - before} events were answered on a full disk")
    for child in stack.replicas:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, unlimited)
    stack.valkey.start()


@asynccontextmanager
async def replica_restarted_without_valkey(
    stack: Stack, load: Load, random: Random
) -> AsyncIterator[None]:
    """What it spooled before it died waits on its disk."""
    stack.valkey.kill()
    await load.go_on(30)
    await stack.replicas[0].restart()
    yield
    stack.valkey.start()


@asynccontextmanager
async def replica_restarted_without_postgres(
    stack: Stack, load: Load, random: Random
) -> AsyncIterator[None]:
    stack.postgres.stop()
    await stack.replicas[0].restart()
    yield
    stack.postgres.start()


@asynccontextmanager
async def everything_killed(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    for child in stack.children:
        child.kill()
    stack.postgres.kill()
    stack.valkey.kill()
    yield
    stack.valkey.start()
    stack.postgres.start()
    await _restart(stack.children)


@asynccontextmanager
async def garbage_in_streams(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """Entries that nobody can read, and a live state with a field of a newer release."""
    with stack.valkey_client() as connection:
        connection.xadd(EVENTS, {"kind": "decision", "key": "?", "claim": "?"})
        connection.xadd(EVENTS, {random.randbytes(4): random.randbytes(40)})
        connection.xadd(REQUESTS, {"payload": random.randbytes(40)})
        connection.xadd(REQUESTS, {"id": "x", "claim": "y", "payload": "{}"})
        live = connection.get(STATE)
        if isinstance(live, bytes):
            connection.set(STATE, live.replace(b"{", b'{"of_a_newer_release":1,', 1))
        connection.xgroup_create(REQUESTS, f"other-{random.random()}", mkstream=True)
    yield


@asynccontextmanager
async def halted(stack: Stack, load: Load, random: Random) -> AsyncIterator[None]:
    """HALTED through one replica, the other one killed and started again: nothing is approved
    any more."""
    told, other = random.sample(stack.replicas, 2)
    body = {"state": "HALTED", "reason": "chaos", "changed_by": "chaos"}
    (await stack.http.put(f"{told.url}/state", json=body)).raise_for_status()
    load.halted_at = monotonic()
    await load.go_on(40)
    await other.restart()
    yield
    load.halted_at = None
    (await stack.http.put(f"{told.url}/state", json=body | {"state": "ACTIVE"})).raise_for_status()


FAULTS = [
    Fault("replica killed", "api", crash(replicas)),
    Fault("replicas killed in turn", "api", replicas_killed_in_turn),
    Fault("replica frozen", "api", silence(a_replica)),
    Fault("writer killed", "writer", crash(writers)),
    Fault("writers killed with a batch", "all", writers_killed_with_a_batch),
    Fault("writer frozen, taken over", "writer", writer_frozen_and_taken_over),
    Fault("writer frozen within a COPY", "all", writer_frozen_within_a_copy),
    Fault("Valkey stopped", "valkey", absence(valkey, killed=False), seen=True),
    Fault("Valkey killed", "valkey", absence(valkey, killed=True), seen=True),
    Fault("Valkey frozen", "valkey", silence(all_of_valkey), seen=True),
    Fault("Valkey emptied", "all", valkey_emptied, forgets=True),
    Fault("Valkey replaced", "all", valkey_replaced, seen=True, forgets=True),
    Fault("Valkey evicts", "all", valkey_evicts, seen=True, forgets=True),
    Fault("Valkey not durable", "all", valkey_not_durable, seen=True, forgets=True),
    Fault("Valkey's disk full", "all", valkey_disk_full, seen=True),
    Fault("Postgres stopped", "postgres", absence(postgres, killed=False), seen=True),
    Fault("Postgres killed", "postgres", absence(postgres, killed=True), seen=True),
    Fault("Postgres restarted", "postgres", postgres_restarted),
    Fault("Postgres frozen", "postgres", silence(all_of_postgres), seen=True),
    Fault("sessions terminated", "postgres", sessions_terminated),
    Fault("database settings changed", "postgres", database_settings_changed),
    Fault("spool's disk full", "all", spool_disk_full, seen=True),
    Fault("restarted without Valkey", "all", replica_restarted_without_valkey, seen=True),
    Fault("restarted without Postgres", "all", replica_restarted_without_postgres, seen=True),
    Fault("both servers killed", "all", absence(postgres, valkey, killed=True), seen=True),
    Fault("everything killed", "all", everything_killed, seen=True),
    Fault("garbage in streams", "valkey", garbage_in_streams),
    Fault("halted", "all", halted),
]
