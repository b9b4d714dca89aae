"""The door: who could not be answered within the deadline is told at once, instead of waiting in
vain and keeping others waiting.

How long a request takes is estimated from those that were answered: their time from arrival to
answer, and how many items were under way when they came in. A newcomer among more items waits
longer in proportion, where the model reads one prompt after the other; where it reads several at
the same time, that many more cost little. How far estimates were off is kept as well, and some of
it added, as TCP does for its timeouts (RFC 6298).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from time import monotonic

from app.domain.errors import Overloaded
from app.telemetry import Refusal, Telemetry

SMOOTHING = 0.1
"""Prompts that were read together are answered together: with more, one slow batch of four would be
most of the estimate, requests would be refused for it, and the next batches be small."""
DEVIATIONS = 2.5
"""Of an estimate, that are added to it. With fewer, more of those let in come late; with more, the
model reads smaller batches, or is idle between them."""


@dataclass(eq=False)
class Ticket:
    """Room for the items of one request, from its arrival (a `time.monotonic()` value) on."""

    arrived: float
    items: int
    among: int
    """Items under way when it came in, its own included."""
    expected_s: float
    """How long it was estimated to take."""
    answered: bool = False
    """Whether the time until it leaves says how long a decision takes."""


class Door:
    """Lets requests in, and counts their items until they leave.

    One is always let in where nothing is under way: a wrong estimate mends itself.

    Parameters
    ----------
    reserve_s : kept back from each deadline.
    parallel : how many prompts the model reads at the same time.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        reserve_s: float,
        parallel: Callable[[], int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._telemetry = telemetry
        self._reserve_s = reserve_s
        self._parallel = parallel
        self._clock = clock
        self.under_way = 0
        """Items that were let in and are not answered yet."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._seconds = 0.0
        self._among = 0.0
        self._deviation = 0.0

    def enter(self, arrived: float, deadline: float) -> Ticket:
        """Let a request in, before anybody knows how many items it has. Raises `Overloaded`,
        counted."""
        expected_s = self.estimate(1)
        if self.under_way:
            self._require(deadline, expected_s)
        self.under_way += 1
        self._empty.clear()
        return Ticket(arrived, 1, self.under_way, expected_s)

    def widen(self, ticket: Ticket, items: int, deadline: float) -> None:
        """A request turns out to have this many items, and this deadline. Raises `Overloaded`,
        counted."""
        others = self.under_way - ticket.items
        expected_s = self.estimate(items - ticket.items)
        if others:
            self._require(deadline, expected_s)
        self.under_way = ticket.among = others + items
        ticket.items, ticket.expected_s = items, expected_s

    def leave(self, ticket: Ticket) -> None:
        """A request is answered, or has failed."""
        self.under_way -= ticket.items
        if not self.under_way:
            self._empty.set()
        if ticket.answered:
            self._learn(ticket, self._clock() - ticket.arrived)

    async def empty(self, patience_s: float) -> None:
        """Wait until nobody waits for an answer, at most so long."""
        try:
            async with asyncio.timeout(patience_s):
                while self.under_way:
                    await self._empty.wait()
        except TimeoutError:
            pass

    def estimate(self, items: int) -> float:
        """Seconds until that many more items would be answered; 0 before anything was."""
        if not self._among:
            return 0.0
        more = self.under_way + items - self._among
        return max(self._seconds * (1 + more / max(self._among, self._parallel())), 0.0)

    def _learn(self, ticket: Ticket, took_s: float) -> None:
        if not self._among:
            self._seconds, self._among, self._deviation = took_s, ticket.among, took_s / 2
            return
        self._seconds += SMOOTHING * (took_s - self._seconds)
        self._among += SMOOTHING * (ticket.among - self._among)
        self._deviation += SMOOTHING * (abs(took_s - ticket.expected_s) - self._deviation)

    def _require(self, deadline: float, expected_s: float) -> None:
        at_worst_s = expected_s + DEVIATIONS * self._deviation
        late_s = self._clock() + at_worst_s - (deadline - self._reserve_s)
        if late_s > 0:
            self._telemetry.refused(Refusal.WAIT)
            raise Overloaded(
                f"{self.under_way} items are under way: this could be answered up to"
                f" {late_s:.1f} s after its deadline",
                max(1, ceil(late_s)),
            )
