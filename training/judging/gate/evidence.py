"""What the gate weighs, from a contest: rewards per scenario, and daily returns of the books.

Evidence that grows (the shadow log's) is weighed live: rewards are clipped to what the
anytime-valid bound was promised, and the random veto deals the answers of earlier days only, since
nobody knows those to come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from training.arrays import DAY_S, Floats
from training.config.judging import Kind
from training.judging.contest.arms import (
    AGENT,
    ALWAYS,
    AS_VETO,
    BASELINES,
    CHAMPION,
    HEURISTICS,
    POLICY,
    RANDOM,
)
from training.judging.contest.contest import Contest, Trained
from training.judging.contest.performance import sharpe
from training.judging.gate.verdict import (
    STOPPED,
    WIN,
    Check,
    Evidence,
    Foretold,
    Mode,
)
from training.outcomes.simulate import Exit

SEED = 0
"""Of the answers that are dealt: the same evidence gives the same verdict."""


@dataclass(frozen=True, eq=False)
class Before:
    """What was known of the held-out period when it was looked at. tried : Sharpe ratios per step
    of configurations of other versions, None where it was not written down. looks : versions that
    were judged, this one included."""

    tried: Mapping[str, float | None] = field(default_factory=dict)
    looks: int = 1


NOTHING = Before()
"""A first look."""


def evidence_of(
    model_version: str,
    contest: Contest,
    trained: Trained,
    checks: tuple[Check, ...],
    mode: Mode = Mode.FIXED,
    bound_r: float = np.inf,
    before: Before = NOTHING,
    readings: Mapping[str, Floats] | None = None,
) -> Evidence:
    """As a trader: every simple rival, trading always, and a champion are heuristics to the gate:
    each must be beaten.

    readings : (N,) chances of the contest's scenarios, by name: `WIN`, `STOPPED`.
    """
    rewards = contest.rewards
    if mode is Mode.LIVE:
        rewards[RANDOM] = dealt_from_before(contest)
        rewards = {name: np.clip(r, -bound_r, bound_r) for name, r in rewards.items()}
    curves = {name: book.curve.sampled(DAY_S) for name, book in contest.books.items()}
    rivals = [*HEURISTICS, ALWAYS, *([CHAMPION] if CHAMPION in contest.played else [])]
    told = [ratio for ratio in before.tried.values() if ratio is not None]
    sharpes = (*sharpes_tried(contest).values(), *told)
    return Evidence(
        model_version=model_version,
        as_of=contest.arena.as_of,
        trained_until=trained.until,
        policy=rewards[POLICY],
        agent=rewards[AGENT],
        random_veto=rewards[RANDOM],
        heuristics={name: rewards[name] for name in rivals},
        traded=contest.played[POLICY].arm.approve,
        agent_traded=contest.played[AGENT].arm.approve,
        policy_returns=curves[POLICY].returns,
        agent_returns=curves[AGENT].returns,
        random_veto_returns=np.stack(
            [book.curve.sampled(DAY_S).returns for book in contest.random.books]
        ),
        heuristic_returns={name: curves[name].returns for name in rivals},
        steps_per_year=curves[POLICY].steps_per_year,
        trial_sharpes=sharpes,
        trials=len(sharpes) + len(before.tried) - len(told),
        looks=before.looks,
        foretold=foretold(contest, readings or {}),
        checks=checks,
    )


def as_veto(evidence: Evidence, contest: Contest, mode: Mode, bound_r: float = np.inf) -> Evidence:
    """The same version's, as a veto on the agent: its plans where both approve, against refusals
    that are dealt to the agent's trades at random, at the same rate."""
    played, agent = contest.played[AS_VETO], contest.played[AGENT]
    kept, theirs = played.arm.approve, agent.arm.approve
    asked = max(1, int(theirs.sum()))
    rate = kept_before(contest) if mode is Mode.LIVE else int((kept & theirs).sum()) / asked
    clip = bound_r if mode is Mode.LIVE else np.inf
    curve = contest.books[AS_VETO].curve.sampled(DAY_S)
    return replace(
        evidence,
        kind=Kind.VETO,
        policy=np.clip(played.r, -clip, clip),
        random_veto=rate * np.clip(agent.r, -clip, clip),
        traded=kept,
        policy_returns=curve.returns,
        random_veto_returns=np.empty((0, len(curve.returns))),
        heuristics={},
        heuristic_returns={},
    )


def kept_before(contest: Contest) -> Floats:
    """(N,) share of the agent's trades of earlier days that the veto let through; 1 before there
    were any."""
    kept, theirs = (contest.played[name].arm.approve for name in (AS_VETO, AGENT))
    day = contest.arena.as_of // DAY_S
    first = np.searchsorted(day, day, side="left")
    # Sums over the rows before the first one of each row's day.
    passed, asked = (np.concatenate([[0], np.cumsum(flags)])[first] for flags in (kept, theirs))
    return np.asarray(np.divide(passed, asked, out=np.ones(len(day)), where=asked > 0))


def sharpes_tried(contest: Contest) -> dict[str, float]:
    """Sharpe ratio per step of every configuration that was tried in this contest, by its arm."""
    curves = {name: contest.books[name].curve.sampled(DAY_S) for name in contest.probabilities}
    return {
        name: sharpe(curve.returns, 1.0) or 0.0
        for name, curve in curves.items()
        if name not in BASELINES
    }


def foretold(contest: Contest, readings: Mapping[str, Floats]) -> dict[str, Foretold]:
    """Each reading beside what came of the agent's plan."""
    plans = contest.played[ALWAYS]
    came = {WIN: plans.r > 0, STOPPED: plans.fates.exit == Exit.STOP}
    return {name: Foretold(said, came[name].astype(float)) for name, said in readings.items()}


def dealt_from_before(contest: Contest) -> Floats:
    """(N,) what one of the policy's answers of earlier days, dealt at random, earns on average; 0
    on the first day.

    As often as the contest dealt: each scenario is given the answer to a scenario drawn uniformly
    from those of all earlier days (`Arena.deal` says what that means), and the mean is taken.
    """
    arena, arm = contest.arena, contest.played[POLICY].arm
    day = arena.as_of // DAY_S
    before = np.searchsorted(day, day, side="left")
    onto = np.flatnonzero(before > 0)
    source, draws = np.random.default_rng(SEED), len(contest.random.rewards)
    earned = np.zeros(len(arena))
    for _ in range(draws):
        answers = source.integers(0, before[onto])
        earned[onto] += arena.deal(arm, answers, onto).r
    return earned / draws
