"""Routes of the agent and of those who watch. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from time import monotonic, perf_counter
from typing import Any, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from app.advising.advise import Answer, Incoming
from app.advising.door import Ticket
from app.advising.records import unknown_decision
from app.advising.service import Service
from app.api.access import allowed, caller_of
from app.api.admission import is_asynchronous, ticket_of
from app.api.connection import ARRIVED
from app.api.dry_run import PARAMETER, dry_run, is_dry_run
from app.api.receiving import count_left_out
from app.api.wire import (
    Json,
    answered,
    body_schema,
    header_parameters,
    parse_action,
    parse_candidates,
    parse_outcome,
    problem_document,
    problems,
    read_headers,
)
from app.domain.errors import (
    AbstainReason,
    AdvisorError,
    AnswerGone,
    DamagedRecord,
    InvalidRecord,
    JournalUnavailable,
    Overloaded,
    RequestConflict,
    RequestLost,
    ShadowLogUnavailable,
    TooManyReports,
    UndecidedYet,
    UnknownDecision,
)
from app.domain.intake.reception import Coerced
from app.domain.principal import Principal, Role
from app.domain.record.event import EventKind
from app.domain.scenario import LeftOut
from app.journal.journal import Receipt
from app.processes.channel import Unanswered
from app.processes.metrics import Metrics
from app.processes.siblings import Alone
from app.schemas import (
    ADVISE_BODY,
    AGENT_ACTION,
    OUTCOME,
    Accepted,
    AdviseHeaders,
    AdviseRequest,
    AdviseResponse,
    DryRun,
    Pending,
    accepted,
    response,
)
from app.telemetry import Part, Stage, timed

PROBLEMS = problems(
    DamagedRecord,
    InvalidRecord,
    RequestConflict,
    UnknownDecision,
    JournalUnavailable,
    ShadowLogUnavailable,
)
DECISION = {
    operation.partition("_decision")[0]: {
        "operationId": operation,
        "parameters": {"id": "$response.body#/decision_id"},
    }
    for operation in (
        "get_decision_decisions__id__get",
        "put_agent_action_decisions__id__agent_action_put",
        "put_outcome_decisions__id__outcome_put",
    )
}
"""OpenAPI links: what can be done with a decision."""
router = APIRouter()


@router.post(
    "/advise",
    openapi_extra={**body_schema(ADVISE_BODY), "parameters": [PARAMETER, *header_parameters()]},
    responses={
        200: {"model": AdviseResponse | DryRun, "links": DECISION},
        202: {"model": Pending, "links": DECISION},
        **PROBLEMS,
        **problems(AnswerGone, Overloaded),
    },
    summary="Advise on one candidate, or on a list of them",
)
async def advise(request: Request) -> Response:
    caller = allowed(request, Role.AGENT)
    if is_dry_run(request):
        return Json(await dry_run(request, caller.name))
    service: Service = request.app.state.service
    begin = perf_counter()
    seconds: dict[str, float] = {}
    with timed(service.telemetry, Stage.VALIDATE, seconds):
        headers = read_headers(request)
        bodies, many = await parse_candidates(request)
        asked = [_asked(request, caller, body, headers, many) for body in bodies]
        sound = [one for one in asked if isinstance(one, Asked)]
    asynchronous = is_asynchronous(headers.prefer or "")
    if asynchronous:
        answers = await _accept(service, sound)
    else:
        answers = await _answer(service, ticket_of(request), sound)
    service.telemetry.stage_took(Stage.TOTAL, perf_counter() - begin)
    status = 202 if asynchronous else 200
    if many:
        return Json(_elements(asked, answers), status)
    [answer] = answers
    if isinstance(answer, AdvisorError):
        raise answer
    return Json(answer, status)


class Straight:
    """ASGI middleware, the innermost: `POST /advise` goes straight to its function, past the router
    and FastAPI's own steps, which take as long as all of our layers. The route above describes
    it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", "/advise"):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            answer = await advise(request)
        except Exception as error:
            answer = await answered(request, error)
        await answer(scope, receive, send)


class Asked(NamedTuple):
    """One candidate that shall be advised on."""

    incoming: Incoming
    body: AdviseRequest


Answered = dict[str, Any] | AdvisorError


def _asked(
    request: Request,
    caller: Principal,
    body: AdviseRequest | dict[str, Any],
    headers: AdviseHeaders,
    many: bool,
) -> Asked | dict[str, Any]:
    """A candidate; of a list also what is wrong with an element, which is its own problem."""
    if isinstance(body, dict):
        return body
    try:
        key = None if many else headers.idempotency_key
        incoming = incoming_of(request, caller, body, key, headers)
    except AdvisorError as error:
        if not many:
            raise
        return problem_document(error)
    return Asked(incoming, body)


def _elements(
    asked: Sequence[Asked | dict[str, Any]], answers: Sequence[Answered]
) -> list[dict[str, Any]]:
    """The answer to each element of a list, or its problem, in its place."""
    left = iter(answers)
    return [{"problem": one} if isinstance(one, dict) else _element(next(left)) for one in asked]


def _element(answer: Answered) -> dict[str, Any]:
    if isinstance(answer, AdvisorError):
        return {"problem": problem_document(answer)}
    return {"decision": answer}


def incoming_of(
    request: Request,
    caller: Principal,
    body: AdviseRequest,
    key: str | None,
    headers: AdviseHeaders,
) -> Incoming:
    """What the use case takes. Raises `InvalidRecord`."""
    service: Service = request.app.state.service
    if key is not None:
        if "request_id" in body.model_fields_set and body.request_id != key:
            raise InvalidRecord(
                "request_id differs from the header Idempotency-Key: send one of them"
            )
        body = body.model_copy(update={"request_id": key})
    deadline_ms = request.app.state.options.deadline_ms
    wait = (headers.x_deadline_ms or body.deadline_ms or deadline_ms) / 1000
    return Incoming(
        body.request_id,
        body.claim(),
        body.scenario(),
        body.agent_action,
        service.now(),
        request.scope["state"].get(ARRIVED, monotonic()) + wait,
        headers.traceparent,
        body.rationale,
        caller.name,
    )


async def _answer(service: Service, ticket: Ticket, asked: Sequence[Asked]) -> list[Answered]:
    """The decisions; of a list all are let in, or none. Raises `Overloaded`."""
    if asked:
        deadline = min(incoming.deadline for incoming, _ in asked)
        service.door.widen(ticket, len(asked), deadline)
    answers = await _advise_all(service, asked)
    ticket.answered = bool(asked) and not any(
        isinstance(answer, AdvisorError) or came_without_reading(answer) or one.incoming.rationale
        for one, answer in zip(asked, answers, strict=True)
    )
    return [
        respond(each, one.body.coerced) if isinstance(each, Answer) else each
        for one, each in zip(asked, answers, strict=True)
    ]


async def _advise_all(service: Service, asked: Sequence[Asked]) -> list[Answer | AdvisorError]:
    """Together; one by itself without a task of its own."""
    if len(asked) == 1:
        return [await _advise(service, asked[0].incoming)]
    return await asyncio.gather(*(_advise(service, incoming) for incoming, _ in asked))


async def _advise(service: Service, incoming: Incoming) -> Answer | AdvisorError:
    try:
        return await service.advise(incoming)
    except AdvisorError as error:
        return error


def came_without_reading(answer: Answer) -> bool:
    """Whether an answer tells nothing of how long a decision takes."""
    return answer.repeated or answer.decision.primary.abstain_reason is AbstainReason.OVERLOADED


def respond(answer: Answer, coerced: Sequence[Coerced] = ()) -> dict[str, Any]:
    """The wire form of an answer."""
    return response(
        answer.decision,
        repeated=answer.repeated,
        recorded=answer.recorded,
        rationale=answer.rationale,
        coerced=coerced,
    )


async def _accept(service: Service, asked: Sequence[Asked]) -> list[Answered]:
    """Where the decisions will be; of a list all are accepted, but for ids that other content has,
    or none. Raises `Overloaded`."""
    conflicts = await service.accept(asked)
    return [
        conflict or _pending(one.incoming.decision_id)
        for one, conflict in zip(asked, conflicts, strict=True)
    ]


def _pending(known: UUID) -> dict[str, Any]:
    return {"decision_id": str(known), "status": "pending", "location": f"/decisions/{known}"}


def _reporter(request: Request, decision: UUID) -> str:
    """Who reports. Another's decision is as unknown as one that is not there."""
    caller = allowed(request, Role.AGENT, Role.REPORTER)
    if not caller.may_report_on(decision):
        raise unknown_decision(decision)
    return caller.name


async def _on_a_decision(
    service: Service, decision: UUID, reporting: Coroutine[Any, Any, Receipt]
) -> Receipt:
    """A report's receipt. Raises `UndecidedYet` where the decision is accepted and to come: what is
    told of it would be compared with nothing; and `RequestLost` where it never comes."""
    try:
        return await reporting
    except UnknownDecision:
        await service.document(decision)
    raise UndecidedYet(f"decision {decision} is accepted and not decided yet: report again")


def _reported(
    service: Service,
    decision: UUID,
    kind: EventKind,
    receipt: Receipt,
    left_out: Sequence[LeftOut],
    coerced: Sequence[Coerced],
) -> Response:
    """The answer to a report, which counts unless it repeats another."""
    if not receipt.repeated:
        service.report_bounds.count(decision, kind)
    return Json(accepted(decision, receipt.target, receipt.repeated, left_out, coerced), 202)


@router.put(
    "/decisions/{id}/agent-action",
    status_code=202,
    openapi_extra=body_schema(AGENT_ACTION),
    responses={
        202: {"model": Accepted},
        **PROBLEMS,
        **problems(RequestLost, TooManyReports, UndecidedYet),
    },
    summary="Report what the agent did",
)
async def put_agent_action(id: UUID, request: Request) -> Response:
    by = _reporter(request, id)
    service: Service = request.app.state.service
    received = await parse_action(request)
    action, left_out, coerced = await service.taken(id, EventKind.AGENT_ACTION, received, by)
    count_left_out(request.app.state.metrics, left_out, Part.AGENT_ACTION)
    receipt = await _on_a_decision(service, id, service.records.report_action(id, action, by))
    return _reported(service, id, EventKind.AGENT_ACTION, receipt, left_out, coerced)


@router.put(
    "/decisions/{id}/outcome",
    status_code=202,
    openapi_extra=body_schema(OUTCOME),
    responses={
        202: {"model": Accepted},
        **PROBLEMS,
        **problems(RequestLost, TooManyReports, UndecidedYet),
    },
    summary="Report what the market did",
)
async def put_outcome(id: UUID, request: Request) -> Response:
    by = _reporter(request, id)
    service: Service = request.app.state.service
    received = await parse_outcome(request)
    asked_at = await service.records.asked_at(id)
    outcome, left_out, coerced = await service.taken(id, EventKind.OUTCOME, received, by, asked_at)
    count_left_out(request.app.state.metrics, left_out, Part.OUTCOME)
    receipt = await _on_a_decision(service, id, service.records.report_outcome(id, outcome, by))
    return _reported(service, id, EventKind.OUTCOME, receipt, left_out, coerced)


@router.get(
    "/decisions/{id}",
    responses={**PROBLEMS, **problems(AnswerGone, RequestLost)},
    summary="The full stored record, or its pending state",
)
async def get_decision(id: UUID, request: Request) -> Response:
    caller = allowed(request, Role.AGENT, Role.REPORTER, Role.READER)
    if not caller.may_read(id):
        raise unknown_decision(id)
    service: Service = request.app.state.service
    document = await service.document(id)
    return Json(_pending(id), 202) if document is None else Json(document)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="The process answers")
async def healthz(request: Request) -> Response:
    told = {
        "instance": request.app.state.options.instance,
        "process": request.app.state.siblings.name,
    }
    return Json({"status": "ok", **{name: value for name, value in told.items() if value}})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Each dependency, and whether advice can be given and recorded")
async def readyz(request: Request) -> Response:
    siblings: Alone = request.app.state.siblings
    report = await siblings.readiness(await request.app.state.service.readiness())
    if caller_of(request) is None:
        report = {"status": report["status"]}
    return Json(report, 503 if report["status"] == "unready" else 200)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    allowed(request, Role.METRICS)
    siblings: Alone = request.app.state.siblings
    try:
        several = await siblings.counted()
    except Unanswered as error:
        raise HTTPException(503, str(error)) from error
    if not several:
        await request.app.state.service.observe_backlog()
    counted: Metrics = request.app.state.metrics
    return Response(counted.exposition(several), media_type=CONTENT_TYPE_LATEST)
