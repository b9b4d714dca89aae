"""What the trading agent imports. It never blocks beyond its budget and never raises.

```python
client = AdvisorClient("http://127.0.0.1:8321")
decision_id = client.submit(request)            # returns in microseconds; sent in the background
advice = client.advise(request, deadline_s=0.5) # waits, at most half a second; a document or None
client.report_action(decision_id, {"decision": False, "final_skip_reason": "llm_veto"})
```

Everything goes out on one background thread, in order, so that an action never overtakes its
request; what `advise` waits for goes first. A message that could not be delivered is sent again
with the same id, so that nothing is decided twice, until it is `max_age_s` old; a circuit breaker
spares a service that is down. When the queue is full the newest message is dropped. Every loss is
counted in `stats()`. After a fork the child has a thread and a queue of its own; what was queued
stays the parent's.

It says who asks by a token (identity.py). A token is looked for again when it is refused: it may
have been rotated. A wrong address, proxy or file of certificates is an error where the client is
made (connection.py), and nowhere else. What waits goes out when the process ends (leaving.py). A
signal handler may call it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import Any, Union
from uuid import uuid4

import httpx

from .connection import Connection
from .identity import AGENT_VARIABLES, bearer, decision_id, find_token, principal_of
from .leaving import send_before_leaving
from .values import encode

MAX_MESSAGE_BYTES = 1_000_000
LOG_EVERY_S = 60.0
MAX_PATHS = 1000
log = logging.getLogger("advisor.client")
Document = Union[Mapping[str, Any], Callable[[], Mapping[str, Any]]]
"""What is sent, or what makes it: faults of the agent's own code are caught and counted too."""


class MappingError(Exception):
    """The agent's own code could not make what it wants to send."""


class Breaker(Enum):
    """CLOSED sends; OPEN waits; HALF_OPEN lets one message try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True)
class ClientStats:
    """Counters since the start. `dropped` is by reason: queue_full, expired, refused,
    unserialisable, mapping, closed. `left_out`: values that could not be
    sent, by their path; the rest of their messages was. `refusals`: what the service
    refused, by field and reason; reports on a refused request count with it."""

    queued: int
    sent: int
    retried: int
    timed_out: int
    dropped: dict[str, int]
    breaker: Breaker
    last_error: str | None
    last_latency_s: float | None
    proxy: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)


@dataclass
class _Message:
    """One request on its way."""

    method: str
    path: str
    body: bytes
    born: float
    decision_id: str
    advice: Future[dict[str, Any] | None] | None = None
    deadline_ms: int | None = None
    attempts: int = 0
    waited_for: bool = False


@dataclass
class _Counters:
    sent: int = 0
    retried: int = 0
    timed_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None
    last_latency_s: float | None = None


class AdvisorClient:
    """A client for an agent with one thread and an open position.

    Parameters
    ----------
    base_url : where the service answers.
    token : who asks; by default found as told above.
    deadline_s : how long `advise` waits unless told otherwise, and the time that the service is
        given to decide.
    queue_size : messages that may wait; more are dropped.
    max_age_s : a message older than this is dropped.
    breaker_failures, breaker_pause_s : after so many failures in a row, wait so long before one
        message tries again.
    exit_budget_s : how long the end of the process may be delayed for what waits; 0 for not.

    Raises `ConfigurationError` here when the service cannot be reached as told; nothing else does.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        deadline_s: float = 2.0,
        queue_size: int = 1000,
        max_age_s: float = 600.0,
        breaker_failures: int = 5,
        breaker_pause_s: float = 5.0,
        first_backoff_s: float = 0.2,
        max_backoff_s: float = 10.0,
        remembered: int = 1000,
        exit_budget_s: float = 2.0,
    ) -> None:
        self._connection = Connection(base_url)
        self._base_url = base_url
        self._given = token
        self._token = token or find_token(base_url, "agent", AGENT_VARIABLES)
        self._deadline_s = deadline_s
        self._queue_size = queue_size
        self._max_age_s = max_age_s
        self._breaker_failures = breaker_failures
        self._breaker_pause_s = breaker_pause_s
        self._first_backoff_s = first_backoff_s
        self._max_backoff_s = max_backoff_s
        self._remembered = remembered
        self._counters = _Counters()
        self._logged_at = -math.inf
        self.exit_budget_s = exit_budget_s
        self._reset()
        if exit_budget_s > 0:
            send_before_leaving(self)

    def submit(self, request: Document) -> str | None:
        """Queue a request for advice and return its decision id at once; None when it had to be
        dropped."""
        try:
            message = self._advise_message(request, None)
            return message.decision_id if self._enqueue(message) else None
        except Exception as error:
            self._unsendable(error)
            return None

    def advise(self, request: Document, deadline_s: float | None = None) -> dict[str, Any] | None:
        """The advice, or None when there is none within the deadline, whatever the network does.

        After a time-out the request stays queued with the same id: it is decided and recorded once,
        and `result()` may find its advice later.
        """
        message, end = self._asked(request, deadline_s)
        if message is None or message.advice is None:
            return None
        try:
            return message.advice.result(max(end - monotonic(), 0))
        except FutureTimeout:
            self._given_up(message)
            return None

    async def aadvise(
        self, request: Document, deadline_s: float | None = None
    ) -> dict[str, Any] | None:
        """`advise` for asyncio: the loop goes on meanwhile."""
        message, end = self._asked(request, deadline_s)
        if message is None or message.advice is None:
            return None
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def tell(advice: Future[dict[str, Any] | None]) -> None:
            with suppress(RuntimeError):  # The loop may have been closed since.
                loop.call_soon_threadsafe(arrived.set)

        message.advice.add_done_callback(tell)
        try:
            await asyncio.wait_for(arrived.wait(), max(end - monotonic(), 0))
        except asyncio.TimeoutError:
            self._given_up(message)
            return None
        return message.advice.result()

    def report_action(self, decision_id: str | None, action: Document) -> bool:
        """Queue what the agent did; False when it had to be dropped."""
        return self._report(decision_id, "agent-action", action)

    def report_outcome(self, decision_id: str | None, outcome: Document) -> bool:
        """Queue what the market did; False when it had to be dropped."""
        return self._report(decision_id, "outcome", outcome)

    def result(self, decision_id: str) -> dict[str, Any] | None:
        """Advice that arrived in the background, while it is remembered."""
        self._follow_fork()
        with self._lock:
            return self._results.get(decision_id)

    def stats(self) -> ClientStats:
        """Counters of this client."""
        self._follow_fork()
        with self._lock:
            queued = len(self._queue) + (self._sending is not None)
        counters = self._counters
        return ClientStats(
            queued,
            counters.sent,
            counters.retried,
            counters.timed_out,
            dict(counters.dropped),
            self._breaker(),
            counters.last_error,
            counters.last_latency_s,
            self._connection.proxy,
            dict(counters.left_out),
            dict(counters.refusals),
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most `timeout_s`, then stop; what is left is dropped and
        counted."""
        self._follow_fork()
        with self._lock:
            self._closing = True
            self._wake.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        with self._lock:
            self._stopped = True
            self._wake.notify_all()
            left = len(self._queue)
            self._queue.clear()
        if left:
            self._counters.dropped["closed"] += left
            log.warning("advisor client closed with %d messages that could not be sent", left)

    def __repr__(self) -> str:
        return f"<AdvisorClient of {self._connection}>"

    def __enter__(self) -> AdvisorClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reset(self) -> None:
        """Queue, lock and thread of this process."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._queue: deque[_Message] = deque()
        self._sending: _Message | None = None
        self._results: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lost: OrderedDict[str, tuple[str, tuple[str, ...]]] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="advisor-client", daemon=True)
        self._unstarted = [self._thread]
        self._closing = self._stopped = False
        self._failures = 0
        self._open_until = 0.0

    def _follow_fork(self) -> None:
        if os.getpid() != self._pid:
            self._reset()

    def _asked(self, request: Document, deadline_s: float | None) -> tuple[_Message | None, float]:
        """A request in the queue that somebody waits for, and until when; None when dropped."""
        end = monotonic()
        try:
            wait = self._deadline_s if deadline_s is None else deadline_s
            end += wait
            message = self._advise_message(request, max(int(wait * 1000), 10))
            message.advice, message.waited_for = Future(), True
            return (message if self._enqueue(message) else None), end
        except Exception as error:
            self._unsendable(error)
            return None, end

    def _given_up(self, message: _Message) -> None:
        """Nobody waits any longer; it stays queued."""
        message.waited_for = False
        self._counters.timed_out += 1

    def _advise_message(self, request: Document, deadline_ms: int | None) -> _Message:
        document = made(request)
        request_id = document["request_id"] = str(document.get("request_id") or uuid4())
        known = str(decision_id(request_id, principal_of(self._token)))
        return _Message(
            "POST", "/advise", self._encoded(document), monotonic(), known, deadline_ms=deadline_ms
        )

    def _encoded(self, document: Mapping[str, Any]) -> bytes:
        """JSON of a document; what was left out of it is counted, and said once per path."""
        body, left_out = encode(document)
        counts = self._counters.left_out
        for path, why in left_out.items():
            if path not in counts and len(counts) < MAX_PATHS:
                log.warning("advisor client leaves out %s: %s", path[:200], why)
            if path in counts or len(counts) < MAX_PATHS:
                counts[path] += 1
        return body

    def _report(self, decision_id: str | None, what: str, body: Document) -> bool:
        try:
            if decision_id is None:
                self._drop(
                    "refused",
                    ValueError(f"{what} without a decision id: its request had been dropped"),
                )
                return False
            path = f"/decisions/{decision_id}/{what}"
            return self._enqueue(
                _Message("PUT", path, self._encoded(made(body)), monotonic(), decision_id)
            )
        except Exception as error:
            self._unsendable(error)
            return False

    def _enqueue(self, message: _Message) -> bool:
        self._follow_fork()
        with self._lock:
            reason = self._why_not(message)
            if reason is None:
                self._queue.insert(self._place(message), message)
                self._start_thread()
                self._wake.notify()
        if reason is not None:
            self._drop(reason, None)
        return reason is None

    def _place(self, message: _Message) -> int:
        """What somebody waits for goes before what nobody does. The lock is held."""
        if not message.waited_for:
            return len(self._queue)
        waiting = (place for place, other in enumerate(self._queue) if not other.waited_for)
        return next(waiting, len(self._queue))

    def _why_not(self, message: _Message) -> str | None:
        """Why a message cannot be queued, or None. The lock is held."""
        if self._closing:
            return "closed"
        if len(self._queue) >= self._queue_size:
            return "queue_full"
        if len(message.body) > MAX_MESSAGE_BYTES:
            return "unserialisable"
        return None

    def _start_thread(self) -> None:
        """The thread begins with the first message. The lock is held, but a signal handler may
        come in between: only one of them takes the thread off its list."""
        try:
            thread = self._unstarted.pop()
        except IndexError:
            return
        thread.start()

    def _unsendable(self, error: Exception) -> None:
        self._drop("mapping" if isinstance(error, MappingError) else "unserialisable", error)

    def _drop(self, reason: str, error: Exception | None) -> None:
        """Count a loss, and say so at most once a minute."""
        self._counters.dropped[reason] += 1
        if error is not None:
            self._counters.last_error = f"{type(error).__name__}: {error}"[:500]
        if monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = monotonic()
            log.warning(
                "advisor client dropped a message: %s (%s)", reason, self._counters.last_error
            )

    def _breaker(self) -> Breaker:
        if self._failures < self._breaker_failures:
            return Breaker.CLOSED
        return Breaker.OPEN if monotonic() < self._open_until else Breaker.HALF_OPEN

    def _run(self) -> None:
        """The background thread: one message at a time, in order."""
        with self._connection.open(max(self._deadline_s, 0.1) + 1.0) as http:
            while (message := self._next()) is not None:
                try:
                    pause = self._deliver(http, message)
                except Exception as error:
                    pause = None  # Not the network's fault: sending it again would fail again.
                    self._drop("unserialisable", error)
                with self._lock:
                    self._sending = None
                    if pause is not None and not self._stopped:
                        self._queue.appendleft(message)
                        self._wake.wait_for(lambda: self._stopped, pause)

    def _next(self) -> _Message | None:
        with self._lock:
            while not self._stopped:
                if self._queue:
                    self._sending = self._queue.popleft()
                    return self._sending
                if self._closing:
                    return None
                self._wake.wait()
        return None

    def _deliver(self, http: httpx.Client, message: _Message) -> float | None:
        """Send once. None when done with the message, else seconds to wait before the next try."""
        if message.path != "/advise" and message.decision_id in self._lost:
            self._lose(message, *self._lost[message.decision_id])
            return None
        if monotonic() - message.born > self._max_age_s:
            self._lose(message, "expired", ())
            return None
        if message.attempts:
            self._counters.retried += 1
        message.attempts += 1
        begin = monotonic()
        headers = {"Content-Type": "application/json", **bearer(self._token)}
        if message.deadline_ms is not None:
            headers["X-Deadline-Ms"] = str(message.deadline_ms)
        try:
            with http.stream(
                message.method, message.path, content=message.body, headers=headers
            ) as reply:
                self._read(reply, begin)
        except httpx.HTTPError as error:
            return self._failed(message, f"{type(error).__name__}: {error}", None)
        if reply.status_code == 401:
            self._token = self._given or find_token(self._base_url, "agent", AGENT_VARIABLES)
        if reply.status_code >= 500 or reply.status_code in (401, 408, 429):
            return self._failed(
                message,
                f"HTTP {reply.status_code}: {reply.text[:300]}",
                reply.headers.get("Retry-After"),
            )
        if reply.is_error:
            self._failures = 0
            self._lose(message, "refused", refusals(reply))
            return None
        try:
            document = reply.json()
        except ValueError as error:
            return self._failed(message, f"not JSON: {error}", None)
        if not isinstance(document, dict):
            return self._failed(message, f"not a JSON object: {reply.text[:100]}", None)
        self._failures = 0
        self._counters.sent += 1
        self._counters.last_latency_s = monotonic() - begin
        self._settle(message, document)
        return None

    def _lose(self, message: _Message, reason: str, refused: tuple[str, ...]) -> None:
        """A message will not be delivered, and what belongs to a lost request will not either.
        Each kind of refusal is said once."""
        self._settle(message, None)
        if message.path == "/advise":
            self._lost[message.decision_id] = (reason, refused)
            if len(self._lost) > self._remembered:
                self._lost.popitem(last=False)
        counts = self._counters.refusals
        for kind in refused:
            if kind not in counts and len(counts) < MAX_PATHS:
                log.warning("the service refuses what the client sends: %s", kind)
            if kind in counts or len(counts) < MAX_PATHS:
                counts[kind] += 1
        self._drop(reason, ValueError("; ".join(refused)) if refused else None)

    def _read(self, reply: httpx.Response, begin: float) -> None:
        """The whole body, unless the server trickles it: a time-out per read would never end."""
        body = bytearray()
        for chunk in reply.iter_raw():
            body += chunk
            if monotonic() - begin > self._deadline_s + 1.0 or len(body) > 10 * MAX_MESSAGE_BYTES:
                raise httpx.ReadTimeout("the body takes too long or is too large")
        reply._content = bytes(body)

    def _settle(self, message: _Message, document: dict[str, Any] | None) -> None:
        """Hand the advice to whoever waits, and remember it."""
        if document is not None and message.path == "/advise":
            with self._lock:
                self._lost.pop(message.decision_id, None)
                self._results[message.decision_id] = document
                if len(self._results) > self._remembered:
                    self._results.popitem(last=False)
        if message.advice is not None and not message.advice.done():
            message.advice.set_result(document)

    def _failed(self, message: _Message, error: str, retry_after: str | None) -> float:
        """Count a failure; the pause (s): full jitter on an exponential, what the service asks, or
        the breaker's."""
        self._counters.last_error = error[:500]
        self._failures += 1
        ceiling = min(self._first_backoff_s * 2 ** min(message.attempts, 16), self._max_backoff_s)
        pause = random.uniform(0, ceiling)
        if retry_after is not None and retry_after.isdigit():
            pause = max(pause, min(float(retry_after), self._max_backoff_s))
        if self._failures >= self._breaker_failures:
            pause = max(pause, self._breaker_pause_s)
            self._open_until = monotonic() + pause
        return pause


def made(document: Document) -> dict[str, Any]:
    """A document of its own. Raises `MappingError` when the agent's code fails to make it."""
    if not callable(document):
        return dict(document)
    try:
        return dict(document())
    except Exception as error:
        raise MappingError(f"{type(error).__name__}: {error}") from error


def refusals(reply: httpx.Response) -> tuple[str, ...]:
    """Why the service refuses, a line for each field of its problem document."""
    try:
        document = reply.json()
        lines = [f"{error['field']}: {error['message']}" for error in document.get("errors", [])]
        text = str(document.get("detail") or document.get("title") or reply.text)
    except (ValueError, TypeError, KeyError, AttributeError):
        lines, text = [], reply.text
    return tuple(f"HTTP {reply.status_code}: {line[:400]}" for line in lines or [text])
