"""The API process: builds everything once, serves, closes it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from app.advising.service import Service, wall_clock
from app.advising.serving import Models, Pins, Serving
from app.advising.tracing import TracedMetrics, traces_of
from app.api import decision_models, operators, reference, routes
from app.api.access import Guard, Refusals
from app.api.admission import Admission
from app.api.budget import Buckets
from app.api.connection import BoundedConfig, BoundedHttp, Bounds
from app.api.explorer import acts, decision, drift, limits, pages
from app.api.explorer.route import nowhere
from app.api.tokens import Tokens, require_somebody
from app.api.wire import ApiOptions, install
from app.domain.errors import AdvisorError, ManifestMismatch, ModelFileError
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Engine
from app.journal.journal import Journal
from app.journal.later import RequestQueue
from app.journal.spool import Spool
from app.journal.stream import StreamJournal
from app.policy.backends import Backends
from app.policy.deciders.decider import Decider
from app.policy.deciders.table import keys_of, read_deciders
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.reader.elsewhere import Reader
from app.policy.reader.process import read_beside
from app.policy.scripted import ScriptedPolicy
from app.policy.versions.store import base_of, described
from app.processes.metrics import Metrics
from app.processes.parent import Parent, Seat
from app.processes.siblings import ALONE, Alone, OneOfSeveral
from app.processes.totals import Snapshot
from app.processes.turns import Door, Shares, Turns
from app.settings import SCRIPTED, Clock, Settings, SettingsError
from app.shadow_log.log import ShadowLog
from app.tasks import calm_garbage_collection
from app.telemetry import UNOBSERVED, Telemetry, configure_log

log = structlog.get_logger()
MOST_OF_A_SOCKETS_PATH = 100
"""Bytes of its folder; the system takes 107 in all."""
DEFAULT_MODEL = "smollm2-135m-instruct"
DESCRIPTION = (
    "Advice of a P&L-aligned language model on each trade, behind vetoes, in shadow mode, on the"
    " record."
)


@dataclass(frozen=True)
class Running:
    """A service that answers at `url`, until `answering` is done."""

    url: str
    service: Service
    metrics: Metrics
    server: uvicorn.Server
    answering: asyncio.Task[None]

    def stop(self, *, now: bool = False) -> None:
        """Answer what is under way, then end; `now`, end at once."""
        self.server.force_exit = self.server.force_exit or now
        self.server.should_exit = True

    def signalled(self) -> None:
        """Stop; when asked again, at once."""
        self.stop(now=self.server.should_exit)

    async def count(self) -> Snapshot:
        """What this process has counted, as a scrape would find it."""
        await self.service.observe_backlog()
        return self.metrics.snapshot()

    async def readiness(self) -> dict[str, Any]:
        """How this process is."""
        return await self.service.readiness()

    async def follow(self, what: Any) -> None:
        """Do as another process did."""
        await self.service.follow(what)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, by as many processes as the settings say. Raises as
    `running`, and `StartFailed`."""
    if settings.processes > 1:
        asyncio.run(_several(settings))
        return

    async def until_stopped() -> None:
        async with running(settings) as served:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, served.signalled)
            await served.answering

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_stopped())


async def _several(settings: Settings) -> None:
    """The parent of several processes, which share one address, and one that runs the models."""
    calm_garbage_collection()
    require_somebody(Tokens(*settings.who_may), settings.host)
    with (
        _bind(settings.host, settings.port) as listener,
        TemporaryDirectory(prefix="advisor-", ignore_cleanup_errors=True) as folder,
    ):
        reader = None if settings.vllm_url else Path(folder) / "reader"
        if len(os.fsencode(folder)) > MOST_OF_A_SOCKETS_PATH:
            raise SettingsError(
                f"{folder} is too long a path for a socket: set TMPDIR to a shorter one"
            )
        shares = Shares(settings.processes)
        doors = [Door(listener, shares, place) for place in range(settings.processes)]
        seats = [
            Seat(f"api-{door.place + 1}", serve_beside, (settings, door, reader)) for door in doors
        ]
        if reader is not None:
            asked = (backend_options(settings), reader, settings.logs_json)
            seats.append(Seat("reader", read_beside, asked, ends_last=True))
        await Parent(seats).run()


def serve_beside(
    settings: Settings,
    door: Door,
    reader: Path | None,
    parent: socket.socket,
    name: str,
) -> None:
    """Serve as one of several processes, until `parent` says otherwise or ends."""

    async def until_stopped() -> None:
        async with (
            OneOfSeveral.under(parent, name) as siblings,
            running(settings, beside=Beside(door, siblings, reader)) as served,
        ):
            # To a whole group, as systemd stops one: the parent has it, too, and tells of a second.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, served.stop)
            siblings.ready(served, served.url)
            await served.answering

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Of a terminal: the parent has it, too.
    door.shares.leave(door.place)  # The process before may have been killed.
    configure_log(settings.logs_json)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(until_stopped())
        except AdvisorError:
            sys.exit(2)  # The parent was told why.
        except asyncio.CancelledError:
            sys.exit(1)  # The parent has ended.


class Beside(NamedTuple):
    """What a process shares with others: where callers come in, what it says to them, and where the
    models are read."""

    door: Door
    siblings: OneOfSeveral
    reader: Path | None


@asynccontextmanager
async def running(
    settings: Settings,
    models: Models | None = None,
    *,
    beside: Beside | None = None,
) -> AsyncIterator[Running]:
    """A service and its HTTP server, until the block ends. `models` are served instead of what the
    settings and the alias of the primary name.

    Raises
    ------
    SettingsError, TokenError, LimitsError, ModelFileError, ManifestMismatch, UnknownVersion,
    JournalUnavailable : it cannot start.
    """
    tokens = Tokens(*settings.who_may)
    require_somebody(tokens, settings.host)
    listener = beside.door.listener if beside else _bind(settings.host, settings.port)
    siblings = beside.siblings if beside else ALONE
    traces = traces_of(settings.traces, "advisor-api")
    metrics = Metrics() if traces is None else TracedMetrics(traces)
    reader = Reader(beside.reader, metrics) if beside and beside.reader else None
    service = build(settings, metrics, models, siblings, reader)
    try:
        await service.start()
        calm_garbage_collection()
        app = create_app()
        app.state.service, app.state.metrics, app.state.tokens = service, metrics, tokens
        app.state.siblings = siblings
        _set_up(app, settings)
        listener.listen()  # From here on nobody is refused who connects.
        server = _Server(_configured(app, settings, metrics), beside.door if beside else None)
        answering = asyncio.create_task(server.serve(sockets=[listener]))
        host, port = listener.getsockname()[:2]
        served = Running(f"http://{host}:{port}", service, metrics, server, answering)
        versions = [policy.manifest.model_version for policy in service.serving.models.policies]
        log.info("ready", url=served.url, models=versions)
        try:
            yield served
        finally:
            server.should_exit = True
            await answering
    finally:
        listener.close()
        await service.aclose()
        if reader is not None:
            await reader.aclose()
        if traces is not None:
            await asyncio.to_thread(traces.close)


def _set_up(app: FastAPI, settings: Settings) -> None:
    """What a person may set about requests."""
    app.state.bars, app.state.looks = settings.bars_folder, settings.looks_folder
    app.state.hosts, app.state.origins = settings.hosts, settings.origins
    app.state.options = ApiOptions(
        settings.max_body_bytes,
        settings.max_candidates,
        settings.deadline_ms,
        settings.instance,
        settings.max_values,
        settings.max_extra_bytes,
    )
    rate = settings.rate_per_s / settings.processes
    app.state.buckets = Buckets(rate, 2 * rate)


def _configured(app: FastAPI, settings: Settings, metrics: Metrics) -> BoundedConfig:
    bounds, level = _bounds(settings), settings.log_level
    return BoundedConfig(app, bounds, metrics, level, settings.logs_json)


def create_app() -> FastAPI:
    """Every route; what they work with is put into its `state`."""
    app = FastAPI(
        title="shadow-advisor",
        version="0.1.0",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # Decisions are traced by `TracedMetrics`; FastAPI would look for a tracer at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.include_router(reference.router)
    app.include_router(routes.router)
    app.include_router(operators.router)
    app.include_router(decision_models.router)
    app.include_router(pages.router)
    app.include_router(decision.router)
    app.include_router(limits.router)
    app.include_router(drift.router)
    app.include_router(acts.router)
    app.include_router(nowhere)
    app.state.refusals = Refusals()
    app.state.rereads = Buckets(decision.REREADS_PER_S, decision.REREADS_AT_ONCE)
    app.add_middleware(routes.Straight)
    app.add_middleware(Admission)
    app.add_middleware(Guard)
    install(app)
    return app


def build(
    settings: Settings,
    metrics: Metrics,
    models: Models | None = None,
    siblings: Alone = ALONE,
    reader: Reader | None = None,
) -> Service:
    """Wire real parts. Raises `SettingsError` or `LimitsError`."""
    if not settings.database_url or not settings.redis_url:
        raise SettingsError(
            "DATABASE_URL and REDIS_URL must be set; or run `advisor up`, which starts both servers"
        )
    shadow_log = ShadowLog.connect(settings.database_url)
    stream = StreamJournal(settings.redis_url, telemetry=metrics)
    spool = Spool(settings.spool_dir, settings.max_spool_bytes // settings.processes, metrics)
    backends = Backends(replace(backend_options(settings, metrics), elsewhere=reader))
    return Service(
        Serving(pins(settings, models), backends, shadow_log, metrics, siblings),
        settings.limits,
        settings.limits_profiles,
        Journal(stream, spool, metrics, holds=shadow_log.holds),
        RequestQueue(settings.redis_url, metrics, most=settings.max_pending),
        shadow_log,
        metrics,
        by_wall_clock=settings.clock is Clock.WALL,
        max_reports=settings.max_reports,
        deciders=deciders(settings),
        adopted=settings.home / "limits-adopted.json",
        siblings=siblings,
    )


def backend_options(settings: Settings, telemetry: Telemetry = UNOBSERVED) -> BackendOptions:
    """How versions are run here."""
    return BackendOptions(
        roots=settings.model_roots,
        manifests=settings.manifests_dir,
        certificates=settings.certificate_dirs,
        copies=settings.models_dir / ".verified",
        prompt_tokens=settings.prompt_tokens,
        threads=settings.threads,
        engine=None if settings.engine == "auto" else Engine(settings.engine),
        max_batch=settings.max_batch,
        max_queue=settings.queue_size,
        vllm_url=settings.vllm_url,
        vllm_names=_names_on_vllm(settings),
        telemetry=telemetry,
    )


def _names_on_vllm(settings: Settings) -> dict[Path, str]:
    """Only MODEL's name is set: others, in shadow beside it, have their own."""
    if settings.model is None or settings.vllm_model is None:
        return {}
    return {Path(settings.model): settings.vllm_model}


def deciders(settings: Settings) -> tuple[Decider, ...]:
    """The decision models elsewhere that the settings name. Raises `DeciderError`."""
    if settings.deciders is None:
        return ()
    declared = read_deciders(settings.deciders)
    keys = keys_of(declared, settings.secret)
    home = settings.home / "deciders"
    return tuple(Decider(each, keys[each.name], home, wall_clock) for each in declared)


def pins(settings: Settings, models: Models | None) -> Pins:
    """Which versions do not depend on aliases."""
    if models is not None:
        because = "its versions were given to it when it was built"
        return Pins(models.primary, because, models.shadows)
    names = (name.strip() for name in settings.shadow_models.split(","))
    shadows = tuple(_pin(name) for name in names if name)
    if settings.model is None:
        return Pins(default_directory(settings), shadows=shadows)
    because = f"MODEL={settings.model} decides; unset it, and start again"
    return Pins(_pin(settings.model), because, shadows)


def _pin(name: str) -> Path | Policy:
    return ScriptedPolicy() if name == SCRIPTED else Path(name)


def default_directory(settings: Settings) -> Path:
    """What a fresh installation serves: the newest adapter that came with this release, when the
    base that it was trained on is there, else the bundled small model."""
    adapters = [
        (manifest.created_at, path)
        for path, manifest in described([settings.shipped_models])
        if _has_base(manifest, settings)
    ]
    if adapters:
        return max(adapters)[1]
    bundled = (root / DEFAULT_MODEL for root in settings.model_roots)
    return next((path for path in bundled if path.is_dir()), settings.models_dir / DEFAULT_MODEL)


def _has_base(manifest: ModelManifest, settings: Settings) -> bool:
    if manifest.base is None:
        return False
    try:
        base_of(manifest, settings.model_roots)
    except (ManifestMismatch, ModelFileError) as error:
        log.warning(
            "a shipped version cannot be served", version=manifest.model_version, error=str(error)
        )
        return False
    return True


class _Server(uvicorn.Server):
    """Signals are for `serve`: uvicorn would raise them again before the service is closed. With a
    `door`, connections are taken in turns with other processes."""

    def __init__(self, config: BoundedConfig, door: Door | None) -> None:
        super().__init__(config)
        self._door = door
        self._turns: Turns | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._door is None:
            await super().startup(sockets)
            return
        await super().startup(sockets=[])
        here = self.server_state.connections
        self._turns = Turns(self._door, self._protocol, lambda: len(here), self.config.backlog)
        self.servers.append(cast(asyncio.Server, self._turns))

    def _protocol(self) -> BoundedHttp:
        return BoundedHttp(self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        if self._turns is not None:
            self._turns.tell()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        settings.max_header_bytes,
        settings.max_headers,
        settings.request_s,
        settings.idle_s,
        ceil(settings.max_connections / settings.processes),
    )


def _bind(host: str, port: int) -> socket.socket:
    """The address to serve on, taken before a model is loaded for nothing. Raises
    `SettingsError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            "stop what listens there, or set ADVISOR_HOST and ADVISOR_PORT"
        ) from error
    return listener
