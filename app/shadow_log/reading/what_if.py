"""Decisions of the record with what came of them, in order of time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, NamedTuple, Protocol, Self
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Uuid,
    and_,
    any_,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.errors import InvalidRecord, UnknownVersion
from app.domain.record.decision import Advice, Decision
from app.domain.record.outcome import OutcomeCode
from app.domain.what_if.judge import Judge
from app.domain.what_if.past import AGENT, Past, Said, Traded
from app.domain.what_if.tally import By, Tally
from app.shadow_log.database import connect, translated_errors
from app.shadow_log.rows import Row, assemble
from app.shadow_log.schema import tables
from app.shadow_log.stored import CHUNK, stored_chunks, within

Progress = Callable[[int, int], None]
AT_ONCE = 32
"""Decisions that a version reads now before more are fetched: progress is told between them."""


class Asked(NamedTuple):
    """Which decisions: `since` <= as_of < `until`; of the principal `of`, or of all but `without`,
    who have limits of their own."""

    since: datetime | None = None
    until: datetime | None = None
    of: str | None = None
    without: tuple[str, ...] = ()

    def condition(self) -> ColumnElement[bool]:
        """SQL over `decisions`."""
        principal = tables.decisions.c.principal
        whose = true() if self.of is None else principal == self.of
        if self.without:
            whose = and_(whose, or_(principal.is_(None), principal.not_in(self.without)))
        return and_(within(tables.decisions, self.since, self.until), whose)


_FATES = """
    SELECT s.decision_id, s.model_version, s.agent_approve, s.agent_r, s.advice_r,
           o.exit_time, o.net_pnl,
           CASE WHEN s.agent_approve AND o.source = 'reported'
               THEN c.quantity END AS agent_quantity{columns}
    FROM shadow_comparison s
    LEFT JOIN latest_outcomes o ON o.decision_id = s.decision_id AND o.arm = 'agent'
         AND NOT o.exogenous_skip
    LEFT JOIN latest_actions c ON c.decision_id = s.decision_id{joins}
    WHERE s.as_of BETWEEN :first AND :last AND s.decision_id = ANY (:ids)
"""
_TOLD = """,
           {name}.outcome AS {arm}_outcome, {name}.net_pnl AS {arm}_net,
           ({name}.record ->> 'exit_price')::float8 AS {arm}_exit,
           ({name}.record ->> 'fees')::float8 AS {arm}_fees,
           ({name}.record ->> 'slippage')::float8 AS {arm}_slippage"""
_OWN = """,
           s.advice_quantity, s.advice_stop,
           CASE WHEN s.agent_approve AND o.source = 'reported'
               THEN (c.record ->> 'stop')::float8 END AS agent_stop"""
FATES = text(_FATES.format(columns="", joins=""))
FATES_WITH_TRADES = text(
    _FATES.format(
        columns=_OWN + _TOLD.format(name="o", arm="agent") + _TOLD.format(name="v", arm="advice"),
        joins="""
    LEFT JOIN latest_outcomes v ON v.decision_id = s.decision_id AND v.arm = 'advice'
         AND v.model_version = s.model_version AND NOT v.exogenous_skip""",
    )
)


class Rereader(Protocol):
    """A version that reads recorded decisions now."""

    async def is_there(self) -> bool:
        """Whether there is such a version to read them."""
        ...

    async def said(self, decisions: Sequence[Decision]) -> list[Said | str]:
        """What it says of each, or why nothing."""
        ...


class Missing(NamedTuple):
    """Who reads what a version has not read, and at most how many, evenly over the span."""

    reader: Rereader
    most: int


async def tallied(
    url: str,
    judge: Judge,
    asked: Asked,
    progress: Progress = lambda done, total: None,
    by: By = By.SYMBOL,
    missing: Missing | None = None,
) -> Tally:
    """What `judge` makes of the decisions that are asked for. Raises as `pasts`."""
    tally = Tally(by)
    trades = judge.version is not None or judge.costs is not None
    async for past in pasts(url, asked, progress, judge.version, missing, trades=trades):
        for judged in judge.arms(past):
            tally.add(judged)
    return tally


async def pasts(
    url: str,
    asked: Asked,
    progress: Progress = lambda done, total: None,
    version: str | None = None,
    missing: Missing | None = None,
    *,
    trades: bool = False,
) -> AsyncIterator[Past]:
    """The decisions that are asked for, oldest first; with what `version` says of each, and with
    the trades of each where they are asked for.

    Raises
    ------
    ShadowLogUnavailable
    UnknownVersion : nobody ever heard of `version`.
    InvalidRecord : a row is no decision; `advisor verify` says what is wrong with it.
    """
    engine = connect(url, patience_s=None)
    try:
        with translated_errors():
            async with engine.connect() as connection:
                await connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                wanted = asked.condition()
                counted = select(func.count()).select_from(tables.decisions).where(wanted)
                total, done = await connection.scalar(counted) or 0, 0
                others = None
                if version is not None:
                    others = await _Others.of(connection, version, wanted, missing)
                async for chunk, advices, shared in stored_chunks(connection, wanted):
                    fates = await _fates(connection, chunk, trades)
                    found = [_past(row, advices, shared, fates, trades) for row in chunk]
                    size = CHUNK if missing is None else AT_ONCE
                    for begin in range(0, len(found), size):
                        told = found[begin : begin + size]
                        if others is not None:
                            told = await others.added(connection, told)
                        for past in told:
                            done += 1
                            progress(done, total)
                            yield past
    finally:
        await engine.dispose()


class _Others:
    """What one version says of decisions that do not name it among their own advices."""

    def __init__(self, version: str, unread: int, missing: Missing | None) -> None:
        self._version = version
        self._unread = unread
        self._missing = missing
        self._seen = 0

    @classmethod
    async def of(
        cls,
        connection: AsyncConnection,
        version: str,
        wanted: ColumnElement[bool],
        missing: Missing | None,
    ) -> Self:
        """Raises `UnknownVersion`."""
        d, own, late = tables.decisions.c, tables.advices, tables.late_advices
        read = [
            exists().where(
                table.c.decision_id == d.decision_id,
                table.c.as_of == d.as_of,
                table.c.model_version == version,
            )
            for table in (own, late)
        ]
        count = select(func.count()).select_from(tables.decisions).where(wanted)
        unread = await connection.scalar(count.where(*(~each for each in read))) or 0
        if unread and unread == await connection.scalar(count):
            known = select(tables.model_versions.c.model_version)
            names = list(await connection.scalars(known))
            reads = missing is not None and await missing.reader.is_there()
            if version not in names and not reads:
                near = get_close_matches(version, names, 1)
                hint = f": did you mean {near[0]}?" if near else ""
                raise UnknownVersion(f"nobody ever heard of a version {version!r}{hint}")
        return cls(version, unread, missing)

    async def added(self, connection: AsyncConnection, found: list[Past]) -> list[Past]:
        """The decisions with what the version said later, or says now, or why that is not known."""
        without = [
            past.decision
            for past in found
            if all(advice.model_version != self._version for advice in past.decision.advices)
        ]
        said = await self._late(connection, without) if without else {}
        unread = [each for each in without if each.decision_id not in said]
        now = [each for each in unread if self._next()]
        if now and self._missing is not None:
            answers = await self._missing.reader.said(now)
            said |= {each.decision_id: it for each, it in zip(now, answers, strict=True)}
        for each in unread:
            said.setdefault(each.decision_id, f"{self._version} has not read it")
        return [past._replace(other=said.get(past.decision.decision_id)) for past in found]

    def _next(self) -> bool:
        """Whether the next unread decision is one of those that are read, evenly over all."""
        if self._missing is None or not self._unread:
            return False
        most, before = min(self._missing.most, self._unread), self._seen
        self._seen += 1
        return before * most // self._unread < self._seen * most // self._unread

    async def _late(
        self, connection: AsyncConnection, decisions: Sequence[Decision]
    ) -> dict[UUID, Said | str]:
        late = tables.late_advices
        rows = await connection.execute(
            select(late.c.decision_id, late.c.record).where(
                late.c.decision_id
                == any_(literal([d.decision_id for d in decisions], ARRAY(Uuid))),
                late.c.model_version == self._version,
            )
        )
        said: dict[UUID, Said | str] = {}
        for row in rows:
            advice = Advice.from_json(row.record)
            said[row.decision_id] = f"{self._version} abstained"
            if advice.reading is not None:
                said[row.decision_id] = Said(advice.version, advice.reading, advice)
        return said


async def _fates(
    connection: AsyncConnection, chunk: list[Row], trades: bool
) -> dict[Any, list[Any]]:
    span = {"first": chunk[0]["as_of"], "last": chunk[-1]["as_of"]}
    ids = [row["decision_id"] for row in chunk]
    fates: dict[Any, list[Any]] = {}
    query = FATES_WITH_TRADES if trades else FATES
    for fate in await connection.execute(query, span | {"ids": ids}):
        fates.setdefault(fate.decision_id, []).append(fate)
    return fates


def _past(
    row: Row,
    advices: Mapping[Any, list[Row]],
    shared: Row,
    fates: Mapping[Any, list[Any]],
    trades: bool,
) -> Past:
    own = advices[row["decision_id"]]
    if not own:
        raise InvalidRecord(f"{row['decision_id']} has no advices")
    told = fates[row["decision_id"]]
    try:
        decision = assemble(row, own, shared)
    except InvalidRecord as error:
        raise InvalidRecord(f"decision {row['decision_id']} cannot be read: {error}") from error
    return Past(
        decision,
        told[0].agent_approve,
        told[0].agent_r,
        {fate.model_version: fate.advice_r for fate in told},
        told[0].exit_time,
        told[0].net_pnl,
        _trades(decision, told) if trades else {},
        agent_quantity=told[0].agent_quantity,
    )


def _trades(decision: Decision, fates: list[Any]) -> dict[str, Traded]:
    """What was told of the trades of both arms. Where the agent did not trade, or did not say what,
    its plan was followed."""
    plan = decision.scenario.plan
    ended = {
        fate.model_version: Traded(
            fate.advice_quantity,
            fate.advice_stop,
            fate.advice_net,
            fate.advice_exit,
            fate.advice_fees,
            fate.advice_slippage,
            _bought(fate.advice_outcome, fate.advice_net),
        )
        for fate in fates
    }
    first = fates[0]
    ended[AGENT] = Traded(
        first.agent_quantity or plan.quantity,
        first.agent_stop or plan.stop,
        first.agent_net,
        first.agent_exit,
        first.agent_fees,
        first.agent_slippage,
        _bought(first.agent_outcome, first.agent_net),
    )
    return ended


def _bought(outcome: str | None, net_pnl: float | None) -> bool:
    """Whether there was a trade, as far as the report tells."""
    return outcome != OutcomeCode.NOT_TRADED or bool(net_pnl)
