"""What is done apart is done in turn, by a thread that is there while there is work."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest

from app.policy.versions.apart import Apart


def soon() -> float:
    return time.monotonic() + 60


async def test_calls_come_in_turn_and_give_what_they_return_or_raise() -> None:
    apart, order = Apart("t"), list[int]()

    def failing() -> None:
        raise KeyError("x")

    def noted(turn: int) -> int:
        order.append(turn)
        return turn

    calls = [apart.call(partial(noted, turn), soon()) for turn in range(9)]
    assert await asyncio.gather(*calls) == order == list(range(9))
    with pytest.raises(KeyError, match="x"):
        await apart.call(failing, soon())
    assert await apart.call(threading.get_ident, soon()) != threading.get_ident()


async def test_nobody_waits_beyond_its_time_and_what_nobody_waits_for_is_not_begun() -> None:
    apart, go, begun = Apart("t"), threading.Event(), list[str]()
    held = asyncio.create_task(apart.call(go.wait, soon()))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await apart.call(lambda: begun.append("late"), time.monotonic() + 0.01)
    given_up = asyncio.create_task(apart.call(lambda: begun.append("given up"), soon()))
    await asyncio.sleep(0)
    given_up.cancel()
    last = asyncio.create_task(apart.call(lambda: begun.append("last"), soon()))
    await asyncio.sleep(0)
    go.set()
    await last
    assert await held
    assert begun == ["last"]
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_without_work_the_thread_ends_and_begins_again_with_it() -> None:
    apart = Apart("t", idle_s=0.001)
    first = await apart.call(threading.current_thread, soon())
    await asyncio.to_thread(first.join, 60)
    assert not first.is_alive()
    again = await apart.call(threading.current_thread, soon())
    assert again is not first
    assert again.daemon, "the process does not wait for it"
