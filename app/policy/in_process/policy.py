"""The in-process backend: a version over a model in this process. Versions with the same base model
share it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import Action
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Engine, Reading
from app.domain.scenario import Scenario
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.batching import Batcher
from app.policy.in_process.cascade import Cascade
from app.policy.in_process.label_reader import Ask
from app.policy.in_process.numbers import known_of

WATCH_PATIENCE_S = 30.0
"""How long a model is waited for to be idle before a rough reading is checked all the same."""


class TransformersPolicy:
    """A `Policy` over a `Batcher`.

    Parameters
    ----------
    batcher : the model; other policies may use it too.
    manifest : the version that this is.
    adapter : the version's activated adapter; None answers with the model as it is.
    cascade : allows rough readings; None reads exactly, always.
    release : called once, at the end: whether nobody else uses the batcher, which is then closed.

    Raises
    ------
    ModelFileError : the model's tokenizer cannot ask a question that the version answers.
    """

    def __init__(
        self,
        batcher: Batcher,
        manifest: ModelManifest,
        adapter: Adapter | None = None,
        *,
        cascade: Cascade | None = None,
        release: Callable[[], bool] = lambda: True,
    ):
        self._batcher = batcher
        self._manifest = manifest
        self._adapter = adapter
        self._cascade = cascade
        self._watches: set[asyncio.Task[None]] = set()
        self._release = release
        self._closed = False
        for name in manifest.calibration.asked:
            batcher.reader.encoder.question(name)

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """One thread reads: a batch takes nearly as long as its rows one by one."""
        return 1

    @property
    def health(self) -> str:
        """How it reads."""
        return "exactly" if self._cascade is None else self._cascade.health

    @property
    def cascade(self) -> Cascade | None:
        """What allows rough readings."""
        return self._cascade

    @property
    def batcher(self) -> Batcher:
        """What reads for it."""
        return self._batcher

    def ask(self, prompt: Prompt, scenario: Scenario | None, rough: bool) -> Ask:
        """What the model is asked of a prompt."""
        encoder = self._batcher.reader.encoder
        read = self._read_of(prompt, scenario)
        return Ask(
            encoder.encode(read),
            (self._adapter,),
            encoder.text_tokens(read),
            self._manifest.calibration.asked,
            known_of(scenario),
            rough,
        )

    def _read_of(self, prompt: Prompt, scenario: Scenario | None) -> Prompt:
        """As much of a prompt as the version reads."""
        return prompt if self._adapter is None else self._adapter.reads(prompt, scenario)

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Reading:
        """Read the labels; see `Policy.decide`. Abstains with OVERLOADED, DEADLINE,
        PROMPT_TOO_LONG, SHUTTING_DOWN or, when the model's numbers are not finite,
        BACKEND_PROTOCOL."""
        cascade = self._cascade
        roughly = rough and cascade is not None and cascade.broken is None
        ask = await self._batcher.reader.encoder.apart(
            lambda: self.ask(prompt, scenario, roughly), deadline
        )
        if self._closed:
            raise PolicyAbstained(AbstainReason.SHUTTING_DOWN)
        reading = await self._batcher.decide(
            ask.ids,
            ask.text,
            deadline,
            self._adapter,
            self,
            ask.questions,
            ask.numbers,
            ask.rough,
        )
        if cascade is None:
            return reading
        key = (ask.ids, ask.numbers)
        if reading.engine is not Engine.BFLOAT16:
            cascade.compare(key, reading)
            return reading
        if cascade.took(key, reading):
            self._watch(prompt, scenario)
        return reading.model_copy(update={"within": cascade.certificate.within})

    def _watch(self, prompt: Prompt, scenario: Scenario | None) -> None:
        """Read a prompt once more, exactly, when the model is idle: `decide` compares."""

        async def watch() -> None:
            with suppress(PolicyAbstained):
                await self._batcher.idle(WATCH_PATIENCE_S)
                await self.decide(prompt, time.monotonic() + WATCH_PATIENCE_S, scenario)

        task = asyncio.create_task(watch())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """One or two sentences, generated greedily; None when late, crowded out, too long or not a
        sentence.

        The model sees the decision's prompt, the action's letter as its own answer, and the
        question why that action, put in words, may be right (`PromptEncoder.encode_explanation`).
        An adapter that woke at the prompt's tail stays awake.
        """
        encoder = self._batcher.reader.encoder
        prompt = self._read_of(prompt, scenario)
        try:
            ids, of_prompt = await encoder.apart(
                lambda: (encoder.encode_explanation(prompt, action), encoder.encode(prompt)),
                deadline,
            )
        except PolicyAbstained:
            # Too long with the second question; the decision itself may have fitted.
            return None
        if self._closed:
            return None
        user_tokens = len(of_prompt) - len(encoder.tail)
        return await self._batcher.write(
            ids, user_tokens, deadline, self._adapter, self, known_of(scenario)
        )

    async def aclose(self) -> None:
        """Queued requests abstain with SHUTTING_DOWN; the last policy over a model ends its
        thread."""
        if self._closed:
            return
        self._closed = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._batcher.dismiss(self)
        if self._release():
            await self._batcher.aclose()
