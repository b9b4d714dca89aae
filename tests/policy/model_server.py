"""A server that answers as a model server does, or as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """A local HTTP server that gives one fixed answer, or with `reads` label log-probabilities by
    the request; keeps the requests, and can be held back by `gate`."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"{}"
        self.reads: Callable[[Any], dict[str, float]] | None = None
        self.hang_up = False
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(content)
                outer.requests.append((self.path, dict(self.headers), request))
                body = outer.body
                if outer.reads is not None:
                    read = {"top_logprobs": [outer.reads(request)]}
                    body = json.dumps({"choices": [{"logprobs": read}]}).encode()
                outer.arrived.release()
                outer.gate.wait(60)
                if outer.hang_up:
                    self.close_connection = True
                    return
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test output clean."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away at its deadline is expected here."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    def answer(self, document: Any, status: int = 200) -> None:
        self.status, self.body = status, json.dumps(document).encode()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
