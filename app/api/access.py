"""Who asks: every request has a principal, or may ask after health alone; and it was not sent by a
web page that took a browser for its own ends.

A token that is not known costs its sender time: the answer comes later with each failure of an
address in a minute. A known one is never made to wait, wherever it comes from: behind one proxy, or
on one machine, callers share their address with whoever tries to guess.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from time import monotonic
from urllib.parse import quote, urlsplit

import structlog
from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.tokens import Tokens
from app.api.wire import HEADER_NAMES, problem
from app.domain.principal import Principal, Role
from app.telemetry import AuthFailure

log = structlog.get_logger()
ANYBODY = frozenset({"/", "/healthz", "/readyz", "/ui/login"})
EXPLORER, STATIC = "/ui", "/ui/static/"
LOST = "lost"
"""Told to the form by which people come in: what they sent from another was not done."""
COOKIE = "advisor_token"
"""Where a browser keeps the token of whoever came in by the explorer's form; for its pages only."""
PAGES = frozenset({"/docs", "/redoc", "/openapi.json"})
"""For browsers, which ask people for a name and a password: any name, and a token."""
ONCE = HEADER_NAMES | {
    b"authorization",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"cookie",
    b"host",
    b"origin",
    b"transfer-encoding",
}
"""Headers of which a request may have one each."""
WINDOW_S = 60.0
STEP_S, LONGEST_S = 0.1, 2.0
MAX_WAITING = 64
"""So many refusals are held back at once; more are given at once."""
MAX_ADDRESSES = 4096
LOG_EVERY_S = 1.0
_WHAT = {
    AuthFailure.MISSING: "send a token: `Authorization: Bearer TOKEN`; `advisor token create`"
    " makes one",
    AuthFailure.MALFORMED: "the header Authorization is not `Bearer TOKEN`",
    AuthFailure.UNKNOWN: "this token is not known here, or was revoked",
    AuthFailure.EXPIRED: "this token has expired: `advisor token rotate` makes another",
}


_REPORT = re.compile(r"/ui/models/[^/]+/report")
_HOST = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?$")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_PAGE_HEADERS = [
    *_HEADERS[:-1],
    (
        b"content-security-policy",
        b"default-src 'none'; frame-ancestors 'none'; connect-src 'self'; img-src 'self' data:;"
        b" script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'",
    ),
]
_EXPLORER_HEADERS = [
    *(header for header in _HEADERS[:-1] if header[0] != b"referrer-policy"),
    # Without any referrer a browser says `Origin: null` of a form of ours.
    (b"referrer-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        b" form-action 'self'; base-uri 'none'; frame-src 'self'; frame-ancestors 'none'",
    ),
]
_REPORT_HEADERS = [
    *_HEADERS[:-1],
    # A page that training wrote, inside of ours: its scripts sort its tables, and reach nothing.
    (
        b"content-security-policy",
        b"sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline';"
        b" script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
        b" frame-ancestors 'self'",
    ),
]


class Failures:
    """Failed authentications by address: how long the next answer is held back."""

    def __init__(self, most: int = MAX_ADDRESSES) -> None:
        self._most = most
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def delay(self, address: str, now: float) -> float:
        """Count one; seconds that its answer waits."""
        count, since = self._failures.pop(address, (0, now))
        if now - since > WINDOW_S:
            count, since = 0, now
        self._failures[address] = (count + 1, since)
        if len(self._failures) > self._most:
            self._failures.popitem(last=False)
        return min(count * STEP_S, LONGEST_S)


class Refusals:
    """Failed authentications: counted, logged and held back."""

    def __init__(self) -> None:
        self._failures = Failures()
        self._waiting = 0
        self._logged_at = -LOG_EVERY_S

    def note(self, scope: Scope, why: AuthFailure) -> None:
        """Count it; log it, no token in it, and not oftener than every second."""
        scope["app"].state.metrics.unauthenticated(why)
        if monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = monotonic()
            what = f"{scope['method']} {scope['path'][:100]}"
            log.warning(
                "authentication failed", reason=why.value, address=_address(scope), request=what
            )

    async def told(self, scope: Scope, why: AuthFailure) -> str:
        """Note it, hold it back; then what was wrong."""
        self.note(scope, why)
        delay = self._failures.delay(_address(scope), monotonic())
        if delay and self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                await asyncio.sleep(delay)
            finally:
                self._waiting -= 1
        return _WHAT[why]


class Guard:
    """ASGI middleware: puts the principal into the scope, or answers 401; a browser that looks for
    a page is sent to the form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, path = scope["app"].state, scope["path"]
        send = _with_headers(path, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        misled = ambiguous(scope["headers"]) or misdirected(
            headers, state.hosts, state.origins, scope["scheme"]
        )
        if misled is not None:
            await problem(*misled)(scope, receive, send)
            return
        caller = _caller(scope, state.tokens, datetime.now(UTC))
        if isinstance(caller, Principal):
            scope["principal"] = caller
        elif path in ANYBODY or path.startswith(STATIC):
            if caller is not AuthFailure.MISSING:
                state.refusals.note(scope, caller)
        else:
            answer = await _refusal(scope, state.refusals, caller)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def _refusal(scope: Scope, refusals: Refusals, why: AuthFailure) -> Response:
    """401; to a browser that looks for a page the way to the form: without a cookie that is how
    everybody comes in, and no failure."""
    path = scope["path"]
    looks = _is_page(path) and scope["method"] in ("GET", "HEAD")
    if looks and why is AuthFailure.MISSING:
        return _to_the_form(scope)
    detail = await refusals.told(scope, why)
    if looks:
        return _to_the_form(scope)
    if _is_page(path):
        return RedirectResponse(f"{EXPLORER}/login?{LOST}=1", 303)
    challenge = 'Basic realm="advisor"' if path in PAGES else 'Bearer realm="advisor"'
    answer = problem(401, "Nobody is known by this", detail)
    answer.headers["WWW-Authenticate"] = challenge
    return answer


def _to_the_form(scope: Scope) -> Response:
    query = scope["query_string"].decode("latin-1")
    target = quote(scope["path"] + (f"?{query}" if query else ""))
    answer = RedirectResponse(f"{EXPLORER}/login?next={target}", 303)
    answer.delete_cookie(COOKIE, path=EXPLORER)
    return answer


def _is_page(path: str) -> bool:
    return path == EXPLORER or path.startswith(f"{EXPLORER}/")


def ambiguous(headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str, str] | None:
    """Status, title and detail when a header that says one thing was sent more than once: none may
    win without a word. None when nothing is wrong."""
    names = [name for name, _ in headers]
    if len(set(names)) == len(names):
        return None
    for name in sorted(ONCE):
        if names.count(name) > 1:
            detail = f"the header {name.decode()} was sent {names.count(name)} times; send one"
            return 400, "An ambiguous request", detail
    return None


def misdirected(
    headers: Mapping[bytes, str], hosts: Collection[str], origins: Collection[str], scheme: str
) -> tuple[int, str, str] | None:
    """Status, title and detail for what a web page made a browser send: a name that is not ours, or
    another page's request. None when nothing is wrong.

    Numbers are ours: a page that would be taken for us needs a name that it can point elsewhere.
    """
    host = headers.get(b"host", "")
    name = _name_in(host)
    if name is None or not (name in hosts or _is_number(name)):
        detail = f"{host[:100]!r} is not a name of this service: set ADVISOR_ALLOWED_HOSTS"
        return 421, "Misdirected", detail
    origin = headers.get(b"origin")
    ours = {*origins, f"{scheme}://{host.lower()}"} if origin is not None else ()
    if origin is not None and origin.lower() not in ours:
        detail = (
            f"requests of other pages are not answered; when {origin[:100]!r} is a proxy of yours"
            " before this service, name it in ADVISOR_PUBLIC_ORIGIN"
        )
        return 403, "Another page's request", detail
    return None


@lru_cache(maxsize=256)
def _name_in(host: str) -> str | None:
    """The name in a header Host, without a port; None of what is none."""
    return urlsplit(f"//{host}").hostname if _HOST.match(host) else None


@lru_cache(maxsize=256)
def _is_number(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _headers_of(path: str) -> list[tuple[bytes, bytes]]:
    if _REPORT.fullmatch(path):
        return _REPORT_HEADERS
    if _is_page(path):
        return _EXPLORER_HEADERS
    return _PAGE_HEADERS if path in PAGES else _HEADERS


def _with_headers(path: str, send: Send) -> Send:
    """Every answer says how little a browser may do with it."""
    extra = _headers_of(path)

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *extra]
        await send(message)

    return sending


def caller_of(request: Request) -> Principal | None:
    """Who asks; None is nobody, who may ask after health."""
    principal: Principal | None = request.scope.get("principal")
    return principal


def allowed(request: Request, *roles: Role) -> Principal:
    """Who asks, when it has one of these roles; else 403."""
    principal = caller_of(request)
    assert principal is not None, "the guard let nobody in"
    if not any(principal.may(role) for role in roles):
        needed = " or ".join(role.value for role in roles)
        has = ", ".join(sorted(principal.roles))
        raise HTTPException(
            403,
            f"{request.method} {request.url.path} needs the role {needed}; {principal.name} has"
            f" {has}",
        )
    return principal


def _caller(scope: Scope, tokens: Tokens, now: datetime) -> Principal | AuthFailure:
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    header = sent[0].decode("latin-1") if sent else None
    if header is not None and scope["path"] in PAGES and header[:6].lower() == "basic ":
        return tokens.holder_of(_password(header[6:]), now)
    if header is None and _is_page(scope["path"]):
        kept = HTTPConnection(scope).cookies.get(COOKIE)
        if kept is not None:
            return tokens.holder_of(kept, now)
    return tokens.holder(header, now, _address(scope))


def _password(credentials: str) -> str:
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except (NotBase64, UnicodeDecodeError):
        return ""


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])
