"""The writer process: moves events from the journal's stream into Postgres, acknowledging after
commit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from time import perf_counter, time

import structlog
from prometheus_client import start_http_server

from app.domain.event import Event
from app.journal.drain import StreamDrain
from app.metrics import LossCause, Metrics
from app.settings import Settings, SettingsError
from app.shadow_log.log import ShadowLog
from app.tasks import end

log = structlog.get_logger()


class Writer:
    """One member of the consumer group. As many may run as are needed."""

    def __init__(self, redis_url: str, shadow_log: ShadowLog, metrics: Metrics) -> None:
        self._shadow_log = shadow_log
        self._metrics = metrics
        self._drain = StreamDrain(redis_url, self._write, self._observe)

    async def run(self) -> None:
        """Drain until cancelled."""
        try:
            await self._drain.run()
        finally:
            await self._drain.aclose()
            await self._shadow_log.aclose()

    async def _write(self, events: Sequence[Event]) -> None:
        begin = perf_counter()
        appended = await self._shadow_log.append(events)
        self._metrics.writer_batch.observe(perf_counter() - begin)
        self._metrics.writer_commit.set(time())
        for table, rows in appended.inserted.items():
            self._metrics.writer_rows.labels(table).inc(rows)
        if appended.conflicts:
            self._metrics.lose(LossCause.DUPLICATE_CONFLICT, len(appended.conflicts))
            log.error(
                "answered twice with other content, the first is kept", decisions=appended.conflicts
            )

    def _observe(self, name: str, value: float) -> None:
        if name == "backlog":
            self._metrics.backlog.set(value)
        elif name == "oldest_seconds":
            self._metrics.oldest.set(value)
        else:
            self._metrics.lose(LossCause(name), value)


async def run_writer(settings: Settings) -> None:
    """Write until SIGTERM or SIGINT. Raises `SettingsError` when a URL is missing or the port is
    taken."""
    if not settings.database_url or not settings.redis_url:
        raise SettingsError("DATABASE_URL and REDIS_URL must be set for the writer")
    metrics = Metrics()
    try:
        start_http_server(settings.writer_metrics_port, settings.host, metrics.registry)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.writer_metrics_port}: {error.strerror}; "
            f"stop what listens there, or set ADVISOR_WRITER_METRICS_PORT"
        ) from error
    writer = asyncio.create_task(
        Writer(settings.redis_url, ShadowLog.connect(settings.database_url), metrics).run()
    )
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    log.info("writer ready", metrics_port=settings.writer_metrics_port)
    stopping = asyncio.create_task(_wait(stop))
    await asyncio.wait([writer, stopping], return_when=asyncio.FIRST_COMPLETED)
    if writer.done():
        writer.result()
    await end([writer, stopping])
    log.info("writer stopped")


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
