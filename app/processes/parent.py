"""The parent of several processes on one port: starts them, looks after them, tells each what the
others have counted and how they are, and ends them all.

It listens for nobody itself. A process that ends is counted and started again after a pause that
grows; one that cannot start at first ends everything. When the parent is killed its processes hear
it, and end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any, NamedTuple

import structlog

from app.domain.errors import AdvisorError
from app.processes.channel import Channel, Unanswered
from app.processes.messages import (
    Count,
    CountAll,
    Failed,
    Gone,
    Health,
    HealthOfOthers,
    Other,
    Ready,
    Stop,
    Told,
)
from app.processes.totals import Across, Counted, Key, Snapshot, outlasting, together
from app.tasks import end

log = structlog.get_logger()
SPAWN = multiprocessing.get_context("spawn")
COUNT_PATIENCE_S, HEALTH_PATIENCE_S = 2.5, 2.5
"""A process that is silent for longer has what it told last; it waits for Postgres and Valkey for a
second itself."""
FOLLOW_PATIENCE_S = 2.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0
"""A process that has run for so long is started again after the first pause."""
UP, DEATHS = "advisor_process_up", "advisor_process_deaths"


class StartFailed(AdvisorError):
    """A process cannot start; the message is its own."""


class Seat(NamedTuple):
    """A process that is to run. `target` gets `arguments`, then its end of a socket to the parent,
    then `name`; it must be importable. `ends_last`: others need it until they have ended."""

    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    ends_last: bool = False


class _Running:
    """A process in its seat. `counted` is what it told last."""

    def __init__(self, seat: Seat, process: SpawnProcess) -> None:
        self.seat, self.process = seat, process
        self.channel: Channel
        self.is_ready = False
        self.is_silent = False
        """It was asked what it had counted, and did not answer in time."""
        self.failed = ""
        self.counted: Snapshot = ()

    def stop(self, asked: int = 1) -> None:
        """By the channel, so that a signal that reaches all of a group is not taken for a second
        one; what is not ready yet has nothing under way. `asked` for the third time, kill it."""
        if asked > 2:
            self.process.kill()
        elif not self.is_ready:
            self.process.terminate()
        else:
            with suppress(Unanswered):
                self.channel.tell(Stop(now=asked > 1))


class Parent:
    """Of the processes in `seats`."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = seats
        self._running: dict[str, _Running] = {}
        self._deaths: Counter[str] = Counter({seat.name: 0 for seat in seats})
        self._outlasting: Snapshot = ()
        """What processes had counted that have ended."""
        self._lasting: dict[type[Any], Told] = {}
        """What whoever starts later is told."""
        self._stopping, self._asked = asyncio.Event(), 0
        self._were_ready = False

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; a second one ends what is under way at once, a third whatever
        hangs. Raises `StartFailed`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        keeping = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        try:
            await asyncio.gather(*keeping)
        finally:  # Nothing is left, whatever happened.
            await end(keeping)
            for running in self._running.values():
                running.process.kill()
                running.process.join()

    def _stop(self) -> None:
        self._stopping.set()
        self._asked += 1
        serving = [each for each in self._running.values() if not each.seat.ends_last]
        for running in serving or self._running.values():
            running.stop(self._asked)

    async def _keep(self, seat: Seat) -> None:
        """Have a process in this seat until everything ends."""
        in_a_row = 0
        while not self._stopping.is_set():
            began = monotonic()
            running = await self._start(seat)
            await running.channel.run()
            await asyncio.to_thread(running.process.join)
            del self._running[seat.name]
            self._outlasting = together([self._outlasting, outlasting(running.counted)])
            status = running.process.exitcode
            if self._stopping.is_set():
                break
            if not self._were_ready:
                why = f"the process {seat.name} ended with status {status} while it started"
                raise StartFailed(running.failed or why)
            self._deaths[seat.name] += 1
            in_a_row = 0 if monotonic() - began >= STEADY_S else in_a_row
            pause_s = min(FIRST_PAUSE_S * 2 ** min(in_a_row, 10), MAX_PAUSE_S)
            in_a_row += 1
            log.error(
                "a process ended, it is started again",
                process=seat.name,
                status=status,
                error=running.failed or "it did not say why",
                seconds=pause_s,
            )
            for other in self._followers():
                with suppress(Unanswered):
                    other.channel.tell(Told(Gone(seat.name)))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
        if all(each.seat.ends_last for each in self._running.values()):
            for running in self._running.values():
                running.stop()

    async def _start(self, seat: Seat) -> _Running:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (*seat.arguments, theirs, seat.name)
            process = SPAWN.Process(target=seat.target, args=arguments, name=seat.name)
            running = self._running[seat.name] = _Running(seat, process)
            process.start()
        running.channel = await Channel.over(ours, lambda what: self._answer(running, what))
        return running

    async def _answer(self, running: _Running, what: Any) -> Any:
        match what:
            case Ready(url):
                self._is_ready(running, url)
            case Failed(why):
                running.failed = why
            case Told():
                await self._tell(running, what)
            case CountAll():
                return await self._counted()
            case HealthOfOthers():
                return await self._health(running)
        return None

    def _is_ready(self, running: _Running, url: str) -> None:
        running.is_ready = True
        if not running.seat.ends_last:
            for told in self._lasting.values():
                running.channel.tell(told)
        if self._stopping.is_set():
            running.stop()
        elif not self._were_ready and len(self._ready()) == len(self._seats):
            self._were_ready = True
            log.info("all processes are ready", url=url, processes=sorted(self._running))

    def _ready(self) -> list[_Running]:
        return [running for running in self._running.values() if running.is_ready]

    def _followers(self) -> list[_Running]:
        """Those that are told what happened: not those that others need, which decide nothing."""
        return [running for running in self._ready() if not running.seat.ends_last]

    async def _tell(self, teller: _Running, told: Told) -> None:
        """Have the others follow, and who starts later."""
        kept = self._lasting.get(type(told.what))
        if told.lasting and (kept is None or kept.lasting <= told.lasting):
            self._lasting[type(told.what)] = told
        others = [each for each in self._followers() if each is not teller]
        await asyncio.gather(*(_follow(each, told) for each in others))

    async def _counted(self) -> list[Snapshot]:
        await asyncio.gather(*map(_count, self._ready()))
        counted = [running.counted for running in self._running.values()]
        return [*counted, self._outlasting, self._own()]

    def _own(self) -> Snapshot:
        up: dict[Key, float] = {}
        deaths: dict[Key, float] = {}
        for name, number in self._deaths.items():
            running = self._running.get(name)
            labels = (("process", name),)
            works = running is not None and running.is_ready and not running.is_silent
            up[UP, labels] = float(works)
            deaths[f"{DEATHS}_total", labels] = float(number)
        return [
            Counted(UP, "gauge", "", Across.LARGEST, False, up),
            Counted(DEATHS, "counter", "", Across.SUM, True, deaths),
        ]

    async def _health(self, asker: _Running) -> list[Other]:
        """Of every seat but the one who asks."""
        others = [seat for seat in self._seats if seat is not asker.seat]
        return await asyncio.gather(*map(self._health_of, others))

    async def _health_of(self, seat: Seat) -> Other:
        running = self._running.get(seat.name)
        if running is None or not running.is_ready:
            return Other(seat.name, None, "it is being started")
        try:
            return Other(seat.name, await running.channel.ask(Health(), HEALTH_PATIENCE_S))
        except Unanswered as error:
            return Other(seat.name, None, str(error))


async def _count(running: _Running) -> None:
    try:
        running.counted = await running.channel.ask(Count(), COUNT_PATIENCE_S)
        running.is_silent = False
    except Unanswered:
        running.is_silent = True


async def _follow(running: _Running, told: Told) -> None:
    try:
        await running.channel.ask(told, FOLLOW_PATIENCE_S)
    except Unanswered as error:  # It looks for itself, if it lives.
        what = type(told.what).__name__
        log.warning(
            "a process did not follow", process=running.seat.name, what=what, error=str(error)
        )
