"""Accounts as agents' own reports have them: what is told of trades goes into the ledger, and what
a request leaves open of its account comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import structlog

from app.domain.canonical import DEFAULT_PRINCIPAL
from app.domain.errors import InvalidRecord
from app.domain.record.control import AgentAction
from app.domain.record.decision import Decision
from app.domain.record.event import AgentActionReport, CorrectableReport
from app.domain.record.ledger import (
    OPEN_FOR,
    Closed,
    Offer,
    Opened,
    came_late,
    closed,
    completed,
    is_replay,
    opened,
)
from app.domain.record.outcome import Arm, Outcome, OutcomeSource
from app.domain.scenario import Account, Scenario
from app.journal.journal import Journal
from app.journal.ledger import Entry
from app.shadow_log.log import ShadowLog

log = structlog.get_logger()


class Trader(NamedTuple):
    """Whose decision it was, what its trade is where reports do not say, and whether it was one of
    a replay. `late`: the candidate's own time, when it was asked about after it."""

    principal: str
    offer: Offer
    replayed: bool
    late: datetime | None = None

    @classmethod
    def of(cls, decision: Decision) -> Trader:
        return cls.reporting(decision.principal, decision.scenario, decision.received_at)

    @classmethod
    def reporting(cls, principal: str | None, scenario: Scenario, received_at: datetime) -> Trader:
        """Who reports on a decision on this scenario."""
        candidate = scenario.candidate
        offer = Offer(candidate.symbol, candidate.direction, scenario.plan)
        as_of = scenario.as_of
        late = as_of if came_late(as_of, received_at) else None
        return cls(principal or DEFAULT_PRINCIPAL, offer, is_replay(as_of, received_at), late)

    def happened(self, told_at: datetime) -> datetime:
        """When what is told without a time happened: when it was told, or with its candidate."""
        return self.late or told_at


class Accounts:
    """A replay of history has no reports of its own time: nothing is derived in it, nor from it,
    whether the service replays (not `live`) or what it is asked lies far back."""

    def __init__(
        self,
        journal: Journal,
        shadow_log: ShadowLog,
        now: Callable[[], datetime],
        *,
        live: bool,
    ) -> None:
        self._journal = journal
        self._log = shadow_log
        self._now = now
        self._live = live

    async def completed(self, scenario: Scenario, principal: str, now: datetime) -> Scenario:
        """The scenario with what its account leaves open as the agent's own reports have it. What
        was sent and could not be used stays so: its rules refuse."""
        sent = scenario.account
        wanted = (sent.positions, sent.day_pnl_fraction, sent.consecutive_losses)
        if not self._live or is_replay(scenario.as_of, now) or None not in wanted:
            return scenario
        try:
            notes = await self._journal.ledger_of(principal)
        except InvalidRecord as error:
            log.error("no account is derived", principal=principal, error=str(error))
            return scenario
        usable = {name for name in Account.model_fields if not scenario.lost(f"account.{name}")}
        account = completed(sent, (notes or {}).values(), scenario.as_of, now, usable)
        if account is sent:
            return scenario
        return scenario.model_copy(update={"account": account})

    def concerns(self, report: CorrectableReport) -> bool:
        """Whether it tells of the agent's own trade in the live account. What was simulated does
        not."""
        if isinstance(report, AgentActionReport):
            return self._live
        own = report.outcome.arm is Arm.AGENT and report.outcome.source is OutcomeSource.REPORTED
        return own and self._live

    async def told(self, trader: Trader, report: CorrectableReport) -> None:
        """Take in what an agent reported: its action, a trade or none, or how its trade ended."""
        if trader.replayed or not self.concerns(report):
            return
        at = trader.happened(report.recorded_at)
        if isinstance(report, AgentActionReport):
            what: Opened | Closed | None = opened(report.action, trader.offer, at)
        else:
            trade = await self._trade(trader.principal, str(report.decision_id))
            made = trade or opened(AgentAction(decision=True), trader.offer, at)
            what = closed(report.outcome, made, at)
        known, arrival = str(report.decision_id), report.arrival or 0
        entry = Entry(trader.principal, known, report.recorded_at, what, arrival)
        await self._journal.note(entry)

    async def _trade(self, principal: str, decision: str) -> Opened | None:
        """The trade that is known of a decision."""
        try:
            notes = await self._journal.ledger_of(principal) or {}
        except InvalidRecord:
            return None
        note = notes.get(decision)
        return None if note is None else note.opened

    async def recorded(self) -> list[Entry]:
        """The ledger as the record has it. Raises `ShadowLogUnavailable`."""
        entries = []
        for row in await self._log.reported_trades(self._now(), OPEN_FOR):
            scenario, known = Scenario.from_json(row["scenario"]), str(row["decision_id"])
            trader = Trader.reporting(row["principal"], scenario, row["received_at"])
            if trader.replayed:
                continue
            whose, offer, trade = trader.principal, trader.offer, None
            if row["action"] is not None:
                at = trader.happened(row["acted_at"])
                trade = opened(AgentAction.from_json(row["action"]), offer, at)
                arrival = row["action_arrival"] or 0
                entries.append(Entry(whose, known, row["acted_at"], trade, arrival))
            if row["outcome"] is not None:
                at = trader.happened(row["ended_at"])
                made = trade or opened(AgentAction(decision=True), offer, at)
                end = closed(Outcome.from_json(row["outcome"]), made, at)
                arrival = row["outcome_arrival"] or 0
                entries.append(Entry(whose, known, row["ended_at"], end, arrival))
        return entries
