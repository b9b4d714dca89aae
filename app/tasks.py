"""Background work of long-lived processes: supervised while it lives, and ended for certain.

A task is a round of work that is repeated. A round that raises is logged with its reason, counted,
and tried again after a pause that grows; until a round succeeds again the task is not working, and
neither is one whose round does not end. Nothing that a round raises ends the task.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

import structlog

from app.telemetry import Task, Telemetry

log = structlog.get_logger()
AGAIN_S = 0.5
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 10.0
PATIENCE_S = 30.0
"""A round that takes longer than this is not working."""
LOOK_S = 1.0
REASON_LENGTH = 200

Round = Callable[[], Awaitable[object]]


class _Supervised:
    """One task: how its last round ended, and since when the present one runs."""

    def __init__(self, work: Round, every_s: float, max_pause_s: float, patience_s: float) -> None:
        self.work = work
        self.every_s = every_s
        self.max_pause_s = max_pause_s
        self.patience_s = patience_s
        self.failures = 0
        self.reason: str | None = None
        self.began: float | None = None

    def why_not(self) -> str | None:
        """Why it is not working; None while it is."""
        if self.reason is not None:
            return self.reason
        if self.began is not None and monotonic() - self.began > self.patience_s:
            return f"no round has ended for {self.patience_s:g} s"
        return None


class Supervisor:
    """Looks after the background tasks of one process. Rounds and pauses are told to
    `telemetry`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._supervised: dict[Task, _Supervised] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None

    def start(
        self,
        task: Task,
        work: Round,
        *,
        every_s: float = 0.0,
        max_pause_s: float = MAX_PAUSE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Repeat `work` until `aclose()`: first after `every_s`, then that long after its end;
        after the n-th failure in a row not before 0.25 x 2^(n-1) s, at most `max_pause_s`."""
        supervised = self._supervised[task] = _Supervised(work, every_s, max_pause_s, patience_s)
        self._telemetry.task_works(task, True)
        self._tasks.append(asyncio.create_task(self._repeat(task, supervised)))
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())

    def failing(self) -> dict[Task, str]:
        """Every task that is not working now, with the reason."""
        failing = {}
        for task, supervised in self._supervised.items():
            reason = supervised.why_not()
            self._telemetry.task_works(task, reason is None)
            if reason is not None:
                failing[task] = reason
        return failing

    async def wait(self) -> None:
        """Until a task ends, which only `aclose()` makes them do."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def aclose(self) -> None:
        """End every task."""
        await end([*self._tasks, *([self._watch] if self._watch else [])])

    async def _look(self) -> None:
        """Tell of rounds that do not end, also where nobody asks."""
        while True:
            self.failing()
            await asyncio.sleep(LOOK_S)

    async def _repeat(self, task: Task, supervised: _Supervised) -> None:
        myself = asyncio.current_task()
        assert myself is not None
        await asyncio.sleep(supervised.every_s)
        while not myself.cancelling():
            supervised.began = monotonic()
            try:
                await supervised.work()
            except asyncio.CancelledError:
                if myself.cancelling():
                    raise
                # A library cancelled its own waiting: nobody asked this task to end.
                pause = self._failed(task, supervised, "CancelledError: work was abandoned")
            except Exception as error:
                pause = self._failed(task, supervised, described(error))
            else:
                pause = supervised.every_s
                if supervised.failures:
                    self._recovered(task, supervised)
            supervised.began = None
            await asyncio.sleep(pause)

    def _failed(self, task: Task, supervised: _Supervised, reason: str) -> float:
        """Note a failure; how long to wait now (s)."""
        supervised.failures += 1
        supervised.reason = reason
        growth = 2.0 ** min(supervised.failures - 1, 16)
        pause = max(min(FIRST_PAUSE_S * growth, supervised.max_pause_s), supervised.every_s)
        self._telemetry.task_failed(task)
        self._telemetry.task_works(task, False)
        log.exception("background task failed, it is tried again", task=task, seconds=pause)
        return pause

    def _recovered(self, task: Task, supervised: _Supervised) -> None:
        log.info("background task works again", task=task, failures=supervised.failures)
        supervised.failures, supervised.reason = 0, None
        self._telemetry.task_works(task, True)


def described(error: BaseException) -> str:
    """One line, for people."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:REASON_LENGTH]


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


def put_off_garbage_collection() -> None:
    """Collect nothing until `calm_garbage_collection`: while a process imports what it is made of,
    collections take a quarter of its time, and find nothing."""
    gc.disable()


def spare_from_collection() -> None:
    """Leave what was imported out of the first collection, where they are put off: it stays as long
    as the process."""
    if not gc.isenabled():
        gc.freeze()


def calm_garbage_collection() -> None:
    """Leave what was loaded at start out of every collection: a full one would take a tenth of a
    second, and a process that makes records all day would have one every few dozen of them; of a
    replay of the record they took a fifth."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
