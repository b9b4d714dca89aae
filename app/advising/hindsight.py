"""A version from this machine's disk that reads recorded decisions long after they were made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from app.domain.errors import AdvisorError
from app.domain.model.prompt import PROMPT_VERSION
from app.domain.record.decision import Abstention, Decision, Role, Version
from app.domain.what_if.past import Said
from app.policy.asking import reading_of
from app.policy.backends import Backends
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.versions.store import find_version

PATIENCE_S = 600.0
"""For one prompt: nobody waits for the reply."""
AT_ONCE = 32
"""Prompts that are laid before the version together, so that it reads them in batches."""


class Hindsight:
    """Loads the version when it is first asked. What it says is told apart from what is on record:
    it was not there then."""

    def __init__(self, version: str, options: BackendOptions) -> None:
        self._version = version
        self._options = options
        self._policy: Policy | None = None
        self._why = ""

    async def is_there(self) -> bool:
        """Whether the version lies on this machine."""
        try:
            await asyncio.to_thread(find_version, self._version, self._options.roots)
        except AdvisorError:
            return False
        return True

    async def said(self, decisions: Sequence[Decision]) -> list[Said | str]:
        """What it says of each, or why nothing."""
        if self._policy is None and not self._why:
            try:
                self._policy = await asyncio.to_thread(self._load)
            except AdvisorError as error:
                self._why = f"{self._version} has not read it, and cannot now: {error}"
        if self._policy is None:
            return [self._why] * len(decisions)
        room = asyncio.Semaphore(min(AT_ONCE, self._options.max_queue))
        return list(
            await asyncio.gather(*(self._one(self._policy, room, each) for each in decisions))
        )

    async def aclose(self) -> None:
        """Stop reading."""
        if self._policy is not None:
            await self._policy.aclose()

    def _load(self) -> Policy:
        roots = self._options.roots
        return Backends(self._options).load(find_version(self._version, roots))

    async def _one(self, policy: Policy, room: asyncio.Semaphore, decision: Decision) -> Said | str:
        if decision.prompt.version != PROMPT_VERSION:
            return f"prompts of version {decision.prompt.version} are not read now"
        manifest = policy.manifest
        async with room:
            deadline = monotonic() + PATIENCE_S
            reading = await reading_of(policy, decision.scenario, decision.prompt, deadline)
        if isinstance(reading, Abstention):
            return f"{self._version} abstains now: {reading.reason.value}"
        who = (self._version, manifest.hash(), manifest.calibration, Role.SHADOW)
        return Said(Version(*who), reading)
