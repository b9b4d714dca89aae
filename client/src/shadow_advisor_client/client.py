"""What the trading agent imports. It never blocks beyond its budget and never raises.

```python
client = AdvisorClient("http://127.0.0.1:8321")
decision_id = client.submit(request)            # returns in microseconds; sent in the background
advice = client.advise(request, deadline_s=0.5) # waits, at most half a second; a document or None
client.report_action(decision_id, {"decision": False, "final_skip_reason": "llm_veto"})
print(client.check(request))                    # what would become of every field
```

Requests and reports go out on two lanes (lanes.py), each with threads and connections of its own: a
report goes when its request was answered, and after those before it on the same decision; nothing
else waits for a failure. What `advise` waits for goes first, and has places that nothing else
takes. A message that could not be delivered is sent again with the same id, so that nothing is
decided twice, until it is `max_age_s` old; a circuit breaker spares a service that is down. When a
lane is full the newest message is dropped. Every loss is counted in `stats()`. With a `queue_dir`
what waits outlives the process (kept.py). After a fork the child has threads, queues and counters
of its own; what was queued stays the parent's.

It says who asks by a token (identity.py). A token is looked for again when it is refused: it may
have been rotated. A wrong address, proxy, file of certificates or folder is an error where the
client is made (connection.py), and nowhere else. What waits goes out when the process ends
(leaving.py). A signal handler may call it.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import math
import os
import random
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Union
from urllib.parse import quote
from uuid import uuid4

import httpx

from .checking import Check, asked
from .connection import ConfigurationError, Connection, checked_token, require_numbers
from .identity import AGENT_VARIABLES, bearer, decision_id, find_token, places, principal_of
from .kept import Kept
from .lanes import ADVISE, ASKING, Breaker, Lane, Message
from .leaving import send_before_a_child_ends, send_before_leaving
from .sending import Reply, send
from .values import encode

MAX_MESSAGE_BYTES = 1_000_000
MAX_AGE_S, MAX_KEPT_AGE_S = 600.0, 7 * 86_400.0
LOG_EVERY_S = 60.0
MAX_PATHS = 1000
log = logging.getLogger("advisor.client")
# Names of hosts need it. Imported first by a thread that sends, it would be half there in a child
# that is forked meanwhile.
codecs.lookup("idna")

Document = Union[Mapping[str, Any], Callable[[], Mapping[str, Any]]]
"""What is sent, or what makes it: faults of the agent's own code are caught and counted too."""


class MappingError(Exception):
    """The agent's own code could not make what it wants to send."""


@dataclass(frozen=True)
class ClientStats:
    """Counters of this process. `dropped` is by reason: queue_full, expired, refused,
    unserialisable, mapping, closed. `left_out`: values that could not be
    sent, by their path; the rest of their messages was. `refusals`: what the service
    refused, by field and reason; reports on a refused request count with it. `breaker` is that of
    advice. Of a `queue_dir`: `kept` lies in it now, `not_kept` found no room in it and waited in
    memory alone, `set_aside` was not readable."""

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
    reports_breaker: Breaker = Breaker.CLOSED
    kept: int = 0
    not_kept: int = 0
    set_aside: int = 0


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
    queue_size : requests that may wait, and reports that may; more are dropped.
    max_age_s : a message older than this is dropped; by default ten minutes, with a `queue_dir` a
        week.
    breaker_failures, breaker_pause_s : after so many failures in a row, wait so long before one
        message tries again.
    exit_budget_s : how long the end of the process may be delayed for what waits; 0 for not.
    queue_dir, queue_bytes : a folder where what waits lies as well, so that the next process sends
        what this one could not; and how much may lie there.

    Raises `ConfigurationError` here when it cannot work as told; nothing else does.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        deadline_s: float = 2.0,
        queue_size: int = 1000,
        max_age_s: float | None = None,
        breaker_failures: int = 5,
        breaker_pause_s: float = 5.0,
        first_backoff_s: float = 0.2,
        max_backoff_s: float = 10.0,
        remembered: int = 1000,
        exit_budget_s: float = 2.0,
        queue_dir: str | os.PathLike[str] | None = None,
        queue_bytes: int = 16_000_000,
    ) -> None:
        require_numbers(
            deadline_s=deadline_s,
            queue_size=queue_size,
            breaker_failures=breaker_failures,
            breaker_pause_s=breaker_pause_s,
            first_backoff_s=first_backoff_s,
            max_backoff_s=max_backoff_s,
            exit_budget_s=exit_budget_s,
            queue_bytes=queue_bytes,
            max_age_s=1 if max_age_s in (None, math.inf) else max_age_s,
        )
        self._connection = Connection(base_url)
        self._base_url = base_url
        self._given = checked_token(token)
        self._token = token or find_token(base_url, "agent", AGENT_VARIABLES)
        self._deadline_s = deadline_s
        self._queue_size = queue_size
        default_age_s = MAX_AGE_S if queue_dir is None else MAX_KEPT_AGE_S
        self._max_age_s = default_age_s if max_age_s is None else max_age_s
        self._breaker_failures = breaker_failures
        self._breaker_pause_s = breaker_pause_s
        self._first_backoff_s = first_backoff_s
        self._max_backoff_s = max_backoff_s
        self._remembered = remembered
        if queue_dir is not None and not os.fspath(queue_dir):
            raise ConfigurationError("queue_dir is empty: name a folder, or leave it out")
        self._queue_dir = None if queue_dir is None else Path(queue_dir)
        self._queue_bytes = queue_bytes
        self.exit_budget_s = exit_budget_s
        self._reset()
        self._take_up()
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

    def check(self, request: Document, timeout_s: float = 10.0) -> Check:
        """What would become of a request: every field, and which rules lack an input. Nothing is
        recorded. It waits for the answer: for setting up, not for a trading loop."""
        try:
            body, left_out = encode(made(request))
        except Exception as error:
            return Check(error=f"{type(error).__name__}: {error}")
        with self._connection.open(timeout_s) as http:
            return asked(http, body, bearer(self._token), left_out, self._places())

    def decision(self, decision_id: str, timeout_s: float = 10.0) -> dict[str, Any] | None:
        """The stored record of a decision, with what was reported on it; None when there is none,
        or no answer. It waits: not for a trading loop."""
        try:
            with self._connection.open(timeout_s) as http:
                reply = http.get(_place(decision_id), headers=bearer(self._token))
                document = reply.json()
        except (httpx.HTTPError, ValueError):
            return None
        sound = reply.status_code == 200 and isinstance(document, dict)
        return document if sound else None

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

    def decision_id(self, request_id: str) -> str:
        """The id that the decision of a request has, whether it was answered or not."""
        return str(decision_id(request_id, principal_of(self._token)))

    def stats(self) -> ClientStats:
        """Counters of this client."""
        self._follow_fork()
        now = monotonic()
        with self._lock:
            queued = len(self._requests) + len(self._reports)
            breakers = self._requests.breaker(now), self._reports.breaker(now)
        counters, kept = self._counters, self._kept
        return ClientStats(
            queued,
            counters.sent,
            counters.retried,
            counters.timed_out,
            dict(counters.dropped),
            breakers[0],
            counters.last_error or (kept.last_error if kept else None),
            counters.last_latency_s,
            self._connection.proxy,
            dict(counters.left_out),
            dict(counters.refusals),
            breakers[1],
            kept.pending if kept else 0,
            kept.not_kept if kept else 0,
            kept.set_aside if kept else 0,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most `timeout_s`, then stop; what is left stays in the folder, or
        is dropped and counted."""
        self._follow_fork()
        end = monotonic() + timeout_s
        with self._lock:
            self._closing = True
            self._wake.notify_all()
        for thread in (*self._requests.threads, *self._reports.threads):
            if thread is not threading.current_thread():
                thread.join(max(end - monotonic(), 0))
        with self._lock:
            self._stopped = True
            self._wake.notify_all()
            left = [*self._requests.clear(), *self._reports.clear()]
            lost, kept = len(left), 0
            if self._kept is not None:
                self._kept.look()
                lost = sum(not self._kept.holds(message) for message in left)
                for message in (*self._requests.under_way, *self._reports.under_way):
                    if not self._kept.holds(message):
                        message.kept = None  # Its file was removed: lost, should it fail now.
                kept = self._kept.pending
                self._kept.close()
        self._tell_left(lost, kept)

    def __repr__(self) -> str:
        return f"<AdvisorClient of {self._connection}>"

    def __enter__(self) -> AdvisorClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reset(self) -> None:
        """Lanes, lock, folder and counters of this process."""
        self._pid = os.getpid()
        self._counters = _Counters()
        self._logged_at = -math.inf
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._requests = Lane(self._queue_size, ASKING, self._breaker_failures)
        self._reports = Lane(self._queue_size, 1, self._breaker_failures)
        self._results: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lost: OrderedDict[str, tuple[str, tuple[str, ...]]] = OrderedDict()
        self._last_lost = "refused"
        """Why the last request got no id: reports on it count with it."""
        self._closing = self._stopped = False
        self._kept: Kept | None = None
        if self._queue_dir is not None:
            whose = principal_of(self._token)
            self._kept = Kept(self._queue_dir, self._queue_bytes, whose)

    def _take_up(self) -> None:
        """Send what processes before this one left in the folder."""
        if self._kept is None:
            return
        with self._lock:
            for message in self._kept.left_behind():
                lane = self._lane_of(message)
                lane.places += 1
                lane.add(message)
            for lane in (self._requests, self._reports):
                if len(lane):
                    self._start_worker(lane)

    def _follow_fork(self) -> None:
        if os.getpid() == self._pid:
            return
        try:
            self._reset()
        except Exception as error:  # The folder is gone: memory is left.
            self._counters.last_error = f"{type(error).__name__}: {error}"[:500]
        if self.exit_budget_s > 0:
            send_before_a_child_ends()

    def _lane_of(self, message: Message) -> Lane:
        return self._requests if message.asks else self._reports

    def _asked(self, request: Document, deadline_s: float | None) -> tuple[Message | None, float]:
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

    def _given_up(self, message: Message) -> None:
        """Nobody waits any longer; it stays queued."""
        with self._lock:
            self._requests.give_up(message)
        self._counters.timed_out += 1

    def _advise_message(self, request: Document, deadline_ms: int | None) -> Message:
        document = made(request)
        request_id = document["request_id"] = str(document.get("request_id") or uuid4())
        return Message(
            "POST",
            ADVISE,
            self._encoded(document),
            monotonic(),
            self.decision_id(request_id),
            deadline_ms=deadline_ms,
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
                    self._last_lost,
                    ValueError(f"{what} without a decision id: its request had been dropped"),
                )
                return False
            path = f"{_place(decision_id)}/{what}"
            return self._enqueue(
                Message("PUT", path, self._encoded(made(body)), monotonic(), str(decision_id))
            )
        except Exception as error:
            self._unsendable(error, asked=False)
            return False

    def _enqueue(self, message: Message) -> bool:
        self._follow_fork()
        lane = self._lane_of(message)
        with self._lock:
            reason = self._why_not(lane, message)
            if reason is None:
                if self._kept is not None:
                    self._kept.keep(message)
                lane.add(message)
                if lane.wants_worker():
                    self._start_worker(lane)
                self._wake.notify_all()
        if reason is not None:
            if message.asks:
                self._last_lost = reason
            self._drop(reason, None)
        return reason is None

    def _why_not(self, lane: Lane, message: Message) -> str | None:
        """Why a message cannot be queued, or None. The lock is held."""
        if self._closing:
            return "closed"
        if lane.is_full(message):
            return "queue_full"
        if len(message.body) > MAX_MESSAGE_BYTES:
            return "unserialisable"
        return None

    def _start_worker(self, lane: Lane) -> None:
        """A thread that empties a lane. The lock is held; a signal handler that comes in between
        finds the thread on its list already."""
        thread = threading.Thread(
            target=self._run, args=(lane,), name="advisor-client", daemon=True
        )
        lane.threads.append(thread)
        thread.start()

    def _unsendable(self, error: Exception, asked: bool = True) -> None:
        reason = "mapping" if isinstance(error, MappingError) else "unserialisable"
        if asked:
            self._last_lost = reason
        self._drop(reason, error)

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

    def _tell_left(self, lost: int, kept: int) -> None:
        """What was not sent when it was closed."""
        if lost:
            self._counters.dropped["closed"] += lost
            log.warning("advisor client closed with %s that could not be sent", _messages(lost))
        if kept:
            log.info("%s left in %s for the next process", _messages(kept), self._queue_dir)

    def _run(self, lane: Lane) -> None:
        """A background thread: one message at a time."""
        with self._connection.open(max(self._deadline_s, 0.1) + 1.0) as http:
            while (message := self._next(lane)) is not None:
                try:
                    pause = self._deliver(http, lane, message)
                except Exception as error:
                    pause = None  # Not the network's fault: sending it again would fail again.
                    self._drop("unserialisable", error)
                with self._lock:
                    self._landed(lane, message, pause)
                    self._wake.notify_all()

    def _landed(self, lane: Lane, message: Message, pause: float | None) -> None:
        """It is done with, or tried again after a pause. The lock is held."""
        if pause is None:
            lane.done(message)
            if self._kept is not None:
                self._kept.done(message)
        elif not self._stopped:
            lane.again(message, monotonic() + pause)
        else:
            lane.done(message)
            if message.kept is None:
                self._drop("closed", None)

    def _next(self, lane: Lane) -> Message | None:
        """What a worker sends next; None when there is nothing more to do."""
        with self._lock:
            while not self._stopped and (len(lane) or not self._closing):
                wait = lane.take(monotonic(), self._waits_for_its_request(lane))
                if isinstance(wait, Message):
                    return wait
                lane.idle += 1
                self._wake.wait(None if wait == math.inf else wait)
                lane.idle -= 1
        return None

    def _waits_for_its_request(self, lane: Lane) -> Callable[[str], bool]:
        """Whether a report cannot go yet: its decision is not made."""
        return self._requests.holds if lane is self._reports else lambda decision_id: False

    def _deliver(self, http: httpx.Client, lane: Lane, message: Message) -> float | None:
        """Send once. None when done with the message, else seconds to wait before the next try."""
        if not message.asks and message.decision_id in self._lost:
            self._lose(message, *self._lost[message.decision_id])
            return None
        if monotonic() - message.born > self._max_age_s:
            self._lose(message, "expired", ())
            return None
        if message.attempts:
            self._counters.retried += 1
        message.attempts += 1
        begin = monotonic()
        reply = send(http, message, bearer(self._token), self._deadline_s)
        if reply.status == 401:
            self._token = self._given or find_token(self._base_url, "agent", AGENT_VARIABLES)
            reply = reply._replace(error=f"{reply.error}; {self._places()}")
        if reply.error is not None:
            return self._failed(lane, message, reply)
        with self._lock:
            lane.reached()
        if reply.document is None:
            self._lose(message, "refused", reply.refused)
            return None
        self._counters.sent += 1
        self._counters.last_latency_s = monotonic() - begin
        self._settle(message, reply.document)
        return None

    def _places(self) -> str:
        return places(self._given, self._base_url, "agent", AGENT_VARIABLES)

    def _lose(self, message: Message, reason: str, refused: tuple[str, ...]) -> None:
        """A message will not be delivered, and what belongs to a lost request will not either.
        Each kind of refusal is said once."""
        self._settle(message, None)
        if message.asks:
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

    def _settle(self, message: Message, document: dict[str, Any] | None) -> None:
        """Hand the advice to whoever waits, and remember it."""
        if document is not None and message.asks:
            with self._lock:
                self._lost.pop(message.decision_id, None)
                self._results[message.decision_id] = document
                if len(self._results) > self._remembered:
                    self._results.popitem(last=False)
        if message.advice is not None and not message.advice.done():
            message.advice.set_result(document)

    def _failed(self, lane: Lane, message: Message, reply: Reply) -> float:
        """Count a failure; the pause (s): full jitter on an exponential, what the service asks, or
        the breaker's. A report that the service answers with an error holds nothing but what is
        told of its own decision."""
        self._counters.last_error = (reply.error or "")[:1000]
        ceiling = min(self._first_backoff_s * 2 ** min(message.attempts, 16), self._max_backoff_s)
        pause = max(random.uniform(0, ceiling), min(reply.retry_after_s, self._max_backoff_s))
        if message.asks or not reply.ours:
            with self._lock:
                lane.failed(monotonic(), max(pause, self._breaker_pause_s))
        return pause


def _place(decision_id: str) -> str:
    """The path of a decision, whatever its id is made of."""
    return f"/decisions/{quote(str(decision_id), safe='')}"


def made(document: Document) -> dict[str, Any]:
    """A document of its own. Raises `MappingError` when the agent's code fails to make it."""
    if not callable(document):
        return dict(document)
    try:
        return dict(document())
    except Exception as error:
        raise MappingError(f"{type(error).__name__}: {error}") from error


def _messages(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"
