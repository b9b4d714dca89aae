"""The shipped fake: answers from a script, for our tests and for clients' tests. No model, no
torch."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import LABELS, Action
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario

_CHOSEN, _OTHER = 0.9, 0.01

Answer = str | Reading | PolicyAbstained
"""A label ("B"), a full reading, or an abstention to raise."""

SCRIPTED_MANIFEST = ModelManifest(
    model_version="scripted-1",
    base_model="scripted",
    licence="Apache-2.0",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    files={},
)


class ScriptedPolicy:
    """A deterministic `Policy`.

    Parameters
    ----------
    script : answers, given in turn and again from the start; or a function of the prompt; or None,
        which picks a label from the prompt's hash: the same prompt always gets the same one. A
        function, and None, are asked a second time without the text part where there is one;
        answers given in turn are the same with and without it.
    gate : when given, `decide` waits for this event, at most until its deadline.
    pace_s : how long it takes to read a prompt, one after the other; what would come late abstains
        at its deadline, unread.
    parallel : how many prompts it says that it reads at the same time, when it has no pace.
    rationale : what `explain` says.
    manifest : the version it claims to be.
    """

    def __init__(
        self,
        script: Sequence[Answer] | Callable[[Prompt], Answer] | None = None,
        *,
        gate: asyncio.Event | None = None,
        pace_s: float = 0.0,
        parallel: int = 64,
        rationale: str | None = "Scripted.",
        manifest: ModelManifest = SCRIPTED_MANIFEST,
    ):
        self._reads_text = True
        if script is None:
            self._next: Callable[[Prompt], Answer] = _label_from_hash
        elif callable(script):
            self._next = script
        else:
            turns = itertools.cycle(script)
            self._next = lambda prompt: next(turns)
            self._reads_text = False
        self._gate = gate
        self._pace_s = pace_s
        self._parallel = 1 if pace_s else parallel
        self._free_at = 0.0
        self._rationale = rationale
        self._manifest = manifest
        self._closed = False
        self.prompts: deque[Prompt] = deque(maxlen=1000)
        """The latest prompts that were asked, oldest first."""

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """One with a pace; without, as it was told."""
        return self._parallel

    @property
    def health(self) -> str:
        """How it reads."""
        return "by its script"

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Reading:
        """The next answer of the script. Raises `PolicyAbstained` when it says so, when it would
        come after the deadline, and after `aclose`."""
        if self._closed:
            raise PolicyAbstained(AbstainReason.SHUTTING_DOWN)
        self.prompts.append(prompt)
        await self._pass_gate(deadline)
        await self._take_its_time(deadline)
        reading = self._answered(prompt)
        if not prompt.texts or reading.without_text is not None:
            return reading
        bare = self._answered(prompt._replace(user=prompt.before)) if self._reads_text else reading
        return reading.model_copy(
            update={
                "without_text": bare.log_probabilities,
                "questions_without_text": bare.questions,
            }
        )

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """The scripted rationale."""
        return None if self._closed else self._rationale

    async def aclose(self) -> None:
        """From now on every decision abstains."""
        self._closed = True

    def _answered(self, prompt: Prompt) -> Reading:
        answer = self._next(prompt)
        if isinstance(answer, PolicyAbstained):
            raise PolicyAbstained(answer.reason, answer.detail)
        return answer if isinstance(answer, Reading) else reading_of(answer)

    async def _pass_gate(self, deadline: float) -> None:
        if self._gate is None:
            return
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._gate.wait()
        except TimeoutError:
            raise PolicyAbstained(AbstainReason.DEADLINE) from None

    async def _take_its_time(self, deadline: float) -> None:
        if not self._pace_s:
            return
        now = time.monotonic()
        done_at = max(now, self._free_at) + self._pace_s
        if done_at > deadline:
            await asyncio.sleep(deadline - now)
            raise PolicyAbstained(AbstainReason.DEADLINE)
        self._free_at = done_at
        await asyncio.sleep(done_at - now)


@cache
def reading_of(label: str) -> Reading:
    """A reading with 0.90 of the probability on `label` and 0.01 on each other one."""
    if label not in LABELS:
        raise ValueError(f"{label!r} is not a label; labels are {', '.join(LABELS)}")
    return Reading(
        log_probabilities=tuple(math.log(_CHOSEN if other == label else _OTHER) for other in LABELS)
    )


def _label_from_hash(prompt: Prompt) -> str:
    return LABELS[int(prompt.hash.removeprefix("sha256:")[:8], 16) % len(LABELS)]
