"""What people do from a page: come in, leave, change the trading state, move an alias."""

from __future__ import annotations

from datetime import UTC, datetime
from re import fullmatch
from typing import TypeVar
from urllib.parse import quote, urlsplit

import orjson
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from app.advising.service import Service
from app.api.access import COOKIE, LOST, Refusals, allowed, caller_of
from app.api.explorer import asked
from app.api.explorer.look import page
from app.api.explorer.route import PageRoute
from app.api.tokens import Tokens
from app.domain.fields import describe
from app.domain.model.aliases import ALIAS_PATTERN, NOTHING, rollback_reason, rollback_target
from app.domain.principal import Principal, Role
from app.domain.record.event import StateChange
from app.domain.rules.case import TradingState
from app.schemas import AliasMove, StateBody
from app.shadow_log.rows import Row

SIGNED_IN_S = 12 * 3600
NOT_DONE = "this browser is not known any more: what it sent was not done"
Body = TypeVar("Body", StateBody, AliasMove)
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/login", dependencies=[Depends(asked.words("next", LOST))])
async def login_page(request: Request) -> Response:
    if caller_of(request) is not None:
        return RedirectResponse("/ui", 303)
    target = _within(request.query_params.get("next", ""))
    wrong = NOT_DONE if LOST in request.query_params else None
    return page(request, "login", next=target, wrong=wrong)


@router.post("/ui/login")
async def login(request: Request) -> Response:
    fields = await asked.form(request)
    tokens: Tokens = request.app.state.tokens
    text, target = fields.get("token", ""), _within(fields.get("next", ""))
    holder = tokens.holder_of(text, datetime.now(UTC))
    if not isinstance(holder, Principal):
        refusals: Refusals = request.app.state.refusals
        why = await refusals.told(request.scope, holder)
        return page(request, "login", 401, next=target, wrong=why)
    if not holder.may(Role.READER):
        has = ", ".join(sorted(holder.roles))
        wrong = f"{holder.name} has the role {has}; these pages need reader or operator"
        return page(request, "login", 403, next=target, wrong=wrong)
    answer = RedirectResponse(target, 303)
    answer.set_cookie(
        COOKIE,
        text,
        max_age=SIGNED_IN_S,
        path="/ui",
        httponly=True,
        samesite="lax",
        secure=request.headers["origin"].startswith("https:"),  # As the browser sees it.
    )
    return answer


@router.post("/ui/logout")
async def logout(request: Request) -> Response:
    await asked.form(request)
    answer = RedirectResponse("/ui/login", 303)
    answer.delete_cookie(COOKIE, path="/ui")
    return answer


@router.post("/ui/state")
async def change_state(request: Request) -> Response:
    caller = allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    fields = await asked.form(request)
    asked.require_sure(fields)
    body = _checked(StateBody, {**fields, "changed_by": caller.name}, ("state", "reason"))
    if body.state is not TradingState.HALTED:  # Halting waits for nobody.
        asked.require_as_seen(fields, service.controls.state.value)
    change = StateChange(
        recorded_at=service.now(), state=body.state, reason=body.reason, changed_by=caller.name
    )
    await service.controls.set_state(change)
    return RedirectResponse("/ui/state", 303)


@router.post("/ui/aliases/{alias}")
async def move(request: Request, alias: str = Path(pattern=ALIAS_PATTERN)) -> Response:
    """To the version that the form names; when it asks for a rollback or a demotion, to the one
    that stood before."""
    caller = allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    fields = await asked.form(request)
    asked.require_sure(fields)
    standing = await service.serving.aliases()
    stands = standing["aliases"].get(alias, {})
    asked.require_as_seen(fields, str(stands.get("changed_at", "")))
    if fields.get("back") or fields.get("demote"):
        moves = [move for move in standing["history"] if move["alias"] == alias]
        fields |= _step_back(alias, moves, fields)
    await _move(service, caller, alias, fields)
    return RedirectResponse("/ui/models", 303)


@router.post("/ui/models/{version}/alias")
async def promote(request: Request, version: str) -> Response:
    """Let an alias name a version. The form names the alias with its newest move as the page showed
    it, `ALIAS CHANGED_AT`."""
    caller = allowed(request, Role.OPERATOR)
    service: Service = request.app.state.service
    fields = await asked.form(request)
    asked.require_sure(fields)
    alias, _, seen = fields.get("alias", "").partition(" ")
    if not fullmatch(ALIAS_PATTERN, alias):
        raise HTTPException(422, f"{alias[:50]!r} is the name of no alias; nothing was changed")
    await _move(service, caller, alias, fields | {"model_version": version, "seen": seen})
    return RedirectResponse(f"/ui/models/{quote(version)}", 303)


def _step_back(alias: str, moves: list[Row], fields: dict[str, str]) -> dict[str, str]:
    """The version that stood before, and the reason as the history tells it; of a demotion no
    version where none stood. Raises 409 and 422."""
    demoted, reason = "demote" in fields, fields.get("reason", "")
    if demoted and (not moves or moves[0]["model_version"] == NOTHING):
        raise HTTPException(409, f"the alias {alias} names no version: there is none to demote")
    if demoted and not reason:
        raise HTTPException(422, "reason: say why; nothing was changed")
    target = rollback_target(moves[::-1]) or (NOTHING if demoted else None)
    if target is None:
        raise HTTPException(409, f"the alias {alias} has nothing to go back to")
    reason = f"demoted: {reason}" if demoted else reason
    return {"model_version": target, "reason": rollback_reason(moves[0]["model_version"], reason)}


async def _move(service: Service, caller: Principal, alias: str, fields: dict[str, str]) -> None:
    body = _checked(AliasMove, fields | {"changed_by": caller.name}, ("model_version", "reason"))
    await service.serving.move(
        alias, body.model_version, reason=body.reason, by=caller.name, seen=fields.get("seen")
    )


def _checked(kind: type[Body], fields: dict[str, str], names: tuple[str, ...]) -> Body:
    """The fields of a form as the API's own body. Raises 422 that names what is wrong."""
    try:
        told = {name: fields.get(name, "") for name in (*names, "changed_by")}
        return kind.model_validate_json(orjson.dumps(told))
    except ValidationError as error:
        raise HTTPException(422, f"{describe(error.errors())}; nothing was changed") from None


def _within(target: str) -> str:
    """Where to go after coming in: a page of ours, never somebody else's."""
    parts = urlsplit(target)
    ours = not parts.scheme and not parts.netloc and parts.path.startswith("/ui")
    return target if ours and "\\" not in target and target.isprintable() else "/ui"
