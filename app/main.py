"""The API process: builds everything once, serves, closes it."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from app.advise import Models
from app.api import install
from app.domain.errors import AdvisorError
from app.journal.journal import Journal
from app.journal.requests import RequestQueue
from app.journal.spool import Spool
from app.journal.stream import StreamJournal
from app.metrics import LossCause, Metrics
from app.policy.base import Policy
from app.policy.loader import Backend, load_policy
from app.service import Service
from app.settings import Settings, SettingsError
from app.shadow_log.log import ShadowLog

log = structlog.get_logger()
DEFAULT_MODEL = "smollm2-135m-instruct"
DESCRIPTION = "Advice of a P&L-aligned language model on each trade, behind vetoes, in shadow mode, on the record."


def create_app(settings: Settings, models: Models | None = None) -> FastAPI:
    """The application. Models, connections and background work start with it, and end with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            service = build(settings, models)
            app.state.service = service
            await service.start()
        except AdvisorError as error:
            app.state.refusal = error
            raise
        _calm_garbage_collection()
        log.info("ready", models=[p.manifest.model_version for p, _ in service.advisor.models.with_roles()])
        try:
            yield
        finally:
            await service.aclose()

    app = FastAPI(title="shadow-advisor", version="0.1.0", description=DESCRIPTION, lifespan=lifespan)
    app.state.refusal = None
    install(app)
    return app


def _calm_garbage_collection() -> None:
    """Leave what was loaded at start out of every collection: a full one would take a tenth of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def build(settings: Settings, models: Models | None = None) -> Service:
    """Wire real parts. Raises `SettingsError`, `LimitsError`, `ModelFileError` or `ManifestMismatch`."""
    if not settings.database_url or not settings.redis_url:
        raise SettingsError("DATABASE_URL and REDIS_URL must be set; or run `advisor up`, which starts both servers")
    metrics = Metrics()
    models = models or load_models(settings, metrics)
    metrics.create_model_series(p.manifest.model_version for p, _ in models.with_roles())

    def lose(cause: str, count: int) -> None:
        metrics.lose(LossCause(cause), count)

    stream = StreamJournal(settings.redis_url)
    spool = Spool(settings.spool_dir, settings.max_spool_bytes, lose)
    return Service(
        settings,
        models,
        Journal(stream, spool, lose),
        RequestQueue(settings.redis_url),
        ShadowLog.connect(settings.database_url),
        metrics,
    )


def load_models(settings: Settings, metrics: Metrics) -> Models:
    """The primary and the shadow versions that the settings name."""
    shadows = [Path(name.strip()) for name in settings.shadow_models.split(",") if name.strip()]
    return Models(_load(settings, settings.model, metrics), tuple(_load(settings, str(p), metrics) for p in shadows))


def _load(settings: Settings, model: str | None, metrics: Metrics) -> Policy:
    """A policy by the word `scripted`, or by the path of its directory; by default the imported small model."""
    if model == "scripted":
        return load_policy(Backend.SCRIPTED)
    return load_policy(
        Backend.VLLM if settings.vllm_url else Backend.TRANSFORMERS,
        Path(model) if model else settings.models_dir / DEFAULT_MODEL,
        registry=settings.models_dir,
        threads=settings.threads,
        max_batch=settings.max_batch,
        max_queue=settings.queue_size,
        vllm_url=settings.vllm_url or "",
        vllm_model=settings.vllm_model,
        observe=metrics.observe_policy,
    )


def serve(settings: Settings) -> None:
    """Serve until stopped. Raises as `build`, and `SettingsError` or `JournalUnavailable`, when it cannot start."""
    listener = _bind(settings.host, settings.port)
    app = create_app(settings)

    async def briefly(scope: Scope, receive: Receive, send: Send) -> None:
        """The application; why it does not start is raised below, and needs no trace in the log."""

        async def without_trace(message: Message) -> None:
            await send({"type": message["type"]} if app.state.refusal is not None else message)

        await app(scope, receive, without_trace if scope["type"] == "lifespan" else send)

    config = uvicorn.Config(
        briefly, log_level=settings.log_level, access_log=False, loop="uvloop", http="httptools", proxy_headers=False
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except SystemExit:
        if app.state.refusal is None:
            raise
        raise app.state.refusal from None


def _bind(host: str, port: int) -> socket.socket:
    """The address to serve on, taken before a model is loaded for nothing. Raises `SettingsError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            f"stop what listens there, or set ADVISOR_HOST and ADVISOR_PORT"
        ) from error
    return listener
