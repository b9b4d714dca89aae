"""Holds what agents were told against what is in Postgres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.canonical import decision_id
from app.domain.record.decision import Decision
from app.domain.record.event import EventKind
from app.domain.record.link import Fate
from app.schemas import response
from app.shadow_log.log import ShadowLog
from app.shadow_log.rows import assemble, plain
from app.shadow_log.schema import tables
from tests.chaos.load import Load, Told
from tests.chaos.stack import Stack
from tests.service.running import until

COUNTED_S = 20.0
"""Within which a loss has to be counted: an API tells every five seconds how far it came; a writer
waits six for what may lie in a spool."""
_NOT_COMPARED = {"repeated", "recorded", "rationale", "other"}
Document = dict[str, Any]


@dataclass
class Judgement:
    """Totals of a life so far, and whatever contradicts a promise."""

    answered: int = 0
    """Events that were answered as recorded: decisions and reports."""
    lost: int = 0
    """Of these, the ones that Postgres does not have."""
    missing: int = 0
    """What the service itself counts as lost."""
    doubtful: int = 0
    """Requests of which nobody was told whether they took effect."""
    marks: int = 0
    """Replies that found an id known: each may have been a number, but no event."""
    second: int = 0
    """Second answers under one id, kept beside the first."""
    forgotten: int = 0
    """Requests accepted with 202 and never decided."""
    unlinked: int = 0
    """Numbers of accepted requests that may be lost beside: the request's own where it was decided,
    or else that of a decision which nobody was told."""
    violations: list[str] = field(default_factory=list)

    @property
    def uncounted(self) -> int:
        """Answered events, and accepted requests, that are lost unseen."""
        return max(self.lost + self.forgotten - self.missing, 0)

    @property
    def overcounted(self) -> int:
        """What is counted as lost although nobody can have been promised it."""
        unseen = self.unlinked + self.doubtful + self.marks
        return max(self.missing - self.lost - self.forgotten - unseen, 0)


@dataclass
class _Stored:
    """What the log holds under one id."""

    decisions: list[Document] = field(default_factory=list)
    aside: list[Document] = field(default_factory=list)
    actions: list[bool] = field(default_factory=list)
    outcomes: list[float] = field(default_factory=list)
    accepted: bool = False
    """Whether the link of an accepted request is there."""


async def judge(stack: Stack, load: Load) -> Judgement:
    """Everything that was answered is stored once, as it was answered, or counted as missing."""
    judgement = Judgement(doubtful=load.unanswered, marks=load.marks)
    judgement.violations += load.violations
    async with stack.shadow_log() as log:
        async with log.engine.connect() as connection:
            stored = await _stored(connection)
        for key, told in load.told.items():
            _judge_one(judgement, key, told, stored.get(str(decision_id(key)), _Stored()))
        with suppress(TimeoutError):  # Then it is not counted.
            await until(lambda: _counted(judgement, log), COUNTED_S)
    return judgement


async def _missing(log: ShadowLog) -> int:
    """What the log itself says, as the writers ask it."""
    return await log.missing_events(await log.heads()) + await log.forgotten()


async def _counted(judgement: Judgement, log: ShadowLog) -> bool:
    judgement.missing = await _missing(log)
    return judgement.uncounted == 0 and not await log.undecided()


def _judge_one(judgement: Judgement, key: str, told: Told, stored: _Stored) -> None:
    if len(stored.decisions) > 1:
        judgement.violations.append(f"{key} is stored {len(stored.decisions)} times")
    kept = [*stored.decisions, *stored.aside]
    judgement.second += len(stored.aside)
    if told.accepted:
        judgement.forgotten += not kept
        judgement.unlinked += not kept or not stored.accepted
    fresh = [_plain(answer) for answer in told.answers if not answer["repeated"]]
    unmatched = list(kept)
    for given in fresh:
        judgement.answered += 1
        if given in unmatched:  # Each event is one record, also where two answers are alike.
            unmatched.remove(given)
        else:
            judgement.lost += 1
    for answer in told.answers:
        # An answer that is lost may have been repeated before it was.
        if answer["repeated"] and kept and _plain(answer) not in [*kept, *fresh]:
            judgement.violations.append(f"{key} was repeated otherwise than answered or stored")
    _judge_reports(judgement, key, told.actions, stored.actions)
    _judge_reports(judgement, key, told.outcomes, stored.outcomes)


def _judge_reports(
    judgement: Judgement, key: str, reported: Sequence[object], found: Sequence[object]
) -> None:
    judgement.answered += len(reported)
    judgement.lost += len(set(reported) - set(found))
    if len(found) > len(set(found)):
        judgement.violations.append(f"{key}: one report is stored twice")


def _plain(answer: Mapping[str, Any]) -> Document:
    return {name: value for name, value in answer.items() if name not in _NOT_COMPARED}


async def _stored(connection: AsyncConnection) -> dict[str, _Stored]:
    """Everything in the log, by decision id."""
    stored: defaultdict[str, _Stored] = defaultdict(_Stored)
    advices: defaultdict[UUID, list[Mapping[str, Any]]] = defaultdict(list)
    for row in await connection.execute(select(tables.advices).order_by(tables.advices.c.ordinal)):
        advices[row.decision_id].append(plain(row))
    kept = await connection.execute(select(tables.shared_parts))
    shared = {row.hash: row.content for row in kept}
    for row in await connection.execute(select(tables.decisions)):
        decision = assemble(plain(row), advices[row.decision_id], shared)
        stored[str(row.decision_id)].decisions.append(_answer_of(decision))
    actions, outcomes, asides = tables.agent_actions.c, tables.outcomes.c, tables.put_aside.c
    for row in await connection.execute(select(actions.decision_id, actions.decision)):
        stored[str(row.decision_id)].actions.append(row.decision)
    for row in await connection.execute(select(outcomes.decision_id, outcomes.r_multiple)):
        stored[str(row.decision_id)].outcomes.append(row.r_multiple)
    links = tables.event_links.c
    for row in await connection.execute(select(links.key).where(links.fate == Fate.ACCEPTED)):
        stored[row.key].accepted = True
    decisions = select(asides.key, asides.payload).where(asides.kind == EventKind.DECISION)
    for row in await connection.execute(decisions):
        decision = Decision.from_json(orjson.loads(row.payload))
        stored[row.key].aside.append(_answer_of(decision))
    return dict(stored)


def _answer_of(decision: Decision) -> Document:
    """What whoever asked was answered, through JSON as it was."""
    return _plain(orjson.loads(orjson.dumps(response(decision, repeated=False, recorded=""))))
