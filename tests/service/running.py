"""A real API over real HTTP, in this process, for tests: uvicorn on a free port, with a scripted
policy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from app import main
from app.advising.service import Service
from app.advising.serving import Models
from app.domain.model.manifest import MANIFEST_NAME, ModelManifest
from app.domain.record.event import Event
from app.journal.drain import StreamDrain
from app.policy.rivals import RIVAL_NAME, Threshold
from app.policy.scripted import ScriptedPolicy
from app.policy.versions.store import file_hash
from app.processes.metrics import Metrics
from app.schemas import EXAMPLE
from app.settings import Settings
from app.shadow_log.log import ShadowLog
from app.tasks import end
from app.writer import Writer

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
JSON = {"Content-Type": "application/json"}


def request(request_id: str, **changes: Any) -> dict[str, Any]:
    """A valid request about now; `section__field=value` changes it."""
    now = datetime.now(UTC).isoformat()
    document: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in EXAMPLE.items()
    }
    document["request_id"] = request_id
    document["candidate"]["ts"] = now
    document["market"]["bar_closed_at"] = now
    for path, value in changes.items():
        section, _, field = path.partition("__")
        if field:
            document[section][field] = value
        else:
            document[section] = value
    return document


def expire(tokens: Path) -> None:
    """Let every token of a file have expired."""
    document = json.loads(tokens.read_text())
    for token in document["tokens"]:
        token["expires_at"] = "2026-01-01T00:00:00+00:00"
    tokens.write_text(json.dumps(document))


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = DEADLINE_S) -> None:
    """Wait for a condition, checked often, for at most a minute: machines are busy."""
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


class Running:
    """The service and an HTTP client on it."""

    def __init__(
        self, client: httpx.AsyncClient, service: Service, metrics: Metrics, settings: Settings
    ) -> None:
        self.client = client
        self.service = service
        self.metrics = metrics
        self.settings = settings

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    async def advise(self, document: Any, **headers: str) -> httpx.Response:
        return await self.client.post("/advise", json=document, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """Current value of a series of this process."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"{name}{labels} does not exist"
        return value


def settings_for(database_url: str, valkey_url: str, home: Path, **more: Any) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=valkey_url,
        home=home,
        limits=ROOT / "limits.toml",
        port=0,
        **{"open": "loopback"} | more,
    )


@asynccontextmanager
async def running(
    settings: Settings, models: Models | None = None, *, load: bool = False
) -> AsyncIterator[Running]:
    """Serve on a free port until the block ends: `models`, else a scripted one; with `load`, what
    settings say."""
    given = None if load else models or Models(ScriptedPolicy(["H"]))
    async with (
        main.running(settings, given) as served,
        httpx.AsyncClient(base_url=served.url, headers=JSON, timeout=30) as client,
    ):
        yield Running(client, served.service, served.metrics, settings)


@asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[Metrics]:
    """A writer as a task."""
    assert settings.redis_url is not None
    assert settings.database_url is not None
    metrics = Metrics()
    task = asyncio.create_task(
        Writer(settings.redis_url, ShadowLog.connect(settings.database_url), metrics).run()
    )
    try:
        yield metrics
    finally:
        await end([task])


async def drained(settings: Settings) -> int:
    """Write everything that is in the stream, once; the number of events, without the links that
    repeats left there."""
    assert settings.redis_url is not None
    assert settings.database_url is not None
    log = ShadowLog.connect(settings.database_url)

    moved = 0

    async def sink(entries: Sequence[Any]) -> None:
        nonlocal moved
        await log.append(entries)
        moved += sum(isinstance(entry, Event) for entry in entries)

    drain = StreamDrain(settings.redis_url, sink, block_ms=10)
    try:
        while await drain.step():
            pass
        return moved
    finally:
        await drain.aclose()
        await log.aclose()


def rival_version(root: Path, name: str, cut: float) -> Path:
    """A threshold on RSI as a version."""
    place = root / name
    place.mkdir(parents=True)
    (place / RIVAL_NAME).write_text(json.dumps(Threshold(feature="rsi", cut=cut).as_json()))
    manifest = ModelManifest(
        model_version=name,
        base_model="score threshold",
        licence="Apache-2.0",
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        files={RIVAL_NAME: file_hash(place / RIVAL_NAME)},
    )
    (place / MANIFEST_NAME).write_text(json.dumps(manifest.as_json()))
    return place
