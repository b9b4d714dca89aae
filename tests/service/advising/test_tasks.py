"""Background work ends when it is told to, even where a library swallows the first cancellation."""

from __future__ import annotations

import asyncio

from app.tasks import end


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
