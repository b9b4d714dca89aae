"""Traces of the decisions that an agent traces, from its request to the row, under its trace id.

What is measured anyway is told as spans, after the fact: nothing is begun or waited for on the way,
and a collector that is away costs spans alone. Off unless ADVISOR_TRACES names a collector; what
comes without a `traceparent`, or with one that is not sampled, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from datetime import datetime
from time import time_ns
from typing import TYPE_CHECKING, NamedTuple

from app.domain.errors import AdvisorError, InvalidRecord
from app.domain.record.decision import Decision
from app.domain.record.event import Entry, Event, EventKind
from app.processes.metrics import Metrics
from app.telemetry import Stage

if TYPE_CHECKING:
    from opentelemetry.context import Context

NAMES = {
    Stage.PREPARE: "prepare",
    Stage.POLICY: "read",
    Stage.CONCLUDE: "rules",
    Stage.JOURNAL: "journal",
}
"""Spans within a request, in their order."""
EXPORT_S = 2.0


class TracingFault(AdvisorError):
    """Spans cannot be told as asked; the message says what to do."""


class Took(NamedTuple):
    """A stage of the request under way; nanoseconds since 1970."""

    stage: Stage
    begin: int
    end: int


_UNDER_WAY: ContextVar[list[Took] | None] = ContextVar("stages", default=None)
"""Stages of the request of this task, and of the tasks that it makes."""


class Traces:
    """Spans for a collector. Raises `TracingFault` here when the extra `otel` is not installed."""

    def __init__(self, url: str, service: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingFault(
                f"ADVISOR_TRACES needs the extra `otel` ({error}): pip install"
                " 'shadow-advisor[otel]', or unset it"
            ) from error
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=EXPORT_S))
        )
        self._tracer = self._provider.get_tracer("shadow-advisor")

    def decided(self, decision: Decision, stages: Iterable[Took], now: int) -> None:
        """A request whose decision is durable, and its stages."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        agent = _context(decision.traceparent)
        if agent is None:
            return
        advice, candidate = decision.primary, decision.scenario.candidate
        request = self._tracer.start_span(
            "request",
            agent,
            SpanKind.SERVER,
            start_time=_nanoseconds(decision.received_at),
            attributes={
                "advisor.decision_id": str(decision.decision_id),
                "advisor.symbol": candidate.symbol,
                "advisor.status": advice.status.value,
                "advisor.model_version": advice.model_version,
                "advisor.approve": bool(advice.approve),
            },
        )
        within = set_span_in_context(request)
        for took in stages:
            if took.stage in NAMES:
                span = self._tracer.start_span(NAMES[took.stage], within, start_time=took.begin)
                span.end(took.end)
        request.end(now)

    def inserted(self, events: Iterable[Entry], seconds: float) -> None:
        """Events that are rows now, in a transaction that took so long."""
        now = time_ns()
        for event in events:
            if not isinstance(event, Event) or event.kind is not EventKind.DECISION:
                continue
            agent = _context(_traceparent(event))
            if agent is not None:
                span = self._tracer.start_span(
                    "insert",
                    agent,
                    start_time=now - int(1e9 * seconds),
                    attributes={"advisor.decision_id": event.key},
                )
                span.end(now)

    def close(self) -> None:
        """Send what is left, for a moment."""
        self._provider.shutdown()


class TracedMetrics(Metrics):
    """Counts, and tells what it counted as spans."""

    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self._traces = traces

    def stage_took(self, stage: Stage, seconds: float) -> None:
        super().stage_took(stage, seconds)
        if stage is Stage.PREPARE:
            _UNDER_WAY.set([])  # The first of a request.
        stages, now = _UNDER_WAY.get(), time_ns()
        if stages is not None:
            stages.append(Took(stage, now - int(1e9 * seconds), now))

    def decided(self, decision: Decision) -> None:
        super().decided(decision)
        self._traces.decided(decision, _UNDER_WAY.get() or (), time_ns())


def traces_of(url: str | None, service: str) -> Traces | None:
    """Spans of a service for the collector at `url`; None without one. Raises `TracingFault`."""
    return None if url is None else Traces(url, service)


def _context(traceparent: str | None) -> Context | None:
    """The agent's span; None where there is none, or it is not sampled."""
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return None
    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    span = get_current_span(context).get_span_context()
    return context if span.is_valid and span.trace_flags.sampled else None


def _traceparent(event: Event) -> str | None:
    try:
        told = event.document().get("traceparent")
    except (InvalidRecord, AttributeError):
        return None
    return told if isinstance(told, str) else None


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1000
