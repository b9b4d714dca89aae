"""The reader process: holds the models for several API processes, and reads what they ask
together."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from app.domain.errors import ManifestMismatch, ModelFileError, PolicyAbstained
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Abstention
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.reader.elsewhere import Decide, Explain, Load, Loaded, Refused, Release, Said
from app.processes.channel import Channel
from app.processes.metrics import Metrics
from app.processes.siblings import OneOfSeveral
from app.processes.totals import Snapshot
from app.tasks import calm_garbage_collection, put_off_garbage_collection
from app.telemetry import configure_log

if TYPE_CHECKING:
    from app.policy.in_process.loading import InProcess

OURS = frozenset({"advisor_policy_queue_depth", "advisor_rough_nats"})
"""Gauges that mean something here."""


class Models:
    """The versions that somebody has loaded, each once."""

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._in_process: InProcess | None = None
        self._policies: dict[str, Policy] = {}
        self._users: Counter[str] = Counter()
        self._loading = asyncio.Lock()

    async def load(self, directory: Path, registered: ModelManifest | None) -> Policy:
        """A version, for one more user. Every load verifies its directory; those of one manifest
        share what is in memory. Raises as `InProcess.load`."""
        async with self._loading:
            policy = await asyncio.to_thread(self._load, directory, registered)
            known = policy.manifest.hash()
            held = self._policies.setdefault(known, policy)
            if held is not policy:
                await policy.aclose()
            self._users[known] += 1
            return held

    def find(self, manifest_hash: str) -> Policy | None:
        """A version that is loaded."""
        return self._policies.get(manifest_hash)

    async def release(self, manifest_hash: str) -> None:
        """One user less; the last one ends it."""
        async with self._loading:
            self._users[manifest_hash] -= 1
            if self._users[manifest_hash] <= 0:
                del self._users[manifest_hash]
                await self._policies.pop(manifest_hash).aclose()

    def _load(self, directory: Path, registered: ModelManifest | None) -> Policy:
        put_off_garbage_collection()
        try:
            if self._in_process is None:  # It brings torch, which nobody may need.
                from app.policy.in_process.loading import InProcess

                self._in_process = InProcess(self._options)
            return self._in_process.load(directory, registered)
        finally:
            calm_garbage_collection()


class Visitor:
    """One API process: what it has loaded is released when it has ended."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._loaded: Counter[str] = Counter()

    async def answer(self, what: Any) -> Any:
        """To one message."""
        match what:
            case Load(directory, registered):
                return await self._load(directory, registered)
            case Decide():
                return await self._decide(what)
            case Explain(manifest_hash, prompt, action, deadline, scenario):
                policy = self._models.find(manifest_hash)
                return policy and await policy.explain(prompt, action, deadline, scenario)
            case Release(manifest_hash):
                if self._loaded[manifest_hash]:
                    self._loaded[manifest_hash] -= 1
                    await self._models.release(manifest_hash)
        return None

    async def leave(self) -> None:
        """It has ended."""
        for manifest_hash in self._loaded.elements():
            await self._models.release(manifest_hash)

    async def _load(self, directory: Path, registered: ModelManifest | None) -> Loaded | Refused:
        try:
            policy = await self._models.load(directory, registered)
        except (ManifestMismatch, ModelFileError) as error:
            return Refused(type(error).__name__, str(error))
        self._loaded[policy.manifest.hash()] += 1
        return Loaded(policy.manifest, policy.parallel, policy.health)

    async def _decide(self, asked: Decide) -> Said | None:
        policy = self._models.find(asked.manifest_hash)
        if policy is None:
            return None
        try:
            reading = await policy.decide(asked.prompt, asked.deadline, asked.scenario, asked.rough)
        except PolicyAbstained as abstained:
            return Said(Abstention.of(abstained), policy.health)
        return Said(reading, policy.health)


class Reading:
    """What the parent asks of this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.stopping = asyncio.Event()

    async def count(self) -> Snapshot:
        """What was read."""
        counted = self._metrics.snapshot()
        return [each for each in counted if each.goes_on or each.name in OURS]

    async def readiness(self) -> dict[str, Any]:
        """It answers."""
        return {"status": "ready"}

    async def follow(self, what: Any) -> None:
        """Whatever happened elsewhere, prompts are read."""

    def stop(self, *, now: bool) -> None:
        """End: whoever asks has ended before."""
        self.stopping.set()


def read_beside(
    options: BackendOptions, place: Path, logs_json: bool, parent: socket.socket, name: str
) -> None:
    """Read for several API processes, which come to a socket at `place`, until `parent` says
    otherwise or ends."""

    async def until_stopped() -> None:
        async with OneOfSeveral.under(parent, name) as siblings:
            metrics = Metrics()
            part = Reading(metrics)
            async with visited(place, Models(replace(options, telemetry=metrics))):
                # To a whole group, as systemd stops one: the parent has it, too, and says when.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                siblings.ready(part)
                await part.stopping.wait()
            if siblings.orphaned:
                shutil.rmtree(place.parent, ignore_errors=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Of a terminal: the parent has it, too.
    configure_log(logs_json)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_stopped())


@asynccontextmanager
async def visited(place: Path, models: Models) -> AsyncIterator[None]:
    """Answer whoever comes to a socket at `place`, until the block ends."""

    visits: dict[asyncio.Task[Any], Channel] = {}

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitor = Visitor(models)
        channel = Channel(reader, writer, visitor.answer)
        task = asyncio.current_task()
        assert task is not None
        visits[task] = channel
        try:
            await channel.run()
        finally:
            await visitor.leave()
            del visits[task]

    place.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(visit, place)
    try:
        yield
    finally:
        server.close()
        for channel in visits.values():
            channel.close()
        await asyncio.gather(*visits)
