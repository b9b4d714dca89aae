"""A local HTTP server that misbehaves on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]
ADVICE = {"decision_id": "d", "status": "advised", "approve": True}


class Handler(BaseHTTPRequestHandler):
    """Records the request, then behaves as the script says."""

    server: Faulty
    body: dict[str, Any]

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.body = json.loads(self.rfile.read(length))
        behaviour = self.server.record(self.command, self.path, self.body, dict(self.headers))
        behaviour(self)

    do_POST = handle_one
    do_PUT = handle_one

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def ok(handler: Handler) -> None:
    handler.reply(200, json.dumps(ADVICE).encode())


def status(code: int, **headers: str) -> Behaviour:
    return lambda handler: handler.reply(
        code, json.dumps({"detail": f"says {code}"}).encode(), **headers
    )


def garbage(handler: Handler) -> None:
    handler.reply(200, b"\x00<html>not json")


def dies_in_the_middle(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"decision_id"')
    handler.close_connection = True


def hangs(handler: Handler) -> None:
    """Headers, then nothing until the server closes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.server.released.wait(30)
    handler.close_connection = True


class Faulty(ThreadingHTTPServer):
    """Behaviours are used in turn; the last one stays."""

    daemon_threads = True

    def __init__(self, behaviours: list[Behaviour]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = behaviours
        self.requests: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        self.arrived = threading.Condition()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def record(
        self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> Behaviour:
        with self.arrived:
            self.requests.append((method, path, body, headers))
            self.arrived.notify_all()
            return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

    def wait_for(self, count: int) -> None:
        """Until so many requests have arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, 20), self.requests


@contextmanager
def faulty(*behaviours: Behaviour) -> Iterator[Faulty]:
    server = Faulty(list(behaviours))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
