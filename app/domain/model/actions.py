"""The action space: a closed set, each action one letter that must be one token of the model."""

from __future__ import annotations

from itertools import product
from string import ascii_uppercase
from typing import NamedTuple

from app.domain.canonical import content_hash

RISK_FRACTIONS = (0.25, 0.5, 1.0)
STOP_ATRS = (1.0, 1.5, 2.5)


class Action(NamedTuple):
    """`reject`, or `approve` with a share of the agent's risk and a stop distance in ATR."""

    label: str
    approve: bool
    risk_fraction: float
    stop_atr: float

    @property
    def name(self) -> str:
        """Readable and stable: `reject` or `approve_r0.50_s1.5`."""
        return (
            f"approve_r{self.risk_fraction:.2f}_s{self.stop_atr:.1f}" if self.approve else "reject"
        )


REJECT = Action(ascii_uppercase[0], approve=False, risk_fraction=0.0, stop_atr=0.0)
ACTIONS: tuple[Action, ...] = (
    REJECT,
    *(
        Action(label, approve=True, risk_fraction=fraction, stop_atr=stop)
        for label, (fraction, stop) in zip(
            ascii_uppercase[1:], product(RISK_FRACTIONS, STOP_ATRS), strict=False
        )
    ),
)
LABELS: tuple[str, ...] = tuple(action.label for action in ACTIONS)
BY_LABEL: dict[str, Action] = {action.label: action for action in ACTIONS}
ACTION_SPACE_HASH = content_hash([list(action) for action in ACTIONS])
"""A model is served only with the action space it was trained with."""
