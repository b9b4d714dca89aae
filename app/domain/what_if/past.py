"""What is on record of a decision, and what is said of it when it is judged again.

R is net profit over the risk of the agent's plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from app.domain.record.decision import Abstention, Advice, Decision, Reading, Version

AGENT = "agent"
"""The arm of the agent's own orders; other arms have a version's name."""
ADVICE = "advice"
"""The arm of what answered: the primary's advice before, that of another version after."""


class Grade(StrEnum):
    """How sure it is what would have become of one decision."""

    SAME = "same"
    CERTAIN = "certain"
    ASSUMED = "assumed"
    UNDETERMINED = "undetermined"


class Traded(NamedTuple):
    """An order that was traded, or followed on bars, and what was told of its end. None: not told.

    Quantity in base units, prices and money in quote currency; fees and slippage of both sides.
    """

    quantity: float | None
    stop: float | None
    net_pnl: float | None
    exit_price: float | None
    fees: float | None
    slippage: float | None
    bought: bool = True
    """Whether there was a trade at all."""


class Said(NamedTuple):
    """What a version says of a decision that does not name it among its own advices. `advice`: as
    it was recorded later; None of a reading that was made now."""

    version: Version
    reading: Reading | Abstention
    advice: Advice | None = None


class Past(NamedTuple):
    """One recorded decision, and what came of it.

    `agent_approves` is None where the agent never said. `agent_r`: R of the agent's plan, as traded
    or as simulated, None while unknown. `advice_r`: R of each version's advice. `closed_at` and
    `net_pnl` (quote currency): of the trade that the agent made. `trades`: by arm, of the agent and
    of each version; empty where nobody asks for them. `other`: what another version says, or why
    that is not known; None where nobody asks. `agent_quantity`: of its trade, base units; None
    where it traded its plan, or did not say.
    """

    decision: Decision
    agent_approves: bool | None
    agent_r: float | None
    advice_r: Mapping[str, float | None]
    closed_at: datetime | None
    net_pnl: float | None
    trades: Mapping[str, Traded] = {}
    other: Said | str | None = None
    agent_quantity: float | None = None


class Verdict(NamedTuple):
    """What becomes of an order: veto codes, none approves; the quantity that caps leave, base
    units; its stop, None where there is no order."""

    approves: bool
    codes: tuple[str, ...]
    quantity: float
    stop: float | None


UNREAD = Verdict(approves=False, codes=("UNREAD",), quantity=0.0, stop=None)
"""Of a version whose reading is not known."""


class Judged(NamedTuple):
    """One arm of one decision, before and after. R is None where it cannot be known. `plan_r`: R of
    the agent's plan, before and after, whatever was approved."""

    past: Past
    arm: str
    before: Verdict
    after: Verdict
    r_before: float | None
    r_after: float | None
    grade: Grade
    why: str
    plan_r: tuple[float | None, float | None] = (None, None)

    @property
    def changes(self) -> bool:
        """Whether something else is decided or earned, as far as both are known."""
        if UNREAD in (self.before, self.after):
            return False
        return self.before != self.after or self.r_before != self.r_after
