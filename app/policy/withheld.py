"""A version that must not answer any more: the registry knows another one under its name."""

from __future__ import annotations

from typing import Never

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import Action
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.scenario import Scenario


class WithheldPolicy:
    """A `Policy` that abstains from everything, and says why.

    Parameters
    ----------
    manifest : the version that is withheld.
    because : the reason, which every abstention carries.
    """

    def __init__(self, manifest: ModelManifest, because: str) -> None:
        self._manifest = manifest
        self.because = because

    @property
    def manifest(self) -> ModelManifest:
        """The version that is not answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """It reads none."""
        return 1

    @property
    def health(self) -> str:
        """How it reads."""
        return self.because

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Never:
        """Abstain with BACKEND_UNAVAILABLE."""
        raise PolicyAbstained(AbstainReason.BACKEND_UNAVAILABLE, self.because)

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """No rationale."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""
