"""What came in, made usable: what cannot be used of it is left out, told and counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from app.domain.candidate import Candidate
from app.domain.fields import keeping_unknown
from app.domain.intake.reception import Doubt, Received, receive
from app.domain.intake.units import doubts
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import LeftOut
from app.processes.metrics import Metrics
from app.schemas import (
    ACTION_NEEDS,
    ADVISE_NEEDS,
    ADVISE_ONE,
    AGENT_ACTION,
    OUTCOME,
    OUTCOME_NEEDS,
    AdviseRequest,
    bar_doubts,
)
from app.telemetry import Part

Report = TypeVar("Report", AgentAction, Outcome)
_PARTS = {part.value: part for part in Part}


def candidate_of(body: bytes) -> AdviseRequest:
    """A candidate of a body. Raises `ValidationError`, which names every field at fault."""
    try:
        request = ADVISE_ONE.validate_json(body)
    except ValidationError as error:
        return candidate_in(_parsed(body, error))
    return candidate_in(from_json(body)) if _doubts(request) else request


def candidate_in(document: Any) -> AdviseRequest:
    """A candidate of a document that is read already. Raises as `candidate_of`."""
    if isinstance(document, dict) and "candidate" in document:
        candidate = keeping_unknown(Candidate, document["candidate"])
        document = document | {"candidate": candidate}
    received = receive(ADVISE_ONE, document, ADVISE_NEEDS, _doubts)
    return received.record.received(received.left_out, received.coerced)


def action_of(body: bytes) -> Received[AgentAction]:
    """A control of a body. Raises as `candidate_of`."""
    try:
        return Received(AGENT_ACTION.validate_json(body))
    except ValidationError as error:
        return receive(AGENT_ACTION, _parsed(body, error), ACTION_NEEDS)


def outcome_of(body: bytes) -> Received[Outcome]:
    """An outcome of a body. Raises as `candidate_of`."""
    try:
        return Received(OUTCOME.validate_json(body))
    except ValidationError as error:
        return receive(OUTCOME, _parsed(body, error), OUTCOME_NEEDS)


def _doubts(request: AdviseRequest) -> list[Doubt]:
    """What of a request seems to be something else."""
    return [*bar_doubts(request), *doubts(request)]


def _parsed(body: bytes, error: ValidationError) -> Any:
    """The document of a body that was refused as it is. Raises the error again where it is none."""
    try:
        document = from_json(body)
    except ValueError:
        raise error from None
    if not isinstance(document, dict):
        raise error
    return document


def count_left_out(metrics: Metrics, gone: Sequence[LeftOut], part: Part | None = None) -> None:
    """Count what was left out: of a request by the part that its path begins with."""
    for each in gone:
        first = re.split(r"[.\[]", each.field, maxsplit=1)[0]
        metrics.left_out(part or _PARTS.get(first, Part.REQUEST), each.fault)
