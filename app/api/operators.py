"""Routes of model versions and their aliases. No logic."""

from __future__ import annotations

from fastapi import APIRouter, Header, Path, Request, Response

from app.advising.service import Service
from app.api.wire import Json, body_schema, parse, problems, require_operator
from app.domain.errors import (
    AliasRefused,
    InvalidRecord,
    ManifestMismatch,
    ModelFileError,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.manifest import VERSION_PATTERN
from app.schemas import ALIAS_MOVE, ALIAS_PATTERN, AliasMove, Problem

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
router = APIRouter()


@router.get("/models", summary="Versions being served, and what the registry knows")
async def get_models(request: Request) -> Response:
    return Json(await request.app.state.service.describe_models())


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
    manifest = await service.versions.register(version)
    return Json({"model_version": manifest.model_version, "manifest_hash": manifest.hash()})


@router.get("/aliases", responses=READ_PROBLEMS, summary="Where each alias points, and every move")
async def get_aliases(request: Request) -> Response:
    service: Service = request.app.state.service
    return Json(await service.versions.aliases())


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
    before = await service.versions.move(
        alias, move.model_version, reason=move.reason, by=move.changed_by
    )
    return Json({"alias": alias, "model_version": move.model_version, "before": before})
