"""Spans of a decision, as a collector gets them over HTTP: from the agent's to the row, under one
trace id."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.advising.tracing import TracingFault, traces_of
from app.journal.drain import StreamDrain
from app.processes.metrics import Metrics
from app.shadow_log.log import ShadowLog
from app.writer import Writer
from tests.service.running import drained, request, running, settings_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, Span]]]]:
    """A collector: its URL, and every span that it got with the service that sent it."""
    spans: list[tuple[str, Span]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in sent.resource.attributes}
                spans.extend(
                    (names["service.name"], span) for s in sent.scope_spans for span in s.spans
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        server.shutdown()


async def test_a_decision_is_traced_from_the_agent_to_its_row(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    with collector() as (url, spans):
        settings = settings_for(database_url, valkey_url, tmp_path, traces=url)
        async with running(settings) as api:
            for name, flags in (("traced", "01"), ("unsampled", "00")):
                answer = await api.advise(request(name), traceparent=f"00-{TRACE}-{PARENT}-{flags}")
                assert answer.status_code == 200, answer.text
            assert (await api.advise(request("untraced"))).status_code == 200
            decision = (await api.advise(request("wrong"), traceparent="00-0-0-01")).json()
            assert decision["status"] == "advised"
        traces = traces_of(settings.traces, "advisor-writer")
        assert traces is not None
        assert settings.redis_url is not None
        log = ShadowLog.connect(database_url)
        writer = Writer(settings.redis_url, log, Metrics(), traces=traces)
        drain = StreamDrain(settings.redis_url, writer.write, block_ms=10)
        while await drain.step():
            pass
        await drain.aclose()
        await writer.aclose()
        await asyncio.to_thread(traces.close)
    assert [(who, span.name) for who, span in spans] == [
        ("advisor-api", name) for name in ("prepare", "read", "rules", "journal", "request")
    ] + [("advisor-writer", "insert")]
    assert {span.trace_id.hex() for _, span in spans} == {TRACE}
    named = {span.name: span for _, span in spans}
    whole = named["request"]
    for name in ("request", "insert"):
        assert named[name].parent_span_id.hex() == PARENT
    for name in ("prepare", "read", "rules", "journal"):
        part = named[name]
        assert part.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= part.start_time_unix_nano
        assert part.start_time_unix_nano <= part.end_time_unix_nano <= whole.end_time_unix_nano
    told = {each.key for each in whole.attributes}
    assert {"advisor.decision_id", "advisor.status", "advisor.symbol"} <= told


async def test_a_collector_that_is_away_costs_spans_alone(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, traces="http://127.0.0.1:1/v1")
    async with running(settings) as api:
        answer = await api.advise(request("away"), traceparent=f"00-{TRACE}-{PARENT}-01")
        assert answer.json()["status"] == "advised"
    assert await drained(settings) >= 1


def test_it_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    settings = settings_for("postgresql://x", "redis://x", tmp_path)
    assert traces_of(settings.traces, "advisor-api") is None


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingFault, match=r"shadow-advisor\[otel\]"):
        traces_of("http://127.0.0.1:1/v1/traces", "advisor-api")
