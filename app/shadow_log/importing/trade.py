"""What another program recorded of one trade, or of one that it did not make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from app.domain.candidate import Candidate
from app.domain.canonical import NAMESPACE, content_hash
from app.domain.errors import InvalidRecord
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Scenario


@dataclass(frozen=True)
class Told:
    """A row as its source tells it, as JSON-like parts of our own records. What is not known is
    absent or None."""

    symbol: str
    direction: str
    as_of: datetime
    action: dict[str, Any]
    outcome: dict[str, Any] | None = None
    candidate: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    market: dict[str, Any] = field(default_factory=dict)


class Source(NamedTuple):
    """Another program: the rows of a file of its own, and what one of them tells; None where that
    is no closed trade and no candidate."""

    name: str
    rows: Callable[[Path], Iterator[Any]]
    told: Callable[[Any], Told | None]


@dataclass(frozen=True)
class ImportedTrade:
    """A row of the table `imported_trades`. `scenario` is None where it lacks what `missing`
    names."""

    import_id: UUID
    symbol: str
    direction: str
    as_of: datetime
    action: AgentAction
    outcome: Outcome | None
    scenario: Scenario | None
    missing: tuple[str, ...]


NEEDED = {"candidate.atr": "bars", "plan.stop": "a stop", "plan.targets": "a target"}
"""What training cannot do without, and what a user can give."""


def imported(told: Told) -> ImportedTrade:
    """The record of a row. Its id follows from what it tells of the trade: the same trade, in
    another file or told again, is the same row.

    Raises `InvalidRecord`, which names the fields, where action or outcome cannot be read, a trade
    ends before it begins, or nobody can tell what was traded.
    """
    head = {"symbol": told.symbol, "direction": told.direction, "ts": told.as_of}
    Candidate.from_json(head)
    action = AgentAction.from_json(_present(told.action))
    outcome = None if told.outcome is None else Outcome.from_json(_present(told.outcome))
    if outcome is not None and outcome.exit_time is not None and outcome.exit_time < told.as_of:
        raise InvalidRecord(f"exit_time: {outcome.exit_time} lies before the entry, {told.as_of}")
    scenario, missing = _scenario(told)
    identity = {
        "symbol": told.symbol,
        "direction": told.direction,
        "as_of": told.as_of.isoformat(),
        "decision": action.decision,
        "entry": action.entry,
        "quantity": action.quantity,
    }
    import_id = uuid5(NAMESPACE, f"imported {content_hash(identity)}")
    return ImportedTrade(
        import_id, told.symbol, told.direction, told.as_of, action, outcome, scenario, missing
    )


def _scenario(told: Told) -> tuple[Scenario | None, tuple[str, ...]]:
    """The scenario, or what it lacks."""
    candidate = {
        "symbol": told.symbol,
        "direction": told.direction,
        "ts": told.as_of,
        **_present(told.candidate),
    }
    plan = _present(told.plan)
    parts = {"candidate": candidate, "plan": plan}
    missing = [
        name for name in NEEDED if not parts[name.partition(".")[0]].get(name.partition(".")[2])
    ]
    if missing:
        return None, tuple(missing)
    document = {"candidate": candidate, "plan": plan, "market": _present(told.market)}
    try:
        scenario = Scenario.from_json(document)
    except InvalidRecord as error:
        return None, (str(error).removeprefix("Scenario: ")[:300],)
    is_long = told.direction == "long"
    if is_long != (scenario.plan.stop < scenario.plan.entry):
        return None, (f"a stop on the losing side of a {told.direction}'s entry",)
    return scenario, ()


def _present(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}
