"""Routes of the agent and of operators, error handlers, OpenAPI. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from time import monotonic, perf_counter
from typing import Any
from uuid import UUID

from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.advising.advise import Answer, Incoming
from app.advising.service import Service
from app.api.operators import router as version_router
from app.api.wire import STATUS, Json, body_schema, parse, problem, problems, require_operator
from app.domain.canonical import decision_id
from app.domain.errors import (
    AdvisorError,
    InvalidRecord,
    JournalUnavailable,
    RequestConflict,
    ShadowLogUnavailable,
    UnknownDecision,
)
from app.domain.event import StateChange
from app.domain.fields import location
from app.metrics import Stage
from app.schemas import (
    ADVISE_BODY,
    AGENT_ACTION,
    OUTCOME,
    STATE,
    Accepted,
    AdviseHeaders,
    AdviseRequest,
    AdviseResponse,
    Pending,
    Problem,
    StateBody,
    response,
)

PROBLEMS = problems(
    InvalidRecord, RequestConflict, UnknownDecision, JournalUnavailable, ShadowLogUnavailable
)
router = APIRouter()


HEADER_NAMES = frozenset(
    (field.alias or name).encode() for name, field in AdviseHeaders.model_fields.items()
)
NO_HEADERS = AdviseHeaders()


def header_parameters() -> list[dict[str, Any]]:
    """OpenAPI parameters of the headers that `read_headers` reads."""
    properties = AdviseHeaders.model_json_schema()["properties"]
    return [
        {"name": name, "in": "header", "required": False, "schema": properties[name]}
        for name in properties
    ]


def read_headers(request: Request) -> AdviseHeaders:
    """The headers of `/advise`, in one pass: FastAPI's own parameters took a tenth of a request."""
    sent = {
        n.decode(): v.decode("latin-1") for n, v in request.scope["headers"] if n in HEADER_NAMES
    }
    if not sent:
        return NO_HEADERS
    try:
        return AdviseHeaders.model_validate(sent)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("header", *each["loc"])} for each in error.errors()]
        ) from error


@router.post(
    "/advise",
    openapi_extra={**body_schema(ADVISE_BODY), "parameters": header_parameters()},
    responses={200: {"model": AdviseResponse}, 202: {"model": Pending}, **PROBLEMS},
    summary="Advise on one candidate, or on a list of them",
)
async def advise(request: Request) -> Response:
    service: Service = request.app.state.service
    begin = perf_counter()
    seconds: dict[str, float] = {}
    with service.metrics.timed(Stage.VALIDATE, seconds):
        headers = read_headers(request)
        body = await parse(request, ADVISE_BODY)
        many = body if isinstance(body, list) else [body]
        incoming = [
            _incoming(service, each, headers.idempotency_key if body is each else None, headers)
            for each in many
        ]
    if len(many) > service.settings.max_candidates:
        raise InvalidRecord(
            f"{len(many)} candidates in one call; at most {service.settings.max_candidates}"
        )
    asynchronous = headers.prefer is not None and "respond-async" in headers.prefer.lower()
    answer = _accept if asynchronous else _answer
    status = 202 if asynchronous else 200
    if body is not many:
        reply = Json(await answer(service, incoming[0], many[0]), status)
    else:
        reply = Json(
            await asyncio.gather(
                *(_item(answer(service, i, r)) for i, r in zip(incoming, many, strict=True))
            ),
            status,
        )
    service.metrics.stage.labels(Stage.TOTAL).observe(perf_counter() - begin)
    return reply


def _incoming(
    service: Service, body: AdviseRequest, key: str | None, headers: AdviseHeaders
) -> Incoming:
    now = service.now()
    if key is not None:
        if "request_id" in body.model_fields_set and body.request_id != key:
            raise InvalidRecord(
                "request_id differs from the header Idempotency-Key: send one of them"
            )
        body = body.model_copy(update={"request_id": key})
    skew = service.controls.limits.stale_snapshot.max_clock_skew_s
    if service.judges_by_wall_clock and body.as_of > now + timedelta(seconds=skew):
        raise InvalidRecord(
            f"candidate.ts: {body.as_of.isoformat()} is in the future; this server's clock says"
            f" {now.isoformat()} (tolerance {skew:g} s): check the time zone and the clock of the"
            " sender"
        )
    wait = (headers.x_deadline_ms or body.deadline_ms or service.settings.deadline_ms) / 1000
    return Incoming(
        body.request_id,
        body.claim(),
        body.scenario(),
        body.agent_action,
        now,
        monotonic() + wait,
        headers.traceparent,
        body.rationale,
    )


async def _answer(service: Service, incoming: Incoming, body: AdviseRequest) -> dict[str, Any]:
    return respond(await service.advisor.advise(incoming))


def respond(answer: Answer) -> dict[str, Any]:
    """The wire form of an answer."""
    return response(
        answer.decision,
        repeated=answer.repeated,
        recorded=answer.recorded,
        rationale=answer.rationale,
    )


async def _accept(service: Service, incoming: Incoming, body: AdviseRequest) -> dict[str, Any]:
    await service.accept(incoming, body)
    known = str(decision_id(incoming.request_id))
    return {"decision_id": known, "status": "pending", "location": f"/decisions/{known}"}


async def _item(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """One element of a list: its decision, or its own problem."""
    try:
        return {"decision": await work}
    except AdvisorError as error:
        status, title = STATUS[type(error)]
        return {
            "problem": {
                "type": "about:blank",
                "title": title,
                "status": status,
                "detail": str(error),
            }
        }


@router.put(
    "/decisions/{id}/agent-action",
    status_code=202,
    openapi_extra=body_schema(AGENT_ACTION),
    responses={202: {"model": Accepted}, **PROBLEMS},
    summary="Report what the agent did",
)
async def put_agent_action(id: UUID, request: Request) -> Response:
    service: Service = request.app.state.service
    receipt = await service.records.report_action(id, await parse(request, AGENT_ACTION))
    return Json(
        {"decision_id": str(id), "recorded": receipt.target, "repeated": receipt.repeated}, 202
    )


@router.put(
    "/decisions/{id}/outcome",
    status_code=202,
    openapi_extra=body_schema(OUTCOME),
    responses={202: {"model": Accepted}, **PROBLEMS},
    summary="Report what the market did",
)
async def put_outcome(id: UUID, request: Request) -> Response:
    service: Service = request.app.state.service
    receipt = await service.records.report_outcome(id, await parse(request, OUTCOME))
    return Json(
        {"decision_id": str(id), "recorded": receipt.target, "repeated": receipt.repeated}, 202
    )


@router.get(
    "/decisions/{id}", responses=PROBLEMS, summary="The full stored record, or its pending state"
)
async def get_decision(id: UUID, request: Request) -> Response:
    service: Service = request.app.state.service
    try:
        return Json(await service.records.document(id))
    except UnknownDecision:
        if await service.pending(id):
            return Json(
                {"decision_id": str(id), "status": "pending", "location": f"/decisions/{id}"}, 202
            )
        raise


@router.get("/state", summary="The trading state in force")
async def get_state(request: Request) -> Response:
    controls = request.app.state.service.controls
    change = controls.change.as_json() if controls.change else None
    return Json({"state": controls.state.value, "change": change})


@router.put(
    "/state",
    openapi_extra=body_schema(STATE),
    responses={401: {"model": Problem}, **PROBLEMS},
    summary="Change the trading state",
)
async def put_state(request: Request, authorization: str | None = Header(None)) -> Response:
    service: Service = request.app.state.service
    require_operator(request, authorization)
    body: StateBody = await parse(request, STATE)
    change = StateChange(
        recorded_at=service.now(), state=body.state, reason=body.reason, changed_by=body.changed_by
    )
    receipt = await service.controls.set_state(change)
    return Json({"state": service.controls.state.value, "recorded": receipt.target})


@router.get("/healthz", summary="The process answers")
async def healthz() -> Response:
    return Json({"status": "ok"})


@router.get("/readyz", summary="Each dependency, and whether advice can be given and recorded")
async def readyz(request: Request) -> Response:
    report = await request.app.state.service.readiness()
    return Json(report, 503 if report["status"] == "unready" else 200)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    await service.observe_backlog()
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def install(app: FastAPI) -> None:
    """Routes, error handlers, request counter and OpenAPI on `app`, whose `state.service` is set at
    start."""
    app.include_router(router)
    app.include_router(version_router)
    for error in STATUS:
        app.add_exception_handler(error, _advisor_error)
    app.add_exception_handler(ValidationError, _invalid)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(CountRequests)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]


async def _advisor_error(request: Request, error: Exception) -> Response:
    status, title = STATUS[type(error)]  # type: ignore[index]
    return problem(status, title, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    if isinstance(error, ValidationError):
        found: list[Any] = error.errors(include_url=False, include_context=False)
    else:
        found = list(error.errors())  # type: ignore[attr-defined]
    errors = [
        {"field": _field(e["loc"]), "message": e["msg"], "got": repr(e.get("input"))[:120]}
        for e in found[:50]
    ]
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:5])
    return problem(422, STATUS[InvalidRecord][1], detail, errors=errors)


def _field(loc: tuple[int | str, ...]) -> str:
    """The field's path as the sender wrote it, without the tag of the union."""
    return location(tuple(part for part in loc if part not in ("one", "many")))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "The request cannot be served", str(error.detail))


async def _bug(request: Request, error: Exception) -> Response:
    return problem(
        500, "A defect of this service", f"{type(error).__name__}; the log has the trace"
    )


class CountRequests:
    """ASGI middleware: one counter increment per request, by route template and status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "unknown")
                scope["app"].state.service.metrics.requests.labels(
                    path, str(message["status"])
                ).inc()
            await send(message)

        await self._app(scope, receive, count)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the definitions of raw-body schemas hoisted to components."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for path in schema["paths"].values():
            for operation in path.values():
                content = operation.get("requestBody", {}).get("content", {})
                for media in content.values():
                    components.update(media.get("schema", {}).pop("$defs", {}))
        app.openapi_schema = schema
    return app.openapi_schema
