"""Routes of operators: the trading state, model versions and their aliases. No logic."""

from __future__ import annotations

from fastapi import APIRouter, Header, Path, Request, Response

from app.advising.service import Service
from app.api.wire import Json, body_schema, parse, problems, require_operator
from app.domain.errors import (
    AliasRefused,
    InvalidRecord,
    JournalUnavailable,
    ManifestMismatch,
    ModelFileError,
    RequestConflict,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.event import StateChange
from app.domain.manifest import VERSION_PATTERN
from app.schemas import ALIAS_MOVE, ALIAS_PATTERN, STATE, AliasMove, Problem, StateBody

READ_PROBLEMS = problems(ShadowLogUnavailable)
CHANGE_PROBLEMS = {
    401: {"model": Problem},
    **problems(
        InvalidRecord,
        UnknownVersion,
        ManifestMismatch,
        ModelFileError,
        AliasRefused,
        ShadowLogUnavailable,
    ),
}
STATE_PROBLEMS = {
    401: {"model": Problem},
    **problems(InvalidRecord, JournalUnavailable, RequestConflict),
}
router = APIRouter()


@router.get("/state", summary="The trading state in force")
async def get_state(request: Request) -> Response:
    controls = request.app.state.service.controls
    change = controls.change.as_json() if controls.change else None
    return Json({"state": controls.state.value, "change": change})


@router.put(
    "/state",
    openapi_extra=body_schema(STATE),
    responses=STATE_PROBLEMS,
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


@router.get("/models", summary="Versions being served, and what the registry knows")
async def get_models(request: Request) -> Response:
    return Json(await request.app.state.service.serving.describe())


@router.put(
    "/models/{version}",
    responses=CHANGE_PROBLEMS,
    summary="Verify a version's directory and register its manifest",
)
async def put_model(
    request: Request,
    version: str = Path(pattern=VERSION_PATTERN),
    authorization: str | None = Header(None),
) -> Response:
    service: Service = request.app.state.service
    require_operator(request, authorization)
    manifest = await service.serving.register(version)
    return Json({"model_version": manifest.model_version, "manifest_hash": manifest.hash()})


@router.get("/aliases", responses=READ_PROBLEMS, summary="Where each alias points, and every move")
async def get_aliases(request: Request) -> Response:
    service: Service = request.app.state.service
    return Json(await service.serving.aliases())


@router.put(
    "/aliases/{alias}",
    openapi_extra=body_schema(ALIAS_MOVE),
    responses=CHANGE_PROBLEMS,
    summary="Point an alias at a version; what is served follows",
)
async def put_alias(
    request: Request,
    alias: str = Path(pattern=ALIAS_PATTERN),
    authorization: str | None = Header(None),
) -> Response:
    service: Service = request.app.state.service
    require_operator(request, authorization)
    move: AliasMove = await parse(request, ALIAS_MOVE)
    before = await service.serving.move(
        alias, move.model_version, reason=move.reason, by=move.changed_by
    )
    return Json({"alias": alias, "model_version": move.model_version, "before": before})
