"""What waits to be sent: two lanes, advice and reports, each in order for every decision.

A message that failed waits for its own next try, and holds what belongs to the same decision; all
others go on. A lane as a whole pauses while nobody can be reached: its breaker is open.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from threading import Thread
from typing import Any

ADVISE = "/advise"
RESERVED = 16
"""Places that only what somebody waits for may take."""
ASKING = 4
"""Requests that somebody waits for may be under way at the same time; of others, one."""


class Breaker(Enum):
    """CLOSED sends; OPEN waits; HALF_OPEN lets one message try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(eq=False)
class Message:
    """One request on its way. Times are of `time.monotonic()`."""

    method: str
    path: str
    body: bytes
    born: float
    decision_id: str
    advice: Future[dict[str, Any] | None] | None = None
    deadline_ms: int | None = None
    attempts: int = 0
    waited_for: bool = False
    not_before: float = 0.0
    kept: Any = None
    """Where it lies on the disk; None when it does not."""

    @property
    def asks(self) -> bool:
        """Whether it is a request for advice; else it is a report on one."""
        return self.path == ADVISE


class Lane:
    """A queue for each decision, the workers that empty them, and a breaker. Whoever calls it holds
    the client's lock; a signal handler may come in between."""

    def __init__(self, places: int, workers: int, breaker_failures: int) -> None:
        self.places = places
        self._workers = workers
        self._breaker_failures = breaker_failures
        self._waiting: OrderedDict[str, deque[Message]] = OrderedDict()
        self._asked: dict[Message, None] = {}
        self._under_way: dict[str, Message] = {}
        self._all: set[Message] = set()
        self._failures = 0
        self._open_until = -math.inf
        self.threads: list[Thread] = []
        self.idle = 0
        """Workers that wait for something to send."""

    def __len__(self) -> int:
        """Messages that wait or are under way."""
        return len(self._all)

    @property
    def under_way(self) -> list[Message]:
        """What is being sent."""
        return list(self._under_way.values())

    def holds(self, decision_id: str) -> bool:
        """Whether something of a decision waits or is under way."""
        return decision_id in self._waiting or decision_id in self._under_way

    def is_full(self, message: Message) -> bool:
        """Whether there is no place for it."""
        return len(self) >= self.places + (RESERVED if message.waited_for else 0)

    def add(self, message: Message) -> None:
        """Behind what waits of its decision."""
        self._all.add(message)
        if message.waited_for:
            self._asked[message] = None
        self._waiting.setdefault(message.decision_id, deque()).append(message)

    def give_up(self, message: Message) -> None:
        """Nobody waits for it any longer; it is sent all the same."""
        message.waited_for = False
        self._asked.pop(message, None)

    def wants_worker(self) -> bool:
        """Whether another worker has something to do: one in any case, further ones for what
        somebody waits for."""
        if not self.threads:
            return True
        return self.idle < len(self._asked) and len(self.threads) < self._workers

    def take(self, now: float, held: Callable[[str], bool]) -> Message | float:
        """What is sent next; else the seconds until something can be, when nothing happens before.

        Parameters
        ----------
        held : whether a decision has to wait for something else.
        """
        if now < self._open_until:
            return self._open_until - now
        if self._failures >= self._breaker_failures and self._under_way:
            return math.inf
        soonest = math.inf
        for decision_id in self._in_order():
            message = self._waiting[decision_id][0]
            if decision_id in self._under_way or held(decision_id):
                continue
            if message.not_before <= now:
                return self._start(message)
            soonest = min(soonest, message.not_before - now)
        return soonest

    def _in_order(self) -> Iterator[str]:
        """Decisions: first those that somebody waits for, then, one at a time, the others."""
        asked = dict.fromkeys(message.decision_id for message in self._asked)
        yield from asked
        if all(message.waited_for for message in self._under_way.values()):
            yield from (decision_id for decision_id in self._waiting if decision_id not in asked)

    def _start(self, message: Message) -> Message:
        queue = self._waiting[message.decision_id]
        queue.popleft()
        if not queue:
            del self._waiting[message.decision_id]
        self._asked.pop(message, None)
        self._under_way[message.decision_id] = message
        return message

    def done(self, message: Message) -> None:
        """It was sent, or never will be."""
        del self._under_way[message.decision_id]
        self._all.discard(message)

    def again(self, message: Message, not_before: float) -> None:
        """It is sent once more, before what else waits of its decision."""
        del self._under_way[message.decision_id]
        message.not_before = not_before
        if message.waited_for:
            self._asked[message] = None
        self._waiting.setdefault(message.decision_id, deque()).appendleft(message)
        self._waiting.move_to_end(message.decision_id, last=False)

    def clear(self) -> list[Message]:
        """Everything that waits; the lane is empty then, but for what is under way."""
        waiting, self._waiting = self._waiting, OrderedDict()
        left = [message for queue in waiting.values() for message in queue]
        self._all.difference_update(left)
        self._asked.clear()
        return left

    def reached(self) -> None:
        """Somebody answered."""
        self._failures = 0

    def failed(self, now: float, pause_s: float) -> None:
        """Nobody answered, or nobody will: after some such failures in a row the lane pauses."""
        self._failures += 1
        if self._failures >= self._breaker_failures:
            self._open_until = now + pause_s

    def breaker(self, now: float) -> Breaker:
        """Its breaker's state."""
        if self._failures < self._breaker_failures:
            return Breaker.CLOSED
        return Breaker.OPEN if now < self._open_until else Breaker.HALF_OPEN
