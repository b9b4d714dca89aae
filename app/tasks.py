"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

AGAIN_S = 0.5


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended; their errors are theirs.

    One `cancel()` is not enough: on Python 3.11 `asyncio.wait_for`, which redis-py uses on every
    command, swallows a cancellation that arrives just as the awaited thing completes, and the task
    would go on for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
