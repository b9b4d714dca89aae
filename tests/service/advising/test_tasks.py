"""Background work goes on whatever a round raises, says so, and ends when it is told to, even where
a library swallows the first cancellation."""

from __future__ import annotations

import asyncio

import pytest

from app.tasks import Supervisor, end
from app.telemetry import Task
from tests.service.running import until
from tests.telemetry import Told


async def test_a_task_that_swallows_a_cancellation_still_ends() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end([task])
    assert task.cancelled()
    assert swallowed == 1


async def test_a_task_that_failed_does_not_disturb_the_end_of_the_others() -> None:
    async def failing() -> None:
        raise RuntimeError("boom")

    failed = asyncio.create_task(failing())
    waiting = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.wait([failed])
    await end([failed, waiting])
    assert waiting.cancelled()
    assert isinstance(failed.exception(), RuntimeError)


async def test_a_round_that_raises_is_told_with_its_reason_and_tried_again_until_it_succeeds() -> (
    None
):
    told = Told()
    supervisor = Supervisor(told)
    rounds = 0
    works = asyncio.Event()

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if not works.is_set():
            raise ValueError("a line\nanother line")
        await asyncio.sleep(0)

    supervisor.start(Task.ALIASES, work, max_pause_s=0.01)

    async def failed_often() -> bool:
        return rounds >= 4

    await until(failed_often)
    assert supervisor.failing() == {Task.ALIASES: "ValueError: a line"}
    assert told.failures[Task.ALIASES] == rounds
    works.set()

    async def recovered() -> bool:
        return supervisor.failing() == {}

    await until(recovered)
    failures = told.failures[Task.ALIASES]
    await supervisor.aclose()
    assert told.failures == {Task.ALIASES: failures}, "what succeeds or is ended is no failure"


async def test_a_cancellation_that_nobody_asked_for_does_not_end_a_task() -> None:
    told = Told()
    supervisor = Supervisor(told)
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise asyncio.CancelledError
        await asyncio.Event().wait()

    supervisor.start(Task.REQUESTS, work, max_pause_s=0.01)

    async def again() -> bool:
        return rounds == 2

    await until(again)
    assert told.failures == {Task.REQUESTS: 1}
    await supervisor.aclose()


async def test_a_round_that_does_not_end_is_not_working() -> None:
    supervisor = Supervisor(Told())
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    supervisor.start(Task.WRITER, work, patience_s=0.0)
    await begun.wait()
    assert supervisor.failing() == {Task.WRITER: "no round has ended for 0 s"}
    await supervisor.aclose()


@pytest.mark.parametrize("failures", [1, 3, 100])
async def test_pauses_grow_to_a_bound(failures: int) -> None:
    supervisor = Supervisor(Told())

    async def work() -> None:
        await asyncio.Event().wait()

    supervisor.start(Task.WRITER, work)
    supervised = supervisor._supervised[Task.WRITER]
    pauses = [supervisor._failed(Task.WRITER, supervised, "boom") for _ in range(failures)]
    expected = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, *[10.0] * 94]
    assert pauses == expected[:failures]
    await supervisor.aclose()
