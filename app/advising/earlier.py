"""Which ids were decided before, as the shadow log knows it: asked in groups, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from app.domain.errors import AdvisorError, ShadowLogUnavailable
from app.tasks import end

PATIENCE_S = 0.25
AGAIN_S = 1.0
MAX_GROUP = 256

Ask = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, str]]]
_Reply = asyncio.Future[str | ShadowLogUnavailable | None]


class Question(NamedTuple):
    """An id that is being asked about; without a reply when nobody can tell now."""

    reply: _Reply | None
    patience_s: float
    until: float


class Earlier:
    """Claims of ids. Those that arrive during one question go together into the next.

    A log that failed is asked again after `AGAIN_S`, one that is silent when it has answered: in
    between nobody waits for it.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: dict[UUID, list[_Reply]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._silent = False
        self._again_at = 0.0
        self._why = ""

    def ask(self, decision_id: UUID, patience_s: float = PATIENCE_S) -> Question:
        """Begin to ask, which goes on while its caller does something else."""
        now = monotonic()
        patience_s = max(min(patience_s, PATIENCE_S), 0.0)
        if self._silent or now < self._again_at:
            return Question(None, patience_s, now)
        reply: _Reply = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(decision_id, []).append(reply)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_on())
        return Question(reply, patience_s, now + patience_s)

    async def answer(self, question: Question) -> str | None:
        """Hash of the request that was decided under this id, None when none was. Raises
        `ShadowLogUnavailable` when this cannot be told within the patience."""
        reply = question.reply
        if reply is None:
            raise ShadowLogUnavailable(self._why)
        if not reply.done():
            left_s = max(question.until - monotonic(), 0.0)
            hush = asyncio.get_running_loop().call_later(left_s, self._hush, question)
            try:
                await reply
            finally:
                hush.cancel()
        answer = reply.result()
        if isinstance(answer, ShadowLogUnavailable):
            raise ShadowLogUnavailable(str(answer))
        return answer

    async def claim(self, decision_id: UUID, patience_s: float = PATIENCE_S) -> str | None:
        """Ask and wait. Raises as `answer`."""
        return await self.answer(self.ask(decision_id, patience_s))

    def _hush(self, question: Question) -> None:
        """The patience is over: nobody else waits for a log that is silent."""
        assert question.reply is not None
        assert self._asking is not None
        if not question.reply.done():
            self._silent = not self._asking.done()
            self._why = f"Postgres did not answer within {question.patience_s:g} s"
            question.reply.set_result(ShadowLogUnavailable(self._why))

    async def aclose(self) -> None:
        """Give up the question under way."""
        if self._asking is not None:
            await end([self._asking])

    async def _ask_on(self) -> None:
        """Ask for what waits until nothing does. Whatever goes wrong is everybody's answer."""
        while self._waiting:
            group = dict(list(self._waiting.items())[:MAX_GROUP])
            for decision_id in group:
                del self._waiting[decision_id]
            try:
                claims = await self._ask(list(group))
                replies = {decision_id: claims.get(decision_id) for decision_id in group}
            except asyncio.CancelledError:
                _settle_all(group, ShadowLogUnavailable("the service is closing"))
                raise
            except Exception as error:
                self._why = str(error) if isinstance(error, AdvisorError) else repr(error)
                self._again_at = monotonic() + AGAIN_S
                left, self._waiting = self._waiting, {}
                for asked in (group, left):
                    _settle_all(asked, ShadowLogUnavailable(self._why))
            else:
                for decision_id, waiting in group.items():
                    _settle(waiting, replies[decision_id])
            self._silent = False


def _settle_all(group: Mapping[UUID, Sequence[_Reply]], answer: ShadowLogUnavailable) -> None:
    for waiting in group.values():
        _settle(waiting, answer)


def _settle(waiting: Sequence[_Reply], answer: str | ShadowLogUnavailable | None) -> None:
    for reply in waiting:
        if not reply.done():
            reply.set_result(answer)
