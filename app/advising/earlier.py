"""Which ids were decided before, as the shadow log knows it: asked in groups, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from uuid import UUID

from app.domain.errors import AdvisorError, ShadowLogUnavailable
from app.tasks import end

PATIENCE_S = 0.25
AGAIN_S = 1.0
MAX_GROUP = 256

Ask = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, str]]]
_Reply = asyncio.Future[str | ShadowLogUnavailable | None]


class Earlier:
    """Claims of ids. Those that arrive during one question go together into the next.

    A log that failed is asked again after `AGAIN_S`, one that is silent when it has answered: in
    between nobody waits for it.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: dict[UUID, _Reply] = {}
        self._asking: asyncio.Task[None] | None = None
        self._silent = False
        self._again_at = 0.0
        self._why = ""

    async def claim(self, decision_id: UUID, patience_s: float = PATIENCE_S) -> str | None:
        """Hash of the request that was decided under this id, None when none was. Raises
        `ShadowLogUnavailable` when this cannot be told now."""
        if self._silent or monotonic() < self._again_at:
            raise ShadowLogUnavailable(self._why)
        if decision_id not in self._waiting:
            self._waiting[decision_id] = asyncio.get_running_loop().create_future()
        reply = self._waiting[decision_id]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._question())
        patience_s = max(min(patience_s, PATIENCE_S), 0.0)
        done, _ = await asyncio.wait({reply}, timeout=patience_s)
        if not done:
            self._silent = not self._asking.done()
            self._why = f"Postgres did not answer within {patience_s:g} s"
            raise ShadowLogUnavailable(self._why)
        answer = reply.result()
        if isinstance(answer, ShadowLogUnavailable):
            raise ShadowLogUnavailable(str(answer))
        return answer

    async def aclose(self) -> None:
        """Give up the question under way."""
        if self._asking is not None:
            await end([self._asking])

    async def _question(self) -> None:
        """Ask for what waits until nothing does. Whatever goes wrong is everybody's answer."""
        while self._waiting:
            group = dict(list(self._waiting.items())[:MAX_GROUP])
            for decision_id in group:
                del self._waiting[decision_id]
            try:
                claims = await self._ask(list(group))
                replies = {decision_id: claims.get(decision_id) for decision_id in group}
            except asyncio.CancelledError:
                _settle(group, ShadowLogUnavailable("the service is closing"))
                raise
            except Exception as error:
                self._why = str(error) if isinstance(error, AdvisorError) else repr(error)
                self._again_at = monotonic() + AGAIN_S
                group |= self._waiting
                self._waiting = {}
                _settle(group, ShadowLogUnavailable(self._why))
            else:
                for decision_id, reply in group.items():
                    if not reply.done():
                        reply.set_result(replies[decision_id])
            self._silent = False


def _settle(group: Mapping[UUID, _Reply], answer: ShadowLogUnavailable) -> None:
    for reply in group.values():
        if not reply.done():
            reply.set_result(answer)
