"""A parent of small processes: who starts, who is asked, who is silent, who has to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import pytest

from app.domain.errors import ModelFileError
from app.processes.messages import Told
from app.processes.parent import Parent, Seat, StartFailed
from app.processes.siblings import OneOfSeveral
from app.processes.totals import Snapshot
from app.tasks import end
from tests.service.processes import START_S
from tests.service.running import until


class Small:
    """What a small process does when it is asked: `manner` says how it misbehaves."""

    def __init__(self, manner: str) -> None:
        self.manner = manner
        self.heard: list[Any] = []
        self.stopping = asyncio.Event()

    async def count(self) -> Snapshot:
        if self.manner == "silent":
            await asyncio.Event().wait()
        return ()

    async def readiness(self) -> dict[str, Any]:
        if self.manner == "silent":
            await asyncio.Event().wait()
        return {"status": "unready" if self.manner == "ill" else "ready"}

    async def follow(self, what: Any) -> None:
        self.heard.append(what)

    def stop(self, *, now: bool) -> None:
        if self.manner != "stubborn":
            self.stopping.set()


def small(manner: str, parent: socket.socket, name: str) -> None:
    """A process of its own."""

    async def until_stopped() -> None:
        async with OneOfSeveral.under(parent, name) as siblings:
            if manner == "refused":
                raise ModelFileError("there is no such version")
            if manner == "slow":
                await asyncio.Event().wait()
            part = Small(manner)
            siblings.ready(part, f"http://{name}")
            await part.stopping.wait()

    if manner == "crashing":
        os._exit(3)
    try:
        asyncio.run(until_stopped())
    except ModelFileError:
        sys.exit(2)


@asynccontextmanager
async def parent(**manners: str) -> AsyncIterator[tuple[Parent, asyncio.Task[None]]]:
    seats = [Seat(name, small, (manner,)) for name, manner in manners.items()]
    one = Parent(seats)
    running = asyncio.create_task(one.run())
    try:
        yield one, running
    finally:
        await end([running])
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


async def all_ready(one: Parent, processes: int) -> None:
    async def are() -> bool:
        return len(one._ready()) == processes

    await until(are, START_S)


@pytest.mark.parametrize(
    ("manner", "why"),
    [("refused", "there is no such version"), ("crashing", "a ended with status 3")],
)
async def test_one_that_cannot_start_ends_everything_with_its_reason(manner: str, why: str) -> None:
    async with parent(a=manner, b="slow") as (one, running):
        with pytest.raises(StartFailed, match=why):
            await running
        assert not any(each.process.is_alive() for each in one._running.values())


async def test_how_the_others_are_and_one_that_is_killed_or_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.processes.parent.HEALTH_PATIENCE_S", 0.2)
    monkeypatch.setattr("app.processes.parent.COUNT_PATIENCE_S", 0.2)
    async with parent(a="well", b="ill", c="silent") as (one, _):
        await all_ready(one, 3)
        a = one._running["a"]
        said = {other.name: (other.said, other.why) for other in await one._health(a)}
        assert said["b"] == ({"status": "unready"}, "")
        assert said["c"] == (None, "no answer within 0.2 s")
        a.process.kill()

        async def seen() -> bool:
            return one._deaths["a"] == 1

        await until(seen)
        b = one._running["b"]
        [told, _] = await one._health(b)
        assert (told.name, told.said, told.why) == ("a", None, "it is being started")
        await all_ready(one, 3)
        up, deaths = one._own()
        assert set(up.samples.values()) == {1.0}
        await one._counted()
        up, _ = one._own()
        assert {dict(of)["process"]: value for (_, of), value in up.samples.items()} == {
            "a": 1.0,
            "b": 1.0,
            "c": 0.0,
        }
        assert sorted(deaths.samples.values()) == [0.0, 0.0, 1.0]


async def test_asked_once_all_end_in_good_order_and_one_that_hangs_is_killed_at_the_third() -> None:
    async with parent(a="well", b="stubborn") as (one, running):
        await all_ready(one, 2)
        pids = {name: each.process.pid for name, each in one._running.items()}
        one._stop()

        async def a_ended() -> bool:
            return "a" not in one._running

        await until(a_ended)
        one._stop()
        assert one._running["b"].process.pid == pids["b"]
        one._stop()
        await running


async def test_asked_while_they_start_they_end() -> None:
    async with parent(a="slow", b="slow") as (one, running):

        async def both_run() -> bool:
            return len(one._running) == 2

        await until(both_run)
        one._stop()
        await running
        assert not one._running


class Lasting(NamedTuple):
    """Something that happened."""

    state: str


async def test_who_starts_later_is_told_the_greatest_of_what_lasts_not_the_last() -> None:
    parent = Parent([])
    for state, order in (("halted", "2"), ("active", "1")):
        await parent._tell(cast(Any, None), Told(Lasting(state), order))
    assert [told.what for told in parent._lasting.values()] == [Lasting("halted")]
    await parent._tell(cast(Any, None), Told(Lasting("reducing"), "3"))
    await parent._tell(cast(Any, None), Told(Lasting("passing")))
    assert [told.what for told in parent._lasting.values()] == [Lasting("reducing")]
