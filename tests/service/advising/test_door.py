"""The door's arithmetic, by hand, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import heapq
import random
from math import inf

import pytest

from app.advising.door import Door, Ticket
from app.domain.errors import Overloaded
from app.telemetry import Refusal
from tests.telemetry import Told


class At:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def door(parallel: int = 1, reserve_s: float = 0.1) -> tuple[Door, At, Told]:
    clock, told = At(), Told()
    return Door(told, reserve_s, lambda: parallel, clock), clock, told


def answered(door: Door, clock: At, ticket: Ticket, seconds: float) -> None:
    """It is answered `seconds` after its arrival."""
    clock.now = max(clock.now, ticket.arrived + seconds)
    ticket.answered = True
    door.leave(ticket)


def learn(door: Door, clock: At, seconds: float) -> None:
    """Many take exactly this long, so that estimates are sure."""
    for _ in range(100):
        answered(door, clock, door.enter(clock.now, inf), seconds)


def test_a_newcomer_waits_for_all_who_are_before_it_and_is_refused_when_that_is_too_long() -> None:
    at_door, clock, told = door()
    learn(at_door, clock, 0.5)
    assert at_door.estimate(1) == pytest.approx(0.5)
    tickets = [at_door.enter(clock.now, clock.now + 2.0) for _ in range(3)]
    # The fourth would be done after 2.0 s, and 0.1 s are kept back.
    with pytest.raises(Overloaded, match=r"3 items are under way: .* 0.1 s after") as refused:
        at_door.enter(clock.now, clock.now + 2.0)
    assert refused.value.retry_after_s == 1
    assert told.seen["refused"] == [Refusal.WAIT]
    assert at_door.under_way == 3
    tickets.append(at_door.enter(clock.now, clock.now + 2.11))
    with pytest.raises(Overloaded) as refused:
        at_door.enter(clock.now - 1.5, clock.now + 0.5)
    assert refused.value.retry_after_s == 3, "2.5 s of work, 0.4 s of time"
    for ticket in tickets:
        at_door.leave(ticket)
    assert at_door.under_way == 0
    assert at_door.estimate(1) == pytest.approx(0.5), "what was not answered says nothing"


def test_the_less_estimates_were_right_the_earlier_a_request_is_refused() -> None:
    at_door, clock, _ = door()
    answered(at_door, clock, at_door.enter(clock.now, inf), 0.5)  # Nobody had expected anything.
    ticket = at_door.enter(clock.now, clock.now + 2)
    with pytest.raises(Overloaded):  # Twice 0.5 s, two and a half quarters, and 0.1 s.
        at_door.enter(clock.now, clock.now + 1.72)
    at_door.leave(at_door.enter(clock.now, clock.now + 1.73))
    answered(at_door, clock, ticket, 0.5)  # As it was expected: the deviation is 0.9 of a quarter.
    at_door.enter(clock.now, clock.now + 2)
    at_door.leave(at_door.enter(clock.now, clock.now + 1.67))
    with pytest.raises(Overloaded):
        at_door.enter(clock.now, clock.now + 1.66)


def test_where_several_are_read_at_once_that_many_more_cost_little() -> None:
    at_door, clock, _ = door(parallel=10)
    learn(at_door, clock, 1.0)
    assert at_door.estimate(1) == pytest.approx(1.0)
    assert at_door.estimate(6) == pytest.approx(1.5)
    assert at_door.estimate(11) == pytest.approx(2.0)


def test_nothing_is_known_before_the_first_answer_and_one_is_always_let_in_where_nothing_is() -> (
    None
):
    at_door, clock, told = door()
    for ticket in [at_door.enter(clock.now, clock.now + 0.2) for _ in range(50)]:
        answered(at_door, clock, ticket, 3.0)
    assert at_door.estimate(1) > 0.0
    at_door.leave(at_door.enter(clock.now, clock.now - 1))
    assert told.seen["refused"] == []


def test_a_list_is_let_in_whole_or_not_at_all() -> None:
    at_door, clock, told = door()
    learn(at_door, clock, 0.25)
    other = at_door.enter(clock.now, clock.now + 2)
    ticket = at_door.enter(clock.now, clock.now + 2)
    with pytest.raises(Overloaded):
        at_door.widen(ticket, 7, clock.now + 2)  # 8 x 0.25 s
    assert at_door.under_way == 2
    at_door.widen(ticket, 6, clock.now + 2)
    assert (at_door.under_way, ticket.among) == (7, 7)
    answered(at_door, clock, ticket, 7 * 0.25)
    at_door.leave(other)
    assert at_door.estimate(1) == pytest.approx(0.25)
    alone = at_door.enter(clock.now, clock.now + 2)
    at_door.widen(alone, 32, clock.now + 2)
    assert at_door.under_way == 32, "no other time would suit it better"
    assert told.seen["refused"] == [Refusal.WAIT]


@pytest.mark.parametrize("times", [0.5, 1, 3, 10])
@pytest.mark.parametrize("service_s", [0.02, 0.3])
def test_under_any_load_the_model_is_busy_and_whoever_is_let_in_is_answered_in_time(
    times: float, service_s: float
) -> None:
    """Arrivals by chance against one server that takes between half and one and a half times
    `service_s`: the few that come late abstain in time, and what could be done is done."""
    at_door, clock, _ = door()
    chance, deadline_s, until = random.Random(7), 2.0, 100.0 + 1000 * service_s
    free_at, busy, late, done = 100.0, 0.0, 0, 0
    leaving: list[tuple[float, int, Ticket]] = []
    arrivals, number = 100.0, 0
    while arrivals < until:
        arrivals += chance.expovariate(times / service_s)
        while leaving and leaving[0][0] <= arrivals:
            clock.now, _, ticket = heapq.heappop(leaving)
            ticket.answered = True
            at_door.leave(ticket)
        clock.now = arrivals
        try:
            ticket = at_door.enter(arrivals, arrivals + deadline_s)
        except Overloaded:
            continue
        takes = service_s * chance.uniform(0.5, 1.5)
        free_at = max(free_at, arrivals) + takes
        busy += takes
        late += free_at > arrivals + deadline_s
        done += 1
        number += 1
        heapq.heappush(leaving, (free_at, number, ticket))
    assert late <= 0.02 * done
    share = busy / (max(free_at, until) - 100.0)
    assert share > {0.5: 0.45, 1: 0.85, 3: 0.98, 10: 0.98}[times]


def test_a_model_that_reads_four_at_a_time_unevenly_is_kept_nearly_as_busy_as_it_can_be() -> None:
    """Three times what it can do, where four together take 2.9 times as long as one, and each batch
    between 0.3 and 1.7 times as long as usual (a machine that does other things too)."""
    shares, lates = zip(*(_batched(seed, times=3.0) for seed in range(1, 5)), strict=True)
    assert sum(shares) / 4 > 0.9, "of what it can do in full batches"
    assert sum(lates) / 4 < 0.01


def _batched(seed: int, times: float) -> tuple[float, float]:
    """Share of the peak that was done, and share of it that came late."""
    at_door, clock, _ = door()
    chance, deadline_s = random.Random(seed), 2.0
    peak = 4 / (0.25 * (0.36 + 0.64 * 4))
    waiting: list[Ticket] = []
    read: list[Ticket] = []
    free_at, late, done, arrived = 0.0, 0, 0, 100.0

    def begin() -> float:
        read[:], waiting[:] = waiting[:4], waiting[4:]
        return clock.now + 0.25 * (0.36 + 0.64 * len(read)) * chance.uniform(0.3, 1.7)

    for _ in range(4000):
        arrived += chance.expovariate(times * peak)
        while read and free_at <= arrived:
            clock.now = free_at
            for ticket in read:
                ticket.answered = True
                at_door.leave(ticket)
                late += clock.now > ticket.arrived + deadline_s
                done += 1
            read.clear()
            if waiting:
                free_at = begin()
        clock.now = arrived
        try:
            waiting.append(at_door.enter(arrived, arrived + deadline_s))
        except Overloaded:
            continue
        if not read:
            free_at = begin()
    return done / (arrived - 100.0) / peak, late / done


async def test_whoever_waits_for_an_empty_door_waits_for_the_last_to_leave() -> None:
    it, _, _ = door()
    first, second = it.enter(100.0, inf), it.enter(100.0, inf)
    waiting = asyncio.create_task(it.empty(patience_s=60))
    it.leave(first)
    await asyncio.sleep(0)
    assert not waiting.done()
    it.leave(second)
    await waiting
    await it.empty(patience_s=60)


async def test_who_enters_before_the_empty_door_is_seen_keeps_it_waiting() -> None:
    it, _, _ = door()
    first = it.enter(100.0, inf)
    waiting = asyncio.create_task(it.empty(patience_s=60))
    await asyncio.sleep(0)
    it.leave(first)
    second = it.enter(100.0, inf)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    it.leave(second)
    await waiting


async def test_a_door_that_is_never_empty_is_not_waited_for_beyond_patience() -> None:
    it, _, _ = door()
    it.enter(100.0, inf)
    await it.empty(patience_s=0.0)
    assert it.under_way == 1
