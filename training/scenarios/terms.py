"""Terms: what a plan costs and risks, and on whose account; and how far they vary in training.

History has one spread, one plan and one account, a service has many. What never varies cannot be
learned: a share of the training scenarios (`scenarios.terms`) has a variant with terms drawn from
the ranges below, which are declared here and nowhere else. The same scenario with the same seed
gets the same terms in every table. Labels are of the varied plan, and a spread beyond the assumed
one is a cost of it (`training.learning.teacher.lessons`).
"""

from __future__ import annotations

import numpy as np

from app.domain.scenario import Account, Plan, Position, Scenario, pair_of

Source = np.random.Generator

SPREAD_BPS = (0.5, 40.0)
"""Evenly in its logarithm. The shipped limits refuse above 10."""
STOP_ATR = (0.75, 3.0)
"""Distance of the plan's stop, evenly in its logarithm. The shipped limits allow 0.5 to 3."""
REWARD_RISK = (1.0, 3.5)
"""Of the nearest target; the others keep their proportions to it."""
ENTRY_ATR = (-0.25, 0.25)
"""The planned entry beside the last close."""
DAY_PNL = (-0.03, 0.03)
DRAWDOWN = (0.0, 0.25)
MOST_LOSSES = 4
SINCE_LOSS_S = (60.0, 86_400.0)
HELD = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
"""What other positions are in: up to two of them, none in the candidate's own symbol."""


def has_other_terms(scenario: Scenario, share: float, seed: int) -> bool:
    """Whether a scenario is of the share that has a variant with other terms; one whose ATR or last
    close is not known has none."""
    if scenario.candidate.atr is None or scenario.market.last_close is None:
        return False
    return bool(_source(scenario, seed, 0).random() < share)


def other_terms(scenario: Scenario, seed: int) -> Scenario:
    """The same market and moment with another spread, plan and account, drawn from the ranges; ATR
    and last close are known."""
    atr, close = scenario.candidate.atr, scenario.market.last_close
    assert atr is not None
    assert close is not None
    source = _source(scenario, seed, 1)
    account = _account(scenario, source)
    changed = {
        "spread_bps": _evenly_in_log(SPREAD_BPS, source),
        "open_positions": len(account.positions or ()),
    }
    candidate = scenario.candidate.model_copy(update=changed)
    varied = {
        "candidate": candidate,
        "plan": _plan(scenario, atr, close, source),
        "account": account,
    }
    return Scenario.model_validate(scenario.model_copy(update=varied).as_json())


def _source(scenario: Scenario, seed: int, purpose: int) -> Source:
    """A scenario's own: what other scenarios there are changes nothing."""
    own = int(scenario.hash().removeprefix("sha256:")[:15], 16)
    return np.random.default_rng([seed, purpose, own])


def _plan(scenario: Scenario, atr: float, close: float, source: Source) -> Plan:
    """Entry, stop and targets anew; the quantity stays."""
    plan = scenario.plan
    side = 1.0 if plan.entry > plan.stop else -1.0
    entry = close + source.uniform(*ENTRY_ATR) * atr
    distance = _evenly_in_log(STOP_ATR, source) * atr
    nearest = min(abs(target - plan.entry) for target in plan.targets) or atr
    stretch = source.uniform(*REWARD_RISK) * distance / nearest
    # No price falls to 0, however wide the ATR.
    least = 1e-3 * entry
    targets = tuple(
        max(entry + side * abs(target - plan.entry) * stretch, least) for target in plan.targets
    )
    stop = max(entry - side * distance, least)
    return plan.model_copy(update={"entry": entry, "stop": stop, "targets": targets})


def _account(scenario: Scenario, source: Source) -> Account:
    """The book that the plan would join."""
    own = pair_of(scenario.candidate.symbol)
    others = [symbol for symbol in HELD if pair_of(symbol) != own]
    count = int(source.integers(0, len(others[:2]) + 1))
    losses = int(source.integers(0, MOST_LOSSES + 1))
    positions = tuple(
        Position(symbol=symbol, quantity=4.5, entry=100.0) for symbol in others[:count]
    )
    changed = {
        "day_pnl_fraction": float(source.uniform(*DAY_PNL)),
        "drawdown_fraction": float(source.uniform(*DRAWDOWN)),
        "consecutive_losses": losses,
        "seconds_since_loss": _evenly_in_log(SINCE_LOSS_S, source) if losses else None,
        "positions": positions,
    }
    return scenario.account.model_copy(update=changed)


def _evenly_in_log(bounds: tuple[float, float], source: Source) -> float:
    low, high = np.log(bounds)
    return float(np.exp(source.uniform(low, high)))
