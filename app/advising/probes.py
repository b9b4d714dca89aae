"""Asking dependencies whether they answer, without waiting for those that are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from app.domain.errors import AdvisorError
from app.tasks import end

PATIENCE_S = 1.0
"""Below Prometheus' scrape timeout and what load balancers wait for a health check."""


class Probe:
    """One question at a time to one dependency: `check` raises an `AdvisorError` when it is away.

    Who asks waits at most `PATIENCE_S`. The question itself goes on: a connection whose server is
    silent cannot be given up in good order (psycopg waits for the server there, too), and a new one
    each time would use up the pool.
    """

    def __init__(self, check: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._check = check
        self._asked: asyncio.Task[None] | None = None

    async def ask(self) -> str:
        """`up`, or why not."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._question())
        question = self._asked
        done, _ = await asyncio.wait({question}, timeout=PATIENCE_S)
        if not done:
            return (
                f"no answer within {PATIENCE_S:g} s: the server is silent or overloaded; check it"
                " and the network"
            )
        try:
            question.result()
        except AdvisorError as error:
            return str(error)
        return "up"

    async def aclose(self) -> None:
        """Give up the question under way."""
        if self._asked is not None:
            await end([self._asked])

    async def _question(self) -> None:
        await self._check()
