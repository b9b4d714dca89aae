"""The in-process backend: one model, one thread, requests that wait together are read together.

All bookkeeping happens on the event loop, so there are no locks; the thread does nothing but arithmetic.
Decisions come before rationales: a rationale advances one step at a time, and only while no decision waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from app.domain.actions import Action
from app.domain.decision import Reading
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.manifest import ModelManifest
from app.domain.prompt import Prompt
from app.policy.label_reader import Continuation, LabelReader
from app.policy.rationale import RATIONALE_TOKENS, is_complete, sentences

MAX_BATCH = 4
MAX_QUEUE = 64
MAX_RATIONALES = 8
_SMOOTHING = 0.2
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Question:
    """A decision that somebody waits for."""

    ids: tuple[int, ...]
    deadline: float
    answer: asyncio.Future[Reading]


@dataclass(eq=False)
class _Rationale:
    """A rationale that somebody waits for; `text` is its state once the thread has begun it."""

    ids: tuple[int, ...]
    deadline: float
    answer: asyncio.Future[str | None]
    text: Continuation | None = field(default=None)


def choose_batch(waiting: list[Question], now: float, row_seconds: float, max_batch: int) -> list[Question]:
    """The requests to read next: the oldest, and those nearest to it in length, so that padding costs little.

    A batch takes about `row_seconds` for each row, so it holds no more rows than every member's deadline
    leaves time for, and a request that would come late even alone does not go before one that would not:
    under overload some are answered instead of none. One is always taken, so a wrong estimate mends itself.
    """
    in_time = [question for question in waiting if question.deadline - now >= row_seconds] or waiting
    if not in_time:
        return []
    oldest, *others = in_time
    others.sort(key=lambda question: abs(len(question.ids) - len(oldest.ids)))
    batch = [oldest, *others[: max_batch - 1]]
    while len(batch) > 1 and min(question.deadline for question in batch) - now < row_seconds * len(batch):
        batch.pop()
    return batch


class TransformersPolicy:
    """A `Policy` over a `LabelReader`.

    Parameters
    ----------
    reader : the loaded model; from now on only this policy may use it.
    manifest : the version that it is.
    threads : torch's intra-op threads. The setting is global to the process: with several policies the last
        one created wins. One on a shared host, else the number of physical cores.
    max_batch : most requests in one forward pass. On a CPU a batch takes nearly as long as its rows one by
        one, so a big one buys little throughput and delays everybody in it.
    max_queue : requests that may wait; one more abstains with OVERLOADED at once.
    observe : called with a name ("batch_size", "queue_depth", "label_mass") and a value.
    """

    def __init__(
        self,
        reader: LabelReader,
        manifest: ModelManifest,
        *,
        threads: int = 1,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        observe: Callable[[str, float], None] | None = None,
    ):
        self._reader = reader
        self._manifest = manifest
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe or (lambda name, value: None)
        self._thread = ThreadPoolExecutor(1, "policy", initializer=torch.set_num_threads, initargs=(threads,))
        self._waiting: list[Question] = []
        self._rationales: list[_Rationale] = []
        self._worker: asyncio.Task[None] | None = None
        self._row_seconds = 0.0
        self._closed = False

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    async def decide(self, prompt: Prompt, deadline: float) -> Reading:
        """Read the labels; see `Policy.decide`. Abstains with OVERLOADED, DEADLINE, PROMPT_TOO_LONG,
        SHUTTING_DOWN or, when the model's numbers are not finite, BACKEND_PROTOCOL."""
        ids = self._reader.encoder.encode(prompt)
        if self._closed:
            raise PolicyAbstained(AbstainReason.SHUTTING_DOWN)
        if len(self._waiting) >= self._max_queue:
            raise PolicyAbstained(AbstainReason.OVERLOADED, f"{len(self._waiting)} requests are waiting")
        question = Question(ids, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        self._observe("queue_depth", len(self._waiting))
        self._wake()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await question.answer
        except TimeoutError:
            raise PolicyAbstained(AbstainReason.DEADLINE) from None
        finally:
            if question in self._waiting:
                self._waiting.remove(question)

    async def explain(self, prompt: Prompt, action: Action, deadline: float) -> str | None:
        """One or two sentences, generated greedily; None when late, crowded out, too long or not a sentence.

        The model sees the decision's prompt, the action's letter as its own answer, and the question why that
        action, put in words, may be right (`PromptEncoder.encode_explanation`).
        """
        if self._closed or len(self._rationales) >= MAX_RATIONALES:
            return None
        try:
            ids = self._reader.encoder.encode_explanation(prompt, action)
        except PolicyAbstained:  # too long with the second question; the decision itself may have fitted
            return None
        rationale = _Rationale(ids, deadline, asyncio.get_running_loop().create_future())
        self._rationales.append(rationale)
        self._wake()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await rationale.answer
        except TimeoutError:
            return None
        finally:
            if rationale in self._rationales:
                self._rationales.remove(rationale)

    async def aclose(self) -> None:
        """Queued requests abstain with SHUTTING_DOWN, the pass under way is finished, the thread ends."""
        self._closed = True
        for question in self._waiting:
            if not question.answer.done():
                question.answer.set_exception(PolicyAbstained(AbstainReason.SHUTTING_DOWN))
        for rationale in self._rationales:
            if not rationale.answer.done():
                rationale.answer.set_result(None)
        self._waiting.clear()
        self._rationales.clear()
        if self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker])
        await asyncio.to_thread(self._thread.shutdown)

    def _wake(self) -> None:
        """The worker task lives while there is work."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._waiting or self._rationales:
            batch = self._next_batch()
            if batch:
                await self._read(batch)
            elif self._rationales:
                await self._advance(self._rationales[0])

    def _next_batch(self) -> list[Question]:
        """Take the next batch out of the queue; requests past their deadline leave it unanswered."""
        now = time.monotonic()
        for question in [q for q in self._waiting if q.deadline <= now]:
            self._waiting.remove(question)
            if not question.answer.done():
                question.answer.set_exception(PolicyAbstained(AbstainReason.DEADLINE))
        batch = choose_batch(self._waiting, now, self._row_seconds, self._max_batch)
        self._waiting = [question for question in self._waiting if question not in batch]
        if batch:
            self._observe("batch_size", len(batch))
            self._observe("queue_depth", len(self._waiting))
        return batch

    async def _read(self, batch: list[Question]) -> None:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        try:
            rows = await loop.run_in_executor(self._thread, self._reader.read, [question.ids for question in batch])
        except Exception as error:  # a defect or memory: each caller gets it, the worker lives on
            for question in batch:
                if not question.answer.done():
                    question.answer.set_exception(error)
            return
        seconds = (time.monotonic() - began) / len(batch)
        self._row_seconds += (seconds - self._row_seconds) * (_SMOOTHING if self._row_seconds else 1.0)
        for question, row in zip(batch, rows, strict=True):
            if not question.answer.done():
                self._answer(question.answer, row)

    def _answer(self, answer: asyncio.Future[Reading], row: tuple[float, ...]) -> None:
        if not all(math.isfinite(value) for value in row):
            answer.set_exception(PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, "log-probabilities are not finite"))
            return
        reading = Reading(log_probabilities=row)
        self._observe("label_mass", reading.label_mass)
        answer.set_result(reading)

    async def _advance(self, rationale: _Rationale) -> None:
        """One step of the oldest rationale; it leaves the queue when its text is complete."""
        loop = asyncio.get_running_loop()
        try:
            if rationale.text is None:
                rationale.text = self._reader.begin(rationale.ids)
            await loop.run_in_executor(self._thread, self._reader.advance, rationale.text)
        except Exception:  # a rationale is an extra: its failure is logged, the decision stands without one
            _log.exception("generating a rationale failed")
            self._finish(rationale, None)
            return
        written = self._reader.encoder.decode(rationale.text.generated)
        if rationale.text.finished or len(rationale.text.generated) >= RATIONALE_TOKENS or is_complete(written):
            self._finish(rationale, sentences(written))

    def _finish(self, rationale: _Rationale, text: str | None) -> None:
        if rationale in self._rationales:
            self._rationales.remove(rationale)
        if not rationale.answer.done():
            rationale.answer.set_result(text)
