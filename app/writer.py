"""The writer process: moves events from the journal's stream into Postgres, acknowledging after
commit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic, perf_counter

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.advising.tracing import Traces, traces_of
from app.api.tokens import Tokens, require_somebody
from app.domain.errors import JournalUnavailable
from app.domain.principal import Principal, Role
from app.domain.record.event import Entry
from app.journal.drain import StreamDrain
from app.processes.metrics import Metrics
from app.settings import Settings, SettingsError
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.checkpoint import Checkpointer, key_at
from app.shadow_log.proof.places import place_at
from app.shadow_log.reading.worth import newest_worth
from app.tasks import Supervisor, calm_garbage_collection, end
from app.telemetry import AuthFailure, LossCause, Refusal, Task, Telemetry

log = structlog.get_logger()
LOG_EVERY_S = 1.0
WATCH_S = 2.0
GONE_S = 6.0
"""Within which a decision leaves the spool of a replica that reaches the queue server."""
LOOK_AT = 1000
"""Accepted requests that are asked about at once, the oldest."""
CHECKPOINT_S = 60.0
WORTH_S = 15.0
SCRAPE_CONNECTIONS, SCRAPE_S = 32, 2.0
"""Nobody but a scraper comes to the metrics, and it must not cost the writer anything."""


class Writer:
    """One member of the consumer group. As many may run as are needed."""

    def __init__(
        self,
        redis_url: str,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
        checkpointer: Checkpointer | None = None,
        *,
        clock: Callable[[], float] = monotonic,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces
        self._shadow_log = shadow_log
        self._checkpointer = checkpointer
        self._telemetry = telemetry
        self._clock = clock
        self._missing = 0
        self._gone: dict[int, float] = {}
        """Accepted requests that the queue server holds nothing of, and since when."""
        self._drain = StreamDrain(redis_url, self.write, telemetry)

    async def run(self) -> None:
        """Drain until cancelled, and count what is missing."""
        supervisor = Supervisor(self._telemetry)
        supervisor.start(Task.CHAIN_WATCH, self._watch_on, every_s=WATCH_S)
        supervisor.start(Task.SESSIONS, self._end_frozen, every_s=WATCH_S)
        supervisor.start(Task.WORTH, self._tell_worth, every_s=WORTH_S)
        if self._checkpointer is not None:
            work = self._checkpointer.checkpoint
            supervisor.start(Task.CHECKPOINTS, work, every_s=CHECKPOINT_S, patience_s=600)
        try:
            await self._drain.run()
        finally:
            await supervisor.aclose()
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._drain.aclose()
        await self._shadow_log.aclose()

    async def write(self, events: Sequence[Entry]) -> None:
        """One batch into Postgres. Raises as `ShadowLog.append`."""
        begin = perf_counter()
        appended = await self._shadow_log.append(events)
        seconds = perf_counter() - begin
        self._telemetry.written(appended.inserted, seconds)
        if self._traces is not None:
            self._traces.inserted(events, seconds)
        if appended.conflicts:
            self._telemetry.lost(LossCause.DUPLICATE_CONFLICT, len(appended.conflicts))
            log.error(
                "answered twice with other content, the second is put aside",
                decisions=appended.conflicts,
            )

    async def watch(self) -> int:
        """How many numbered events are missing. What a producer tells counts when the stream was
        found empty after it was told: what it names was then written, or is lost.

        Raises
        ------
        ShadowLogUnavailable, JournalUnavailable : either server is away.
        """
        told = await self._shadow_log.heads()
        moving = await self._drain.backlog() > 0
        missing = await self._shadow_log.missing_events({} if moving else told, moving=moving)
        missing += await self._forgotten()
        self._telemetry.events_missing(missing)
        return missing

    async def _forgotten(self) -> int:
        """How many accepted requests were lost before they were decided. One that the queue server
        holds nothing of is recorded as that after a while: its decision may lie in a spool."""
        waiting = (await self._shadow_log.undecided())[:LOOK_AT]
        gone = []
        if waiting:
            numbers = await self._drain.forgot([(each.key, each.claim) for each in waiting])
            gone = [waiting[number] for number in numbers]
        now = self._clock()
        self._gone = {each.id: self._gone.get(each.id, now) for each in gone}
        lost = [each for each in gone if now - self._gone[each.id] >= GONE_S]
        if lost:
            await self._shadow_log.forget(lost)
            log.error("accepted requests are lost", decisions=[each.key for each in lost])
        return await self._shadow_log.forgotten()

    async def _watch_on(self) -> None:
        # An outage, which others tell: it is counted afterwards.
        with suppress(JournalUnavailable):
            async with self._shadow_log.outages():
                missing = await self.watch()
                if missing > self._missing:
                    log.error("events are missing; `advisor verify` names them", events=missing)
                self._missing = missing

    async def _tell_worth(self) -> None:
        async with self._shadow_log.outages():
            self._telemetry.worth_seen(await newest_worth(self._shadow_log.engine))

    async def _end_frozen(self) -> None:
        async with self._shadow_log.outages():
            if ended := await self._shadow_log.end_frozen():
                log.warning("ended sessions of a frozen writer", sessions=ended)


async def run_writer(settings: Settings) -> None:
    """Write until SIGTERM or SIGINT. Raises `SettingsError` when a URL is missing or the port is
    taken."""
    if not settings.database_url or not settings.redis_url:
        raise SettingsError("DATABASE_URL and REDIS_URL must be set for the writer")
    metrics, tokens = Metrics(), Tokens(*settings.who_may)
    require_somebody(tokens, settings.host)
    async with scraped(metrics, tokens, settings.host, settings.writer_metrics_port):
        await _write_until_stopped(settings, settings.redis_url, settings.database_url, metrics)
    log.info("writer stopped")


@asynccontextmanager
async def scraped(metrics: Metrics, tokens: Tokens, host: str, port: int) -> AsyncIterator[int]:
    """Metrics over HTTP until the block ends, on the event loop, for whoever has the role: half
    requests make no threads. The port. Raises `SettingsError` when it is taken."""
    connections, logged_at = 0, -LOG_EVERY_S

    def may_scrape(head: bytes, address: str) -> bool:
        nonlocal logged_at
        caller = _caller(tokens, head, address)
        if not isinstance(caller, AuthFailure):
            return caller.may(Role.METRICS)
        metrics.unauthenticated(caller)
        if monotonic() - logged_at >= LOG_EVERY_S:
            logged_at = monotonic()
            log.warning("authentication failed", reason=caller.value, address=address)
        return False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            if connections > SCRAPE_CONNECTIONS:
                metrics.refused(Refusal.CONNECTIONS)
                return
            async with asyncio.timeout(SCRAPE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                address = str(writer.get_extra_info("peername")[0])
                writer.write(_scrape(metrics, may_scrape(head, address)))
                await writer.drain()
        except TimeoutError:
            metrics.refused(Refusal.SLOW)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            connections -= 1
            writer.close()

    try:
        server = await asyncio.start_server(answer, host, port)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            f"stop what listens there, or set ADVISOR_WRITER_METRICS_PORT"
        ) from error
    async with server:
        yield server.sockets[0].getsockname()[1]


def _caller(tokens: Tokens, head: bytes, address: str) -> Principal | AuthFailure:
    """Who sent a request with this head."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    sent = [value.strip() for name, _, value in lines if name.lower() == b"authorization"]
    if len(sent) > 1:
        return AuthFailure.MALFORMED
    return tokens.holder(sent[0].decode("latin-1") if sent else None, datetime.now(UTC), address)


def _scrape(metrics: Metrics, allowed: bool) -> bytes:
    body = generate_latest(metrics.registry) if allowed else b"a token with the role metrics\n"
    status = "200 OK" if allowed else '401 Unauthorized\r\nWWW-Authenticate: Bearer realm="advisor"'
    kind = CONTENT_TYPE_LATEST if allowed else "text/plain"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _write_until_stopped(
    settings: Settings, redis_url: str, database_url: str, metrics: Metrics
) -> None:
    shadow_log, checkpointer = ShadowLog.connect(database_url), None
    if settings.checkpoints:
        place = place_at(settings.checkpoints)
        checkpointer = Checkpointer(shadow_log.engine, key_at(settings.signing_key), place)
    traces = traces_of(settings.traces, "advisor-writer")
    member = Writer(redis_url, shadow_log, metrics, checkpointer, traces=traces)
    writer = asyncio.create_task(member.run())
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    calm_garbage_collection()
    log.info("writer ready", metrics_port=settings.writer_metrics_port)
    stopping = asyncio.create_task(_wait(stop))
    await asyncio.wait([writer, stopping], return_when=asyncio.FIRST_COMPLETED)
    if writer.done():
        writer.result()
    await end([writer, stopping])
    if traces is not None:
        await asyncio.to_thread(traces.close)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
