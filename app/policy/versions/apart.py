"""A thread of its own for a library that may take long, at the hands of whoever made the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")
LOOK_S = 0.0005


class Apart:
    """A thread for calls that may take long, one after the other. Who waits for one waits no longer
    than it has time, what nobody waits for any more is not begun, and the process does not wait for
    the thread when it ends. Without work for a while it ends by itself.

    The event loop goes on meanwhile where the library lets go of Python's lock.
    """

    def __init__(self, name: str, idle_s: float = 10.0) -> None:
        self._name = name
        self._idle_s = idle_s
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = Condition()
        self._runs = False
        self._awaited = 0
        """Calls that somebody waits for."""

    async def call(self, work: Callable[[], Result], deadline: float) -> Result:
        """What `work` returns, or raises. Raises `TimeoutError` at the deadline, a
        `time.monotonic()` value."""
        future: Future[Result] = Future()
        waiting = (work, future)
        with self._changed:
            self._waiting.append(waiting)
            if not self._runs:
                self._runs = True
                Thread(target=self._run, name=self._name, daemon=True).start()
            self._changed.notify()
        self._awaited += 1
        try:
            async with asyncio.timeout(deadline - monotonic()):
                return await asyncio.wrap_future(future)
        finally:
            self._awaited -= 1
            with self._changed:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)

    async def settled(self, patience_s: float) -> None:
        """Wait until nobody waits for a call, at most so long: what came together goes on
        together."""
        end = monotonic() + patience_s
        while self._awaited and monotonic() < end:
            await asyncio.sleep(LOOK_S)

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            work, future = waiting
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # Rust's panics are no `Exception`.
                future.set_exception(error)
            else:
                future.set_result(result)

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, self._idle_s)
            if not self._waiting:
                self._runs = False
                return None
            return self._waiting.popleft()
