"""The use case: one request in, one durable decision out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import NamedTuple
from uuid import UUID

import structlog

from app.advising.controls import Controls
from app.advising.panel import Panel
from app.advising.records import Records
from app.advising.serving import Models, Serving
from app.domain.canonical import DEFAULT_PRINCIPAL, decision_id
from app.domain.model.prompt import Prompt
from app.domain.record.control import AgentAction
from app.domain.record.decision import (
    Abstention,
    Decision,
    Reading,
    conclude,
    prepare,
    review_control,
)
from app.domain.record.event import Event, EventKind, Rationale
from app.domain.record.settled import settled
from app.domain.scenario import Scenario
from app.policy.asking import reading_of
from app.telemetry import LossCause, Rough, Stage, Telemetry, timed

log = structlog.get_logger()
JOURNAL_RESERVE_S = 0.1
"""Kept back from the deadline to make the decision durable."""


class Incoming(NamedTuple):
    """A validated request. `claim` hashes its content; `deadline` is a `time.monotonic()` value."""

    request_id: str
    claim: str
    scenario: Scenario
    control: AgentAction | None
    received_at: datetime
    deadline: float
    traceparent: str | None = None
    rationale: bool = False
    principal: str = DEFAULT_PRINCIPAL

    @property
    def decision_id(self) -> UUID:
        """The id that its decision has."""
        return decision_id(self.request_id, self.principal)


class Answer(NamedTuple):
    """A recorded decision. `recorded` says where it is durable: stream, spool, or shadow_log for a
    repeat."""

    decision: Decision
    recorded: str
    repeated: bool
    rationale: str | None = None


class Advisor:
    """Pure halves around the model calls; durable before the reply."""

    def __init__(
        self,
        serving: Serving,
        records: Records,
        controls: Controls,
        telemetry: Telemetry,
        judge_at: Callable[[Scenario], datetime],
        panel: Panel,
    ) -> None:
        self._panel = panel
        self._serving = serving
        self._records = records
        self._controls = controls
        self._telemetry = telemetry
        self._judge_at = judge_at

    async def advise(self, incoming: Incoming) -> Answer:
        """Decide and record, or return what was decided before under this id.

        Raises
        ------
        RequestConflict : the id was used with other content.
        AnswerGone : the id was answered before, and the answer is not in the record any more.
        JournalUnavailable : the decision could not be made durable, or nobody can tell whether it
            was answered before, so there is no answer.
        """
        if self._records.recent_claim(incoming.decision_id) is not None:
            return await self._stored(incoming)
        with self._serving.using() as models:
            return await self._decide(incoming, models)

    async def decided_on(self, scenario: Scenario, principal: str, now: datetime) -> Scenario:
        """A principal's scenario with what it leaves open: of its account as the agent's own
        reports tell it, and its exits as its profile declares them."""
        scenario = await self._records.accounts.completed(scenario, principal, now)
        return scenario.declaring(self._controls.limits_of(principal).limits.exits)

    async def _decide(self, incoming: Incoming, models: Models) -> Answer:
        seconds: dict[str, float] = {}
        scenario = await self.decided_on(
            incoming.scenario, incoming.principal, incoming.received_at
        )
        incoming = incoming._replace(scenario=scenario)
        with timed(self._telemetry, Stage.PREPARE, seconds):
            prompt = prepare(incoming.scenario)
        deadline = incoming.deadline - JOURNAL_RESERVE_S
        asked = self._records.ask_earlier(incoming.decision_id, deadline - monotonic())
        with timed(self._telemetry, Stage.POLICY, seconds):
            readings = await _read(models, incoming.scenario, prompt, deadline)
        as_of = incoming.scenario.as_of
        if await self._records.earlier_claim(incoming.decision_id, as_of, asked) is not None:
            return await self._stored(incoming)
        with timed(self._telemetry, Stage.CONCLUDE, seconds):
            decision = self._conclude(incoming, models, prompt, readings, seconds)
        decision = await self._settled(incoming, models, decision, readings, seconds)
        with timed(self._telemetry, Stage.JOURNAL, {}):
            receipt = await self._records.keep(decision)
        if receipt.repeated:
            return await self._stored(incoming)
        self._telemetry.decided(decision)
        self._records.remember(decision)
        self._panel.offer(decision)
        return Answer(
            decision, receipt.target, False, await self._explain(incoming, models, decision)
        )

    async def _stored(self, incoming: Incoming) -> Answer:
        """The decision stored under this id. A repeat that reaches another replica is found by the
        journal's append."""
        decision = await self._records.answered(incoming.decision_id, incoming.claim)
        return Answer(decision, "shadow_log", repeated=True)

    def _conclude(
        self,
        incoming: Incoming,
        models: Models,
        prompt: Prompt,
        readings: list[Reading | Abstention],
        seconds: dict[str, float],
    ) -> Decision:
        scenario, state = incoming.scenario, self._controls.state
        in_force = self._controls.limits_of(incoming.principal)
        limits, limits_hash = in_force.limits, in_force.hash
        now = self._judge_at(scenario)
        advices = tuple(
            conclude(scenario, reading, version, limits, state=state, now=now)
            for version, reading in zip(models.versions, readings, strict=True)
        )
        return Decision.model_construct(
            decision_id=incoming.decision_id,
            request_id=incoming.request_id,
            principal=incoming.principal,
            request_hash=incoming.claim,
            received_at=incoming.received_at,
            evaluated_at=now,
            traceparent=incoming.traceparent,
            state=state,
            scenario=scenario,
            prompt=prompt,
            prompt_hash=prompt.hash,
            limits=limits,
            limits_hash=limits_hash,
            control=incoming.control,
            control_review=review_control(scenario, limits, state, now),
            advices=advices,
            stage_seconds=dict(seconds),
        )

    async def _settled(
        self,
        incoming: Incoming,
        models: Models,
        decision: Decision,
        readings: list[Reading | Abstention],
        seconds: dict[str, float],
    ) -> Decision:
        """The decision, once each advice that an exact reading might change has one."""
        for advice in decision.advices:
            if advice.reading is not None and advice.reading.within is not None:
                stands = settled(decision, advice)
                self._telemetry.rough(Rough.STOOD if stands else Rough.READ_AGAIN)
        while unsure := _unsettled(decision):
            first_s = seconds[Stage.POLICY.value]
            with timed(self._telemetry, Stage.POLICY, seconds):
                for turn in unsure:
                    readings[turn] = await reading_of(
                        models.policies[turn],
                        incoming.scenario,
                        decision.prompt,
                        incoming.deadline - JOURNAL_RESERVE_S,
                    )
            seconds[Stage.POLICY.value] += first_s
            decision = self._conclude(incoming, models, decision.prompt, readings, seconds)
        return decision

    async def _explain(self, incoming: Incoming, models: Models, decision: Decision) -> str | None:
        """A rationale, when asked for and in time. It comes after the decision is durable and never
        changes it."""
        proposal = decision.primary.proposal
        if not incoming.rationale or proposal is None:
            return None
        deadline = incoming.deadline - JOURNAL_RESERVE_S
        text = await models.primary.explain(
            decision.prompt, proposal.action, deadline, decision.scenario
        )
        if text is None or monotonic() > deadline:
            self._telemetry.lost(LossCause.LATE_RATIONALE)
            return None
        rationale = Rationale(
            decision_id=decision.decision_id,
            recorded_at=decision.received_at,
            model_version=decision.primary.model_version,
            text=text,
        )
        await self._records.append(Event.of_report(EventKind.RATIONALE, rationale))
        return text


async def _read(
    models: Models, scenario: Scenario, prompt: Prompt, deadline: float
) -> list[Reading | Abstention]:
    if not models.shadows:
        return [await reading_of(models.primary, scenario, prompt, deadline, rough=True)]
    return list(
        await asyncio.gather(
            *(
                reading_of(policy, scenario, prompt, deadline, rough=True)
                for policy in models.policies
            )
        )
    )


def _unsettled(decision: Decision) -> list[int]:
    """Places of the advices that an exact reading might change."""
    return [turn for turn, advice in enumerate(decision.advices) if not settled(decision, advice)]
