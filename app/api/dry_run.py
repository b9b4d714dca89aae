"""What would become of a request: it is read and judged by the rules, and nothing remains of it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi import Request
from pydantic import ValidationError
from starlette.types import Scope

from app.advising.service import Service
from app.api.fields import derived_fields, field_reports, refused_fields, unusual_fields
from app.api.wire import candidate_documents, read_candidate
from app.domain.errors import AdvisorError, InvalidRecord
from app.domain.record.decision import control_case, review_control
from app.domain.rules.review import missed_inputs
from app.schemas import AdviseRequest, DryRun, FieldReport, Verdict

PARAMETER: dict[str, Any] = {
    "name": "dry_run",
    "in": "query",
    "required": False,
    "schema": {"type": "boolean", "default": False},
    "description": "tell what would become of the request: nothing is recorded, no id is taken",
}
_SAID = {"true": True, "1": True, "false": False, "0": False}


def asks_for_dry_run(scope: Scope) -> bool | None:
    """Whether a request asks for a dry run; None when that cannot be told."""
    query: bytes = scope["query_string"]
    if not query:
        return False
    said = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("dry_run", ["false"])
    return _SAID.get(said[0].lower()) if len(said) == 1 else None


def is_dry_run(request: Request) -> bool:
    """Whether a request asks for a dry run. Raises `InvalidRecord` when that cannot be told:
    whoever means one shall not be recorded."""
    asked = asks_for_dry_run(request.scope)
    if asked is None:
        raise InvalidRecord("dry_run: it is neither true nor false")
    return asked


async def dry_run(request: Request, principal: str) -> list[dict[str, Any]] | dict[str, Any]:
    """The report on one candidate, or on each of a list."""
    documents, many = await candidate_documents(request)
    reports = [await _report(request, document, principal) for document in documents]
    told = [report.model_dump(mode="json") for report in reports]
    return told if many else told[0]


async def _report(request: Request, document: Any, principal: str) -> DryRun:
    service: Service = request.app.state.service
    body: AdviseRequest | None = None
    try:
        body = read_candidate(request, document)
        service.require_not_ahead(body)
    except ValidationError as error:
        return _refused(document, refused_fields(error))
    except AdvisorError as error:
        field, _, why = str(error).partition(": ")
        fault = FieldReport(field=field, verdict=Verdict.REFUSED, why=why)
        return _refused(document, [fault, *(unusual_fields(body) if body else ())])
    return await _judged(service, document, body, principal)


def _refused(document: Any, faults: list[FieldReport]) -> DryRun:
    fields = field_reports(document, faults)
    return DryRun(acceptable=False, fields=fields, missed_inputs=[], control_vetoes=None)


async def _judged(service: Service, document: Any, body: AdviseRequest, principal: str) -> DryRun:
    """By the limits, the state and the clock in force, with the account as it would be derived."""
    scenario = await service.advisor.decided_on(body.scenario(), principal, service.now())
    limits, state = service.controls.limits_of(principal).limits, service.controls.state
    now = service.judge_at(scenario)
    verdict = review_control(scenario, limits, state, now)
    return DryRun(
        acceptable=True,
        fields=field_reports(document, [*unusual_fields(body), *derived_fields(scenario.account)]),
        missed_inputs=list(missed_inputs(control_case(scenario, limits, state, now), limits)),
        control_vetoes=list(verdict.vetoes),
    )
