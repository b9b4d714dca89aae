"""Scenarios of the shadow log: what an agent asked the service, its own answers, and the outcomes
it reported.

Read through the published tables by a role that may only read (`advisor_reader`). Scenarios are
those of the record, byte for byte, so that features and prompts are the ones that were served. What
the log says of outcomes is kept beside the scenarios; labels come from bars alone, since rejected
candidates and other actions have no reported outcome.

Left out and counted: decisions whose newest outcome is marked as an exogenous skip (maintenance, an
outage: not a verdict on anything), those whose label would lie in the held-out period, and records
that this release cannot read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord
from app.domain.exits import Exits
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Scenario
from training.arrays import HELD_OUT_FROM, HELD_OUT_UNTIL, Progress, instant, silent
from training.config.data import ScenariosConfig
from training.log import (
    CHUNK,
    Connection,
    Period,
    counts_in,
    imported_in,
    imported_state,
    reading,
    recorded_in,
    state_of,
)
from training.scenarios.table import (
    RealScenario,
    ScenarioError,
    build_scenarios,
    label_reach,
    reach_of,
)
from training.stages.declared import stage
from training.stages.store import Facts

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 1, 1, tzinfo=UTC)


class RecordedLog(NamedTuple):
    """The shadow log as it is now: `state` has counts and latest times of what `read_log` would
    read."""

    url: str
    state: Mapping[str, Any]

    @classmethod
    def now(cls, url: str, config: ScenariosConfig, label_seconds: int) -> Self:
        """Ask it."""
        return cls(url, log_state(url, config, label_seconds))

    def hash(self) -> str:
        """The same state gives the same scenarios, wherever the log is."""
        return content_hash(dict(self.state))


@stage("scenarios")
def of_log(
    folder: Path,
    log: RecordedLog,
    *,
    settings: ScenariosConfig,
    label_seconds: int,
    progress: Progress = silent,
) -> Facts:
    """What an agent asked the service. `label_seconds` is the length of the bars that will label
    it."""
    scenarios, left_out = read_log(log.url, settings, label_seconds, progress)
    return build_scenarios(folder, scenarios, settings, left_out, label_seconds, progress)


def read_log(
    url: str, config: ScenariosConfig, label_seconds: int, progress: Progress = silent
) -> tuple[list[RealScenario], dict[str, int]]:
    """Scenarios of the log in the configured period, and counts of what was left out, by reason.

    The log is streamed; in memory are its scenarios, some ten kilobytes each: the period bounds
    them.

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
        counts = counts_in(connection, period)
        usable = counts["decisions"] - counts["exogenous_skip"] - counts["held_out"]
        if config.imported:
            usable += imported_state(connection, period)["imported"]
        left_out = Counter({name: int(counts[name]) for name in ("exogenous_skip", "held_out")})
        if not usable:
            raise ScenarioError(
                f"the shadow log has no decision to learn from ({counts['decisions']} in the"
                f" period, {counts['exogenous_skip']} skipped for outages, {counts['held_out']} in"
                " the held-out period): let the agent ask the service first, or widen"
                " scenarios.since and until"
            )
        scenarios = []
        for place, row in enumerate(_rows(connection, period, config)):
            if place % CHUNK == 0:
                progress(place, usable)
            kept = _kept(row, config.exits, label_seconds, left_out)
            if kept is not None:
                scenarios.append(kept)
        progress(usable, usable)
    if not scenarios:
        raise ScenarioError(
            f"none of {usable} decisions in the shadow log can be read: they are of another release"
        )
    scenarios.sort(key=lambda one: one.scenario.as_of)  # Stable: of one moment as they were read.
    return scenarios, dict(left_out)


def _rows(
    connection: Connection, period: Period, config: ScenariosConfig
) -> Iterator[dict[str, Any]]:
    """Usable decisions, and the imported trades that shall train too."""
    yield from recorded_in(connection, period)
    if config.imported:
        yield from imported_in(connection, period)


def log_state(url: str, config: ScenariosConfig, label_seconds: int) -> dict[str, Any]:
    """Counts and latest times of what `read_log` would read: the same state gives the same
    scenarios."""
    period = _period(config, label_seconds)
    with reading(url) as connection:
        state = counts_in(connection, period) | state_of(connection, period)
        return state | (imported_state(connection, period) if config.imported else {})


def _period(config: ScenariosConfig, label_seconds: int) -> Period:
    reach = label_reach(label_seconds)
    return Period(
        since=datetime.fromtimestamp(instant(config.since), UTC) if config.since else FIRST,
        until=datetime.fromtimestamp(instant(config.until), UTC) if config.until else LAST,
        held_from=datetime.fromtimestamp(instant(HELD_OUT_FROM) - reach, UTC),
        held_until=datetime.fromtimestamp(instant(HELD_OUT_UNTIL), UTC),
        symbols=list(config.symbols),
    )


def _kept(
    row: dict[str, Any], exits: Exits | None, label_seconds: int, left_out: Counter[str]
) -> RealScenario | None:
    """The scenario of a row; None where it cannot be used, which is counted."""
    try:
        read = _read(row, exits)
    except InvalidRecord:
        left_out["unreadable"] += 1
        return None
    if _is_held_out(read.scenario, label_seconds):
        left_out["held_out"] += 1
        return None
    return read


def _is_held_out(scenario: Scenario, label_seconds: int) -> bool:
    """Whether its label would reach into the held-out period: exits may last longer than those
    that the period was asked for with."""
    reach = reach_of(scenario, label_seconds)
    begins, ends = instant(HELD_OUT_FROM), instant(HELD_OUT_UNTIL)
    return begins - reach < scenario.second < ends


def _read(row: dict[str, Any], exits: Exits | None) -> RealScenario:
    outcomes: Sequence[Any] = row["outcomes"] or ()
    return RealScenario(
        Scenario.from_json(row["scenario"]).declaring(exits),
        None if row["control"] is None else AgentAction.from_json(row["control"]),
        str(row["decision_id"]),
        tuple(Outcome.from_json(record) for record in outcomes),
    )
