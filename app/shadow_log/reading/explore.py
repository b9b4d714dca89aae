"""What people ask of the record, page by page: decisions that match, what each day brought, what
was refused and what that saved, and the decisions that are most like another one.

Every question is bounded: by a page, by a span of time or by a number of rows, and by the time-out
of the session. R is net profit over the risk of the agent's plan (views of the log).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import Table, Text, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.candidate import Candidate
from app.shadow_log.comparisons import source
from app.shadow_log.database import translated_errors
from app.shadow_log.rows import Row, plain
from app.shadow_log.schema import tables

LOOKED_THROUGH = 5_000
"""So many decisions are searched for words at a time; the next page goes on from there."""
LOOKED_AT = 100_000
"""So many rows are held against the other filters at a time: whatever is rare in millions of
decisions, a page of it is answered in less than a second."""
MOST_LIKE_AMONG = 2_000
"""So many earlier decisions of a symbol are looked through for the nearest ones."""
TINY, VAST = 1e-60, 1e60
"""Numbers outside are 0 or unknown where decisions are held beside each other: Postgres raises
where a square is beyond what it holds, either way."""
DAY = timedelta(days=1)
EARNED = """
    CASE WHEN agent_approve THEN agent_r WHEN NOT agent_approve THEN 0 END AS agent_earned_r,
    CASE WHEN advice_approve THEN advice_r WHEN NOT advice_approve THEN 0 END AS advice_earned_r
"""
"""Who rejects earns 0 R; who abstains has no opinion. As in the view `disagreements`."""

_TEXTS = ", ".join(
    f"d.{column.name}"
    for column in tables.decisions.c
    if isinstance(column.type, Text) and (column.name in Candidate.model_fields)
)
_WITH_WORDS = (
    "(strpos(lower(s.request_id), lower(:words)) > 0 OR EXISTS (SELECT FROM decisions d"
    " WHERE d.decision_id = s.decision_id AND d.as_of = s.as_of"
    f" AND (strpos(lower(concat_ws(chr(10), {_TEXTS}){{by}}), lower(:words{{by}})) > 0"
    " OR strpos(lower(d.scenario::text{by}), lower(:as_json{by})) > 0)))"
)
"""Texts of a scenario are columns; the rest, and all of rows of before, is JSON."""
_LETTERS = "pg_c_utf8"
"""Collation of Postgres 17 and later that knows capitals beyond ASCII, whatever the database's."""


class Place(NamedTuple):
    """A place in the list of decisions, which runs from the newest to the oldest."""

    as_of: datetime
    decision_id: UUID


@dataclass(frozen=True)
class Filters:
    """Which decisions are asked for. `version` is None for whatever was the primary."""

    symbol: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    version: str | None = None
    status: str | None = None
    veto: str | None = None
    outcome: str | None = None
    disagree: bool = False
    words: str | None = None
    """Part of the request id, or of any text of the scenario."""

    def times(self) -> tuple[list[str], dict[str, Any]]:
        """SQL over what has a column `as_of`, and its values."""
        wanted = [("as_of >= :since", "since", self.since), ("as_of < :until", "until", self.until)]
        return _given(wanted)

    def conditions(self) -> tuple[list[str], dict[str, Any]]:
        """SQL over `comparisons s`, and its values; without those of time."""
        wanted: list[tuple[str, str, Any]] = [
            ("s.symbol = :symbol", "symbol", self.symbol),
            ("s.model_version = :version", "version", self.version),
            ("s.status = :status", "status", self.status),
            (":veto = ANY (s.veto_codes || s.control_veto_codes)", "veto", self.veto),
            (":outcome IN (s.agent_outcome, s.advice_outcome)", "outcome", self.outcome),
        ]
        conditions, values = _given(wanted)
        if self.version is None:
            conditions.append("s.role = 'primary'")
        if self.disagree:
            conditions.append("NOT s.agree")
        return conditions, values


def _given(wanted: list[tuple[str, str, Any]]) -> tuple[list[str], dict[str, Any]]:
    given = [(sql, name, value) for sql, name, value in wanted if value is not None]
    return [sql for sql, _, _ in given], {name: value for _, name, value in given}


def _in_json(words: str) -> str:
    """Words as they stand in a text of JSON."""
    return orjson.dumps(words).decode()[1:-1]


def _all(conditions: list[str]) -> str:
    return " AND ".join(conditions) or "true"


def _summed(days: Table) -> str:
    """SQL of what is added up within a span: whole days as they are kept, and before and behind
    them what comparisons say. `_parts` has its values."""
    kept = ", ".join(column.name for column in days.c if column.name != "slot")
    return (
        f"SELECT {kept} FROM {days.name} WHERE day >= :first AND day < :last"
        f" UNION ALL SELECT {kept} FROM {source(days)} WHERE as_of >= :since AND as_of < :begin"
        f" UNION ALL SELECT {kept} FROM {source(days)} WHERE as_of >= :end AND as_of < :until"
    )


def _parts(since: datetime, until: datetime) -> dict[str, datetime | date]:
    """The whole UTC days of a span, `first` to before `last`, which begin at `begin` and end at
    `end`; without one everything lies before `begin`."""
    begin = min(_midnight_from(since.astimezone(UTC)), until.astimezone(UTC))
    last = until.astimezone(UTC).date()
    return {
        "since": since,
        "until": until,
        "first": begin.date(),
        "last": last,
        "begin": begin,
        "end": max(_midnight(last), begin),
    }


def _midnight_from(moment: datetime) -> datetime:
    """The first midnight at a moment in UTC or after it; the calendar's end behind its last one."""
    before = _midnight(moment.date())
    if moment == before:
        return before
    return before + DAY if before < _midnight(date.max) else datetime.max.replace(tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


class Page(NamedTuple):
    """Decisions from the newest to the oldest, and where the next page begins; None at the end. A
    page of what is rare may hold few, or none, and not be the last."""

    rows: list[Row]
    following: Place | None


class Explorer:
    """Questions to the log. Every method raises `ShadowLogUnavailable` in an outage, or when the
    answer takes longer than the session allows."""

    def __init__(
        self,
        engine: AsyncEngine,
        looked_through: int = LOOKED_THROUGH,
        looked_at: int = LOOKED_AT,
    ) -> None:
        self._engine = engine
        self._looked, self._looked_at = looked_through, looked_at

    async def page(self, filters: Filters, after: Place | None, size: int) -> Page:
        """The `size` newest decisions that match, from the place `after` on."""
        conditions, values = filters.conditions()
        within, times = filters.times()
        values |= times
        if after is not None:
            within.append("(as_of, decision_id) < (:after_time, :after_id)")
            values |= {"after_time": after.as_of, "after_id": after.decision_id}
        end = None
        if filters.words:
            end = await self._place("decisions", within, values, filters.symbol, self._looked)
            conditions.append(_WITH_WORDS.format(by=await self._letters()))
            values |= {"words": filters.words, "as_json": _in_json(filters.words)}
        if end is not None:
            within.append("(as_of, decision_id) >= (:end_time, :end_id)")
            values |= {"end_time": end.as_of, "end_id": end.decision_id}
        rows = await self._ask(
            f"""
            SELECT s.*, {EARNED}
            FROM (SELECT * FROM comparisons WHERE {_all(within)}
                  ORDER BY as_of DESC, decision_id DESC
                  FETCH FIRST {self._looked_at} ROWS WITH TIES) s
            WHERE {_all(conditions)} ORDER BY s.as_of DESC, s.decision_id DESC LIMIT :size
            """,
            values | {"size": size + 1},
        )
        if len(rows) > size:
            last = rows[size - 1]
            return Page(rows[:size], Place(last["as_of"], last["decision_id"]))
        reached = await self._place("comparisons", within, values, None, self._looked_at)
        return Page(rows, reached or end)

    async def _place(
        self, table: str, within: list[str], values: dict[str, Any], symbol: str | None, far: int
    ) -> Place | None:
        """Where the first `far` rows of a table end, the newest first; None where it has fewer."""
        of_symbol = ["symbol = :symbol"] if symbol is not None else []
        found = await self._ask(
            f"SELECT as_of, decision_id FROM {table} WHERE {_all([*within, *of_symbol])}"
            f" ORDER BY as_of DESC, decision_id DESC OFFSET {far - 1} LIMIT 1",
            values | {"symbol": symbol},
        )
        return Place(found[0]["as_of"], found[0]["decision_id"]) if found else None

    async def _letters(self) -> str:
        """SQL that makes `lower` know every letter; empty where the server has no such collation.
        That of the database alone then says which letters have small ones."""
        known = await self._ask(
            "SELECT FROM pg_collation WHERE collname = :name", {"name": _LETTERS}
        )
        return f' COLLATE "{_LETTERS}"' if known else ""

    async def asked_as(self, request_id: str) -> list[Row]:
        """Ids of the decisions that were asked for under this id, whoever asked; two at most."""
        return await self._ask(
            "SELECT decision_id FROM decisions WHERE request_id = :request_id LIMIT 2",
            {"request_id": request_id},
        )

    async def span(self) -> tuple[datetime, datetime] | None:
        """Times of the oldest and the newest decision that are stored; None when there is none. One
        that says it is of a day to come is the newest only where there is no other."""
        [row] = await self._ask(
            """
            SELECT (SELECT min(as_of) FROM decisions) AS oldest, coalesce(
                (SELECT max(as_of) FROM decisions WHERE as_of < now() + interval '1 day'),
                (SELECT max(as_of) FROM decisions)
            ) AS newest
            """
        )
        return None if row["oldest"] is None else (row["oldest"], row["newest"])

    async def days(self, since: datetime, until: datetime) -> list[Row]:
        """By UTC day, version and role: decisions, agreement, approvals, and what both arms earned
        in the decisions where both are known."""
        told = tables.summed(tables.advice_days)
        sums = ", ".join(f"sum({name})::{kind} AS {name}" for name, kind in told.items())
        return await self._ask(
            f"""
            SELECT day, model_version, role, {sums}
            FROM ({_summed(tables.advice_days)}) added
            GROUP BY day, model_version, role HAVING sum(decisions) > 0
            ORDER BY day, model_version, role
            """,
            _parts(since, until),
        )

    async def vetoes(self, since: datetime, until: datetime) -> list[Row]:
        """By veto code: how often the rules refuse the agent's own order, and the R that this
        saved (minus what its plan earned). As the view `veto_value`, within a span of time."""
        return await self._ask(
            f"""
            SELECT code, sum(refused)::bigint AS refused, sum(with_outcome)::bigint AS judged,
                   CASE WHEN sum(with_outcome) > 0 THEN -sum(r)::float8 END AS r_saved,
                   sum(losers)::bigint AS losers_avoided, sum(winners)::bigint AS winners_missed
            FROM ({_summed(tables.veto_days)}) added
            GROUP BY code HAVING sum(refused) > 0
            ORDER BY refused DESC, code
            """,
            _parts(since, until),
        )

    async def agreement_of_versions(self, since: datetime, until: datetime) -> list[Row]:
        """Each pair of versions that answered the same decisions: how often, and how often with
        the same approval."""
        return await self._ask(
            f"""
            SELECT one, other, sum(decisions)::bigint AS decisions,
                   sum(agreements)::bigint AS agreements
            FROM ({_summed(tables.pair_days)}) added
            GROUP BY one, other HAVING sum(decisions) > 0
            ORDER BY decisions DESC, one, other
            """,
            _parts(since, until),
        )

    async def chances(self, since: datetime, until: datetime) -> list[Row]:
        """By version, by what was told (`approve`: of approving, `win`: of a profit) and by fifth
        of the scale: the mean chance, and the share of the agent's plans that won."""
        return await self._ask(
            f"""
            SELECT model_version, what, fifth, sum(decisions)::bigint AS decisions,
                   (sum(told) / sum(decisions))::float8 AS told,
                   (sum(won) / sum(decisions))::float8 AS won
            FROM ({_summed(tables.chance_days)}) added
            GROUP BY model_version, what, fifth HAVING sum(decisions) > 0
            ORDER BY model_version, what, fifth
            """,
            _parts(since, until),
        )

    async def choices(self) -> dict[str, list[str]]:
        """What the newest decisions offer to filter by: symbols, versions, outcomes, vetoes."""
        [row] = await self._ask(
            """
            WITH newest AS (SELECT * FROM comparisons ORDER BY as_of DESC LIMIT 5000)
            SELECT ARRAY(SELECT DISTINCT symbol FROM newest ORDER BY 1) AS symbols,
                   ARRAY(SELECT DISTINCT model_version FROM newest WHERE ordinal >= 0 ORDER BY 1)
                       AS versions,
                   ARRAY(SELECT DISTINCT outcome
                         FROM newest, unnest(ARRAY[agent_outcome, advice_outcome]) AS outcome
                         WHERE outcome IS NOT NULL ORDER BY 1) AS outcomes,
                   ARRAY(SELECT DISTINCT code
                         FROM newest, unnest(control_veto_codes || veto_codes) AS code
                         ORDER BY 1) AS vetoes
            """
        )
        return row

    async def comparison(self, decision_id: UUID, as_of: datetime) -> list[Row]:
        """One decision as `comparisons` has it: a row per version, the primary first."""
        return await self._ask(
            f"SELECT s.*, {EARNED} FROM comparisons s"
            " WHERE s.decision_id = :id AND s.as_of = :as_of"
            " ORDER BY (s.role = 'primary') DESC, s.model_version",
            {"id": decision_id, "as_of": as_of},
        )

    async def links(self, decision_id: UUID) -> list[Row]:
        """The links of a decision and of what was reported on it, in order of arrival."""
        return await self._ask(
            """
            SELECT l.kind, l.producer, l.seq, l.fate, l.payload FROM event_links l
            WHERE l.key IN (
                SELECT :key
                UNION ALL SELECT event_key FROM agent_actions WHERE decision_id = :id
                UNION ALL SELECT event_key FROM outcomes WHERE decision_id = :id
                UNION ALL SELECT event_key FROM rationales WHERE decision_id = :id
            )
            ORDER BY l.id
            LIMIT 200
            """,
            {"id": decision_id, "key": str(decision_id)},
        )

    async def alike(
        self, decision_id: UUID, as_of: datetime, numbers: Mapping[str, float], size: int
    ) -> list[Row]:
        """Earlier decisions of the same symbol whose candidates lie nearest in `numbers` (fields
        of the candidate), each over its own deviation; what is unknown or never varies counts as
        equal. Rows as of `page`, and `distance`."""
        here = {
            name: number if abs(number) >= TINY else 0.0
            for name, number in sorted(numbers.items())
            if abs(number) <= VAST
        }
        if not here:
            return []
        names = list(here)
        columns = ", ".join(f"{_number(name, i)} AS n{i}" for i, name in enumerate(names))
        apart = " + ".join(
            f"coalesce(((n{i} - :here{i}) / (SELECT nullif(stddev_pop(n{i}), 0) FROM earlier)) ^ 2,"
            " 0)"
            for i in range(len(names))
        )
        values: dict[str, Any] = {"id": decision_id, "as_of": as_of, "size": size}
        values |= {f"name{i}": name for i, name in enumerate(names)}
        values |= {f"here{i}": here[name] for i, name in enumerate(names)}
        return await self._ask(
            f"""
            WITH earlier AS (
                SELECT d.decision_id, d.as_of, {columns}
                FROM decisions d
                WHERE d.as_of < :as_of
                  AND d.symbol = (SELECT symbol FROM decisions
                                  WHERE decision_id = :id AND as_of = :as_of)
                ORDER BY d.as_of DESC
                LIMIT {MOST_LIKE_AMONG}
            ), nearest AS (
                SELECT decision_id, as_of, sqrt({apart}) AS distance FROM earlier
                ORDER BY distance, as_of DESC
                LIMIT :size
            )
            SELECT s.*, {EARNED}, n.distance FROM nearest n
            JOIN comparisons s ON s.decision_id = n.decision_id AND s.as_of = n.as_of
            WHERE s.role = 'primary'
            ORDER BY n.distance, n.as_of DESC
            """,
            values,
        )

    async def _ask(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        with translated_errors():
            async with self._engine.connect() as connection:
                return [plain(row) for row in await connection.execute(text(sql), values or {})]


def _number(name: str, place: int) -> str:
    """A number of a candidate: in its column, or in JSON, where rows of before have all of them;
    none that Postgres cannot square."""
    in_json = f"(d.scenario #>> ARRAY['candidate', :name{place}])::float8"
    in_column = name in tables.decisions.c and name in Candidate.model_fields
    number = f"coalesce(d.{name}, {in_json})" if in_column else in_json
    size = f"abs({number})"
    return f"CASE WHEN {size} < {TINY:g} THEN 0 WHEN {size} <= {VAST:g} THEN {number} END"
