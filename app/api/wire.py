"""What all routes share: errors as problem documents, JSON in and out, and the operators' token."""

from __future__ import annotations

from hmac import compare_digest
from typing import Any

import orjson
from fastapi import Request, Response
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from app.advising.service import Service
from app.domain.errors import (
    AdvisorError,
    AliasRefused,
    InvalidRecord,
    JournalUnavailable,
    ManifestMismatch,
    ModelFileError,
    RequestConflict,
    ShadowLogUnavailable,
    UnknownDecision,
    UnknownVersion,
)
from app.schemas import Problem

STATUS: dict[type[AdvisorError], tuple[int, str]] = {
    InvalidRecord: (422, "The record does not fit its schema"),
    RequestConflict: (409, "The request id was used with other content"),
    UnknownDecision: (404, "No such decision"),
    JournalUnavailable: (503, "Nothing could be recorded, so nothing was answered"),
    ShadowLogUnavailable: (503, "The shadow log cannot be read now"),
    UnknownVersion: (404, "No such model version"),
    ManifestMismatch: (409, "The model version must not be served"),
    ModelFileError: (409, "The model version must not be served"),
    AliasRefused: (409, "The alias cannot be moved"),
}


def problems(*errors: type[AdvisorError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of routes that raise these errors; every route may find a body too
    large."""
    described = ((413, "Body too large"), *sorted({STATUS[error] for error in errors}))
    return {
        status: {"model": Problem, "content": {"application/problem+json": {}}, "description": what}
        for status, what in described
    }


class Json(Response):
    """A JSON body that is rendered already, or renders in one step."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


def problem(status: int, title: str, detail: str, **more: Any) -> Json:
    """An RFC 9457 problem document."""
    retry = {"Retry-After": "1"} if status == 503 else {}
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Json(body, status, headers=retry, media_type="application/problem+json")


def body_schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """OpenAPI request body of a type that is validated from raw bytes; `$defs` are hoisted by
    `openapi()`."""
    schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def parse(request: Request, adapter: TypeAdapter[Any]) -> Any:
    """Validate the raw body: UTF-8 JSON, limited in size, every violation named."""
    service: Service = request.app.state.service
    limit = service.settings.max_body_bytes
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise HTTPException(
                413,
                f"the body is larger than {limit} bytes: send fewer candidates or shorter texts",
            )
        chunks.append(chunk)
    return adapter.validate_json(b"".join(chunks))


def require_operator(request: Request, authorization: str | None) -> None:
    """Answer 401 unless the bearer token is the operators', or they have none."""
    service: Service = request.app.state.service
    token = service.settings.admin_token
    if token is not None and not compare_digest(
        (authorization or "").encode(), f"Bearer {token}".encode()
    ):
        what = f"{request.method} {request.url.path}"
        raise HTTPException(401, f"{what} needs the bearer token that ADVISOR_ADMIN_TOKEN holds")
