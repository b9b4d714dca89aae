"""Routes of operators: the trading state, model versions and their aliases. No logic."""

from __future__ import annotations

from fastapi import APIRouter, Path, Request, Response

from app.advising.service import Service
from app.api.access import allowed
from app.api.wire import Json, body_schema, parse, problems
from app.domain.errors import (
    AliasRefused,
    InvalidRecord,
    JournalUnavailable,
    LimitsError,
    LimitsRefused,
    ManifestMismatch,
    ModelFileError,
    RequestConflict,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.model.aliases import ALIAS_PATTERN
from app.domain.model.manifest import VERSION_PATTERN
from app.domain.principal import Principal, Role
from app.domain.record.event import StateChange
from app.schemas import (
    ALIAS_MOVE,
    LIMITS_MOVE,
    STATE,
    AliasMove,
    LimitsMove,
    StateBody,
)
from app.shadow_log.limits_history import LimitsHistory

READ_PROBLEMS = problems(ShadowLogUnavailable)
VERSION_PROBLEMS = problems(
    InvalidRecord,
    UnknownVersion,
    ManifestMismatch,
    ModelFileError,
    AliasRefused,
    ShadowLogUnavailable,
)
MOST_CHANGES = 100
MOST_ADOPTIONS = 200
"""Of each profile."""
router = APIRouter()


@router.get("/state", summary="The trading state in force")
async def get_state(request: Request) -> Response:
    allowed(request, Role.READER, Role.AGENT)
    controls = request.app.state.service.controls
    change = controls.change.as_json() if controls.change else None
    return Json({"state": controls.state.value, "change": change})


@router.get("/state/changes", responses=READ_PROBLEMS, summary="Changes of the trading state")
async def get_state_changes(request: Request) -> Response:
    """The newest that the record holds, the newest first."""
    allowed(request, Role.READER)
    service: Service = request.app.state.service
    changes = await service.shadow_log.state_changes(MOST_CHANGES)
    return Json({"changes": [change.as_json() for change in changes]})


@router.put(
    "/state",
    openapi_extra=body_schema(STATE),
    responses=problems(InvalidRecord, JournalUnavailable, RequestConflict),
    summary="Change the trading state",
)
async def put_state(request: Request) -> Response:
    caller = allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    body: StateBody = await parse(request, STATE)
    change = StateChange(
        recorded_at=service.now(),
        state=body.state,
        reason=explained(caller, body.changed_by, body.reason),
        changed_by=caller.name,
    )
    receipt = await service.controls.set_state(change)
    return Json({"state": service.controls.state.value, "recorded": receipt.target})


@router.get("/models", summary="Versions being served, and what the registry knows")
async def get_models(request: Request) -> Response:
    allowed(request, Role.READER)
    return Json(await request.app.state.service.serving.describe())


@router.put(
    "/models/{version}",
    responses=VERSION_PROBLEMS,
    summary="Verify a version's directory and register its manifest",
)
async def put_model(request: Request, version: str = Path(pattern=VERSION_PATTERN)) -> Response:
    allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    manifest = await service.serving.register(version)
    return Json({"model_version": manifest.model_version, "manifest_hash": manifest.hash()})


@router.get("/aliases", responses=READ_PROBLEMS, summary="Where each alias points, and every move")
async def get_aliases(request: Request) -> Response:
    allowed(request, Role.READER)
    service: Service = request.app.state.service
    return Json(await service.serving.aliases())


@router.put(
    "/aliases/{alias}",
    openapi_extra=body_schema(ALIAS_MOVE),
    responses=VERSION_PROBLEMS,
    summary="Point an alias at a version; what is served follows",
)
async def put_alias(request: Request, alias: str = Path(pattern=ALIAS_PATTERN)) -> Response:
    caller = allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    move: AliasMove = await parse(request, ALIAS_MOVE)
    reason = explained(caller, move.changed_by, move.reason)
    before = await service.serving.move(
        alias, move.model_version, reason=reason, by=caller.name, seen=move.seen
    )
    return Json({"alias": alias, "model_version": move.model_version, "before": before})


@router.get("/limits", responses=READ_PROBLEMS, summary="Limits in force, and the newest adoptions")
async def get_limits(request: Request) -> Response:
    allowed(request, Role.READER)
    service: Service = request.app.state.service
    adoptions = await LimitsHistory(service.shadow_log).newest_of_each(MOST_ADOPTIONS)
    in_force = service.controls.by_profile()
    return Json(
        {
            "in_force": {
                profile: {
                    "version": judging.limits.version,
                    "hash": judging.hash,
                    "toml": judging.toml,
                    "adopted": None if judging.adopted is None else judging.adopted.id,
                }
                for profile, judging in in_force.items()
            },
            "overruled": sorted(service.controls.overruled()),
            "history": [adoption._asdict() for adoption in adoptions],
        }
    )


@router.put(
    "/limits",
    openapi_extra=body_schema(LIMITS_MOVE),
    responses=problems(InvalidRecord, LimitsError, LimitsRefused, ShadowLogUnavailable),
    summary="Let limits judge in the place of a file, or go back",
)
async def put_limits(request: Request) -> Response:
    caller = allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    move: LimitsMove = await parse(request, LIMITS_MOVE)
    reason = explained(caller, move.changed_by, move.reason)
    profile, seen, by = move.profile, move.seen, caller.name
    controls = service.controls
    if move.toml is None:
        adoption = await controls.roll_back(profile=profile, seen=seen, reason=reason, by=by)
    else:
        adoption = await controls.adopt(move.toml, profile=profile, seen=seen, reason=reason, by=by)
    return Json(adoption._asdict())


def explained(caller: Principal, said: str, reason: str) -> str:
    """The reason, with who it is said to come from: what is recorded as `changed_by` is the token's
    name."""
    return reason if said == caller.name else f"{said}: {reason}"
