"""Proposed limits tried on the record, in a process of its own that gives way to those that advise:
one at a time in each replica."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import monotonic
from typing import NamedTuple

import orjson
import structlog

from app.domain.errors import AdvisorError, TrialRefused
from app.domain.rules.limits import parse_limits
from app.domain.what_if import Judge
from app.shadow_log.limits_history import LimitsHistory, Proposal
from app.shadow_log.reading.what_if import Asked, tallied
from app.tasks import calm_garbage_collection, described

log = structlog.get_logger()
LOOK_S = 0.2
TELL_EVERY = 500
MOST_CHANGED = 200
"""Changed decisions that a report names, the newest."""
NICE = 10
RECORDED = "recorded"
"""Compared with the limits that each decision was made with."""


class Against(NamedTuple):
    """What a proposal is compared with: limits as they are written and their hash; without text,
    those of each decision."""

    toml: str | None = None
    hash: str = RECORDED


class Trial(NamedTuple):
    """How far one is: decisions that were replayed, of how many; or why it ended without a
    report."""

    done: int = 0
    total: int = 0
    failed: str | None = None


class Trials:
    """Trials of this process. What they give is in the history; how far they are, here."""

    def __init__(self, url: Callable[[], str], history: LimitsHistory) -> None:
        self._url = url
        self._history = history
        self._trials: dict[int, Trial] = {}
        self._running: asyncio.Task[None] | None = None

    def begin(self, proposal: Proposal, against: Against, asked: Asked) -> None:
        """Try a proposal. Raises `TrialRefused` while another one is tried here."""
        if self._running is not None and not self._running.done():
            raise TrialRefused("another proposal is being tried here: wait until it has ended")
        self._trials[proposal.id] = Trial()
        self._running = asyncio.create_task(self._run(proposal, against, asked))

    def of(self, proposal_id: int) -> Trial | None:
        """How far the trial is; None when it has ended with a report, or none was begun here."""
        return self._trials.get(proposal_id)

    async def aclose(self) -> None:
        """End what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self, proposal: Proposal, against: Against, asked: Asked) -> None:
        began = monotonic()
        try:
            report = await self._replayed(proposal, against, asked)
            seconds = monotonic() - began
            await self._history.add_report(proposal.id, against.hash, report, seconds)
            del self._trials[proposal.id]
        except Exception as error:  # Told on the page of the proposal; others can be tried.
            log.warning("a trial of limits failed", proposal=proposal.id, error=described(error))
            self._trials[proposal.id] = Trial(failed=str(error) or type(error).__name__)

    async def _replayed(self, proposal: Proposal, against: Against, asked: Asked) -> str:
        """The report, from a process of its own."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        told = (theirs, self._url(), proposal.toml, against.toml, asked)
        process = context.Process(target=_replay, args=told, daemon=True)
        process.start()
        theirs.close()
        try:
            while True:
                if not ours.poll():
                    await asyncio.sleep(LOOK_S)
                    continue
                what, value = ours.recv()
                if what == "report":
                    return str(value)
                if what == "failed":
                    raise TrialRefused(str(value))
                self._trials[proposal.id] = Trial(*value)
        except EOFError as error:
            raise TrialRefused("the replay ended without a report; the log says why") from error
        finally:
            ours.close()
            process.kill()
            await asyncio.to_thread(process.join)


def _replay(pipe: Connection, url: str, toml: str, against: str | None, asked: Asked) -> None:
    """In the process of its own: tell how far it is, then the report."""
    os.nice(NICE)
    calm_garbage_collection()

    def tell(done: int, total: int) -> None:
        if done % TELL_EVERY == 0:
            pipe.send(("progress", (done, total)))

    try:
        before = None if against is None else parse_limits(against, "limits in force")
        judge = Judge(parse_limits(toml, "the proposal"), before)
        document = asyncio.run(tallied(url, judge, asked, tell)).as_json()
    except AdvisorError as error:
        pipe.send(("failed", str(error)))
        return
    document["changed"] = document["changed"][-MOST_CHANGED:]
    pipe.send(("report", orjson.dumps(document).decode()))
