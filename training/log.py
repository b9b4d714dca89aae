"""What training reads from the shadow log, all its SQL: published tables and views, read-only.

Any role that was granted `advisor_reader` may read; the session refuses to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from app.domain.errors import ShadowLogUnavailable
from app.domain.record.outcome import Arm, Outcome
from app.domain.scenario import Scenario

CHUNK = 500
SESSION = (
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("search_path", '"$user", public'),
    ("standard_conforming_strings", "on"),
)
"""Of a reader; what server, database or role would have it inherit does not count."""
Connection = psycopg.Connection[dict[str, Any]]


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """A read-only session at a SQLAlchemy or libpq URL.

    Raises
    ------
    ShadowLogUnavailable : Postgres does not answer, is not migrated, or the role may not read.
    """
    if not url:
        raise ShadowLogUnavailable(
            "DATABASE_URL is not set: point it at Postgres, or run `advisor up` here"
        )
    try:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    except (ArgumentError, ValueError) as error:
        raise ShadowLogUnavailable(
            "DATABASE_URL cannot be read; write postgresql://user:password@host:5432/database"
        ) from error
    try:
        with psycopg.connect(
            plain,
            connect_timeout=5,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=20_000,
            application_name="advisor-train",
            row_factory=dict_row,
        ) as connection:
            for name, value in SESSION:
                connection.execute("SELECT set_config(%s, %s, false)", (name, value), prepare=False)
            connection.commit()
            connection.read_only = True
            yield connection
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise ShadowLogUnavailable(
            "the database lacks the schema of this release: run `advisor migrate`"
        ) from error
    except psycopg.Error as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ShadowLogUnavailable(
            f"Postgres: {lines[0]}; check DATABASE_URL and the server"
        ) from error


class Recalled(NamedTuple):
    """A decision of this run as the shadow log has it."""

    decision_id: str
    scenario: Scenario
    agent_trades: bool
    approve: bool | None
    """The primary version's advice; None when it abstained."""
    quantity: float
    stop: float | None
    model_version: str
    ended: dict[Arm, Outcome]
    """The newest outcome of each arm, of those that were reported."""


_RUN: LiteralString = """
SELECT d.decision_id, d.scenario, a.approve, a.quantity, a.stop, a.model_version,
       coalesce(c.decision, false) AS agent_trades,
       oa.record AS agent_ended, ov.record AS advice_ended
FROM whole_decisions d
JOIN advices a ON a.decision_id = d.decision_id AND a.as_of = d.as_of AND a.ordinal = 0
LEFT JOIN latest_actions c ON c.decision_id = d.decision_id
LEFT JOIN latest_outcomes oa ON oa.decision_id = d.decision_id AND oa.arm = 'agent'
LEFT JOIN latest_outcomes ov ON ov.decision_id = d.decision_id AND ov.arm = 'advice'
      AND ov.model_version = a.model_version
WHERE starts_with(d.request_id, %(prefix)s)
ORDER BY d.as_of, d.received_at, d.request_id
"""


def decisions_of_run(connection: Connection, run: str) -> list[Recalled]:
    """What the log has of a paper run, oldest first; those of one moment in the order in which they
    were judged."""
    rows = connection.execute(_RUN, {"prefix": f"{run}/"})
    return [_recalled(row) for row in rows]


def _recalled(row: dict[str, Any]) -> Recalled:
    ended = {Arm.AGENT: row["agent_ended"], Arm.ADVICE: row["advice_ended"]}
    return Recalled(
        str(row["decision_id"]),
        Scenario.from_json(row["scenario"]),
        row["agent_trades"],
        row["approve"],
        row["quantity"] or 0.0,
        row["stop"],
        row["model_version"],
        {arm: Outcome.from_json(record) for arm, record in ended.items() if record is not None},
    )


class Unresolved(NamedTuple):
    """An arm of a decision without an outcome."""

    decision_id: str
    as_of: datetime
    arm: Arm
    model_version: str | None
    approve: bool
    """What this arm answered; the agent's plan is followed in any case."""
    scenario: Scenario
    quantity: float | None
    stop: float | None
    """The advised order; None for the agent's arm, whose plan is in the scenario."""


_UNRESOLVED: LiteralString = """
SELECT d.decision_id, d.as_of, 'agent' AS arm, NULL AS model_version, c.decision AS approve,
       d.scenario, NULL::float8 AS quantity, NULL::float8 AS stop
FROM whole_decisions d
JOIN latest_actions c ON c.decision_id = d.decision_id
WHERE NOT EXISTS (
    SELECT FROM latest_outcomes o WHERE o.decision_id = d.decision_id AND o.arm = 'agent'
  )
  AND starts_with(d.request_id, %(prefix)s)
UNION ALL
SELECT d.decision_id, d.as_of, 'advice', a.model_version, a.approve, d.scenario, a.quantity, a.stop
FROM whole_decisions d
JOIN all_advices a ON a.decision_id = d.decision_id AND a.as_of = d.as_of
WHERE a.approve IS NOT NULL AND starts_with(d.request_id, %(prefix)s)
  AND NOT EXISTS (
    SELECT FROM latest_outcomes o WHERE o.decision_id = d.decision_id
    AND (o.exogenous_skip OR (o.arm = 'advice' AND o.model_version = a.model_version))
  )
"""
_UNRESOLVED_IN_ORDER: LiteralString = (
    _UNRESOLVED + "ORDER BY as_of, decision_id, arm, model_version"
)
_UNRESOLVED_SYMBOLS: LiteralString = (
    "SELECT scenario #>> '{candidate,symbol}' AS symbol, min(as_of) AS first FROM ("
    + _UNRESOLVED
    + ") waiting GROUP BY 1 ORDER BY 1"
)


def without_outcome(connection: Connection, prefix: str = "") -> Iterator[Sequence[Unresolved]]:
    """Arms without an outcome, oldest first, in chunks: the log may be larger than memory.

    The agent's arm needs a control on record; one that was skipped for an outage is no verdict, and
    neither arm of it is listed. `prefix` restricts it to request ids that begin so.
    """
    with connection.cursor(name="without_outcome") as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_UNRESOLVED_IN_ORDER, {"prefix": prefix})
        while rows := cursor.fetchmany(CHUNK):
            yield [_unresolved(row) for row in rows]


def symbols_without_outcome(connection: Connection, prefix: str = "") -> dict[str, datetime]:
    """Symbols of the arms without an outcome, with the time of their first decision."""
    rows = connection.execute(_UNRESOLVED_SYMBOLS, {"prefix": prefix})
    return {row["symbol"]: row["first"] for row in rows}


def _unresolved(row: dict[str, Any]) -> Unresolved:
    fields = row | {
        "decision_id": str(row["decision_id"]),
        "arm": Arm(row["arm"]),
        "scenario": Scenario.from_json(row["scenario"]),
    }
    return Unresolved(**fields)


_JUDGED: LiteralString = """
SELECT s.as_of, s.model_version, s.approve_probability, s.label_mass, s.status, s.agent_approve,
       s.advice_approve,
       s.agree, s.advice_r, s.agent_r, d.scenario
FROM shadow_comparison s
JOIN whole_decisions d ON d.decision_id = s.decision_id AND d.as_of = s.as_of
WHERE s.model_version = %(version)s AND s.as_of > %(begin)s AND s.as_of <= %(end)s
ORDER BY s.as_of, s.decision_id
"""


def judged_between(
    connection: Connection, version: str, begin: datetime, end: datetime
) -> Iterator[Sequence[dict[str, Any]]]:
    """Rows of `shadow_comparison` of one version with scenarios, as_of in (begin, end], oldest
    first, in chunks."""
    with connection.cursor(name="judged") as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_JUDGED, {"version": version, "begin": begin, "end": end})
        while rows := cursor.fetchmany(CHUNK):
            yield rows


class Period(NamedTuple):
    """Decisions with `since` <= as_of < `until` of some symbols (all, when none is named).

    Those with `held_from` < as_of < `held_until` are held out: a label of theirs would lie there.
    """

    since: datetime
    until: datetime
    held_from: datetime
    held_until: datetime
    symbols: list[str]


_IN_PERIOD: LiteralString = """
WITH in_period AS (
    SELECT d.*, d.as_of > %(held_from)s AND d.as_of < %(held_until)s AS held_out,
           EXISTS (
               SELECT FROM latest_outcomes o
               WHERE o.decision_id = d.decision_id AND o.exogenous_skip
           ) AS skipped
    FROM whole_decisions d
    WHERE d.as_of >= %(since)s AND d.as_of < %(until)s
      AND (d.symbol = ANY(%(symbols)s) OR %(symbols)s = '{}')
)
"""
_COUNTS: LiteralString = (
    _IN_PERIOD
    + """
SELECT count(*) AS decisions, count(*) FILTER (WHERE skipped) AS exogenous_skip,
       count(*) FILTER (WHERE NOT skipped AND held_out) AS held_out
FROM in_period
"""
)
_RECORDED: LiteralString = (
    _IN_PERIOD
    + """
SELECT d.decision_id, d.scenario, c.record AS control,
       (SELECT jsonb_agg(o.record ORDER BY o.recorded_at, o.event_key) FROM latest_outcomes o
        WHERE o.decision_id = d.decision_id) AS outcomes
FROM in_period d
LEFT JOIN latest_actions c ON c.decision_id = d.decision_id
WHERE NOT d.held_out AND NOT d.skipped
ORDER BY d.as_of, d.symbol, d.decision_id
"""
)
_IMPORTED: LiteralString = """
FROM imported_trades i
WHERE i.scenario IS NOT NULL AND i.as_of >= %(since)s AND i.as_of < %(until)s
  AND NOT (i.as_of > %(held_from)s AND i.as_of < %(held_until)s)
  AND (i.symbol = ANY(%(symbols)s) OR %(symbols)s = '{}')
"""
_IMPORTED_ROWS: LiteralString = (
    """
SELECT i.import_id AS decision_id, i.scenario, i.action AS control,
       CASE WHEN i.outcome_record IS NOT NULL THEN jsonb_build_array(i.outcome_record) END
       AS outcomes
"""
    + _IMPORTED
    + "ORDER BY i.as_of, i.symbol, i.import_id"
)
_IMPORTED_STATE: LiteralString = (
    "SELECT count(*) AS imported, max(i.recorded_in_log_at)::text AS imported_at" + _IMPORTED
)
_STATE: LiteralString = """
SELECT (SELECT max(recorded_in_log_at) FROM decisions d
        WHERE d.as_of >= %(since)s AND d.as_of < %(until)s)::text AS decided,
       (SELECT count(*) FROM agent_actions) AS actions,
       (SELECT max(recorded_at) FROM agent_actions)::text AS acted,
       (SELECT count(*) FROM outcomes) AS outcomes,
       (SELECT max(recorded_at) FROM outcomes)::text AS ended
"""


def counts_in(connection: Connection, period: Period) -> dict[str, int]:
    """How many `decisions` there are, and how many of them are no use: `exogenous_skip`, and of the
    others `held_out`."""
    return connection.execute(_COUNTS, period._asdict()).fetchone() or {}


def recorded_in(connection: Connection, period: Period) -> Iterator[dict[str, Any]]:
    """Usable decisions, oldest first: `decision_id`, `scenario`, the newest `control`, and the
    newest `outcomes` of each arm and version."""
    with connection.cursor(name="scenarios") as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_RECORDED, period._asdict())
        yield from cursor


def imported_in(connection: Connection, period: Period) -> Iterator[dict[str, Any]]:
    """Complete trades of other programs outside the held-out period, with the columns of
    `recorded_in`."""
    with connection.cursor(name="imported") as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_IMPORTED_ROWS, period._asdict())
        yield from cursor


def imported_state(connection: Connection, period: Period) -> dict[str, Any]:
    """How many `imported_in` gives, and when the newest was added."""
    return connection.execute(_IMPORTED_STATE, period._asdict()).fetchone() or {}


def state_of(connection: Connection, period: Period) -> dict[str, Any]:
    """Counts and times of the newest rows: where they are equal, nothing has been added."""
    return connection.execute(_STATE, period._asdict()).fetchone() or {}


class Served(NamedTuple):
    """A model version in the log."""

    model_version: str
    first: datetime
    last: datetime
    """Decision times of its first and last advice, but for those that say they are to come."""
    decisions: int
    created_at: datetime | None
    """By its manifest; None when it was never registered."""


_SERVED: LiteralString = """
SELECT a.model_version, min(a.as_of) AS first, max(a.as_of) AS last, count(*) AS decisions,
       max((m.manifest ->> 'created_at')::timestamptz) AS created_at
FROM all_advices a
LEFT JOIN model_versions m ON m.model_version = a.model_version
WHERE (%(version)s::text IS NULL OR a.model_version = %(version)s)
      AND a.as_of < coalesce(%(until)s::timestamptz, now() + interval '1 day')
GROUP BY a.model_version
ORDER BY max(a.as_of) DESC, min(a.ordinal), a.model_version
LIMIT 1
"""


def served(connection: Connection, version: str | None, until: datetime | None = None) -> Served:
    """A version, or the one that decided last; as it was before a moment.

    Raises
    ------
    ShadowLogUnavailable : the log has no advice (of that version, before that moment).
    """
    row = connection.execute(_SERVED, {"version": version, "until": until}).fetchone()
    if row is None:
        of_whom = f" of version {version}" if version else ""
        of_whom += f" before {until:%Y-%m-%d %H:%M} UTC" if until else ""
        raise ShadowLogUnavailable(
            f"the shadow log has no advice{of_whom}: let the agent ask the service first"
        )
    return Served(**row)


_PAIRED: LiteralString = """
SELECT extract(epoch FROM a.as_of)::bigint AS at,
       CASE WHEN a.advice_approve THEN a.advice_r WHEN NOT a.advice_approve THEN 0 END AS acting,
       CASE WHEN a.agent_approve THEN a.agent_r WHEN NOT a.agent_approve THEN 0 END AS agent,
       CASE WHEN b.advice_approve THEN b.advice_r WHEN NOT b.advice_approve THEN 0 END AS before
FROM shadow_comparison a
LEFT JOIN shadow_comparison b ON b.decision_id = a.decision_id AND b.as_of = a.as_of
     AND b.model_version = %(before)s
WHERE a.model_version = %(version)s AND a.received_at >= %(since)s
      AND a.as_of < now() + interval '1 day'
ORDER BY a.as_of, a.decision_id
"""


def paired(
    connection: Connection, version: str, before: str, since: datetime
) -> list[tuple[float | None, ...]]:
    """Of decisions that were asked for since then: time (s), net R of a version, of the agent alone
    and of the version before; None where it is not known. Who rejects earns 0. One that says it is
    of a day to come would make those of today look old: it is left out."""
    values = {"version": version, "before": before, "since": since}
    return [tuple(row.values()) for row in connection.execute(_PAIRED, values)]
