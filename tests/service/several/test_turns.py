"""Connections to one socket are shared out evenly among the processes that take them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.processes.turns import Door, Shares, Turns


class Says(asyncio.Protocol):
    """Says which process it is of, and is counted while it is open."""

    def __init__(self, name: str, open_: set[asyncio.Protocol]) -> None:
        self.name, self.open = name, open_

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.open.add(self)
        transport.write(self.name.encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


@asynccontextmanager
async def taking(listener: socket.socket, shares: Shares, place: int) -> AsyncIterator[None]:
    """As a process does, which has the socket by a number of its own."""
    open_: set[asyncio.Protocol] = set()
    with listener.dup() as own:
        door = Door(own, shares, place)
        turns = Turns(door, lambda: Says("ab"[place], open_), lambda: len(open_), backlog=128)
        try:
            yield
        finally:
            turns.close()
            await turns.wait_closed()


async def connected(listener: socket.socket, stack: AsyncExitStack) -> str:
    """Open a connection that stays open; who took it."""
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    stack.callback(writer.close)
    return (await reader.readexactly(1)).decode()


async def test_connections_that_are_opened_at_once_are_shared_out(listener: socket.socket) -> None:
    shares = Shares(2)
    async with (
        taking(listener, shares, 0),
        taking(listener, shares, 1),
        AsyncExitStack() as stack,
    ):
        took = await asyncio.gather(*(connected(listener, stack) for _ in range(32)))
    assert 15 <= took.count("a") <= 17


async def test_who_has_fewer_takes_the_next(listener: socket.socket) -> None:
    shares = Shares(2)
    async with AsyncExitStack() as stack, taking(listener, shares, 0):
        assert [await connected(listener, stack) for _ in range(3)] == ["a"] * 3
        async with taking(listener, shares, 1):
            assert [await connected(listener, stack) for _ in range(3)] == ["b"] * 3


async def test_nobody_waits_for_long_for_a_process_that_hangs_or_has_gone(
    listener: socket.socket,
) -> None:
    """One that has none and takes none: the other takes all."""
    shares = Shares(2)
    shares.tell(1, 0)
    async with taking(listener, shares, 0), AsyncExitStack() as stack:
        took = await asyncio.gather(*(connected(listener, stack) for _ in range(8)))
        assert took == ["a"] * 8
        assert shares.others_go_first(0)
        shares.leave(1)
        assert not shares.others_go_first(0)


async def test_whoever_stops_lets_others_take_what_waits(listener: socket.socket) -> None:
    shares = Shares(2)
    async with AsyncExitStack() as stack:
        async with taking(listener, shares, 0):
            assert await connected(listener, stack) == "a"
        waiting = asyncio.create_task(connected(listener, stack))
        async with taking(listener, shares, 1):
            assert await waiting == "b"
