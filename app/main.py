"""The API process: builds everything once, serves, closes it."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from app.advising.advise import Models
from app.advising.service import Service
from app.advising.serving import PRIMARY_ALIAS, Directories, Fixed, Start
from app.api.routes import install
from app.domain.errors import (
    AdvisorError,
    ManifestMismatch,
    ModelFileError,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.manifest import ModelManifest
from app.journal.journal import Journal
from app.journal.later import RequestQueue
from app.journal.spool import Spool
from app.journal.stream import StreamJournal
from app.metrics import LossCause, Metrics
from app.policy.backends import Backend, load_policy
from app.policy.in_process.bases import Bases
from app.policy.port import Policy
from app.policy.store import described, find_base, find_version
from app.settings import SCRIPTED, Settings, SettingsError
from app.shadow_log.log import ShadowLog

log = structlog.get_logger()
DEFAULT_MODEL = "smollm2-135m-instruct"
DESCRIPTION = (
    "Advice of a P&L-aligned language model on each trade, behind vetoes, in shadow mode, on the"
    " record."
)


def create_app(settings: Settings, models: Models | None = None) -> FastAPI:
    """The application. Models, connections and background work start with it, and end with it.
    `models` are served instead of what the settings and the alias of the primary name."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            service = build(settings, await choose(settings, models))
            app.state.service = service
            await service.start()
        except AdvisorError as error:
            app.state.refusal = error
            raise
        _calm_garbage_collection()
        log.info(
            "ready", models=[p.manifest.model_version for p in service.advisor.models.policies]
        )
        try:
            yield
        finally:
            await service.aclose()

    app = FastAPI(
        title="shadow-advisor", version="0.1.0", description=DESCRIPTION, lifespan=lifespan
    )
    app.state.refusal = None
    install(app)
    return app


def _calm_garbage_collection() -> None:
    """Leave what was loaded at start out of every collection: a full one would take a tenth of a
    second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@dataclass(frozen=True)
class Choice:
    """The primary version: given, or a directory (None is the shipped fake); and who chose it."""

    models: Models | None
    directory: Path | None = None
    alias: str | None = None
    fixed: str | None = None


async def choose(settings: Settings, models: Models | None = None) -> Choice:
    """Which primary to start with: `models`, else MODEL, else what the alias `shadow` names when
    Postgres answers, else what came with this release. Raises `SettingsError` or
    `UnknownVersion`."""
    if not settings.database_url or not settings.redis_url:
        raise SettingsError(
            "DATABASE_URL and REDIS_URL must be set; or run `advisor up`, which starts both servers"
        )
    if models is not None:
        return Choice(models, fixed="its versions were given to it when it was built")
    if settings.model is not None:
        directory = None if settings.model == SCRIPTED else Path(settings.model)
        return Choice(
            None, directory, fixed=f"MODEL={settings.model} decides; unset it, and start again"
        )
    shadow_log = ShadowLog.connect(settings.database_url)
    try:
        named = (await shadow_log.aliases()).get(PRIMARY_ALIAS)
    except ShadowLogUnavailable as error:
        log.warning("aliases unknown, starting with the default version", error=str(error))
        named = None
    finally:
        await shadow_log.aclose()
    if named is None:
        return Choice(None, default_directory(settings))
    try:
        directory = find_version(named, settings.model_roots)
    except UnknownVersion as error:
        raise UnknownVersion(
            f"{error}; the alias {PRIMARY_ALIAS} names it, MODEL can name another"
        ) from error
    return Choice(None, directory, alias=PRIMARY_ALIAS)


def default_directory(settings: Settings) -> Path:
    """What a fresh installation serves: the newest adapter that came with this release, when the
    base that it was trained on is there, else the bundled small model."""
    adapters = [
        (m.created_at, path)
        for path, m in described([settings.shipped_models])
        if _has_base(m, settings)
    ]
    if adapters:
        return max(adapters)[1]
    found = (
        root / DEFAULT_MODEL for root in settings.model_roots if (root / DEFAULT_MODEL).is_dir()
    )
    return next(found, settings.models_dir / DEFAULT_MODEL)


def _has_base(manifest: ModelManifest, settings: Settings) -> bool:
    if manifest.base is None:
        return False
    try:
        find_base(manifest.base, settings.model_roots)
    except (ManifestMismatch, ModelFileError) as error:
        log.warning(
            "a shipped version cannot be served", version=manifest.model_version, error=str(error)
        )
        return False
    return True


def build(settings: Settings, choice: Choice) -> Service:
    """Wire real parts. Raises `SettingsError`, `LimitsError`, `ModelFileError` or
    `ManifestMismatch`."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    metrics = Metrics()

    def lose(cause: str, count: int) -> None:
        metrics.lose(LossCause(cause), count)

    stream = StreamJournal(settings.redis_url)
    spool = Spool(settings.spool_dir, settings.max_spool_bytes, lose)
    return Service(
        settings,
        load_models(settings, choice, metrics),
        Journal(stream, spool, lose),
        RequestQueue(settings.redis_url),
        ShadowLog.connect(settings.database_url),
        metrics,
    )


def load_models(settings: Settings, choice: Choice, metrics: Metrics) -> Start:
    """Load the primary and the shadow versions that the settings name."""
    directories = Directories(settings.model_roots, _loader(settings, metrics))
    if choice.models is not None:
        models = choice.models
    else:
        primary = (
            directories.load(choice.directory)
            if choice.directory
            else load_policy(Backend.SCRIPTED)
        )
        names = [name.strip() for name in settings.shadow_models.split(",") if name.strip()]
        shadows = (
            load_policy(Backend.SCRIPTED) if n == SCRIPTED else directories.load(Path(n))
            for n in names
        )
        models = Models(primary, tuple(shadows))
    no_alias = "with VLLM_URL, that server's weights decide" if settings.vllm_url else None
    named = {choice.alias: models.primary} if choice.alias else {}
    return Start(models, directories, Fixed(choice.fixed, no_alias, models.shadows), named)


def _loader(settings: Settings, metrics: Metrics) -> Callable[[Path], Policy]:
    """How a directory becomes a policy; versions over one base model share it."""
    return partial(
        load_policy,
        Backend.VLLM if settings.vllm_url else Backend.TRANSFORMERS,
        registry=settings.models_dir,
        roots=settings.model_roots,
        bases=Bases(),
        threads=settings.threads,
        max_batch=settings.max_batch,
        max_queue=settings.queue_size,
        prompt_tokens=settings.prompt_tokens,
        vllm_url=settings.vllm_url or "",
        vllm_model=settings.vllm_model,
        observe=metrics.observe_policy,
    )


def serve(settings: Settings) -> None:
    """Serve until stopped. Raises as `build`, and `SettingsError` or `JournalUnavailable`, when it
    cannot start."""
    listener = _bind(settings.host, settings.port)
    app = create_app(settings)

    async def briefly(scope: Scope, receive: Receive, send: Send) -> None:
        """The application; why it does not start is raised below, and needs no trace in the log."""

        async def without_trace(message: Message) -> None:
            await send({"type": message["type"]} if app.state.refusal is not None else message)

        await app(scope, receive, without_trace if scope["type"] == "lifespan" else send)

    config = uvicorn.Config(
        briefly,
        log_level=settings.log_level,
        access_log=False,
        loop="uvloop",
        http="httptools",
        proxy_headers=False,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except SystemExit:
        if app.state.refusal is None:
            raise
        raise app.state.refusal from None


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
