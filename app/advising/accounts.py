"""Accounts as agents' own reports have them: what is told of trades goes into the ledger, and what
a request leaves open of its account comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from app.domain.canonical import DEFAULT_PRINCIPAL
from app.domain.errors import InvalidRecord
from app.domain.record.control import AgentAction
from app.domain.record.decision import Decision
from app.domain.record.ledger import (
    OPEN_FOR,
    Offer,
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
        except InvalidRecord:
            return scenario
        usable = {name for name in Account.model_fields if not scenario.lost(f"account.{name}")}
        account = completed(sent, (notes or {}).values(), scenario.as_of, now, usable)
        if account is sent:
            return scenario
        return scenario.model_copy(update={"account": account})

    async def acted(self, decision_id: UUID, trader: Trader, action: AgentAction) -> None:
        """An agent told its action: a trade, or none."""
        if self._live and not trader.replayed:
            now = self._now()
            trade = opened(action, trader.offer, trader.happened(now))
            await self._journal.note(Entry(trader.principal, str(decision_id), now, trade))

    async def ended(self, decision_id: UUID, trader: Trader, outcome: Outcome) -> None:
        """An agent told how its own trade ended. What was simulated is no report of it."""
        own = outcome.arm is Arm.AGENT and outcome.source is OutcomeSource.REPORTED
        if not own or not self._live or trader.replayed:
            return
        now = self._now()
        try:
            notes = await self._journal.ledger_of(trader.principal) or {}
        except InvalidRecord:
            notes = {}
        note = notes.get(str(decision_id))
        trade = None if note is None else note.opened
        at = trader.happened(now)
        trade = trade or opened(AgentAction(decision=True), trader.offer, at)
        end = closed(outcome, trade, at)
        await self._journal.note(Entry(trader.principal, str(decision_id), now, end))

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
                entries.append(Entry(whose, known, row["acted_at"], trade))
            if row["outcome"] is not None:
                at = trader.happened(row["ended_at"])
                made = trade or opened(AgentAction(decision=True), offer, at)
                end = closed(Outcome.from_json(row["outcome"]), made, at)
                entries.append(Entry(whose, known, row["ended_at"], end))
        return entries
