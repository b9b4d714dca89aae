"""Gauges over HTTP, for whoever has the token: a scraper of Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from hmac import compare_digest
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from app.domain.errors import AdvisorError

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
REFUSED = "401 Unauthorized"


class ExporterFault(AdvisorError):
    """Gauges cannot be served like this; the message says what to do."""


class _Silent(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *arguments: Any) -> None: ...


def exported(registry: CollectorRegistry, port: int, token_file: Path | None) -> WSGIServer:
    """Serve gauges until the process ends, or the server is shut down.

    With a file that holds a token every address of this machine is listened at and the token is
    asked for, as the file says at each scrape, so that it can be rotated. Without one nobody on
    another machine can come. Raises `ExporterFault`.
    """
    if token_file is not None:
        _token(token_file)
    gauges: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if token_file is None or _allowed(environ.get("HTTP_AUTHORIZATION", ""), token_file):
            return gauges(environ, start)
        body = b"the token with the role metrics\n"
        length = ("Content-Length", str(len(body)))
        start(REFUSED, [("WWW-Authenticate", 'Bearer realm="advisor"'), length])
        return [body]

    host = LOOPBACK if token_file is None else EVERYWHERE
    try:
        server = ThreadingWSGIServer((host, port), _Silent)
    except OSError as error:
        raise ExporterFault(f"cannot listen on {host}:{port}: {error.strerror}") from error
    server.set_app(answer)
    threading.Thread(target=server.serve_forever, name="drift-exporter", daemon=True).start()
    return server


def _allowed(authorization: str, token_file: Path) -> bool:
    scheme, _, token = authorization.partition(" ")
    try:
        right = _token(token_file)
    except ExporterFault:
        return False  # A file that is being replaced lets nobody in.
    return scheme.lower() == "bearer" and compare_digest(token.strip().encode(), right.encode())


def _token(path: Path) -> str:
    """What the file holds. Raises `ExporterFault` where that is nothing."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ExporterFault(f"the token in {path} cannot be read: {error}") from error
    if not text:
        raise ExporterFault(f"{path} is empty: it should hold the token that scrapers send")
    return text
