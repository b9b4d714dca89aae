"""Messages between two processes of one service: questions with their answers, and what is told
without one, both ways over one socket.

Both ends are ours, and nobody else can reach the socket: messages are pickled.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Self

import structlog

from app.domain.errors import AdvisorError
from app.tasks import described, end

log = structlog.get_logger()
LENGTH_BYTES = 4
_TOLD, _ASKED, _ANSWERED, _FAILED = range(4)

Answer = Callable[[Any], Awaitable[Any]]


class Unanswered(AdvisorError):
    """The process at the other end has ended, or could not answer."""


class Channel:
    """One end.

    Parameters
    ----------
    answer : gets what the other end asks, and what it tells; one after the other is begun, in the
        order in which they came.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
    ) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    @classmethod
    async def over(cls, connected: socket.socket, answer: Answer) -> Self:
        """One end of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=connected), answer)

    async def ask(self, what: Any, patience_s: float | None = None) -> Any:
        """The other end's answer. Raises `Unanswered`, also when it takes longer than that."""
        number = next(self._numbers)
        self._send(_ASKED, number, what)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience_s):
                return await self._waiting[number]
        except TimeoutError:
            raise Unanswered(f"no answer within {patience_s:g} s") from None
        finally:
            del self._waiting[number]

    def tell(self, what: Any) -> None:
        """Tell the other end. Raises `Unanswered` when it is known to have ended."""
        self._send(_TOLD, 0, what)

    async def run(self) -> None:
        """Hear the other end until it has ended; who waits for an answer then is told so."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                self._heard(*pickle.loads(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._ended = True
            self._writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(Unanswered("the process that was asked has ended"))
            await end(self._tasks)

    def close(self) -> None:
        """The other end hears that this one has ended."""
        self._writer.close()

    def _heard(self, kind: int, number: int, what: Any) -> None:
        if kind in (_ASKED, _TOLD):
            task = asyncio.create_task(self._answered(kind, number, what))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return  # Whoever asked has gone.
        if kind == _FAILED:
            waiting.set_exception(Unanswered(what))
        else:
            waiting.set_result(what)

    async def _answered(self, kind: int, number: int, what: Any) -> None:
        try:
            reply, value = _ANSWERED, await self._answer(what)
        except Exception as error:
            log.exception("a message between processes was not understood")
            reply, value = _FAILED, described(error)
        if kind == _ASKED and not self._ended:
            self._send(reply, number, value)

    def _send(self, kind: int, number: int, what: Any) -> None:
        if self._ended or self._writer.is_closing():
            raise Unanswered("the process that was asked has ended")
        body = pickle.dumps((kind, number, what), pickle.HIGHEST_PROTOCOL)
        self._writer.write(len(body).to_bytes(LENGTH_BYTES) + body)
