"""HTTP connections that cannot cost more than was agreed: bytes and number of headers, time to send
a request, number of connections.

uvicorn bounds none of these with httptools. What is refused here never becomes a request: it is
answered in one write and the connection is closed.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.telemetry import Refusal, Telemetry

ARRIVED = "arrived"
"""In a request's state: when its header was complete (`time.monotonic()`)."""
TITLE = "The request exceeds what this service takes"
NO_REQUEST = "This is no request of HTTP/1.1"
UPGRADE = (
    "it asks for another protocol (Upgrade), and a body is not read then: send HTTP/1.1 alone"
    " (curl --http1.1, Java's HttpClient.Version.HTTP_1_1)"
)
BODY = frozenset({b"content-length", b"transfer-encoding"})
"""Headers of a request that has one."""


@dataclass(frozen=True)
class Bounds:
    """What a connection may cost.

    Parameters
    ----------
    request_s : from the first byte of a request (of the first one: from the connection) to its
        last.
    idle_s : from an answer to the next request.
    """

    header_bytes: int = 16_384
    headers: int = 64
    request_s: float = 10.0
    idle_s: int = 5
    connections: int = 512


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration of a server whose connections keep to `bounds`."""

    def __init__(
        self,
        app: ASGIApp,
        bounds: Bounds,
        telemetry: Telemetry,
        log_level: str = "info",
        logs_json: bool = False,
    ) -> None:
        super().__init__(
            app,
            http=BoundedHttp,
            ws="none",
            log_level=log_level,
            log_config=None if logs_json else LOGGING_CONFIG,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            timeout_keep_alive=bounds.idle_s,
        )
        self.bounds = bounds
        self.telemetry = telemetry


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    config: BoundedConfig
    _head_bytes = 0
    _in_head = False
    _refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.config.bounds.connections
        if len(self.connections) > most:
            self._refuse(503, Refusal.CONNECTIONS, f"{most} connections are open; come back soon")
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused:
            self._head_bytes += len(data)
            self._check_head(self._head_bytes)

    def send_400_response(self, msg: str) -> None:
        """What is no request says why: two lengths, for instance, of which neither may win."""
        self._no_request(str(sys.exc_info()[1] or msg))

    def _no_request(self, why: str) -> None:
        self._refused = True
        self._stop_timer()
        self.transport.write(_answer(400, why, NO_REQUEST))
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._expect_request()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._refused:
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._check_head(size)
        if not self._refused and self.parser.should_upgrade() and self._has_body():
            self._no_request(UPGRADE)
        if not self._refused:
            self.scope["state"][ARRIVED] = monotonic()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        if self._refused:
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            # It was answered before its body was read, which has stopped the timer of idleness.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _has_body(self) -> bool:
        return not BODY.isdisjoint(name for name, _ in self.headers)

    def _check_head(self, size: int) -> None:
        bounds = self.config.bounds
        if size > bounds.header_bytes:
            self._refuse(431, Refusal.HEADER, f"the header is over {bounds.header_bytes} bytes")
        elif len(self.headers) > bounds.headers:
            self._refuse(431, Refusal.HEADER, f"there are over {bounds.headers} header fields")

    def _expect_request(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.config.bounds.request_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        patience = self.config.bounds.request_s
        if self.cycle is not None and not self.cycle.response_complete:
            # A request is being read by its route; its answer may have begun.
            self.config.telemetry.refused(Refusal.SLOW)
            self._refused = True
            self.transport.close()
        else:
            detail = f"the request was not complete after {patience:g} s"
            self._refuse(408, Refusal.SLOW, detail)

    def _refuse(self, status: int, why: Refusal, detail: str) -> None:
        """Answer at once, unless an earlier request still waits for its own answer, and close."""
        self._refused = True
        self._stop_timer()
        self.config.telemetry.refused(why)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_answer(status, detail))
        self.transport.close()


def _answer(status: int, detail: str, title: str = TITLE) -> bytes:
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    body = orjson.dumps(document | {"detail": detail})
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n{retry}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
