"""Asking one version, whatever kind it is: its reading, or why there is none."""

from __future__ import annotations

import structlog

from app.domain.errors import PolicyAbstained
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Abstention, Reading
from app.domain.scenario import Scenario
from app.policy.port import Policy
from app.policy.rivals import RivalPolicy

log = structlog.get_logger()


async def reading_of(
    policy: Policy, scenario: Scenario, prompt: Prompt, deadline: float, rough: bool = False
) -> Reading | Abstention:
    """What one version says by the deadline, or why it says nothing."""
    if isinstance(policy, RivalPolicy):
        return policy.read(scenario)  # In microseconds, and from no prompt.
    try:
        return await policy.decide(prompt, deadline, scenario, rough)
    except PolicyAbstained as abstained:
        log.warning("policy abstained", reason=abstained.reason, detail=abstained.detail)
        return Abstention.of(abstained)
