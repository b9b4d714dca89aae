"""Two ends of a socket that ask and tell each other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.processes.channel import Answer, Channel, Unanswered
from app.tasks import end
from tests.service.running import until


@asynccontextmanager
async def ends(one: Answer, other: Answer) -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends, heard."""
    left, right = socket.socketpair()
    first, second = await Channel.over(left, one), await Channel.over(right, other)
    hearing = [asyncio.create_task(each.run()) for each in (first, second)]
    try:
        yield first, second
    finally:
        first.close()
        await asyncio.wait(hearing, timeout=10)
        await end(hearing)


async def doubled(what: Any) -> Any:
    return 2 * what


async def test_both_ask_and_get_their_own_answers_in_whatever_order_they_come() -> None:
    gate = asyncio.Event()

    async def slow_for_one(what: Any) -> Any:
        if what == 1:
            await gate.wait()
        return -what

    async with ends(doubled, slow_for_one) as (one, other):
        waits = asyncio.create_task(one.ask(1))
        assert await one.ask(2) == -2
        assert await other.ask("x" * 100_000) == "x" * 200_000
        gate.set()
        assert await waits == -1


async def test_what_is_told_is_heard_in_order() -> None:
    heard: list[Any] = []

    async def hear(what: Any) -> None:
        heard.append(what)

    async with ends(doubled, hear) as (one, _):
        for number in range(100):
            one.tell(number)

        async def all_heard() -> bool:
            return len(heard) == 100

        await until(all_heard)
    assert heard == list(range(100))


async def test_who_asks_is_told_when_nobody_answers() -> None:
    async def raises(what: Any) -> Any:
        raise ValueError(f"what is {what}?")

    async def silent(what: Any) -> Any:
        await asyncio.Event().wait()

    async with ends(doubled, raises) as (one, _):
        with pytest.raises(Unanswered, match="what is this"):
            await one.ask("this")
    async with ends(doubled, silent) as (one, other):
        with pytest.raises(Unanswered, match="within 0"):
            await one.ask("this", 0.0)
        waits = asyncio.create_task(one.ask("this"))
        await asyncio.sleep(0)
        other.close()
        with pytest.raises(Unanswered, match="has ended"):
            await waits
        with pytest.raises(Unanswered, match="has ended"):
            await one.ask("this")
