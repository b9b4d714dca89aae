"""What the service tells about itself. One method per observation: one that nobody counts is a type
error, not silence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TextIO
from uuid import UUID

import structlog

from app.domain.candidate import Candidate
from app.domain.intervals import Mean
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Advice, Decision, Engine, Role
from app.domain.record.event import RepetitionKind
from app.domain.rules.case import TradingState
from app.domain.scenario import Fault


class Stage(StrEnum):
    VALIDATE = "validate"
    PREPARE = "prepare"
    POLICY = "policy"
    CONCLUDE = "conclude"
    JOURNAL = "journal"
    TOTAL = "total"


class Rough(StrEnum):
    """What became of a rough reading: of each the first or the second, of some one of the others as
    well."""

    STOOD = "stood"
    READ_AGAIN = "read_again"
    """Its advice might have been another one."""
    NEAR = "near"
    """An exact reading of the same was as near as the certificate says."""
    BEYOND = "beyond"
    """It was not: rough readings of the version have ended."""


class Attempt(StrEnum):
    """How a request to one of several model servers ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    OVERTAKEN = "overtaken"
    """Another server answered first, or the deadline came."""


class LossCause(StrEnum):
    """Each way in which something could not be kept."""

    JOURNAL_UNAVAILABLE = "journal_unavailable"
    SPOOL_FULL = "spool_full"
    DUPLICATE_CONFLICT = "duplicate_conflict"
    REJECTED_BY_DATABASE = "rejected_by_database"
    LATE_RATIONALE = "late_rationale"
    CORRUPT_ENTRY = "corrupt_entry"
    REJECTED_REQUEST = "rejected_request"


class Refusal(StrEnum):
    """Each budget of a request that can be exceeded."""

    HEADER = "header"
    BODY = "body"
    VALUES = "values"
    ITEMS = "items"
    EXTRA = "extra"
    SLOW = "slow"
    CONNECTIONS = "connections"
    RATE = "rate"
    WAIT = "wait"
    PENDING = "pending"


class Part(StrEnum):
    """Each part of a request, and each report, of which something may be left out."""

    REQUEST = "request"
    CANDIDATE = "candidate"
    PLAN = "plan"
    ACCOUNT = "account"
    MARKET = "market"
    AGES = "ages"
    BARS = "bars"
    AGENT_ACTION = "agent_action"
    OUTCOME = "outcome"


class AuthFailure(StrEnum):
    """Why a caller is nobody."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"


class Asking(StrEnum):
    """How laying a decision before a decider ended."""

    ANSWERED = "answered"
    DECLINED = "declined"
    REFUSED = "refused"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    UNRECORDED = "unrecorded"
    NOT_SAMPLED = "not_sampled"
    OVER_BUDGET = "over_budget"
    BUSY = "busy"
    DROPPED = "dropped"


class Dependency(StrEnum):
    POSTGRES = "postgres"
    VALKEY = "valkey"
    MODEL = "model"


class Task(StrEnum):
    """Background work. What is done only when needed is begun again by the next need."""

    CONTROLS = "controls"
    ALIASES = "aliases"
    REQUESTS = "requests"
    SPOOL_DRAIN = "spool_drain"
    WRITER = "writer"
    HEADS = "heads"
    LEDGER = "ledger"
    LIMITS = "limits"
    CHAIN_WATCH = "chain_watch"
    CHECKPOINTS = "checkpoints"
    SESSIONS = "sessions"
    STREAM_SENDER = "stream_sender"
    SPOOL_WRITER = "spool_writer"
    POLICY_BATCHER = "policy_batcher"
    PANEL = "panel"
    WORTH = "worth"


class Pair(NamedTuple):
    """Who approves: the agent, the advice."""

    agent: bool
    advice: bool


class Earned(NamedTuple):
    """What both arms earned of one symbol: in R where both are known, and in quote currency where
    that was told. `judged`: decisions with both known."""

    model_version: str
    symbol: str
    judged: int
    agent_r: float
    advice_r: float
    agent_pnl: float
    advice_pnl: float

    def plus(self, sums: Mapping[str, Any]) -> Earned:
        """With further sums, by the names of the fields."""
        names = self._fields[2:]
        return self._replace(**{name: getattr(self, name) + sums[name] for name in names})


class Apart(NamedTuple):
    """R a decision that a version's advice earned more than the agent."""

    model_version: str
    more: Mean


class Saved(NamedTuple):
    """What a rule refused of the agent's orders for one symbol, and the R that this saved."""

    code: str
    symbol: str
    refused: int
    r: float


class Foretold(NamedTuple):
    """Orders whose chance was told within `band`: the mean of what was told (`approve`, of
    approving; `win`, of a profit), and the share that won."""

    model_version: str
    what: str
    band: str
    decisions: int
    told: float
    won: float


class Worth(NamedTuple):
    """What the newest decisions on the record were worth."""

    earned: Sequence[Earned] = ()
    apart: Sequence[Apart] = ()
    saved: Sequence[Saved] = ()
    foretold: Sequence[Foretold] = ()


class Telemetry(Protocol):
    """The port. `app.processes.metrics.Metrics` counts; `Unobserved` does not. Seconds are
    monotonic."""

    def answered(self, route: str, status: int) -> None:
        """One HTTP request, by its route's template."""

    def refused(self, why: Refusal) -> None:
        """A request, or a connection, exceeded a budget."""

    def left_out(self, part: Part, fault: Fault) -> None:
        """A field of a request or report could not be used, and was done without."""

    def unauthenticated(self, why: AuthFailure) -> None:
        """A caller could not say who it is."""

    def stage_took(self, stage: Stage, seconds: float) -> None:
        """One stage of a request."""

    def decided(self, decision: Decision) -> None:
        """A decision was recorded."""

    def advised_late(self, candidate: Candidate, advice: Advice) -> None:
        """Advice on a decision was recorded after it."""

    def on_panel(self, versions: Iterable[str]) -> None:
        """These versions are asked after the reply."""

    def panel_asked(self, version: str, how: Asking) -> None:
        """A question to a model elsewhere ended, or was not asked."""

    def panel_answered(self, version: str, seconds: float, cost: float) -> None:
        """What an answer took, and cost (US dollars)."""

    def panel_repeated(self, version: str, kind: RepetitionKind, flipped: bool) -> None:
        """A version was asked again, and proposed another action or the same."""

    def compared(self, decision: UUID, candidate: Candidate, version: str, pair: Pair) -> None:
        """Whether the agent and a version approve the same candidate: once for each decision."""

    def compared_anew(self, decision: UUID, version: str, pair: Pair) -> None:
        """The agent's action on a decision that was compared before was corrected."""

    def lost(self, cause: LossCause, count: int = 1) -> None:
        """What could not be kept."""

    def appended(self, target: str) -> None:
        """An event became durable, in `stream` or `spool`."""

    def stream_holds(self, events: int, oldest_s: float) -> None:
        """Events that are not in Postgres yet, and the age of the oldest."""

    def spool_holds(self, events: int) -> None:
        """Events on local disk, waiting for the stream."""

    def stream_seen(self, durable: bool | None, memory: float, since: datetime) -> None:
        """Whether the stream keeps what it confirms, the used share of its memory, and when what
        it remembers began."""

    def written(self, rows: Mapping[str, int], seconds: float) -> None:
        """The writer committed one batch: rows by table."""

    def events_missing(self, events: int) -> None:
        """Numbered events that should be in Postgres and are not."""

    def worth_seen(self, worth: Worth) -> None:
        """What the newest decisions were worth, by the record."""

    def under_way(self, items: int, wait_s: float) -> None:
        """Items that were let in and are not answered yet, and how long one more would wait."""

    def prompts_wait(self, prompts: int) -> None:
        """Prompts that wait for a model."""

    def batch_read(self, prompts: int) -> None:
        """One forward pass."""

    def labels_read(self, mass: float) -> None:
        """Probability that fell on the labels, 0-1."""

    def read_by(self, engine: Engine) -> None:
        """A reading in this process, and what read it."""

    def engine_failed(self) -> None:
        """An engine does not run here, or says something else than torch, and is not used."""

    def replicas(self, urls: Sequence[str]) -> None:
        """These servers hold a model that is served."""

    def replica_asked(self, url: str, how: Attempt) -> None:
        """A request to one of them has ended."""

    def rough(self, fate: Rough) -> None:
        """What became of a rough reading."""

    def rough_compared(self, fate: Rough, off: float) -> None:
        """An exact reading was held against a rough one, which was so far off (nats)."""

    def serving(self, versions: Iterable[tuple[ModelManifest, Role]]) -> None:
        """Exactly these versions are served from now on."""

    def version_refused(self) -> None:
        """An alias names a version that did not load."""

    def limits_adopted(self, limits: Collection[tuple[str, str]]) -> None:
        """These limits, by version and hash, are in force from now on."""

    def limits_refused(self) -> None:
        """A limits file was refused on reload."""

    def state_entered(self, state: TradingState) -> None:
        """The trading state in force."""

    def dependency_seen(self, dependency: Dependency, up: bool) -> None:
        """Whether a dependency answers."""

    def report_unchecked(self) -> None:
        """A report was taken while nobody could tell whether its decision exists."""

    def task_works(self, task: Task, works: bool) -> None:
        """Whether the last round of a background task succeeded, and in time."""

    def task_failed(self, task: Task) -> None:
        """A round of a background task raised."""


class Unobserved:
    """Telemetry for where nobody looks."""

    def answered(self, route: str, status: int) -> None: ...
    def refused(self, why: Refusal) -> None: ...
    def left_out(self, part: Part, fault: Fault) -> None: ...
    def unauthenticated(self, why: AuthFailure) -> None: ...
    def stage_took(self, stage: Stage, seconds: float) -> None: ...
    def decided(self, decision: Decision) -> None: ...
    def advised_late(self, candidate: Candidate, advice: Advice) -> None: ...
    def on_panel(self, versions: Iterable[str]) -> None: ...
    def panel_asked(self, version: str, how: Asking) -> None: ...
    def panel_answered(self, version: str, seconds: float, cost: float) -> None: ...
    def panel_repeated(self, version: str, kind: RepetitionKind, flipped: bool) -> None: ...
    def compared(self, decision: UUID, candidate: Candidate, version: str, pair: Pair) -> None: ...
    def compared_anew(self, decision: UUID, version: str, pair: Pair) -> None: ...
    def lost(self, cause: LossCause, count: int = 1) -> None: ...
    def appended(self, target: str) -> None: ...
    def stream_holds(self, events: int, oldest_s: float) -> None: ...
    def spool_holds(self, events: int) -> None: ...
    def stream_seen(self, durable: bool | None, memory: float, since: datetime) -> None: ...
    def written(self, rows: Mapping[str, int], seconds: float) -> None: ...
    def events_missing(self, events: int) -> None: ...
    def worth_seen(self, worth: Worth) -> None: ...
    def under_way(self, items: int, wait_s: float) -> None: ...
    def prompts_wait(self, prompts: int) -> None: ...
    def batch_read(self, prompts: int) -> None: ...
    def labels_read(self, mass: float) -> None: ...
    def read_by(self, engine: Engine) -> None: ...
    def engine_failed(self) -> None: ...
    def replicas(self, urls: Sequence[str]) -> None: ...
    def replica_asked(self, url: str, how: Attempt) -> None: ...
    def rough(self, fate: Rough) -> None: ...
    def rough_compared(self, fate: Rough, off: float) -> None: ...
    def serving(self, versions: Iterable[tuple[ModelManifest, Role]]) -> None: ...
    def version_refused(self) -> None: ...
    def limits_adopted(self, limits: Collection[tuple[str, str]]) -> None: ...
    def limits_refused(self) -> None: ...
    def state_entered(self, state: TradingState) -> None: ...
    def dependency_seen(self, dependency: Dependency, up: bool) -> None: ...
    def report_unchecked(self) -> None: ...
    def task_works(self, task: Task, works: bool) -> None: ...
    def task_failed(self, task: Task) -> None: ...


UNOBSERVED: Telemetry = Unobserved()


class timed:
    """Time a stage (s), also into the decision's own `into`."""

    __slots__ = ("_begin", "_into", "_stage", "_telemetry")

    def __init__(self, telemetry: Telemetry, stage: Stage, into: dict[str, float]) -> None:
        self._telemetry, self._stage, self._into = telemetry, stage, into

    def __enter__(self) -> None:
        self._begin = perf_counter()

    def __exit__(self, *error: object) -> None:
        self._into[self._stage.value] = elapsed = perf_counter() - self._begin
        self._telemetry.stage_took(self._stage, elapsed)


class Unfailing(structlog.PrintLogger):
    """Prints log lines, and never fails whoever speaks: behind a full disk a
    line is dropped, and no request and no background task ends."""

    def msg(self, message: str) -> None:
        """Print a line, if that is possible."""
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def configure_log(as_json: bool = False, to: TextIO | None = None) -> None:
    """How this process logs from now on: lines for people, or one JSON object a line, those of the
    standard library's loggers too. Tracebacks show code, not the values that it worked on. `to` is
    standard output by default; a command whose answer stands there logs elsewhere."""
    structlog.reset_defaults()
    *common, _, _ = structlog.get_config()["processors"]
    stamped: list[Any]
    written: list[Any]
    if as_json:
        stamped = [*common, structlog.processors.TimeStamper("iso", utc=True)]
        written = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        _write_others(stamped, written)
    else:
        stamped = [*common, structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False)]
        written = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(processors=[*stamped, *written], logger_factory=lambda *_: Unfailing(to))


def _write_others(stamped: list[Any], written: list[Any]) -> None:
    """What the standard library's loggers say is written as our own lines are."""
    clean = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[clean, *written], foreign_pre_chain=stamped)
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO)
