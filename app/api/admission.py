"""Asked before a body is read: does this caller ask too often, and can this be answered within its
deadline?

A deadline that stands in the body, or nowhere, is known only when that is read; until then the
longest one counts, and then the door is asked again (`Door.widen`).
"""

from __future__ import annotations

import re
from time import monotonic

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.advising.door import Door, Ticket
from app.api.budget import Buckets
from app.api.connection import ARRIVED
from app.api.dry_run import asks_for_dry_run
from app.api.wire import overloaded, too_often
from app.domain.errors import Overloaded
from app.domain.principal import OPEN, Principal
from app.schemas import LONGEST_DEADLINE_MS
from app.telemetry import Refusal

METERED = ("/advise", "/decisions", "/ui/decisions", "/v1/")
DECIDING = ("/v1/systemone", "/v1/decisions")
"""Whoever halts, or asks after health, is never told to wait."""
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
"""An element of the header Prefer: commas between quotes part nothing."""
TICKET = "ticket"
"""In the state of a request that was let in: its ticket."""


class Admission:
    """ASGI middleware: who asks too often is told to wait, and who asks for advice that would come
    too late is told so. Who asks for a later answer, reports, changes the state or asks after
    health is never stopped by load."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(METERED):
            await self._app(scope, receive, send)
            return
        buckets: Buckets = scope["app"].state.buckets
        wait_s = buckets.wait(_caller(scope), monotonic())
        if wait_s:
            scope["app"].state.metrics.refused(Refusal.RATE)
            await too_often(wait_s)(scope, receive, send)
        elif _waits_for_advice(scope):
            await self._let_in(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        door: Door = scope["app"].state.service.door
        state = scope["state"]
        arrived: float = state.get(ARRIVED) or monotonic()
        try:
            state[TICKET] = ticket = door.enter(arrived, arrived + _deadline_s(scope))
        except Overloaded as error:
            await overloaded(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            door.leave(ticket)


def _caller(scope: Scope) -> str:
    """By name; where nobody needs one, by address."""
    principal: Principal = scope["principal"]
    return str((scope.get("client") or ("",))[0]) if principal is OPEN else principal.name


def _waits_for_advice(scope: Scope) -> bool:
    if scope["method"] == "POST" and scope["path"] in DECIDING:
        return True
    if (scope["method"], scope["path"]) != ("POST", "/advise") or (
        asks_for_dry_run(scope) is not False
    ):
        return False
    return not is_asynchronous(_header(scope, b"prefer").decode("latin-1"))


def _deadline_s(scope: Scope) -> float:
    told = _header(scope, b"x-deadline-ms")
    is_sane = told.isdigit() and len(told) <= len(str(LONGEST_DEADLINE_MS))
    return (int(told) if is_sane else LONGEST_DEADLINE_MS) / 1000


def _header(scope: Scope, name: bytes) -> bytes:
    """The last that was sent under a name; empty when none was."""
    sent: list[bytes] = [value for each, value in scope["headers"] if each == name]
    return sent[-1] if sent else b""


def is_asynchronous(prefer: str) -> bool:
    """Whether a request shall be accepted now and decided later: the preference `respond-async` of
    RFC 7240, which has no value, among others, with or without parameters. Others are not ours,
    and are ignored, as that says."""
    for preference in _PREFERENCE.findall(prefer):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "respond-async" and value.strip() in ("", '""'):
            return True
    return False


def ticket_of(request: Request) -> Ticket:
    """The ticket of a request that was let in."""
    ticket: Ticket = request.scope["state"][TICKET]
    return ticket
