"""The running service: every part built once, started and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID

import structlog

from app.advising.advise import Advisor, Incoming
from app.advising.controls import Controls
from app.advising.probes import Probe
from app.advising.records import Records
from app.advising.serving import Start, Versions
from app.domain.canonical import decision_id
from app.domain.errors import AdvisorError, RequestConflict, ShadowLogUnavailable
from app.domain.scenario import Scenario
from app.journal.journal import Journal
from app.journal.later import QueuedRequest, RequestQueue
from app.metrics import Dependency, Metrics
from app.schemas import AdviseRequest
from app.settings import Clock, Settings
from app.shadow_log.log import ShadowLog
from app.tasks import end

log = structlog.get_logger()
ASYNC_DEADLINE_S = 30.0
RETRY_S = 1.0


def wall_clock() -> datetime:
    """The only clock of the service."""
    return datetime.now(UTC)


class Service:
    """What the routes work with."""

    def __init__(
        self,
        settings: Settings,
        start: Start,
        journal: Journal,
        requests: RequestQueue,
        shadow_log: ShadowLog,
        metrics: Metrics,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self.settings = settings
        self.now = now
        self.metrics = metrics
        self.journal = journal
        self.shadow_log = shadow_log
        self.controls = Controls(settings.limits, journal, shadow_log, metrics)
        self.records = Records(journal, shadow_log, metrics, now)
        self.advisor = Advisor(start.models, self.records, self.controls, metrics, self._judge_at)
        self.versions = Versions(self.advisor, start, shadow_log, metrics)
        self._requests = requests
        self._postgres = Probe(shadow_log.ping)
        self._valkey = Probe(journal.ping)
        self._spool = Probe(journal.ping_spool)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def judges_by_wall_clock(self) -> bool:
        """Whether rules judge at the time of the request, as in production."""
        return self.settings.clock is Clock.WALL

    def _judge_at(self, scenario: Scenario) -> datetime:
        return self.now() if self.judges_by_wall_clock else scenario.as_of

    async def start(self) -> None:
        """Connect, learn the state, start the background work. Absent servers do not stop a
        start."""
        await self.journal.start()
        await self.controls.start()
        self.metrics.dependency.labels(Dependency.MODEL).set(1)
        background = (
            self.controls.refresh_forever(),
            self.versions.follow_forever(),
            self._serve_accepted(),
            self._register_models(),
        )
        for work in background:
            self._tasks.append(asyncio.create_task(_logged(work)))

    async def aclose(self) -> None:
        """Stop the background work, then the models, then the connections."""
        await end(self._tasks)
        for probe in (self._postgres, self._valkey, self._spool):
            await probe.aclose()
        await self.versions.aclose()
        await self._requests.aclose()
        await self.journal.aclose()
        await self.shadow_log.aclose()

    async def accept(self, incoming: Incoming, body: AdviseRequest) -> None:
        """Make a request durable, to be decided later. Raises `RequestConflict` or
        `JournalUnavailable`."""
        known = decision_id(incoming.request_id)
        claim = await self.records.claim(known)
        if claim is not None and claim != incoming.claim:
            raise RequestConflict(
                f"request_id {incoming.request_id!r} was used before with other content"
            )
        if claim is None:
            content = body.model_copy(update={"request_id": incoming.request_id})
            await self._requests.put(str(known), incoming.claim, content.model_dump_json().encode())

    async def pending(self, known: UUID) -> bool:
        """Whether a request is accepted and not decided yet."""
        return await self._requests.pending(str(known))

    async def describe_models(self) -> dict[str, Any]:
        """Versions being served with their manifests; versions and aliases of the registry when it
        can be read."""
        serving = [
            {
                "role": role.value,
                "manifest_hash": policy.manifest.hash(),
                "manifest": policy.manifest.as_json(),
            }
            for policy, role in self.advisor.models.with_roles()
        ]
        try:
            registry: Any = {
                "models": await self.shadow_log.models(),
                "aliases": await self.shadow_log.aliases(),
            }
        except ShadowLogUnavailable as error:
            registry = {"unavailable": str(error)}
        return {"serving": serving, "registry": registry}

    async def readiness(self) -> dict[str, Any]:
        """The truth about each dependency. Without Postgres or Valkey, but with disk, the service
        is degraded."""
        postgres, valkey, spool = await asyncio.gather(
            self._postgres.ask(), self._valkey.ask(), self._spool.ask()
        )
        self.metrics.dependency.labels(Dependency.POSTGRES).set(float(postgres == "up"))
        self.metrics.dependency.labels(Dependency.VALKEY).set(float(valkey == "up"))
        recordable = "up" in (valkey, spool)
        status = (
            "unready" if not recordable else "ready" if postgres == valkey == "up" else "degraded"
        )
        return {
            "status": status,
            "postgres": postgres,
            "valkey": valkey,
            "valkey_durable": self.journal.durable,
            "spool": spool,
            "spool_depth": self.journal.spool_depth(),
            "models": [policy.manifest.model_version for policy in self.advisor.models.policies],
            "state": self.controls.state.value,
            "limits": {"version": self.controls.limits.version, "hash": self.controls.limits_hash},
            "clock": self.settings.clock.value,
        }

    async def observe_backlog(self) -> None:
        """Refresh the gauges that describe the journal and the dependencies, within the patience of
        a scrape."""
        self.metrics.spool_depth.set(self.journal.spool_depth())
        postgres, _ = await asyncio.gather(self._postgres.ask(), self._observe_stream())
        self.metrics.dependency.labels(Dependency.POSTGRES).set(float(postgres == "up"))

    async def _observe_stream(self) -> None:
        try:
            entries, oldest = await self.journal.backlog()
        except AdvisorError:
            self.metrics.dependency.labels(Dependency.VALKEY).set(0)
            return
        self.metrics.backlog.set(entries)
        self.metrics.oldest.set(oldest)
        self.metrics.dependency.labels(Dependency.VALKEY).set(1)

    async def _serve_accepted(self) -> None:
        """Decide what was accepted asynchronously; an entry is done when its decision is
        durable."""
        told = ""
        while True:
            try:
                for entry in await self._requests.take():
                    await self._decide(entry)
                told = ""
            except AdvisorError as error:
                if told != (told := str(error)):  # Once for each reason, not for each attempt.
                    log.warning("accepted requests wait", error=told)
                await asyncio.sleep(RETRY_S)

    async def _decide(self, entry: QueuedRequest) -> None:
        body = AdviseRequest.model_validate_json(entry.payload)
        incoming = Incoming(
            body.request_id,
            entry.claim,
            body.scenario(),
            body.agent_action,
            self.now(),
            monotonic() + ASYNC_DEADLINE_S,
            rationale=body.rationale,
        )
        await self.advisor.advise(incoming)
        await self._requests.done(entry)

    async def _register_models(self) -> None:
        """Make the served versions known to the registry, as soon as Postgres answers."""
        for policy in self.advisor.models.policies:
            while True:
                try:
                    await self.shadow_log.register_model(policy.manifest)
                    break
                except ShadowLogUnavailable:
                    await asyncio.sleep(RETRY_S)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """Background work that ends is a defect, and must not end silently."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("background work failed")
        raise
