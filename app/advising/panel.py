"""The panel: decision models elsewhere, asked after the reply is out.

Nobody waits for them: a decision is recorded and answered first, then it is laid before the panel,
which asks within its own bounds and deadlines and records what it hears as late advice. It begins
to ask, and to record what it heard, when no reply is being waited for. Whatever goes wrong there is
a row with its reason, or is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from time import monotonic

import structlog

from app.advising.records import Records
from app.domain.errors import (
    AbstainReason,
    AdvisorError,
    JournalUnavailable,
    PolicyAbstained,
)
from app.domain.model.inquiry import Inquiry, sampled
from app.domain.record.decision import Abstention, Decision, Reading, Role, Version, conclude
from app.domain.record.event import Event, EventKind, LateAdvice, Repetition, RepetitionKind
from app.policy.deciders.decider import Decider
from app.shadow_log.log import ShadowLog
from app.tasks import described, end
from app.telemetry import Asking, Telemetry

log = structlog.get_logger()
KEEP_UP_S = 5.0
PATIENCE_S = 2.0
"""How long replies that are waited for go first: a service that is never idle asks all the same."""
_OUTCOMES = {
    AbstainReason.DEADLINE: Asking.DEADLINE,
    AbstainReason.DECLINED: Asking.DECLINED,
    AbstainReason.BACKEND_UNAVAILABLE: Asking.UNAVAILABLE,
}
"""What is counted of a question without an answer; else it was refused as no answer."""


class _Seat:
    """One decider on the panel: how many questions it has, and how the last one ended."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self.manifest_hash = decider.manifest.hash()
        self.turn = asyncio.Semaphore(decider.declared.at_once)
        self.under_way = 0
        self.last = "not asked yet"
        self.registered = False

    @property
    def name(self) -> str:
        """Its version."""
        return self.decider.manifest.model_version


class Panel:
    """Asks every decider about decisions that are recorded, and records what it hears.

    `idle` : waits until no reply is being waited for, at most so many seconds.
    """

    def __init__(
        self,
        deciders: Sequence[Decider],
        records: Records,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
        now: Callable[[], datetime],
        idle: Callable[[float], Awaitable[None]],
    ) -> None:
        self._idle = idle
        self._recording = asyncio.Lock()
        self._seats = tuple(_Seat(decider) for decider in deciders)
        self._records, self._log = records, shadow_log
        self._telemetry = telemetry
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()
        telemetry.on_panel(decider.manifest.model_version for decider in deciders)

    def __bool__(self) -> bool:
        return bool(self._seats)

    def offer(self, decision: Decision) -> None:
        """Lay a recorded decision before the panel. Returns at once; never raises."""
        for seat in self._seats:
            declared = seat.decider.declared
            if not sampled(declared.share, decision.decision_id, declared.name):
                self._telemetry.panel_asked(seat.name, Asking.NOT_SAMPLED)
            elif seat.under_way >= declared.at_once + declared.waiting:
                self._telemetry.panel_asked(seat.name, Asking.BUSY)
            else:
                seat.under_way += 1
                task = asyncio.create_task(self._hear(seat, decision))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def health(self) -> dict[str, str]:
        """How the last question to each version ended."""
        return {seat.name: seat.last for seat in self._seats}

    async def keep_up(self) -> None:
        """Make every version known to the registry, as soon as Postgres answers."""
        for seat in self._seats:
            if not seat.registered:
                async with self._log.outages():
                    await self._log.register_model(seat.decider.manifest)
                    seat.registered = True

    async def settle(self) -> None:
        """Wait for every question that is under way."""
        await asyncio.gather(*self._tasks)

    async def aclose(self) -> None:
        """Give up what is under way, counted, and close the connections."""
        for seat in self._seats:
            for _ in range(seat.under_way):
                self._telemetry.panel_asked(seat.name, Asking.DROPPED)
        await end(self._tasks)
        for seat in self._seats:
            await seat.decider.aclose()

    async def _hear(self, seat: _Seat, decision: Decision) -> None:
        """Ask one decider about one decision; nothing that happens ends anything else."""
        try:
            await self._idle(PATIENCE_S)
            deadline = monotonic() + seat.decider.declared.timeout_s
            async with seat.turn:
                await self._advise(seat, decision, deadline)
        except JournalUnavailable as error:
            self._ended(seat, Asking.UNRECORDED, str(error))
        except AdvisorError as error:
            self._ended(seat, Asking.REFUSED, str(error))
        except Exception as error:
            log.exception("a decider could not be asked", version=seat.name)
            self._ended(seat, Asking.FAILED, described(error))
        finally:
            seat.under_way -= 1

    async def _advise(self, seat: _Seat, decision: Decision, deadline: float) -> None:
        decider = seat.decider
        if not decider.affords():
            self._ended(seat, Asking.OVER_BUDGET, "the day's budget is spent")
            return
        reading = await self._ask(seat, decision, decider.inquiry, deadline)
        await self._record(seat, decision, reading)
        if isinstance(reading, Reading):
            await self._ask_again(seat, decision, reading)

    async def _record(self, seat: _Seat, decision: Decision, reading: Reading | Abstention) -> None:
        """Conclude and record what one decider said. One at a time: a reply that somebody begins to
        wait for meanwhile has one in its way, not one of each decider."""
        until = monotonic() + PATIENCE_S  # Of all that wait here together.
        async with self._recording:
            await self._idle(max(until - monotonic(), 0.0))
            await self._records.advised_late(decision, self._late(seat, decision, reading))

    def _late(self, seat: _Seat, decision: Decision, reading: Reading | Abstention) -> LateAdvice:
        decider = seat.decider
        version = Version(seat.name, seat.manifest_hash, decider.manifest.calibration, Role.SHADOW)
        advice = conclude(
            decision.scenario,
            reading,
            version,
            decision.limits,
            state=decision.state,
            now=decision.evaluated_at,
        )
        return LateAdvice(
            decision_id=decision.decision_id,
            as_of=decision.scenario.as_of,
            recorded_at=self._now(),
            advice=advice,
        )

    async def _ask(
        self, seat: _Seat, decision: Decision, inquiry: Inquiry, deadline: float
    ) -> Reading | Abstention:
        """One question, counted."""
        try:
            reading = await seat.decider.ask(decision.scenario, inquiry, deadline)
        except PolicyAbstained as abstained:
            self._ended(seat, _OUTCOMES.get(abstained.reason, Asking.REFUSED), str(abstained))
            return Abstention.of(abstained)
        assert reading.exchange is not None
        self._ended(seat, Asking.ANSWERED, "")
        self._telemetry.panel_answered(
            seat.name, reading.exchange.seconds, reading.exchange.cost or 0.0
        )
        return reading

    async def _ask_again(self, seat: _Seat, decision: Decision, first: Reading) -> None:
        """A share of decisions in another order, and a share unchanged: does it say the same?"""
        decider = seat.decider
        for kind, share, inquiry in (
            (
                RepetitionKind.ORDER,
                decider.declared.permuted_share,
                decider.inquiry.permuted(str(decision.decision_id)),
            ),
            (RepetitionKind.SAME, decider.declared.repeated_share, decider.inquiry),
        ):
            if not sampled(share, kind.value, decision.decision_id, decider.declared.name):
                continue
            if not decider.affords():
                self._ended(seat, Asking.OVER_BUDGET, "the day's budget is spent")
                return
            deadline = monotonic() + decider.declared.timeout_s
            again = await self._ask(seat, decision, inquiry, deadline)
            if not isinstance(again, Reading):
                continue
            repetition = Repetition(
                decision_id=decision.decision_id,
                recorded_at=self._now(),
                model_version=seat.name,
                manifest_hash=seat.manifest_hash,
                kind=kind,
                calibration=decider.manifest.calibration,
                first=first,
                again=again,
            )
            await self._records.append(Event.of_report(EventKind.REPETITION, repetition))
            self._telemetry.panel_repeated(seat.name, kind, repetition.flipped)

    def _ended(self, seat: _Seat, how: Asking, why: str) -> None:
        """Count how a question ended, and say so once for each reason."""
        told = f"{how.value}: {why}" if why else how.value
        if told != seat.last and how is not Asking.ANSWERED:
            log.warning("a decider gave no advice", version=seat.name, why=told)
        seat.last = told
        self._telemetry.panel_asked(seat.name, how)
