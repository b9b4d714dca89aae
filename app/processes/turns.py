"""Connections of several processes on one socket, shared out evenly.

Left to the event loops, whichever process wakes first takes all that wait: a pool of thirty
connections that is opened at once ends in one process, and the others idle.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from multiprocessing.sharedctypes import RawArray
from typing import NamedTuple

import structlog

from app.tasks import end

log = structlog.get_logger()
GO_FIRST_S = 0.005
"""How long a process with fewer connections is given to take the next one. One that hangs takes
none; then whoever waited for it does."""
PAUSE_S = 1.0
"""After a connection that could not be taken: descriptors are used up, most likely."""
_TAKES_NONE = -1


class Shares:
    """How many connections each of `processes` has. Each writes its own number, so there is no
    lock. A process gets it as an argument of its start."""

    def __init__(self, processes: int) -> None:
        self._open = RawArray("l", [_TAKES_NONE] * processes)

    def tell(self, place: int, connections: int) -> None:
        """The process at `place`, from 0, has so many, and takes more."""
        self._open[place] = connections

    def leave(self, place: int) -> None:
        """The process at `place` takes no more: nobody waits for it."""
        self._open[place] = _TAKES_NONE

    def others_go_first(self, place: int) -> bool:
        """Whether another process that takes connections has fewer."""
        return any(_TAKES_NONE < other < self._open[place] for other in self._open)


class Door(NamedTuple):
    """A bound socket from which several processes take connections, and this one's place among
    them."""

    listener: socket.socket
    shares: Shares
    place: int


class Turns:
    """Takes connections at a door, one after the other, until it is closed; what of a server of
    asyncio uvicorn needs.

    Parameters
    ----------
    protocol : makes what speaks on a connection.
    connections : how many are open in this process.
    backlog : how many may wait to be taken.
    """

    def __init__(
        self,
        door: Door,
        protocol: Callable[[], asyncio.Protocol],
        connections: Callable[[], int],
        backlog: int,
    ) -> None:
        self._listener, self._shares, self._place = door
        self._protocol, self._connections = protocol, connections
        self._loop, self._number = asyncio.get_running_loop(), self._listener.fileno()
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self.tell()
        self._taking = asyncio.create_task(self._take())

    def tell(self) -> None:
        """Tell the others how many are open here; to be called now and then, since connections
        end."""
        self._shares.tell(self._place, self._connections())

    def close(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._number)
        self._taking.cancel()
        self._shares.leave(self._place)

    async def wait_closed(self) -> None:
        """Until nothing is being taken."""
        await end([self._taking])

    async def _take(self) -> None:
        while True:
            await self._somebody_waits()
            self.tell()
            if self._shares.others_go_first(self._place):
                await asyncio.sleep(GO_FIRST_S)
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # Another process took it, or it has gone.
            except OSError as error:
                log.error("a connection could not be taken", error=str(error), seconds=PAUSE_S)
                await asyncio.sleep(PAUSE_S)
                continue
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, connection)
            self.tell()

    async def _somebody_waits(self) -> None:
        waits = asyncio.Event()
        self._loop.add_reader(self._number, waits.set)
        await waits.wait()
        self._loop.remove_reader(self._number)
