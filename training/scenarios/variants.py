"""Synthetic variants of a scenario: small changes after which the right action should be much the
same; and other terms (`training.scenarios.terms`), after which it need not be.

Each keeps every guarantee of a scenario: it validates, and nothing in it is later than its `as_of`.
They are marked, follow their parent's split and weight, and never enter evaluation. Labels are of
the variant itself: one that was shifted is decided later, so that it may enter a bar later.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any

import numpy as np

from app.domain.candidate import CLEAR, Candidate, session_at
from app.domain.scenario import Scenario
from training.agent.reference import ASSUMED_SPREAD_BPS
from training.market.context import SEPARATOR
from training.scenarios.headlines import trained, with_text

DROP_PROBABILITY = 0.25
PRICES = ("entry", "stop")
AGES = ("fear_greed_age_s", "btc_dominance_age_s")
_OPTIONAL = tuple(
    name
    for name, field in Candidate.model_fields.items()
    if not field.is_required() and field.default is None
)

Source = np.random.Generator
Document = dict[str, Any]


class Kind(StrEnum):
    """What was changed."""

    NOISE = "noise"
    SHIFT = "shift"
    DROPPED = "dropped"
    NEWS_ORDER = "news_order"
    HOSTILE_TEXT = "hostile_text"
    NEUTRAL_TEXT = "neutral_text"
    TERMS = "terms"


def variants(scenario: Scenario, count: int, source: Source) -> list[tuple[Kind, Scenario]]:
    """At most `count` variants of different kinds, drawn at random among those of `_CHANGES` that
    apply; in the order of `Kind`."""
    kinds = list(_CHANGES)
    chosen: dict[Kind, Scenario] = {}
    for place in source.permutation(len(kinds)):
        changed = _CHANGES[kinds[place]](scenario, source)
        if changed is not None and len(chosen) < count:
            chosen[kinds[place]] = Scenario.from_json(changed)
    return [(kind, chosen[kind]) for kind in kinds if kind in chosen]


def other_text(scenario: Scenario, source: Source) -> tuple[Kind, Scenario]:
    """The same scenario with made-up news in place of its own: hostile or neutral, at even odds."""
    hostile = bool(source.random() < 0.5)
    kind = Kind.HOSTILE_TEXT if hostile else Kind.NEUTRAL_TEXT
    return kind, with_text(scenario, trained(hostile, source))


def noise(scenario: Scenario, source: Source) -> Document | None:
    """The price read elsewhere between bid and ask: last close, entry, stop and targets move by the
    same fraction.

    At most half the spread either way; without a spread the reference agent's assumption counts.
    """
    bps = (
        ASSUMED_SPREAD_BPS
        if scenario.candidate.spread_bps is None
        else scenario.candidate.spread_bps
    )
    if bps == 0:
        return None
    factor = 1 + source.uniform(-1, 1) * min(bps, 100.0) / 20_000
    document = scenario.as_json()
    plan = document["plan"]
    for name in PRICES:
        plan[name] *= factor
    plan["targets"] = [target * factor for target in plan["targets"]]
    if document["market"]["last_close"] is not None:
        document["market"]["last_close"] *= factor
    return document


def shift(scenario: Scenario, source: Source) -> Document | None:
    """The same knowledge decided upon later, before the next bar closes: time, session and ages
    move on."""
    closed_at, length = scenario.market.bar_closed_at, scenario.market.bar_seconds
    if closed_at is None or length is None:
        return None
    left = closed_at.timestamp() + length - scenario.as_of.timestamp()
    if left < 2:
        return None
    seconds = int(source.integers(1, int(left)))
    later = scenario.as_of + timedelta(seconds=seconds)
    document = scenario.as_json()
    candidate = document["candidate"]
    candidate["ts"] = later
    candidate["session"] = session_at(later)
    for name in AGES:
        if candidate[name] is not None:
            candidate[name] += seconds
    if candidate["time_to_news_minutes"] not in (None, CLEAR):
        candidate["time_to_news_minutes"] = max(
            candidate["time_to_news_minutes"] - seconds / 60, 0.0
        )
    if document["account"]["seconds_since_loss"] is not None:
        document["account"]["seconds_since_loss"] += seconds
    document["ages"] = {name: age + seconds for name, age in document["ages"].items()}
    return document


def dropped(scenario: Scenario, source: Source) -> Document | None:
    """Optional fields of the candidate that were not known: each with probability 0.25, at least
    one."""
    given = [name for name in _OPTIONAL if getattr(scenario.candidate, name) is not None]
    if not given:
        return None
    gone = [name for name in given if source.random() < DROP_PROBABILITY]
    if not gone:
        gone = [str(source.choice(given))]
    document = scenario.as_json()
    for name in gone:
        document["candidate"][name] = None
    document["ages"] = {name: age for name, age in document["ages"].items() if name not in gone}
    return document


def news_order(scenario: Scenario, source: Source) -> Document | None:
    """The same headlines in another order. None when no summary holds two different ones."""
    document = scenario.as_json()
    changed = False
    for name in ("news_summary", "symbol_news_summary"):
        items = (document["candidate"][name] or "").split(SEPARATOR)
        if len(set(items)) < 2:
            continue
        other = [items[place] for place in source.permutation(len(items))]
        while other == items:
            other = [items[place] for place in source.permutation(len(items))]
        document["candidate"][name] = SEPARATOR.join(other)
        changed = True
    return document if changed else None


_CHANGES: dict[Kind, Callable[[Scenario, Source], Document | None]] = {
    Kind.NOISE: noise,
    Kind.SHIFT: shift,
    Kind.DROPPED: dropped,
    Kind.NEWS_ORDER: news_order,
}
