"""The policy port: a prompt goes in, the log-probability of every label comes out."""

from __future__ import annotations

from typing import Protocol

from app.domain.model.actions import Action
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario


class Policy(Protocol):
    """A language model of one version. Implementations: in process, vLLM over HTTP, scripted."""

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        ...

    @property
    def parallel(self) -> int:
        """How many prompts it reads at the same time, without one waiting for another."""
        ...

    @property
    def health(self) -> str:
        """How it reads, in words for `/readyz`."""
        ...

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Reading:
        """Read the labels' log-probabilities.

        Parameters
        ----------
        prompt : as `app.domain.model.prompt.render` gives it.
        deadline : `time.monotonic()` value after which nobody waits for the answer.
        scenario : what the prompt tells of, for versions that read its numbers past the text; to
            them, numbers of none are not known.
        rough : a rough reading will do: it says in `within` how far it may be from the exact one,
            and whoever asks for it asks again where that could matter.

        Raises
        ------
        PolicyAbstained : no reading by the deadline, or none that can be used; carries the reason.
        """
        ...

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """One or two sentences on why `action` may be right; None when it would come late. Never
        changes a decision."""
        ...

    async def aclose(self) -> None:
        """Stop serving: queued requests abstain, threads and connections end."""
        ...
