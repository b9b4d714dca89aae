"""One place to write and read the record: the journal first, the shadow log behind it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import orjson
import structlog

from app.advising.accounts import Accounts, Trader
from app.advising.earlier import PATIENCE_S, Earlier, Question
from app.domain.candidate import Candidate
from app.domain.errors import (
    AnswerGone,
    DamagedRecord,
    JournalUnavailable,
    RequestConflict,
    ShadowLogUnavailable,
    UnknownDecision,
)
from app.domain.record.control import AgentAction
from app.domain.record.decision import Decision
from app.domain.record.event import (
    CorrectableReport,
    Event,
    EventKind,
    LateAdvice,
    content_of,
    reported,
)
from app.domain.record.outcome import Outcome
from app.journal.journal import Journal, Place, Receipt
from app.shadow_log.log import ShadowLog
from app.telemetry import LossCause, Pair, Telemetry

log = structlog.get_logger()
Reply = TypeVar("Reply")
REMEMBERED = 10_000
LOG_PATIENCE_S = 0.5
"""How long a request that could do without the log waits for it."""
QUIET_S = 2.0


_NOT_COMPARED: dict[str, Any] = {
    "extra": {},
    "macro_flags": (),
    "macro_news_reason": None,
    "news_summary": None,
    "symbol_news_summary": None,
    "volume_profile": None,
}
"""What could be large in a candidate, and is not remembered."""


class _Recent(NamedTuple):
    """What a repeat must match, and what a late control is compared with."""

    claim: str
    candidate: Candidate
    advised: tuple[tuple[str, bool], ...]
    controlled: bool
    """Whether the control came with the request."""
    trader: Trader


class Records:
    """Durable writes, and reads that find a decision whether or not the writer has moved it yet."""

    def __init__(
        self,
        journal: Journal,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
        now: Callable[[], datetime],
        *,
        live: bool = True,
    ) -> None:
        self._earlier = Earlier(shadow_log.claims)
        self._live = live
        self._journal = journal
        self._log = shadow_log
        self._telemetry = telemetry
        self._now = now
        self.accounts = Accounts(journal, shadow_log, now, live=live)
        self._recent: OrderedDict[UUID, _Recent] = OrderedDict()
        self._quiet_until = 0.0

    async def append(self, event: Event) -> Receipt:
        """Make an event durable. Raises `JournalUnavailable` (counted) or `RequestConflict`."""
        try:
            receipt = await self._journal.append(event)
        except JournalUnavailable:
            self._telemetry.lost(LossCause.JOURNAL_UNAVAILABLE)
            raise
        if not receipt.repeated:
            self._telemetry.appended(receipt.target)
        return receipt

    async def keep(self, decision: Decision) -> Receipt:
        """Make a decision durable, and take a control that came along into the accounts. Raises as
        `append`."""
        event, control = Event.of_decision(decision), decision.control
        if control is None:
            return await self.append(event)
        _, report = reported(control, decision.decision_id, decision.received_at, None)
        async with self._noted(event.key, report) as noted:
            receipt = await self.append(event)
            if not receipt.repeated:
                await self.accounts.told(Trader.of(decision), report)
            noted()
        return receipt

    async def asked_at(self, decision_id: UUID) -> datetime | None:
        """The time of a decision; None while what holds it is away, or when nothing does."""
        recent = await self._comparable(decision_id)
        return None if recent is None else recent.candidate.ts

    def recent_claim(self, decision_id: UUID) -> str | None:
        """Hash of the request that this process decided under this id, not long ago."""
        recent = self._recent.get(decision_id)
        return None if recent is None else recent.claim

    async def is_known(self, decision_id: UUID) -> bool:
        """Whether anything was decided under this id.

        Raises
        ------
        ShadowLogUnavailable, JournalUnavailable : nobody knows it, and what is away may.
        """
        if await self._remembered(decision_id) is not None:
            return True
        if await self._earlier.claim(decision_id) is not None:
            return True
        if not self._journal.reachable:
            raise JournalUnavailable(
                f"whether decision {decision_id} was answered before, the queue server may know,"
                " which is away: ask again"
            )
        return False

    def ask_earlier(self, decision_id: UUID, patience_s: float = PATIENCE_S) -> Question:
        """Begin to ask Postgres for `earlier_claim`."""
        return self._earlier.ask(decision_id, patience_s)

    async def earlier_claim(
        self, decision_id: UUID, as_of: datetime, asked: Question | None = None
    ) -> str | None:
        """Hash of the request that was decided under this id, as Postgres knows it, which may have
        been `asked` already: the journal forgets, and what it forgot must not be answered anew.

        While Postgres cannot tell, an id counts as new when the journal remembers everything since
        the candidate's time. In a replay of history that time says nothing, and it counts as new.

        Raises
        ------
        JournalUnavailable : it may have been decided before, and nobody can tell now.
        """
        try:
            return await self._earlier.answer(asked or self.ask_earlier(decision_id))
        except ShadowLogUnavailable as error:
            since = self._journal.remembers_since
            if not self._live or as_of >= since:
                return None
            claim = await self._journal.claim_of(str(decision_id))
            if claim is None:
                raise JournalUnavailable(
                    f"decision {decision_id} may have been answered before {since.isoformat()},"
                    f" where the journal's memory begins, and Postgres cannot tell: {error}"
                ) from error
            return claim

    async def answered(self, decision_id: UUID, claim: str) -> Decision:
        """The decision that was answered before under this id.

        Raises
        ------
        RequestConflict : it was the answer to another request.
        AnswerGone : it is not in the record any more.
        ShadowLogUnavailable, JournalUnavailable : it was not found, and what is away may hold it.
        """
        try:
            decision = await self.decision(decision_id)
        except UnknownDecision:
            raise await self._gone(decision_id, claim) from None
        if decision.request_hash != claim:
            raise self._conflict(decision_id)
        return decision

    async def _gone(self, decision_id: UUID, claim: str) -> RequestConflict | AnswerGone:
        """Why an answer that was given is nowhere. Postgres and the stream have just answered."""
        stored = await self._log.claim(decision_id)
        if (stored or await self._remembered(decision_id) or claim) != claim:
            return self._conflict(decision_id)
        return self._answer_gone(decision_id, stored)

    async def _remembered(self, decision_id: UUID) -> str | None:
        """Hash of the request that this process or the journal remembers under this id."""
        return self.recent_claim(decision_id) or await self._journal.claim_of(str(decision_id))

    def _answer_gone(self, decision_id: UUID, stored: str | None) -> AnswerGone:
        """Where an answer went of which Postgres still has the claim, or not."""
        why = (
            "its month was dropped by retention"
            if stored is not None
            else "it lies in the dead-letter stream, was lost with the queue server's data, or"
            " Postgres is older than it, from a backup"
        )
        return AnswerGone(
            f"decision {decision_id} was answered before, and the record does not hold it: {why};"
            " send a new id to be advised anew"
        )

    def _conflict(self, decision_id: UUID) -> RequestConflict:
        return RequestConflict(
            f"the request id of decision {decision_id} was used before with other content; send a"
            " new id, or the same content"
        )

    async def aclose(self) -> None:
        """Give up the question under way."""
        await self._earlier.aclose()

    async def decision(self, decision_id: UUID) -> Decision:
        """The decision as it was recorded.

        Raises
        ------
        UnknownDecision : no decision has this id.
        ShadowLogUnavailable, JournalUnavailable : it was not found, and what is away may hold it.
        """
        payload = await self._journal.find(str(decision_id))
        if payload is not None:
            return Decision.from_json(orjson.loads(payload))
        stored = await self._log.decision(decision_id)
        if stored is None:
            raise self._not_found(decision_id)
        return stored

    async def document(self, decision_id: UUID) -> dict[str, Any]:
        """The full stored record with its actions, outcomes and rationale. Raises as `decision()`,
        and `AnswerGone` of one that was answered and is in the record no more."""
        payload = await self._journal.find(str(decision_id))
        if payload is not None:
            return {"stored": False, "decision": orjson.loads(payload)}
        document = await self._log.get(decision_id)
        if document is not None:
            return {"stored": True, **document}
        if self._journal.reachable:
            stored = await self._log.claim(decision_id)
            if stored or await self._remembered(decision_id):
                raise self._answer_gone(decision_id, stored)
        raise self._not_found(decision_id)

    async def report_action(
        self, decision_id: UUID, action: AgentAction, by: str | None = None
    ) -> Receipt:
        """Record the agent's own action and compare it with the advice. One that says what the
        newest says repeats it; any other corrects it.

        Raises `UnknownDecision` only when journal and log both say so: while either is away the
        report is taken, and `advisor verify` names it if its decision never comes.
        """
        await self._require(decision_id)
        placed = await self._placed(action, decision_id, by)
        receipt, recent = await self._take_report(EventKind.AGENT_ACTION, placed)
        if recent is not None:
            first = placed.arrival == 1 and not recent.controlled
            self._compare(decision_id, recent, action, first=first)
        return receipt

    async def advised_late(self, decision: Decision, late: LateAdvice) -> None:
        """Record advice that came after the decision, and compare it with a control that came
        along. Raises `JournalUnavailable`."""
        receipt = await self.append(Event.of_late_advice(late))
        if receipt.repeated:
            return
        advice, candidate = late.advice, decision.scenario.candidate
        self._telemetry.advised_late(candidate, advice)
        recent = self._recent.get(decision.decision_id)
        if advice.approve is None or recent is None:
            return
        said = (advice.model_version, advice.approve)
        self._recent[decision.decision_id] = recent._replace(advised=(*recent.advised, said))
        if decision.control is not None:
            pair = Pair(decision.control.decision, advice.approve)
            self._telemetry.compared(decision.decision_id, candidate, advice.model_version, pair)

    async def report_outcome(
        self, decision_id: UUID, outcome: Outcome, by: str | None = None
    ) -> Receipt:
        """Record what became of one arm. Raises as `report_action`."""
        await self._require(decision_id)
        placed = await self._placed(outcome, decision_id, by)
        receipt, _ = await self._take_report(EventKind.OUTCOME, placed)
        return receipt

    async def _take_report(
        self, kind: EventKind, report: CorrectableReport
    ) -> tuple[Receipt, _Recent | None]:
        """Make it durable and take it into the accounts, with what is known of its decision; of a
        repeat nothing. Where it is not known whose account it is, or the caller goes away before
        that is, accounts are told by the record."""
        event = Event.of_report(kind, report)
        async with self._noted(event.key, report) as noted:
            receipt = await self._append_report(event)
            if receipt.repeated:
                noted()
                return receipt, None
            recent = await self._comparable(report.decision_id)
            if recent is not None:
                await self.accounts.told(recent.trader, report)
                noted()
        return receipt, recent

    @asynccontextmanager
    async def _noted(
        self, key: str, report: CorrectableReport
    ) -> AsyncIterator[Callable[[], None]]:
        """Within it an event that tells of a trade is made durable, and the accounts are told: who
        has done so says so. Else, whatever happened, the record is to tell them."""
        done = asyncio.Event()
        try:
            yield done.set
        finally:
            if not done.is_set() and self.accounts.concerns(report):
                await self._journal.lack(key)

    async def repeats(
        self, decision_id: UUID, said: AgentAction | Outcome, by: str | None = None
    ) -> bool:
        """Whether the newest report on the same subject says just this; not, while what may hold
        it is away."""
        kind, report = reported(said, decision_id, self._now(), by)
        newest = await self._journal.newest(
            report.subject, lambda: self._stored_place(kind, report)
        )
        return newest is not None and newest.content == content_of(kind, report)

    async def _append_report(self, event: Event) -> Receipt:
        """Make a report durable, once. What the stream remembers as moved, and the log lacks (an
        older backup was restored), is no repeat: it is appended anew. So is what nobody can look
        up now; the writer leaves what is there as it is."""
        receipt = await self.append(event)
        if not receipt.moved:
            return receipt
        try:
            stored = await self._ask_log(self._log.holds([event]))
        except ShadowLogUnavailable:
            stored = None
        if stored:
            return receipt
        receipt = await self._journal.append(event, anew=True)
        if stored is None:
            return receipt
        log.warning("a report that was answered before is not in Postgres: recorded anew")
        return receipt._replace(repeated=False)

    async def _placed(
        self, said: AgentAction | Outcome, decision_id: UUID, by: str | None
    ) -> CorrectableReport:
        """The report in its place among those on the same subject; in that of the newest when it
        says the same."""
        kind, report = reported(said, decision_id, self._now(), by)
        arrival = await self._journal.place(
            report.subject,
            content_of(kind, report),
            str(report.decision_id),
            lambda: self._stored_place(kind, report),
        )
        return report.model_copy(update={"arrival": arrival or None})

    async def _stored_place(self, kind: EventKind, report: CorrectableReport) -> Place | None:
        """That of the newest report on the same subject, as the log knows it now."""
        try:
            newest = await self._ask_log(self._log.newest_report(kind, report))
        except ShadowLogUnavailable:
            return None
        return None if newest is None else Place(newest.arrival or 0, content_of(kind, newest))

    def remember(self, decision: Decision) -> None:
        """Keep what a late control will be compared with; compare at once when the control came
        along."""
        recent = _recent(decision)
        self._recent[decision.decision_id] = recent
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        if decision.control is not None:
            self._compare(decision.decision_id, recent, decision.control, first=True)

    def _not_found(self, decision_id: UUID) -> UnknownDecision | JournalUnavailable:
        if self._journal.reachable:
            return unknown_decision(decision_id)
        return JournalUnavailable(
            f"decision {decision_id} is not in the shadow log; it may wait in the journal, which is"
            " away: ask again"
        )

    async def _require(self, decision_id: UUID) -> None:
        """Raise `UnknownDecision` when everybody who can know says that there is no such one."""
        if decision_id in self._recent or await self._journal.claim_of(str(decision_id)):
            return
        try:
            claim = await self._earlier.claim(decision_id)
        except ShadowLogUnavailable:
            claim = None
        else:
            if claim is None and self._journal.reachable:
                raise unknown_decision(decision_id)
        if claim is None:
            self._telemetry.report_unchecked()

    async def _comparable(self, decision_id: UUID) -> _Recent | None:
        """What a control is compared with; None when what holds the decision is away or damaged."""
        recent = self._recent.get(decision_id)
        if recent is not None:
            return recent
        payload = await self._journal.find(str(decision_id))
        if payload is not None:
            return _recent(Decision.from_json(orjson.loads(payload)))
        try:
            stored = await self._ask_log(self._log.decision(decision_id))
        except (ShadowLogUnavailable, DamagedRecord):
            return None
        return None if stored is None else _recent(stored)

    async def _ask_log(self, question: Coroutine[Any, Any, Reply]) -> Reply:
        """The log's answer, when it comes soon; else `ShadowLogUnavailable`.

        A question that is not answered in time goes on by itself (see `Probe`); for `QUIET_S` after
        it no other is asked.
        """
        if monotonic() < self._quiet_until:
            question.close()
            raise ShadowLogUnavailable("Postgres was silent a moment ago")
        asked = asyncio.create_task(question)
        done, _ = await asyncio.wait({asked}, timeout=LOG_PATIENCE_S)
        if done:
            return asked.result()
        self._quiet_until = monotonic() + QUIET_S
        asked.add_done_callback(_heard)
        raise ShadowLogUnavailable(f"Postgres: no answer within {LOG_PATIENCE_S:g} s")

    def _compare(
        self, decision_id: UUID, recent: _Recent, control: AgentAction, *, first: bool
    ) -> None:
        for version, approve in recent.advised:
            pair = Pair(control.decision, approve)
            if first:
                self._telemetry.compared(decision_id, recent.candidate, version, pair)
            else:
                self._telemetry.compared_anew(decision_id, version, pair)


def unknown_decision(decision_id: UUID) -> UnknownDecision:
    """What is said of an id that nothing is stored under, and of one that is another's."""
    return UnknownDecision(f"no decision has the id {decision_id}")


def _heard(question: asyncio.Future[Any]) -> None:
    """Nobody waits for this answer any more."""
    if not question.cancelled():
        question.exception()


def _recent(decision: Decision) -> _Recent:
    advised = tuple((a.model_version, a.approve) for a in decision.advices if a.approve is not None)
    candidate = decision.scenario.candidate.model_copy(update=_NOT_COMPARED)
    controlled = decision.control is not None
    return _Recent(decision.request_hash, candidate, advised, controlled, Trader.of(decision))
