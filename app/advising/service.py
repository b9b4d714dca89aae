"""The running service: every part built once, started and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import ceil, inf
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import structlog

from app.advising import controls, panel, serving
from app.advising.advise import JOURNAL_RESERVE_S, Advisor, Answer, Incoming
from app.advising.bounds import ReportBounds
from app.advising.controls import Controls
from app.advising.door import Door
from app.advising.panel import Panel
from app.advising.probes import Probe
from app.advising.records import Records
from app.advising.serving import Serving
from app.advising.trials import Trials, Tried
from app.domain.errors import (
    AdvisorError,
    AnswerGone,
    InvalidRecord,
    JournalUnavailable,
    Overloaded,
    RequestConflict,
    RequestLost,
    ShadowLogUnavailable,
    UnknownDecision,
)
from app.domain.intake.plausible import Report, plausible
from app.domain.intake.reception import Received
from app.domain.record.event import EventKind
from app.domain.scenario import Scenario
from app.journal.journal import Journal
from app.journal.later import QueuedRequest, QueueFull, RequestQueue
from app.journal.ledger import Entry
from app.journal.stream import AcceptedRequest
from app.policy.deciders.decider import Decider
from app.processes.messages import Gone
from app.processes.siblings import ALONE, Alone
from app.schemas import AdviseRequest
from app.shadow_log.limits_history import LimitsHistory
from app.shadow_log.log import ShadowLog
from app.tasks import Supervisor, described
from app.telemetry import Dependency, Task, Telemetry

log = structlog.get_logger()
ASYNC_DEADLINE_S = 30.0
ACCEPTED_PATIENCE_S = 10 * ASYNC_DEADLINE_S
"""A round decides up to eight requests, one after the other."""
RETRY_S = 1.0
HEAD_S = 5.0
LEDGER_S = 2.0
ADOPTIONS_S = 0.5


def wall_clock() -> datetime:
    """The only clock of the service."""
    return datetime.now(UTC)


class Service:
    """What the routes work with.

    Parameters
    ----------
    by_wall_clock : rules judge at the time of the request, as in production; else at the scenario's
        own time, to replay history.
    """

    def __init__(
        self,
        serving: Serving,
        limits: Path,
        profiles: Path | None,
        journal: Journal,
        requests: RequestQueue,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
        *,
        by_wall_clock: bool = True,
        max_reports: int = 64,
        now: Callable[[], datetime] = wall_clock,
        deciders: Sequence[Decider] = (),
        adopted: Path | None = None,
        siblings: Alone = ALONE,
    ) -> None:
        self.now = now
        self.by_wall_clock = by_wall_clock
        self.telemetry = telemetry
        self.journal = journal
        self.shadow_log = shadow_log
        self.requests = requests
        self.serving = serving
        self.controls = Controls(
            limits, profiles, journal, shadow_log, telemetry, adopted, siblings
        )
        self.trials = Trials(
            lambda: shadow_log.url, LimitsHistory(shadow_log), serving.options, siblings
        )
        self.records = Records(journal, shadow_log, telemetry, now, live=by_wall_clock)
        self.report_bounds = ReportBounds(max_reports)
        self.door = Door(telemetry, JOURNAL_RESERVE_S, self._parallel)
        self.panel = Panel(deciders, self.records, shadow_log, telemetry, now, idle=self.door.empty)
        self.advisor = Advisor(
            serving, self.records, self.controls, telemetry, self.judge_at, self.panel
        )
        self._postgres = Probe(shadow_log.ping)
        self._valkey = Probe(journal.ping)
        self._spool = Probe(journal.ping_spool)
        self._supervisor = Supervisor(telemetry)
        self._told = ""
        """Why accepted requests wait, as it was last logged."""
        self._told_head: tuple[str, int] | None = None
        self._went_back = ""
        """How the log was seen to lack what it held."""

    def _parallel(self) -> int:
        models = self.serving.models
        return min([models.primary.parallel, *(each.parallel for each in models.shadows)])

    def judge_at(self, scenario: Scenario) -> datetime:
        """The time that rules judge a scenario at."""
        return self.now() if self.by_wall_clock else scenario.as_of

    async def start(self) -> None:
        """Load the versions, connect, learn the state, start the background work. Absent servers do
        not stop a start. Raises as `Serving.follow`, and `JournalUnavailable`."""
        await self.serving.follow()
        self.telemetry.dependency_seen(Dependency.MODEL, True)
        await self.journal.start()
        await self.controls.start()
        with suppress(ShadowLogUnavailable):  # Those that were known judge.
            await self._follow_limits()
        start = self._supervisor.start
        start(
            Task.CONTROLS,
            self.controls.refresh,
            every_s=controls.REFRESH_S,
            max_pause_s=controls.MAX_PAUSE_S,
        )
        start(
            Task.ALIASES,
            self.serving.keep_up,
            every_s=serving.REFRESH_S,
            patience_s=serving.PATIENCE_S,
        )
        if self.panel:
            start(Task.PANEL, self.panel.keep_up, every_s=panel.KEEP_UP_S)
        start(Task.HEADS, self._tell_head, every_s=HEAD_S)
        start(Task.LIMITS, self._follow_limits, every_s=ADOPTIONS_S)
        start(Task.LEDGER, self._keep_ledger, every_s=LEDGER_S)
        start(Task.REQUESTS, self._serve_accepted, patience_s=ACCEPTED_PATIENCE_S)

    async def aclose(self) -> None:
        """Stop the background work, then the models, then the connections."""
        await self._supervisor.aclose()
        await self.trials.aclose()
        await self.panel.aclose()
        with suppress(ShadowLogUnavailable):
            await self._tell_head()
        for probe in (self._postgres, self._valkey, self._spool):
            await probe.aclose()
        await self.serving.aclose()
        await self.records.aclose()
        await self.requests.aclose()
        await self.journal.aclose()
        await self.shadow_log.aclose()

    async def follow(self, what: Any) -> None:
        """Do as a process beside this one did."""
        match what:
            case controls.Entered():
                self.controls.follow(what)
            case controls.Adopted():
                await self._follow_limits()
            case serving.Moved():
                await self.serving.follow()
            case Tried() | Gone():
                self.trials.follow(what)

    def require_not_ahead(self, scenario: Scenario) -> None:
        """Raises `InvalidRecord` for a candidate of the future."""
        now = self.now()
        skew = self.controls.limits.stale_snapshot.max_clock_skew_s
        if self.by_wall_clock and scenario.as_of > now + timedelta(seconds=skew):
            raise InvalidRecord(
                f"candidate.ts: {scenario.as_of.isoformat()} is in the future; this server's clock"
                f" says {now.isoformat()} (tolerance {skew:g} s): check the time zone and the clock"
                " of the sender"
            )

    async def advise(self, incoming: Incoming) -> Answer:
        """The decision on a request of now, or what was decided before under its id, whatever the
        clock says since. Raises as `Advisor.advise`, and `InvalidRecord` for a candidate of the
        future."""
        await self._require_in_time(incoming)
        return await self.advisor.advise(incoming)

    async def _require_in_time(self, incoming: Incoming) -> None:
        """Raises as `require_not_ahead`, unless the request was let in before: a clock that was set
        back takes no answer away. Raises as `Records.is_known` when nobody can tell."""
        try:
            self.require_not_ahead(incoming.scenario)
        except InvalidRecord:
            known = incoming.decision_id
            if await self.records.is_known(known):
                return
            if await self.requests.claim_of(str(known)) != incoming.claim:
                raise

    async def accept(
        self, asked: Sequence[tuple[Incoming, AdviseRequest]]
    ) -> list[InvalidRecord | RequestConflict | AnswerGone | None]:
        """Make requests durable together, to be decided later; which of them cannot be because
        they are of the future, their id was used with other content, or its answer is gone.

        Raises
        ------
        Overloaded, JournalUnavailable, ShadowLogUnavailable : none was accepted.
        """
        early = await asyncio.gather(*(self._early(incoming) for incoming, _ in asked))
        answers = iter(
            await self._accept(
                [one for one, refused in zip(asked, early, strict=True) if refused is None]
            )
        )
        return [next(answers) if refused is None else refused for refused in early]

    async def _early(self, incoming: Incoming) -> InvalidRecord | None:
        try:
            await self._require_in_time(incoming)
        except InvalidRecord as refused:
            return refused
        return None

    async def _accept(
        self, asked: Sequence[tuple[Incoming, AdviseRequest]]
    ) -> list[RequestConflict | AnswerGone | None]:
        claims = await asyncio.gather(*(self._claim_of(incoming) for incoming, _ in asked))
        new = [one for one, claim in zip(asked, claims, strict=True) if claim is None]
        waiting = iter(await self._put(new) if new else ())
        return [
            _conflict(incoming, next(waiting)) if claim is None else await self._gone(incoming)
            for (incoming, _), claim in zip(asked, claims, strict=True)
        ]

    async def _gone(self, incoming: Incoming) -> RequestConflict | AnswerGone | None:
        """Why an id that is known will have no decision, or another one; None when it has, or
        nobody can tell now."""
        try:
            await self.records.answered(incoming.decision_id, incoming.claim)
        except (RequestConflict, AnswerGone) as error:
            return error
        except (JournalUnavailable, ShadowLogUnavailable):
            pass
        return None

    async def _claim_of(self, incoming: Incoming) -> str | None:
        known = incoming.decision_id
        claim = await self.journal.claim_of(str(known))
        return claim or await self.records.earlier_claim(known, incoming.scenario.as_of)

    async def _put(self, asked: Sequence[tuple[Incoming, AdviseRequest]]) -> list[str]:
        """The claims that wait under the ids afterwards. Raises as `accept`."""
        accepted = []
        for incoming, body in asked:
            content = body.model_copy(update={"request_id": incoming.request_id})
            accepted.append(
                AcceptedRequest(
                    str(incoming.decision_id),
                    incoming.claim,
                    content.model_dump_json().encode(),
                    incoming.principal,
                )
            )
        try:
            waiting = await self.requests.put_all(accepted)
        except QueueFull as full:
            retry_after_s = max(1, ceil(self.door.estimate(full.excess)))
            raise Overloaded(f"{full}; nothing of this call was accepted", retry_after_s) from full
        await self.journal.promise(
            [one for one, claim in zip(accepted, waiting, strict=True) if one.claim == claim]
        )
        return waiting

    async def taken(
        self,
        decision_id: UUID,
        kind: EventKind,
        received: Received[Report],
        by: str | None,
        as_of: datetime | None = None,
    ) -> Received[Report]:
        """A report as it counts: without the times that no clock can give, unless it was taken with
        them before. Raises as `plausible`, and `TooManyReports` for one more than may be."""
        counted = plausible(received, self.now(), as_of)
        if counted is received and not self.report_bounds.full(decision_id, kind):
            return received
        for said in (received, counted):
            if await self.records.repeats(decision_id, said.record, by):
                return said
        self.report_bounds.require_room(decision_id, kind)
        return counted

    async def document(self, decision_id: UUID) -> dict[str, Any] | None:
        """The stored record of a decision; None while its request is accepted and not decided yet.
        Raises as `Records.document`, and `RequestLost` when it never will be."""
        try:
            return await self.records.document(decision_id)
        except UnknownDecision:
            if await self.requests.claim_of(str(decision_id)) is not None:
                return None
            lost = await self.shadow_log.promise_lost(decision_id)
            if lost is None:
                raise
        if lost:
            raise RequestLost(
                f"the request of decision {decision_id} was accepted, and lost before it was"
                " decided: send it again under the same id to be advised"
            )
        return None

    async def readiness(self) -> dict[str, Any]:
        """The truth about each dependency and each background task. Without Postgres or Valkey, but
        with disk, with a version that is refused, or when Postgres lacks what it held, the service
        is degraded; while state and limits are not followed, no advice can be given rightly."""
        postgres, valkey, spool = await asyncio.gather(
            self._postgres.ask(), self._valkey.ask(), self._spool.ask()
        )
        self.telemetry.dependency_seen(Dependency.POSTGRES, postgres == "up")
        self.telemetry.dependency_seen(Dependency.VALKEY, valkey == "up")
        faults = self.journal.condition.faults
        failing = {**self._supervisor.failing(), **self.journal.failing()}
        if "up" not in (valkey, spool) or Task.CONTROLS in failing:
            status = "unready"
        elif postgres == valkey == spool == "up" and not (
            failing or faults or self._went_back or self.serving.refusals()
        ):
            status = "ready"
        else:
            status = "degraded"
        return {
            "status": status,
            "postgres": postgres,
            "record": self._went_back or "whole",
            "valkey": valkey,
            "valkey_durable": self.journal.durable,
            "valkey_faults": list(faults),
            "spool": spool,
            "spool_depth": self.journal.spool_depth(),
            "tasks": {task.value: reason for task, reason in failing.items()} or "up",
            "models": [policy.manifest.model_version for policy in self.serving.models.policies],
            "models_read": {
                policy.manifest.model_version: policy.health
                for policy in self.serving.models.policies
            },
            "models_refused": self.serving.refusals(),
            "panel": self.panel.health(),
            "state": self.controls.state.value,
            "limits": self.controls.limits_in_force(),
            "clock": "wall" if self.by_wall_clock else "request",
        }

    async def observe_backlog(self) -> None:
        """Refresh the gauges that describe the journal, the dependencies and the door, within the
        patience of a scrape."""
        self.telemetry.spool_holds(self.journal.spool_depth())
        self.telemetry.under_way(self.door.under_way, self.door.estimate(1))
        postgres, _ = await asyncio.gather(self._postgres.ask(), self._observe_stream())
        self.telemetry.dependency_seen(Dependency.POSTGRES, postgres == "up")

    async def _observe_stream(self) -> None:
        try:
            events, oldest_s = await self.journal.backlog()
        except AdvisorError:
            self.telemetry.dependency_seen(Dependency.VALKEY, False)
            return
        self.telemetry.stream_holds(events, oldest_s)
        self.telemetry.dependency_seen(Dependency.VALKEY, True)

    async def _tell_head(self) -> None:
        """Tell Postgres, past the queue server, up to which number this process' events are
        durable; later, of more events, when it is away."""
        async with self.shadow_log.outages():
            await self._see_whether_it_went_back()
            numbered = self.journal.numbered()
            if numbered is not None and numbered != self._told_head and numbered[1] > 0:
                await self.shadow_log.note_head(*numbered)
                self._told_head = numbered

    async def _see_whether_it_went_back(self) -> None:
        """Whether Postgres still holds what this process told it. If not, it is told again, so that
        the writer counts what is missing."""
        if self._told_head is None:
            return
        producer, seq = self._told_head
        held = await self.shadow_log.head(producer)
        if held < seq:
            self._went_back = (
                f"it lacks what it held ({held} of {seq} numbers of this process): an older backup"
                " was restored? `advisor verify` names what is missing; restart the API when that"
                " is known"
            )
            self._told_head = None
            log.error("Postgres went back", error=self._went_back)

    async def _follow_limits(self) -> None:
        """Let adopted limits judge; while Postgres is away those that were known stay."""
        async with self.shadow_log.outages():
            await self.controls.follow_adoptions()

    async def _keep_ledger(self) -> None:
        """Make the ledger whole, later when Valkey or Postgres is away: until then no account is
        derived."""
        with suppress(JournalUnavailable):
            async with self.shadow_log.outages():
                await self.journal.fill_ledger(self._recorded_trades)

    async def _recorded_trades(self) -> list[Entry]:
        """Asked when Postgres answers: of one that froze nothing more is asked."""
        if await self._postgres.ask() != "up":
            raise ShadowLogUnavailable("Postgres does not answer")
        return await self.records.accounts.recorded()

    async def _serve_accepted(self) -> None:
        """Decide what was accepted asynchronously; an entry is done when its decision is
        durable."""
        try:
            entries = await self.requests.take()
            if self._told:  # The round before was interrupted: its rest comes first.
                entries = await self.requests.unfinished()
            for entry in entries:
                await self._decide_or_put_aside(entry)
            self._told = ""
        except (JournalUnavailable, ShadowLogUnavailable) as error:
            reason = str(error)
            if reason != self._told:  # Once for each reason, not for each attempt.
                log.warning("accepted requests wait", error=reason)
            self._told = reason
            await asyncio.sleep(RETRY_S)

    async def _decide_or_put_aside(self, entry: QueuedRequest) -> None:
        """An outage leaves the entry for later; whatever else keeps it from being decided would
        keep it for ever."""
        try:
            await self._decide(entry)
        except (JournalUnavailable, ShadowLogUnavailable):
            raise
        except RequestConflict as conflict:
            await self.requests.put_aside(entry, str(conflict))
        except Exception as error:
            log.exception("accepted request cannot be decided", decision=entry.decision_id)
            await self.requests.put_aside(entry, described(error))

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
            principal=entry.principal,
        )
        ticket = self.door.enter(monotonic(), inf)
        try:
            await self.advisor.advise(incoming)
        finally:
            self.door.leave(ticket)
        await self.requests.done(entry)


def _conflict(incoming: Incoming, claim: str) -> RequestConflict | None:
    if claim == incoming.claim:
        return None
    return RequestConflict(f"request_id {incoming.request_id!r} was used before with other content")
