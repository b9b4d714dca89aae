"""From events to rows, and from rows back to the decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import Row as SqlRow
from sqlalchemy import Table

from app.domain.canonical import content_hash, digest
from app.domain.errors import InvalidRecord
from app.domain.fields import Record, utc
from app.domain.model.outlook import Outlook
from app.domain.record.comparison import regime
from app.domain.record.decision import Advice, Decision
from app.domain.record.event import (
    CORRECTABLE,
    AgentActionReport,
    Event,
    EventKind,
    LateAdvice,
    OutcomeReport,
    Rationale,
    Repetition,
    Report,
    StateChange,
)
from app.shadow_log.lean import (
    Lean,
    lean_report,
    whole_advice,
    whole_record,
    whole_report,
    whole_scenario,
)
from app.shadow_log.schema import tables

Row = dict[str, Any]
LARGEST = 2**63 - 1
"""Of the integers that are hashed as such."""
_OF_CANDIDATE = ("symbol", "session", "setup_type", "tier", "score")
SEPARATE = ("scenario", "advices")
"""Parts of a decision with a column, or rows, of their own."""


def decision_row(decision: Decision, lean: Lean, payload: bytes) -> Row:
    """One row of `decisions`: of a record, its JSON taken apart, and that as it was written. The
    columns follow from the record; `advisor verify` holds them against it."""
    candidate = decision.scenario.candidate
    return {
        **{name: getattr(candidate, name) for name in _OF_CANDIDATE},
        **_columns(tables.decisions, decision),
        "as_of": decision.scenario.as_of,
        "regime": regime(candidate).value,
        "status": decision.primary.status.value,
        "approve": decision.primary.approve,
        "control_veto_codes": [veto.code.value for veto in decision.control_review.vetoes],
        "prompt_version": decision.prompt.version,
        "limits_version": decision.limits.version,
        "scenario": lean.scenario,
        "record": lean.record,
        "record_hash": digest(payload),
        **lean.columns,
    }


def advice_rows(decision: Decision, lean: Lean) -> list[Row]:
    """One row of `advices` per model version, in the order of the record."""
    each = zip(decision.advices, lean.advices, lean.calibrations, strict=True)
    return [
        _advice_row(decision, ordinal, advice, written) | {"calibration": calibration}
        for ordinal, (advice, written, calibration) in enumerate(each)
    ]


def _advice_row(
    decision: Decision, ordinal: int, advice: Advice, written: Mapping[str, Any]
) -> Row:
    reading, proposal = advice.reading, advice.proposal
    return {
        **_columns(tables.advices, advice),
        "decision_id": decision.decision_id,
        "as_of": decision.scenario.as_of,
        "ordinal": ordinal,
        **_said(advice),
        "log_probabilities": list(reading.log_probabilities) if reading else None,
        "probabilities": list(proposal.probabilities) if proposal else None,
        "record": written,
        **{name: getattr(advice.outlook, name, None) for name in Outlook.model_fields},
    }


def _said(advice: Advice) -> Row:
    """What a version said, in the columns that every advice has."""
    proposal, review = advice.proposal, advice.review
    exchange = advice.reading.exchange if advice.reading else None
    mass = proposal.label_mass if proposal else None
    return {
        "label": proposal.label if proposal else None,
        "approve_probability": proposal.approve_probability if proposal else None,
        "label_mass": mass if exchange is None else exchange.label_mass,
        "veto_codes": [veto.code.value for veto in review.vetoes] if review else [],
    }


def control_row(decision: Decision) -> Row | None:
    """The control that came with the request, as a row of `agent_actions`."""
    if decision.control is None:
        return None
    return {
        "event_key": f"control:{decision.decision_id}",
        "decision_id": decision.decision_id,
        "recorded_at": decision.received_at,
        "reported_by": None,
        "arrival": None,
        **_columns(tables.agent_actions, decision.control),
        "targets": list(decision.control.targets) or None,
        "record": lean_report(tables.agent_actions, decision.control.as_json()),
    }


def report_row(event: Event, report: Report, document: Mapping[str, Any]) -> Row:
    """The row of a report; its JSON is stored as it was written."""
    row: Row = {"event_key": event.key}
    if isinstance(report, AgentActionReport):
        row |= _columns(tables.agent_actions, report, report.action)
        row["targets"] = list(report.action.targets) or None
        row["record"] = lean_report(tables.agent_actions, document["action"])
    elif isinstance(report, OutcomeReport):
        row |= _columns(tables.outcomes, report, report.outcome)
        row["record"] = lean_report(tables.outcomes, document["outcome"])
    elif isinstance(report, LateAdvice):
        row |= _columns(tables.late_advices, report, report.advice)
        row |= _said(report.advice) | _asked(report.advice)
        row["record"] = document["advice"]
    elif isinstance(report, Repetition):
        row |= _columns(tables.repetitions, report)
        first, again = report.proposals
        row |= {"label": first.label, "again_label": again.label, "flipped": report.flipped}
        row |= {"distance": report.distance, "record": document}
    else:
        row |= report.model_dump(mode="python")
    return row


def _asked(advice: Advice) -> Row:
    """What asking a model elsewhere took."""
    exchange = advice.reading.exchange if advice.reading else None
    return {
        "question": exchange.question if exchange else None,
        "seconds": exchange.seconds if exchange else None,
        "cost": exchange.cost if exchange else None,
    }


def _columns(table: Table, *records: Record) -> Row:
    """The fields of records that a table has columns for; enumerations are texts themselves."""
    row: Row = {}
    for record in records:
        names, values = _shared(table, type(record))
        row.update(zip(names, values(record), strict=True))
    return row


@cache
def _shared(
    table: Table, kind: type[Record]
) -> tuple[tuple[str, ...], Callable[[Record], tuple[Any, ...]]]:
    names = tuple(name for name in kind.model_fields if name in table.c)
    assert len(names) > 1  # Else `attrgetter` gives no tuple.
    return names, attrgetter(*names)


def assemble(
    decision: Mapping[str, Any], advices: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]
) -> Decision:
    """The decision of its rows; `advices` in order of `ordinal`, `shared` the parts that rows name
    by hash. Raises `InvalidRecord`."""
    record = whole_record(decision, shared)
    if surplus := [name for name in SEPARATE if name in record]:
        raise InvalidRecord(f"the record holds what is kept beside it: {', '.join(surplus)}")
    document = {
        **record,
        "scenario": whole_scenario(decision),
        "advices": [whole_advice(advice, shared) for advice in advices],
    }
    return Decision.from_json(document)


def plain(row: SqlRow[Any]) -> Row:
    """A row as a dictionary with ordinary strings for keys, which pydantic and orjson insist on."""
    return {str(name): value for name, value in row._mapping.items()}


def row_hash(row: Mapping[str, Any]) -> str:
    """The hash of a whole row of plain values, by the names of its columns."""
    return content_hash(
        {
            name: utc(value).isoformat()
            if isinstance(value, datetime)
            else as_written(value, LARGEST)
            for name, value in row.items()
        }
    )


def as_written(content: Any, largest: int) -> Any:
    """What JSONB gave back, with floats that it writes out as integers above `largest` as they
    came."""
    if isinstance(content, dict):
        return {name: as_written(value, largest) for name, value in content.items()}
    if isinstance(content, list):
        return [as_written(value, largest) for value in content]
    return float(content) if isinstance(content, int) and abs(content) > largest else content


def report_event(kind: EventKind, row: Mapping[str, Any]) -> Event:
    """The event that a row of a report came from. Raises `InvalidRecord`."""
    report = report_of(kind, row)
    if isinstance(report, StateChange):
        return Event.of_state_change(report)
    if isinstance(report, LateAdvice):
        return Event.of_late_advice(report)
    return Event.of_report(kind, report)


def report_of(kind: EventKind, row: Mapping[str, Any]) -> Report:
    """The report of a row. Raises `InvalidRecord`."""
    common = {"recorded_at": row["recorded_at"]}
    if kind is EventKind.STATE_CHANGE:
        names = ("state", "reason", "changed_by")
        return StateChange.from_json(common | {name: row[name] for name in names})
    if kind is EventKind.REPETITION:
        return Repetition.from_json(row["record"])
    common["decision_id"] = row["decision_id"]
    if kind is EventKind.LATE_ADVICE:
        return LateAdvice.from_json(common | {"as_of": row["as_of"], "advice": row["record"]})
    if kind in CORRECTABLE:
        common |= {name: row[name] for name in ("reported_by", "arrival")}
    if kind is EventKind.AGENT_ACTION:
        action = whole_report(tables.agent_actions, row)
        return AgentActionReport.from_json(common | {"action": action})
    if kind is EventKind.OUTCOME:
        return OutcomeReport.from_json(common | {"outcome": whole_report(tables.outcomes, row)})
    return Rationale.from_json(
        common | {"model_version": row["model_version"], "text": row["text"]}
    )
