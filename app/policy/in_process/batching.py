"""One model, one thread: what waits for it is read together, for all versions that are served over
it.

All bookkeeping happens on the event loop, so there are no locks; the thread does nothing but
arithmetic. Decisions come before rationales: a rationale advances one step at a time, and only
while no decision waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog
import torch

from app.domain.errors import AbstainReason, ModelFileError, PolicyAbstained
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Engine, Reading
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.engines import read_roughly
from app.policy.in_process.label_reader import Ask, Continuation, LabelReader
from app.policy.in_process.numbers import EXTREMES, Known
from app.policy.in_process.reading.layout import LogProbabilities, parted
from app.policy.options import DEFAULTS, BackendOptions
from app.policy.rationale import RATIONALE_TOKENS, is_complete, sentences
from app.telemetry import Task

MAX_RATIONALES = 8
_SMOOTHING = 0.2
QUIET_S = 0.5
"""For so long nothing came in when the model is idle."""
TOGETHER_S = 0.1
"""How long a pass waits for prompts that are being encoded, at most: those of a list come together.
One takes less than a millisecond."""
log = structlog.get_logger()


@dataclass(eq=False)
class Wanted:
    """A reading that somebody waits for. `owner` is the policy that asks, `adapter` its version's;
    the last `text` of the user's tokens are of the text part, `questions` are asked beside the
    action, `numbers` are the scenario's features, and a rough reading will do if `rough`."""

    ids: tuple[int, ...]
    deadline: float
    answer: asyncio.Future[Reading]
    adapter: Adapter | None = None
    owner: object = None
    text: int = 0
    questions: tuple[QuestionName, ...] = ()
    numbers: Known = ()
    rough: bool = False


@dataclass(eq=False)
class _Rationale:
    """A rationale that somebody waits for; `text` is its state once the thread has begun it."""

    ids: tuple[int, ...]
    user_tokens: int
    deadline: float
    answer: asyncio.Future[str | None]
    adapter: Adapter | None
    owner: object
    numbers: Known = ()
    text: Continuation | None = field(default=None)


def choose_batch(
    waiting: list[Wanted], now: float, row_seconds: float, max_batch: int
) -> list[Wanted]:
    """The requests to read next: the oldest, and those nearest to it in length, so that padding
    costs little.

    A batch takes about `row_seconds` for each row, so it holds no more rows than every member's
    deadline leaves time for, and a request that would come late even alone does not go before one
    that would not: under overload some are answered instead of none. One is always taken, so a
    wrong estimate mends itself.
    """
    in_time = [wanted for wanted in waiting if wanted.deadline - now >= row_seconds] or waiting
    if not in_time:
        return []
    oldest, *others = in_time
    others.sort(key=lambda wanted: abs(len(wanted.ids) - len(oldest.ids)))
    batch = [oldest, *others[: max_batch - 1]]
    while len(batch) > 1 and min(wanted.deadline for wanted in batch) - now < row_seconds * len(
        batch
    ):
        batch.pop()
    return batch


class Batcher:
    """Reads prompts and writes rationales for every policy over one `LabelReader`.

    Parameters
    ----------
    reader : the loaded model; from now on only this batcher may use it.
    """

    def __init__(
        self,
        reader: LabelReader,
        options: BackendOptions = DEFAULTS,
    ):
        self.reader = reader
        self._options = options
        self._max_batch = options.max_batch
        self._max_queue = options.max_queue
        self._telemetry = options.telemetry
        self._thread = ThreadPoolExecutor(
            1, "policy", initializer=torch.set_num_threads, initargs=(options.threads,)
        )
        self._waiting: list[Wanted] = []
        self._rationales: list[_Rationale] = []
        self._worker: asyncio.Task[None] | None = None
        self._row_seconds = 0.0
        self._begun = 0
        """Batches that were taken."""

    def can_read_roughly(self) -> bool:
        """Whether rough readings are to be had here from now on; blocks for a second the first
        time."""
        return self._thread.submit(read_roughly, self._options, self.reader).result()

    def read_now(self, ask: Ask) -> Reading:
        """What the first version of an ask says, blocking; for where nothing is served."""
        [rows] = self._thread.submit(self.reader.answer, [ask]).result()
        bare = rows[len(ask.adapters)] if ask.text else None
        return self._reading(ask, ask.questions, rows[0], bare)

    def try_out(
        self, adapter: Adapter | None = None, questions: tuple[QuestionName, ...] = ()
    ) -> None:
        """Read an empty prompt by the model itself or with an adapter, of no scenario and of the
        strangest ones, blocking. Raises `ModelFileError` when that gives no numbers."""
        reads_numbers = adapter is not None and adapter.numbers is not None
        tail, tried = self.reader.encoder.tail, ((), *EXTREMES) if reads_numbers else ((),)
        asks = [Ask(tail, (adapter,), questions=questions, numbers=known) for known in tried]
        asked = self._thread.submit(self.reader.answer, asks)
        try:
            readings = [reading for [reading] in asked.result()]
        except (RuntimeError, IndexError, AttributeError) as error:
            what = "the model does not run" if adapter is None else "the adapter does not run"
            raise ModelFileError(f"{what} on its own prompts: {error}") from error
        if not all(math.isfinite(value) for reading in readings for value in reading):
            raise ModelFileError(
                "the version says numbers that are not finite: its weights or its configuration are"
                " damaged, or its training failed"
            )

    async def decide(
        self,
        ids: tuple[int, ...],
        text: int,
        deadline: float,
        adapter: Adapter | None,
        owner: object,
        questions: tuple[QuestionName, ...] = (),
        numbers: Known = (),
        rough: bool = False,
    ) -> Reading:
        """The labels after a prompt, the last `text` of whose user's tokens are of the text part,
        and those of questions. Raises `PolicyAbstained`: OVERLOADED, DEADLINE, SHUTTING_DOWN,
        or BACKEND_PROTOCOL when the model's numbers are not finite."""
        waiting = sum(wanted.owner is owner for wanted in self._waiting)
        if waiting >= self._max_queue:
            raise PolicyAbstained(AbstainReason.OVERLOADED, f"{waiting} requests are waiting")
        wanted = Wanted(
            ids,
            deadline,
            asyncio.get_running_loop().create_future(),
            adapter,
            owner,
            text,
            questions,
            numbers,
            rough,
        )
        self._waiting.append(wanted)
        self._telemetry.prompts_wait(len(self._waiting))
        self._wake()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await wanted.answer
        except TimeoutError:
            raise PolicyAbstained(AbstainReason.DEADLINE) from None
        finally:
            if wanted in self._waiting:
                self._waiting.remove(wanted)

    async def write(
        self,
        ids: tuple[int, ...],
        user_tokens: int,
        deadline: float,
        adapter: Adapter | None,
        owner: object,
        numbers: Known = (),
    ) -> str | None:
        """Sentences generated after a prompt whose first `user_tokens` ids are the user's; None
        when late, crowded out, or not a sentence."""
        if len(self._rationales) >= MAX_RATIONALES:
            return None
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        rationale = _Rationale(ids, user_tokens, deadline, answer, adapter, owner, numbers)
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

    async def idle(self, patience_s: float) -> None:
        """Wait until nothing has been read for a while; at most so long."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            begun = self._begun
            await asyncio.sleep(QUIET_S)
            if self._begun == begun and (self._worker is None or self._worker.done()):
                return

    def dismiss(self, owner: object) -> None:
        """What a policy still waits for ends: its readings abstain with SHUTTING_DOWN, its
        rationales stay away."""
        for wanted in [wanted for wanted in self._waiting if wanted.owner is owner]:
            self._waiting.remove(wanted)
            if not wanted.answer.done():
                wanted.answer.set_exception(PolicyAbstained(AbstainReason.SHUTTING_DOWN))
        for rationale in [rationale for rationale in self._rationales if rationale.owner is owner]:
            self._finish(rationale, None)

    async def aclose(self) -> None:
        """The pass under way is finished, then the thread ends. All policies must have been
        dismissed."""
        if self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker])
        await asyncio.to_thread(self._thread.shutdown)

    def abandon(self) -> None:
        """End the thread of a batcher that never served."""
        self._thread.shutdown(wait=False)

    def _wake(self) -> None:
        """The worker task lives while there is work."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._waiting or self._rationales:
            await self.reader.encoder.settled(TOGETHER_S)
            batch = self._next_batch()
            try:
                if batch:
                    await self._read(batch)
                elif self._rationales:
                    await self._advance(self._rationales[0])
            except Exception as error:  # a defect or memory: each caller gets it, the worker lives
                self._telemetry.task_failed(Task.POLICY_BATCHER)
                log.exception("reading a batch failed")
                for wanted in (wanted for wanting in batch for wanted in wanting):
                    if not wanted.answer.done():
                        wanted.answer.set_exception(error)
                if not batch and self._rationales:
                    self._finish(self._rationales[0], None)

    def _next_batch(self) -> list[list[Wanted]]:
        """Take the next prompts out of the queue, each with all who want it: further
        versions cost little. Requests past their deadline leave unanswered."""
        now = time.monotonic()
        for wanted in [wanted for wanted in self._waiting if wanted.deadline <= now]:
            self._waiting.remove(wanted)
            if not wanted.answer.done():
                wanted.answer.set_exception(PolicyAbstained(AbstainReason.DEADLINE))
        prompts: dict[tuple[tuple[int, ...], Known], list[Wanted]] = {}
        for wanted in self._waiting:
            prompts.setdefault((wanted.ids, wanted.numbers), []).append(wanted)
        firsts = [wanting[0] for wanting in prompts.values()]
        batch = [
            prompts[wanted.ids, wanted.numbers]
            for wanted in choose_batch(firsts, now, self._row_seconds, self._max_batch)
        ]
        taken = {wanted for wanting in batch for wanted in wanting}
        self._waiting = [wanted for wanted in self._waiting if wanted not in taken]
        if batch:
            self._begun += 1
            self._telemetry.batch_read(len(batch))
            self._telemetry.prompts_wait(len(self._waiting))
        return batch

    async def _read(self, batch: list[list[Wanted]]) -> None:
        """One pass, or two with several versions; who wants the same shares a reading."""
        asks = [_ask(wanting) for wanting in batch]
        began = time.monotonic()
        found = await asyncio.get_running_loop().run_in_executor(
            self._thread, self.reader.answer, asks
        )
        seconds = (time.monotonic() - began) / len(batch)
        self._row_seconds += (seconds - self._row_seconds) * (
            _SMOOTHING if self._row_seconds else 1.0
        )
        for wanting, ask, rows in zip(batch, asks, found, strict=True):
            versions = len(ask.adapters)
            whole = dict(zip(ask.adapters, rows[:versions], strict=True))
            bare = dict(zip(ask.adapters, rows[versions:], strict=True)) if ask.text else {}
            for wanted in wanting:
                if not wanted.answer.done():
                    self._answer(wanted, ask, whole[wanted.adapter], bare.get(wanted.adapter))

    def _answer(
        self,
        wanted: Wanted,
        ask: Ask,
        row: LogProbabilities,
        without_text: LogProbabilities | None,
    ) -> None:
        if not all(math.isfinite(value) for value in (*row, *(without_text or ()))):
            wanted.answer.set_exception(
                PolicyAbstained(AbstainReason.BACKEND_PROTOCOL, "log-probabilities are not finite")
            )
            return
        reading = self._reading(ask, wanted.questions, row, without_text)
        self._telemetry.labels_read(reading.label_mass)
        self._telemetry.read_by(reading.engine or self.reader.engine)
        wanted.answer.set_result(reading)

    def _reading(
        self,
        ask: Ask,
        questions: tuple[QuestionName, ...],
        row: LogProbabilities,
        without_text: LogProbabilities | None,
    ) -> Reading:
        """Of what was read of an ask, the action and some of its questions."""
        labels, answers = parted(row, self.reader.encoder, ask.questions)
        bare: LogProbabilities | None = None
        bare_answers: dict[QuestionName, LogProbabilities] = {}
        if without_text is not None:
            bare, bare_answers = parted(without_text, self.reader.encoder, ask.questions)
        return Reading(
            log_probabilities=labels,
            without_text=bare,
            questions={name: answers[name] for name in questions},
            questions_without_text={
                name: bare_answers[name] for name in questions if name in bare_answers
            },
            engine=Engine.BFLOAT16 if ask.rough else self.reader.engine,
        )

    async def _advance(self, rationale: _Rationale) -> None:
        """One step of the oldest rationale; it leaves the queue when its text is complete."""
        loop = asyncio.get_running_loop()
        try:
            if rationale.text is None:
                rationale.text = self.reader.begin(
                    rationale.ids, rationale.adapter, rationale.user_tokens, rationale.numbers
                )
            await loop.run_in_executor(self._thread, self.reader.advance, rationale.text)
            generated, encoder = rationale.text.generated, self.reader.encoder
            written = await encoder.apart(lambda: encoder.decode(generated), rationale.deadline)
        except PolicyAbstained:
            self._finish(rationale, None)
            return
        except (
            Exception
        ):  # a rationale is an extra: its failure is logged, the decision stands without one
            log.exception("generating a rationale failed")
            self._finish(rationale, None)
            return
        if (
            rationale.text.finished
            or len(rationale.text.generated) >= RATIONALE_TOKENS
            or is_complete(written)
        ):
            self._finish(rationale, sentences(written))

    def _finish(self, rationale: _Rationale, text: str | None) -> None:
        if rationale in self._rationales:
            self._rationales.remove(rationale)
        if not rationale.answer.done():
            rationale.answer.set_result(text)


def _ask(wanting: list[Wanted]) -> Ask:
    """One prompt for all who want a reading of it."""
    questions = {name for wanted in wanting for name in wanted.questions}
    return Ask(
        wanting[0].ids,
        tuple(dict.fromkeys(wanted.adapter for wanted in wanting)),
        wanting[0].text,
        tuple(name for name in QuestionName if name in questions),
        wanting[0].numbers,
        # One exact reading serves all; a rough one beside it would cost more than it saves.
        all(wanted.rough for wanted in wanting),
    )
