"""How far an order was from each limit, in the limit's own unit.

No formula is written twice: a limit is moved until its rule changes its mind, and where it does is
what the rule observed. A limit that changes nothing wherever it stands has no margin.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sinh
from typing import NamedTuple

from app.domain.rules.case import Case
from app.domain.rules.limits import ExcessLimits, Limits, RuleLimits
from app.domain.rules.review import review
from app.domain.rules.vetoes import AFTER_CAPS, RULES, MissingInput, Rule, VetoCode

REACH = 40.0
"""Limits are looked for between -sinh(40) and sinh(40), some 10^17: evenly by size, also near 0."""
STEPS = 64


class Margin(NamedTuple):
    """What a rule observed, as its limit would have to be to be met exactly. `room` is the distance
    to the limit: below 0 where it is exceeded. `caps`: beyond the limit the order is made smaller,
    not refused."""

    code: VetoCode
    name: str
    limit: float
    observed: float
    room: float
    caps: bool


def margins(case: Case, limits: Limits) -> list[Margin]:
    """Every numeric limit that this order can meet or miss, in the order of the rules."""
    left = review(case, limits)
    stop = case.order.stop if left.stop is None else left.stop
    quantity = case.order.quantity if left.quantity is None else left.quantity
    capped = case._replace(order=case.order._replace(stop=stop, quantity=quantity))
    judged = [(rule, case) for rule in RULES] + [(rule, capped) for rule in AFTER_CAPS]
    return [
        margin
        for rule, seen in judged
        for field in rule.fields
        if (margin := _margin(rule, field, seen, limits)) is not None
    ]


def _margin(rule: Rule, field: str, case: Case, limits: Limits) -> Margin | None:
    table: RuleLimits | None = getattr(limits, rule.section)
    limit = getattr(table, field, None)
    if table is None or isinstance(limit, bool) or not isinstance(limit, int | float):
        return None

    def refuses(value: float) -> bool:
        changes: dict[str, float | str] = {field: value}
        if isinstance(table, ExcessLimits):
            changes |= {"on_excess": "refuse"}
        tried = limits.model_copy(
            update={"tolerance": None, rule.section: table.model_copy(update=changes)}
        )
        return rule.check(case, tried) is not None

    try:
        observed = _flip(refuses)
        exceeded = observed is not None and refuses(limit)
    except (MissingInput, ArithmeticError):
        return None
    if observed is None:
        return None
    room = abs(observed - limit) * (-1 if exceeded else 1)
    caps = isinstance(table, ExcessLimits) and table.on_excess == "cap" and exceeded
    return Margin(rule.code, f"{rule.section}.{field}", limit, observed, room, caps)


def _flip(refuses: Callable[[float], bool]) -> float | None:
    """Where the answer changes, by halving; None when both ends say the same."""
    low, high = -REACH, REACH
    at_low = refuses(sinh(low))
    if at_low == refuses(sinh(high)):
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        if refuses(sinh(middle)) == at_low:
            low = middle
        else:
            high = middle
    return float(f"{sinh(high):.10g}") if abs(sinh(high)) > 1e-12 else 0.0
