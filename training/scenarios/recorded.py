"""Scenarios of the shadow log: what an agent asked the service, its own answers, and the outcomes
it reported.

Read through the published tables by a role that may only read (`advisor_analyst`). Scenarios are
those of the record, byte for byte, so that features and prompts are the ones that were served. What
the log says of outcomes is kept beside the scenarios; labels come from bars alone, since rejected
candidates and other actions have no reported outcome.

Left out and counted: decisions whose outcome was marked as an exogenous skip (maintenance, an
outage: not a verdict on anything), those whose label would lie in the held-out period, and records
that this release cannot read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString

from app.domain.control import AgentAction
from app.domain.errors import InvalidRecord
from app.domain.outcome import Outcome
from app.domain.scenario import Scenario
from training.arrays import Progress, silent
from training.config.data import HELD_OUT_FROM, HELD_OUT_UNTIL, ScenariosConfig, instant
from training.log import CHUNK, Connection, reading
from training.scenarios.table import Found, ScenarioError, evenly, label_reach

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 1, 1, tzinfo=UTC)

_SKIPPED: LiteralString = (
    "EXISTS (SELECT FROM outcomes o WHERE o.decision_id = d.decision_id AND o.exogenous_skip)"
)
_PERIOD: LiteralString = (
    "d.as_of >= %(since)s AND d.as_of < %(until)s AND (d.symbol = ANY(%(symbols)s) OR %(symbols)s ="
    " '{}')"
)
_HELD_OUT: LiteralString = "d.as_of > %(held_from)s AND d.as_of < %(held_until)s"
_COUNTS: LiteralString = (
    "SELECT count(*) AS decisions, count(*) FILTER (WHERE "
    + _SKIPPED
    + ") AS exogenous_skip, count(*) FILTER (WHERE NOT "
    + _SKIPPED
    + " AND "
    + _HELD_OUT
    + ") AS held_out FROM decisions d WHERE "
    + _PERIOD
)
_STATE: LiteralString = """
SELECT (SELECT max(recorded_in_log_at) FROM decisions d
        WHERE d.as_of >= %(since)s AND d.as_of < %(until)s)::text AS decided,
       (SELECT count(*) FROM agent_actions) AS actions,
       (SELECT max(recorded_at) FROM agent_actions)::text AS acted,
       (SELECT count(*) FROM outcomes) AS outcomes,
       (SELECT max(recorded_at) FROM outcomes)::text AS ended
"""
_RECORDED: LiteralString = (
    """
SELECT d.decision_id, d.scenario,
       (SELECT c.record FROM agent_actions c WHERE c.decision_id = d.decision_id
        ORDER BY c.recorded_at DESC, c.event_key DESC LIMIT 1) AS control,
       (SELECT jsonb_agg(o.record ORDER BY o.recorded_at, o.event_key) FROM outcomes o
        WHERE o.decision_id = d.decision_id) AS outcomes
FROM decisions d
WHERE """
    + _PERIOD
    + " AND NOT ("
    + _HELD_OUT
    + ") AND NOT "
    + _SKIPPED
    + " ORDER BY d.as_of, d.symbol, d.decision_id"
)


def read_log(
    url: str, config: ScenariosConfig, label_seconds: int, progress: Progress = silent
) -> tuple[list[Found], dict[str, int]]:
    """Scenarios of the log in the configured period, and counts of what was left out, by reason.

    The log is streamed; in memory are the chosen scenarios alone, some kilobytes each: `limit`
    bounds them.

    Parameters
    ----------
    url : of Postgres; a role that may read suffices.
    label_seconds : length of the bars that will label them: how far a label reaches into the
        held-out period.

    Raises
    ------
    ShadowLogUnavailable : Postgres does not answer, is not migrated, or the role may not read.
    ScenarioError : the log has no decision that can be used.
    """
    period = _period(config, label_seconds)
    with reading(url) as connection:
        # One view of the log for both queries, however much is recorded meanwhile.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        counts = connection.execute(_COUNTS, period).fetchone() or {}
        usable = counts["decisions"] - counts["exogenous_skip"] - counts["held_out"]
        left_out = Counter({name: int(counts[name]) for name in ("exogenous_skip", "held_out")})
        if not usable:
            raise ScenarioError(
                f"the shadow log has no decision to learn from ({counts['decisions']} in the"
                f" period, {counts['exogenous_skip']} skipped for outages, {counts['held_out']} in"
                " the held-out period): let the agent ask the service first, or widen"
                " scenarios.since and until"
            )
        places = set(evenly(usable, config.limit).tolist())
        left_out["beyond_limit"] = usable - len(places)
        found = []
        for place, row in enumerate(_rows(connection, period)):
            if place in places:
                try:
                    found.append(_found(row))
                except InvalidRecord:
                    left_out["unreadable"] += 1
            if place % CHUNK == 0:
                progress(place, usable)
        progress(usable, usable)
    if not found:
        raise ScenarioError(
            f"none of {usable} decisions in the shadow log can be read: they are of another release"
        )
    return found, dict(left_out)


def log_state(url: str, config: ScenariosConfig, label_seconds: int) -> dict[str, Any]:
    """Counts and latest times of what `read_log` would read: the same state gives the same
    scenarios."""
    period = _period(config, label_seconds)
    with reading(url) as connection:
        counts = connection.execute(_COUNTS, period).fetchone() or {}
        return dict(counts) | dict(connection.execute(_STATE, period).fetchone() or {})


def _period(config: ScenariosConfig, label_seconds: int) -> dict[str, datetime | list[str]]:
    reach = label_reach(label_seconds)
    return {
        "since": datetime.fromtimestamp(instant(config.since), UTC) if config.since else FIRST,
        "until": datetime.fromtimestamp(instant(config.until), UTC) if config.until else LAST,
        "held_from": datetime.fromtimestamp(instant(HELD_OUT_FROM) - reach, UTC),
        "held_until": datetime.fromtimestamp(instant(HELD_OUT_UNTIL), UTC),
        "symbols": list(config.symbols),
    }


def _rows(
    connection: Connection, period: dict[str, datetime | list[str]]
) -> Iterator[dict[str, Any]]:
    with connection.cursor(name="scenarios") as cursor:
        cursor.itersize = CHUNK
        cursor.execute(_RECORDED, period)
        yield from cursor


def _found(row: dict[str, Any]) -> Found:
    outcomes: Sequence[Any] = row["outcomes"] or ()
    return Found(
        Scenario.from_json(row["scenario"]),
        None if row["control"] is None else AgentAction.from_json(row["control"]),
        str(row["decision_id"]),
        tuple(Outcome.from_json(each) for each in outcomes),
    )
