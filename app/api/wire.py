"""What all routes share: JSON in and out, errors as problem documents, OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.budget import values
from app.api.fields import refused_fields
from app.api.receiving import action_of, candidate_in, candidate_of, count_left_out, outcome_of
from app.domain.errors import (
    AdvisorError,
    AliasRefused,
    AnswerGone,
    DamagedRecord,
    InvalidRecord,
    JournalUnavailable,
    LimitsError,
    LimitsRefused,
    ManifestMismatch,
    ModelFileError,
    NoAnswer,
    Overloaded,
    RequestConflict,
    RequestLost,
    ShadowLogUnavailable,
    TooManyReports,
    TrialRefused,
    UndecidedYet,
    UnknownDecision,
    UnknownVersion,
)
from app.domain.intake.reception import Received
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.schemas import (
    ADVISE_BODY,
    ANY,
    ITEMS,
    AdviseHeaders,
    AdviseRequest,
    Problem,
    Verdict,
)
from app.telemetry import Refusal

STATUS: dict[type[AdvisorError], tuple[int, str]] = {
    Overloaded: (503, "There is too much to do to answer this in time"),
    NoAnswer: (503, "The model gave no answer"),
    UndecidedYet: (503, "It is not decided yet"),
    DamagedRecord: (500, "A stored record cannot be read"),
    InvalidRecord: (422, "The record does not fit its schema"),
    RequestConflict: (409, "The id was used with other content"),
    UnknownDecision: (404, "No such decision"),
    TooManyReports: (429, "Too many reports on one decision"),
    AnswerGone: (410, "It was answered before, and the answer is not kept any more"),
    RequestLost: (410, "It was accepted, and lost before it was decided"),
    JournalUnavailable: (503, "Nothing could be recorded, so nothing was answered"),
    ShadowLogUnavailable: (503, "The shadow log cannot be read now"),
    UnknownVersion: (404, "No such model version"),
    ManifestMismatch: (409, "The model version must not be served"),
    ModelFileError: (409, "The model version must not be served"),
    AliasRefused: (409, "The alias cannot be moved"),
    LimitsError: (422, "These are no limits"),
    LimitsRefused: (409, "The limits stay as they are"),
    TrialRefused: (409, "The proposal is not tried"),
}


EXCEEDED = (
    (401, "Nobody is known by this token"),
    (403, "The token's roles do not allow it"),
    (408, "Sent too slowly"),
    (413, "Body too large"),
    (415, "Not JSON"),
    (429, "Too many requests"),
)


def problems(*errors: type[AdvisorError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of routes that raise these errors; every route may find that a request
    exceeds its budget."""
    described: dict[int, list[str]] = {}
    for status, what in [*EXCEEDED, *sorted({STATUS[error] for error in errors})]:
        described.setdefault(status, []).append(what)
    return {
        status: {
            "model": Problem,
            "content": {"application/problem+json": {}},
            "description": "; or: ".join(whats),
        }
        for status, whats in described.items()
    }


class Json(Response):
    """A JSON body that is rendered already, or renders in one step."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


@dataclass(frozen=True)
class ApiOptions:
    """What a person may set about requests."""

    max_body_bytes: int
    max_candidates: int
    deadline_ms: int
    instance: str = ""
    max_values: int = 32_768
    max_extra_bytes: int = 32_768


def status_of(error: AdvisorError) -> tuple[int, str]:
    """Of its own kind, or of the nearest that it is one of."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem_document(error: AdvisorError) -> dict[str, Any]:
    """RFC 9457: what went wrong, for the one who asked."""
    status, title = status_of(error)
    return {"type": "about:blank", "title": title, "status": status, "detail": str(error)}


def problem(status: int, title: str, detail: str, retry_after_s: int = 1) -> Json:
    """An RFC 9457 problem document."""
    retry = {"Retry-After": str(retry_after_s)} if status == 503 else {}
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Json(body, status, headers=retry, media_type="application/problem+json")


def overloaded(error: Overloaded) -> Json:
    """503: come back when there is less to do."""
    return problem(*STATUS[Overloaded], str(error), error.retry_after_s)


def body_schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """OpenAPI request body of a type that is validated from raw bytes; `$defs` are hoisted by
    `openapi()`."""
    schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def parse(request: Request, adapter: TypeAdapter[Any]) -> Any:
    """Validate the raw body: UTF-8 JSON, limited in size, every violation named."""
    return adapter.validate_json(await read_body(request))


async def parse_action(request: Request) -> Received[AgentAction]:
    """The body as a control. Raises `ValidationError` for what a report cannot do without."""
    received = action_of(await read_body(request))
    require_small_extra(request, "extra", received.record.extra)
    return received


async def parse_outcome(request: Request) -> Received[Outcome]:
    """The body as an outcome. Raises as `parse_action`."""
    received = outcome_of(await read_body(request))
    require_small_extra(request, "extra", received.record.extra)
    return received


async def parse_candidates(
    request: Request,
) -> tuple[list[AdviseRequest | dict[str, Any]], bool]:
    """The body of `/advise`, and whether it is a list. What is wrong with an element of a list is
    that element's own problem, in its place; a list of nothing else is refused as a whole."""
    body = await read_body(request)
    if not _is_list(body):
        return [_counted(request, candidate_of(body))], False
    elements = [_element(request, item) for item in _items(request, body)]
    if all(isinstance(element, dict) for element in elements):
        ADVISE_BODY.validate_json(body)  # When nothing is left to do, the whole call is refused.
    return elements, True


async def candidate_documents(request: Request) -> tuple[list[Any], bool]:
    """The body of `/advise` before it is read as candidates, and whether it is a list."""
    body = await read_body(request)
    return (_items(request, body), True) if _is_list(body) else ([ANY.validate_json(body)], False)


def _is_list(body: bytes) -> bool:
    return body.lstrip()[:1] == b"["


def _items(request: Request, body: bytes) -> list[Any]:
    items = ITEMS.validate_json(body)
    most = request.app.state.options.max_candidates
    if len(items) > most:
        request.app.state.metrics.refused(Refusal.ITEMS)
        raise InvalidRecord(f"{len(items)} candidates in one call; at most {most}")
    return items


def _element(request: Request, item: Any) -> AdviseRequest | dict[str, Any]:
    try:
        return _counted(request, read_candidate(request, item))
    except ValidationError as error:
        return invalid_document(error)
    except AdvisorError as error:
        return problem_document(error)


def read_candidate(request: Request, document: Any) -> AdviseRequest:
    """One candidate, of a document that is read already. Raises `ValidationError`, which names
    every field at fault, or `InvalidRecord`."""
    return _within_budget(request, candidate_in(document))


def read_state(request: Request, state: dict[str, Any] | str) -> AdviseRequest:
    """A candidate that stands in another body, as JSON or as its text, which counts as one value
    there. Raises as `read_candidate`, and `RequestValidationError` for a text of too many."""
    if not isinstance(state, str):
        return _counted(request, candidate_in(state))
    text = state.encode()
    _require_few_values(request, text)
    return _counted(request, candidate_of(text))


def _counted(request: Request, body: AdviseRequest) -> AdviseRequest:
    count_left_out(request.app.state.metrics, body.left_out)
    return _within_budget(request, body)


def _within_budget(request: Request, body: AdviseRequest) -> AdviseRequest:
    require_small_extra(request, "candidate.extra", body.candidate.extra)
    if body.agent_action is not None:
        require_small_extra(request, "agent_action.extra", body.agent_action.extra)
    return body


def require_small_extra(request: Request, field: str, extra: dict[str, Any] | None) -> None:
    """Raises `InvalidRecord` when the keys outside the schema are too large together."""
    most = request.app.state.options.max_extra_bytes
    if extra and len(orjson.dumps(extra)) > most:
        request.app.state.metrics.refused(Refusal.EXTRA)
        raise InvalidRecord(f"{field}: keys outside the schema take more than {most} bytes of JSON")


def require_json(request: Request) -> None:
    """415 unless a body says that it is JSON: what a web page can send without being asked first
    says something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send the body with `Content-Type: application/json`")


async def read_body(request: Request) -> bytes:
    """The raw body, limited in bytes and in JSON values before anything is made of it."""
    require_json(request)
    options = request.app.state.options
    limit = options.max_body_bytes
    told = request.headers.get("content-length", "")
    chunks, size = [], int(told) if told.isdecimal() and int(told) > limit else 0
    if not size:
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                break
    if size > limit:
        request.app.state.metrics.refused(Refusal.BODY)
        raise HTTPException(
            413, f"the body is larger than {limit} bytes: send fewer candidates or shorter texts"
        )
    body = b"".join(chunks)
    _require_few_values(request, body)
    return body


def _require_few_values(request: Request, document: bytes) -> None:
    """Raises `RequestValidationError` for a JSON document that would cost too much to read."""
    most = request.app.state.options.max_values
    if values(document, most) > most:
        request.app.state.metrics.refused(Refusal.VALUES)
        message = f"it holds more than {most} JSON values"
        fault = {"type": "value_error", "loc": (), "msg": message, "input": "(not read)"}
        raise RequestValidationError([fault])


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


def install(app: FastAPI) -> None:
    """Error handlers, request counter and OpenAPI on `app`, whose state holds `service`, `metrics`
    and `options`."""
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(CountRequests)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]


async def _advisor_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Overloaded):
        return overloaded(error)
    assert isinstance(error, AdvisorError)
    return problem(*status_of(error), str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError | RequestValidationError)
    return Json(invalid_document(error), 422, media_type="application/problem+json")


def invalid_document(error: ValidationError | RequestValidationError) -> dict[str, Any]:
    """What is wrong with a document, by field; the reasons to refuse it come first."""
    faults = refused_fields(error)
    errors = [
        {
            "field": fault.field,
            "message": fault.why or "",
            "got": fault.sent or "",
            "verdict": fault.verdict.value,
        }
        for fault in faults
    ]
    status, title = STATUS[InvalidRecord]
    reasons = [fault for fault in faults if fault.verdict in (Verdict.REFUSED, Verdict.MISSING)]
    detail = "; ".join(f"{fault.field}: {fault.why or ''}" for fault in reasons[:5])
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return document | {"errors": errors}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "The request cannot be served", str(error.detail))


async def _left(request: Request, error: Exception) -> Response:
    """Its sender hung up in the middle of a body, which is no defect of ours; nobody reads this."""
    return problem(400, "The request cannot be served", "the connection ended within the body")


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    **dict.fromkeys(STATUS, _advisor_error),
    ValidationError: _invalid,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    ClientDisconnect: _left,
}
"""What answers each kind of error that a route may raise."""


async def answered(request: Request, error: Exception) -> Response:
    """What a route's error is answered by. A defect is raised again."""
    for kind in type(error).__mro__:
        if kind in HANDLERS:
            return await HANDLERS[kind](request, error)
    raise error


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
                _count(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, count)
        except Exception:
            _count(scope, 500)  # A defect is answered further out, by `_bug`.
            raise


def _count(scope: Scope, status: int) -> None:
    refused = scope["path"] if scope["path"] == "/advise" else "unknown"
    path = getattr(scope.get("route"), "path", refused)
    scope["app"].state.metrics.answered(path, status)


def too_often(wait: float) -> Response:
    """429: come back when the bucket holds a token again."""
    title, detail = "Too many requests of this caller", "slow down, or set ADVISOR_RATE_PER_S"
    document = {"type": "about:blank", "title": title, "status": 429, "detail": detail}
    headers = {"Retry-After": str(max(1, ceil(wait)))}
    return Json(document, 429, headers=headers, media_type="application/problem+json")


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
