"""Rules have the last word: each runs on a case, its order is capped, and a verdict comes back.

A rule that raises refuses with RULE_FAILED. Caps make the order smaller or its stop nearer, never
the other way, and are computed beside the rules, so that loosening a limit never adds a veto.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from math import inf, isfinite
from operator import itemgetter
from typing import Literal, NamedTuple

from pydantic import Field

from app.domain.fields import Record
from app.domain.rules.case import Case, Order, TradingState
from app.domain.rules.limits import Limits, RuleLimits
from app.domain.rules.vetoes import (
    AFTER_CAPS,
    RULES,
    MissingInput,
    Rule,
    VetoCode,
    passes,
    range_room,
    stop_bounds,
    symbol_room,
    total_room,
)
from app.domain.scenario import Scenario


class Veto(Record):
    """A rule's refusal with its evidence."""

    code: VetoCode
    observed: float | str | None = None
    limit: float | str | None = None
    missing: str | None = Field(
        None, description="the input that was not known, when that is why it refused"
    )


class Cap(Record):
    """A limit that made the order smaller or its stop nearer."""

    limit: str
    before: float
    after: float


class MissedInput(Record):
    """A rule that lacks an input, and what it does without it."""

    code: VetoCode
    missing: str
    then: Literal["refuse", "pass"]


class Review(Record):
    """The rules' verdict on one order: every veto, every cap, and the order after caps."""

    vetoes: tuple[Veto, ...]
    caps: tuple[Cap, ...]
    quantity: float | None = Field(
        description="base units after caps; null when the order could not be computed"
    )
    stop: float | None = Field(
        description="price after the clamp; null when the order could not be computed"
    )


Placed = tuple[int, Rule]
Found = tuple[int, Veto]
"""By the place of its rule among all."""
_PLACED = tuple(enumerate(RULES))
OF_ORDER = tuple(placed for placed in _PLACED if placed[1].of_order)
OF_SCENE = tuple(placed for placed in _PLACED if not placed[1].of_order)
_AFTER_CAPS = tuple(enumerate(AFTER_CAPS))


class _Seen(NamedTuple):
    """A scene, and what its rules found."""

    scenario: Scenario
    limits: Limits
    state: TradingState
    now: datetime
    found: tuple[Found, ...]

    def is_of(self, case: Case, limits: Limits) -> bool:
        """Whether a case has this scene."""
        same = self.scenario is case.scenario and self.limits is limits
        return same and self.state is case.state and self.now == case.now


_last: _Seen | None = None
"""What was seen last: the orders of one decision, the agent's and what readings propose, are judged
one after the other."""


def review(case: Case, limits: Limits) -> Review:
    """Run every rule on `case` and cap its order. Total: whatever a rule does, a verdict comes
    back."""
    found = [*_of_scene(case, limits), *_refusals(OF_ORDER, case, limits)]
    vetoes = [veto for _, veto in sorted(found, key=itemgetter(0))]
    order: Order = case.order
    caps: tuple[Cap, ...] = ()
    try:
        order, caps = _cap(case, limits)
    except Exception as error:
        vetoes.append(_failed("caps", error))
    after = _refusals(_AFTER_CAPS, case._replace(order=order), limits)
    vetoes += [veto for _, veto in after]
    return Review(
        vetoes=tuple(vetoes),
        caps=caps,
        quantity=_number(order.quantity),
        stop=_number(order.stop),
    )


def missed_inputs(case: Case, limits: Limits) -> tuple[MissedInput, ...]:
    """The rules that lack an input, of each the first, and what they do without it."""
    missed = []
    for rule in (*RULES, *AFTER_CAPS):
        try:
            rule.check(case, limits)
        except MissingInput as missing:
            then = _when_missing(rule, case, limits, str(missing))
            missed.append(MissedInput(code=rule.code, missing=str(missing), then=then))
        except Exception:
            continue  # It would refuse; `review` says so.
    return tuple(missed)


def _when_missing(rule: Rule, case: Case, limits: Limits, name: str) -> Literal["refuse", "pass"]:
    table: RuleLimits | None = getattr(limits, rule.section, None)
    return "pass" if passes(case, table, name) else "refuse"


def _of_scene(case: Case, limits: Limits) -> tuple[Found, ...]:
    """Refusals of the rules that look at no order, asked once for all orders of a decision."""
    global _last
    seen = _last
    if seen is None or not seen.is_of(case, limits):
        found = tuple(_refusals(OF_SCENE, case, limits))
        seen = _last = _Seen(case.scenario, limits, case.state, case.now, found)
    return seen.found


def _refusals(rules: Sequence[Placed], case: Case, limits: Limits) -> list[Found]:
    """Of rules, each failing closed."""
    found = []
    for place, rule in rules:
        try:
            refusal = rule.check(case, limits)
            if refusal is not None:
                veto = Veto(code=rule.code, observed=refusal.observed, limit=refusal.limit)
                found.append((place, veto))
        except MissingInput as missing:
            if _when_missing(rule, case, limits, str(missing)) == "refuse":
                found.append((place, Veto(code=rule.code, missing=str(missing))))
        except Exception as error:
            found.append((place, _failed(rule.code.value, error)))
    return found


def _failed(what: str, error: Exception) -> Veto:
    return Veto(
        code=VetoCode.RULE_FAILED, observed=f"{what}: {type(error).__name__}: {error}"[:300]
    )


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _cap(case: Case, limits: Limits) -> tuple[Order, tuple[Cap, ...]]:
    """Clamp the stop towards entry and take the smallest quantity that any limit allows.

    Size is capped by the risk at the *unclamped* stop, so that allowing wider stops never shrinks
    an order.
    """
    order, caps = case.order, []
    ceiling = _greatest_distance(case, limits)
    if order.distance > ceiling and limits.stop_distance.on_excess == "cap":
        nearer = max if order.side == 1 else min
        stop = nearer(order.stop, order.entry - order.side * ceiling)
        caps.append(Cap(limit="stop_distance", before=order.stop, after=stop))
        order = order._replace(stop=stop)
    for name, allowed in _allowed_quantities(case, limits):
        if order.quantity > allowed:
            caps.append(Cap(limit=name, before=order.quantity, after=max(allowed, 0.0)))
            order = order._replace(quantity=max(allowed, 0.0))
    return order, tuple(caps)


def _greatest_distance(case: Case, limits: Limits) -> float:
    """Of the stop; infinite where nobody can tell, which its rule refuses."""
    try:
        return stop_bounds(case, limits)[1]
    except MissingInput:
        return inf


def _allowed_quantities(case: Case, limits: Limits) -> list[tuple[str, float]]:
    """Upper bounds on quantity (base units) from every limit whose inputs are known."""
    s, order, bound = case.scenario, case.order, limits.exposure
    allowed = [("exposure.max_notional", bound.max_notional / order.entry)]
    if s.market.volume_24h is not None:
        share = limits.liquidity.max_volume_fraction * s.market.volume_24h
        allowed.append(("liquidity.max_volume_fraction", share / order.entry))
    if s.account.equity is not None:
        risk = limits.risk_per_trade.max_equity_fraction * s.account.equity
        allowed.append(("risk_per_trade.max_equity_fraction", risk / order.distance))
    with suppress(MissingInput):
        moved = range_room(case, limits)
        if moved is not None:
            allowed.append(("foretold_range.max_equity_fraction", moved / order.entry))
    rooms = (
        ("exposure.max_symbol_fraction", symbol_room),
        ("exposure.max_total_fraction", total_room),
    )
    for name, room in rooms:
        with suppress(MissingInput):
            allowed.append((name, room(s, limits) / order.entry))
    return allowed
