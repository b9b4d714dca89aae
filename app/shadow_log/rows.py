"""From events to rows, and from rows back to the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row as SqlRow

from app.domain.canonical import digest
from app.domain.comparison import regime
from app.domain.control import AgentAction
from app.domain.decision import Advice, Decision
from app.domain.event import (
    AgentActionReport,
    Event,
    EventKind,
    OutcomeReport,
    Rationale,
    StateChange,
)

Row = dict[str, Any]
Report = AgentActionReport | OutcomeReport | Rationale | StateChange
SEPARATE = ("scenario", "advices")
"""Parts of a decision with a column, or rows, of their own."""


def decision_row(decision: Decision, payload: bytes) -> Row:
    """One row of `decisions`. The columns follow from the record; `advisor verify` holds them
    against it."""
    candidate, document = decision.scenario.candidate, decision.as_json()
    return {
        "decision_id": decision.decision_id,
        "as_of": decision.scenario.as_of,
        "request_id": decision.request_id,
        "received_at": decision.received_at,
        "evaluated_at": decision.evaluated_at,
        "symbol": candidate.symbol,
        "session": candidate.session.value,
        "setup_type": candidate.setup_type.value,
        "tier": candidate.tier.value if candidate.tier else None,
        "regime": regime(candidate).value,
        "score": candidate.score,
        "state": decision.state.value,
        "status": decision.primary.status.value,
        "approve": decision.primary.approve,
        "control_veto_codes": [veto.code.value for veto in decision.control_review.vetoes],
        "prompt_version": decision.prompt.version,
        "prompt_hash": decision.prompt_hash,
        "limits_version": decision.limits.version,
        "limits_hash": decision.limits_hash,
        "traceparent": decision.traceparent,
        "scenario": document["scenario"],
        "record": {key: value for key, value in document.items() if key not in SEPARATE},
        "record_hash": digest(payload),
    }


def advice_rows(decision: Decision) -> list[Row]:
    """One row of `advices` per model version, in the order of the record."""
    return [
        _advice_row(decision, ordinal, advice) for ordinal, advice in enumerate(decision.advices)
    ]


def _advice_row(decision: Decision, ordinal: int, advice: Advice) -> Row:
    proposal, review = advice.proposal, advice.review
    return {
        "decision_id": decision.decision_id,
        "as_of": decision.scenario.as_of,
        "ordinal": ordinal,
        "model_version": advice.model_version,
        "manifest_hash": advice.manifest_hash,
        "role": advice.role.value,
        "status": advice.status.value,
        "abstain_reason": advice.abstain_reason.value if advice.abstain_reason else None,
        "label": proposal.label if proposal else None,
        "approve_probability": proposal.approve_probability if proposal else None,
        "label_mass": proposal.label_mass if proposal else None,
        "veto_codes": [veto.code.value for veto in review.vetoes] if review else [],
        "approve": advice.approve,
        "action": advice.action,
        "quantity": advice.quantity,
        "stop": advice.stop,
        "record": advice.as_json(),
    }


def control_row(decision: Decision) -> Row | None:
    """The control that came with the request, as a row of `agent_actions`."""
    if decision.control is None:
        return None
    return _action_row(
        f"control:{decision.decision_id}",
        decision.decision_id,
        decision.received_at,
        decision.control,
    )


def report_row(event: Event, report: Report) -> Row:
    """The row of a report."""
    if isinstance(report, AgentActionReport):
        return _action_row(event.key, report.decision_id, report.recorded_at, report.action)
    if isinstance(report, OutcomeReport):
        outcome = report.outcome
        document = outcome.as_json()
        columns = (
            "arm",
            "model_version",
            "source",
            "outcome",
            "r_multiple",
            "net_pnl",
            "mae_r",
            "mfe_r",
        )
        return {
            "event_key": event.key,
            "decision_id": report.decision_id,
            "recorded_at": report.recorded_at,
            **{column: document[column] for column in columns},
            "exit_time": outcome.exit_time,
            "exogenous_skip": outcome.exogenous_skip,
            "record": document,
        }
    return {"event_key": event.key, **report.model_dump(mode="python")}


def _action_row(key: str, decision_id: Any, recorded_at: Any, action: AgentAction) -> Row:
    return {
        "event_key": key,
        "decision_id": decision_id,
        "recorded_at": recorded_at,
        "decision": action.decision,
        "llm_confidence": action.llm_confidence,
        "final_skip_reason": action.final_skip_reason,
        "size_usd": action.size_usd,
        "quantity": action.quantity,
        "record": action.as_json(),
    }


def assemble(decision: Mapping[str, Any], advices: Sequence[Mapping[str, Any]]) -> Decision:
    """The decision of its rows; `advices` in order of `ordinal`. Raises `InvalidRecord`."""
    document = {
        **decision["record"],
        "scenario": decision["scenario"],
        "advices": [a["record"] for a in advices],
    }
    return Decision.from_json(document)


def plain(row: SqlRow[Any]) -> Row:
    """A row as a dictionary with ordinary strings for keys, which pydantic and orjson insist on."""
    return {str(name): value for name, value in row._mapping.items()}


def report_event(kind: EventKind, row: Mapping[str, Any]) -> Event:
    """The event that a row of a report came from. Raises `InvalidRecord`."""
    report = report_of(kind, row)
    if isinstance(report, StateChange):
        return Event.of_state_change(report)
    return Event.of_report(kind, report)


def report_of(kind: EventKind, row: Mapping[str, Any]) -> Report:
    """The report of a row. Raises `InvalidRecord`."""
    common = {"recorded_at": row["recorded_at"]}
    if kind is EventKind.STATE_CHANGE:
        names = ("state", "reason", "changed_by")
        return StateChange.from_json(common | {name: row[name] for name in names})
    common["decision_id"] = row["decision_id"]
    if kind is EventKind.AGENT_ACTION:
        return AgentActionReport.from_json(common | {"action": row["record"]})
    if kind is EventKind.OUTCOME:
        return OutcomeReport.from_json(common | {"outcome": row["record"]})
    return Rationale.from_json(
        common | {"model_version": row["model_version"], "text": row["text"]}
    )
