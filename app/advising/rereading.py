"""A recorded prompt laid before the versions again: do they still say what they said?"""

from __future__ import annotations

from typing import NamedTuple

from app.advising.serving import Models
from app.domain.model.manifest import Calibration
from app.domain.model.prompt import PROMPT_VERSION
from app.domain.record.decision import Advice, Decision, Engine, Reading, cautious
from app.policy.asking import reading_of

EQUAL_NATS = 1e-3
"""Other machines, and other prompts read beside it, change the last digits of a probability."""


class Reread(NamedTuple):
    """One version's second reading. `distance`: the largest difference of any label's
    log-probability (nats); None where it cannot be read again, and `told` says why. `allowed`: what
    it may be, more where the first one was rough."""

    model_version: str
    distance: float | None
    told: str
    allowed: float = EQUAL_NATS

    @property
    def equal(self) -> bool:
        """Whether it says the same, but for rounding."""
        return self.distance is not None and self.distance <= self.allowed


async def reread(models: Models, decision: Decision, deadline: float) -> list[Reread]:
    """Ask each version that is served here once more. Nothing is recorded."""
    return [await _reread(models, decision, advice, deadline) for advice in decision.advices]


async def _reread(models: Models, decision: Decision, advice: Advice, deadline: float) -> Reread:
    name = advice.model_version
    policy = next(
        (each for each in models.policies if each.manifest.hash() == advice.manifest_hash), None
    )
    if policy is None:
        return Reread(name, None, "is not served here now")
    if advice.reading is None:
        return Reread(name, None, "gave no reading when it was asked")
    if decision.prompt.version != PROMPT_VERSION:
        return Reread(name, None, f"prompts of version {decision.prompt.version} are not read now")
    again = await reading_of(policy, decision.scenario, decision.prompt, deadline)
    if not isinstance(again, Reading):
        return Reread(name, None, f"abstains now: {again.reason.value}")
    apart = max(
        abs(now - then)
        for now, then in zip(again.log_probabilities, advice.reading.log_probabilities, strict=True)
    )
    allowed = advice.reading.within or EQUAL_NATS
    return Reread(name, apart, told(again, advice.reading, advice.calibration), allowed)


def told(now: Reading, then: Reading, calibration: Calibration) -> str:
    """What a second reading proposes, and which engines read when they were not the same."""
    action = cautious(now, calibration).action.name
    same = action == cautious(then, calibration).action.name
    words = f"proposes {action} {'again' if same else 'now'}"
    before = then.engine or Engine.TORCH  # Nothing else read before engines were named.
    if now.engine is None or now.engine is before:
        return words
    return f"{words} (by {now.engine}, before by {before})"
