"""The processes that answer on the same port as this one: what is asked of one of them about the
service holds for all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, Self

from app.domain.errors import AdvisorError
from app.processes.channel import Channel, Unanswered
from app.processes.messages import (
    Count,
    CountAll,
    Failed,
    Health,
    HealthOfOthers,
    Other,
    Ready,
    Stop,
    Told,
)
from app.processes.totals import Snapshot
from app.tasks import end

PATIENCE_S = 5.0
"""For the parent, which waits for others."""
DEGRADED, WORST_FIRST = "degraded", ("unready", "degraded", "ready")


class Part(Protocol):
    """What a process does when its parent asks for it."""

    async def count(self) -> Snapshot:
        """What it has counted, now."""

    async def readiness(self) -> dict[str, Any]:
        """How it is; `status` is one of `WORST_FIRST`."""

    async def follow(self, what: Any) -> None:
        """Something happened in a sibling."""

    def stop(self, *, now: bool) -> None:
        """Answer what is under way, then end; `now`, end at once."""


class Alone:
    """No siblings: what this process says of itself is said of the service."""

    name = ""
    """Of this process among its siblings."""

    async def counted(self) -> list[Snapshot]:
        """Nothing beside what this process has counted."""
        return []

    async def readiness(self, own: dict[str, Any]) -> dict[str, Any]:
        """Its own."""
        return own

    async def tell(self, what: Any, *, lasting: str = "") -> None:
        """Nobody else needs to know."""


ALONE = Alone()


class OneOfSeveral(Alone):
    """A process whose siblings are reached through the parent of all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._channel: Channel
        self._part: Part | None = None
        self.orphaned = False
        """Whether the parent has ended."""

    @classmethod
    @asynccontextmanager
    async def under(cls, parent: socket.socket, name: str) -> AsyncIterator[Self]:
        """One of several, until the block ends. When the parent ends, so does this process: in good
        order, if it was ready. Why it cannot start the parent is told."""
        one, block = cls(name), asyncio.current_task()
        assert block is not None
        one._channel = await Channel.over(parent, one._answer)

        async def hear() -> None:
            await one._channel.run()
            one.orphaned = True
            if one._part is None:
                block.cancel()
            else:
                one._part.stop(now=False)

        hearing = asyncio.create_task(hear())
        try:
            yield one
        except AdvisorError as error:
            with suppress(Unanswered):
                one._channel.tell(Failed(str(error)))
            raise
        finally:
            await end([hearing])

    def ready(self, part: Part, url: str = "") -> None:
        """Tell the parent that this process works; from now on it is asked."""
        self._part = part
        self._channel.tell(Ready(url))

    async def counted(self) -> list[Snapshot]:
        """What every process has counted. Raises `Unanswered`: what one knows by itself would be
        taken for a counter that began anew."""
        snapshots: list[Snapshot] = await self._channel.ask(CountAll(), PATIENCE_S)
        return snapshots

    async def readiness(self, own: dict[str, Any]) -> dict[str, Any]:
        """The readiness of the service: the worst that any process says; one that is missing
        degrades it."""
        try:
            others: list[Other] = await self._channel.ask(HealthOfOthers(), PATIENCE_S)
        except Unanswered as error:
            others = [Other("parent", None, str(error))]
        told = {self.name: own["status"]}
        told |= {
            each.name: each.why if each.said is None else each.said["status"] for each in others
        }
        said = [own["status"], *(each.said["status"] if each.said else DEGRADED for each in others)]
        return own | {"status": min(said, key=WORST_FIRST.index), "processes": told}

    async def tell(self, what: Any, *, lasting: str = "") -> None:
        """Have the others follow, past queue server and database. One that is silent is not waited
        for long: it looks for itself."""
        with suppress(Unanswered):
            await self._channel.ask(Told(what, lasting), PATIENCE_S)

    async def _answer(self, what: Any) -> Any:
        assert self._part is not None, "who is not ready is not asked"
        match what:
            case Count():
                return await self._part.count()
            case Health():
                return await self._part.readiness()
            case Told(told):
                await self._part.follow(told)
            case Stop(now):
                self._part.stop(now=now)
        return None
