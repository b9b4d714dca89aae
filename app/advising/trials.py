"""Proposals tried on the record, in a process of its own that gives way to those that advise:
one at a time in each replica."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, NamedTuple

import orjson
import structlog

from app.advising.hindsight import Hindsight
from app.domain.errors import AdvisorError, TrialRefused
from app.domain.rules.limits import parse_limits
from app.domain.what_if.costs import costs_of
from app.domain.what_if.judge import Judge
from app.policy.options import BackendOptions
from app.processes.messages import Gone
from app.processes.siblings import ALONE, Alone
from app.shadow_log.limits_history import LimitsHistory, Proposal
from app.shadow_log.reading.what_if import Asked, Missing, Progress, tallied
from app.tasks import calm_garbage_collection, described
from app.telemetry import UNOBSERVED

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


class Otherwise(NamedTuple):
    """What is tried beside limits: a version in the place of the primary, of which at most `read`
    decisions are read now; costs of each side, fractions of notional."""

    version: str | None = None
    read: int = 0
    fee: float | None = None
    slippage: float | None = None


class Asking(NamedTuple):
    """All that a trial is asked."""

    proposal: Proposal
    against: Against
    decisions: Asked
    otherwise: Otherwise = Otherwise()


class Trial(NamedTuple):
    """How far one is: decisions that were replayed, of how many; or why it ended without a
    report."""

    done: int = 0
    total: int = 0
    failed: str | None = None


class Tried(NamedTuple):
    """Told to processes beside this one: how far a trial is; None when it has its report."""

    process: str
    proposal_id: int
    trial: Trial | None


class Trials:
    """Trials of this process, and what those beside it tell of theirs. What they give is in the
    history; how far they are, here."""

    def __init__(
        self,
        url: Callable[[], str],
        history: LimitsHistory,
        options: BackendOptions,
        siblings: Alone = ALONE,
    ) -> None:
        self._siblings = siblings
        self._elsewhere: dict[int, Tried] = {}
        self._url = url
        self._history = history
        self._options = replace(options, telemetry=UNOBSERVED, elsewhere=None)
        self._trials: dict[int, Trial] = {}
        self._running: asyncio.Task[None] | None = None

    def begin(self, asking: Asking) -> None:
        """Try a proposal. Raises `TrialRefused` while another one is tried here."""
        elsewhere = any(told.trial and not told.trial.failed for told in self._elsewhere.values())
        if elsewhere or (self._running is not None and not self._running.done()):
            raise TrialRefused("another proposal is being tried here: wait until it has ended")
        self._elsewhere.pop(asking.proposal.id, None)
        self._trials[asking.proposal.id] = Trial()
        self._running = asyncio.create_task(self._run(asking))

    def of(self, proposal_id: int) -> Trial | None:
        """How far the trial is; None when it has ended with a report, or none was begun here."""
        told = self._elsewhere.get(proposal_id)
        return self._trials.get(proposal_id) if told is None else told.trial

    def follow(self, what: Tried | Gone) -> None:
        """A trial beside this process goes on, or the process that tried has ended."""
        if isinstance(what, Tried):
            self._trials.pop(what.proposal_id, None)
            self._elsewhere[what.proposal_id] = what
            return
        for proposal_id, told in self._elsewhere.items():
            if told.process == what.name and told.trial and not told.trial.failed:
                ended = Trial(failed="the process that tried it has ended: try it again")
                self._elsewhere[proposal_id] = told._replace(trial=ended)

    async def aclose(self) -> None:
        """End what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self, asking: Asking) -> None:
        began, proposal = monotonic(), asking.proposal
        await self._tell(proposal.id, Trial())
        try:
            report = await self._replayed(asking)
            seconds = monotonic() - began
            await self._history.add_report(proposal.id, asking.against.hash, report, seconds)
            await self._tell(proposal.id, None)
        except Exception as error:  # Told on the page of the proposal; others can be tried.
            log.warning("a trial of limits failed", proposal=proposal.id, error=described(error))
            await self._tell(proposal.id, Trial(failed=str(error) or type(error).__name__))

    async def _tell(self, proposal_id: int, trial: Trial | None) -> None:
        """How far it is, here and beside."""
        if trial is None:
            self._trials.pop(proposal_id, None)
        else:
            self._trials[proposal_id] = trial
        await self._siblings.tell(Tried(self._siblings.name, proposal_id, trial))

    async def _replayed(self, asking: Asking) -> str:
        """The report, from a process of its own."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        told = (theirs, self._url(), asking, self._options)
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
                await self._tell(asking.proposal.id, Trial(*value))
        except EOFError as error:
            raise TrialRefused("the replay ended without a report; the log says why") from error
        finally:
            ours.close()
            process.kill()
            await asyncio.to_thread(process.join)


def _replay(pipe: Connection, url: str, asking: Asking, options: BackendOptions) -> None:
    """In the process of its own: tell how far it is, then the report."""
    os.nice(NICE)
    calm_garbage_collection()
    otherwise = asking.otherwise
    every = 1 if otherwise.read else TELL_EVERY

    def tell(done: int, total: int) -> None:
        if done % every == 0:
            _say(pipe, "progress", (done, total))

    try:
        toml = asking.against.toml
        before = None if toml is None else parse_limits(toml, "limits in force")
        judge = Judge(
            parse_limits(asking.proposal.toml, "the proposal"),
            before,
            version=otherwise.version,
            costs=costs_of(otherwise.fee, otherwise.slippage),
        )
        document = asyncio.run(_tallied(url, judge, asking, options, tell))
    except AdvisorError as error:
        _say(pipe, "failed", str(error))
        return
    document["changed"] = document["changed"][-MOST_CHANGED:]
    _say(pipe, "report", orjson.dumps(document).decode())


def _say(pipe: Connection, what: str, value: Any) -> None:
    try:
        pipe.send((what, value))
    except BrokenPipeError:
        os._exit(1)  # The process that asked has ended: nothing here is of use to anybody.


async def _tallied(
    url: str, judge: Judge, asking: Asking, options: BackendOptions, tell: Progress
) -> dict[str, Any]:
    """The report as a document."""
    most = asking.otherwise.read
    reader = Hindsight(judge.version, options) if judge.version is not None and most else None
    missing = None if reader is None else Missing(reader, most)
    try:
        tally = await tallied(url, judge, asking.decisions, tell, missing=missing)
    finally:
        if reader is not None:
            await reader.aclose()
    return judge.as_json() | tally.as_json()
