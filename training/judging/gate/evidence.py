"""What the gate weighs, from a contest: rewards per scenario, and daily returns of the books.

Evidence that grows (the shadow log's) is weighed live: rewards are clipped to what the
anytime-valid bound was promised, and the random veto deals the answers of earlier days only, since
nobody knows those to come.
"""

from __future__ import annotations

import numpy as np

from training.arrays import DAY_S, Floats
from training.judging.contest.arms import (
    AGENT,
    ALWAYS,
    BASELINES,
    CHAMPION,
    HEURISTICS,
    POLICY,
    RANDOM,
)
from training.judging.contest.contest import Contest, Trained
from training.judging.contest.performance import sharpe
from training.judging.gate.verdict import Check, Evidence, Mode

SEED = 0
"""Of the answers that are dealt: the same evidence gives the same verdict."""


def evidence_of(
    model_version: str,
    contest: Contest,
    trained: Trained,
    checks: tuple[Check, ...],
    mode: Mode = Mode.FIXED,
    bound_r: float = np.inf,
) -> Evidence:
    """Every simple rival, trading always, and a champion are heuristics to the gate: each must be
    beaten."""
    rewards = contest.rewards
    if mode is Mode.LIVE:
        rewards[RANDOM] = dealt_from_before(contest)
        rewards = {name: np.clip(each, -bound_r, bound_r) for name, each in rewards.items()}
    curves = {name: each.curve.sampled(DAY_S) for name, each in contest.books.items()}
    played = contest.played[POLICY]
    rivals = [*HEURISTICS, ALWAYS, *([CHAMPION] if CHAMPION in contest.played else [])]
    tried = [name for name in contest.probabilities if name not in BASELINES]
    likely = played.arm.probability
    return Evidence(
        model_version=model_version,
        as_of=contest.arena.as_of,
        trained_until=trained.until,
        policy=rewards[POLICY],
        agent=rewards[AGENT],
        random_veto=rewards[RANDOM],
        heuristics={name: rewards[name] for name in rivals},
        traded=played.arm.approve,
        policy_returns=curves[POLICY].returns,
        agent_returns=curves[AGENT].returns,
        random_veto_returns=np.stack(
            [each.curve.sampled(DAY_S).returns for each in contest.random.books]
        ),
        heuristic_returns={name: curves[name].returns for name in rivals},
        steps_per_year=curves[POLICY].steps_per_year,
        trial_sharpes=tuple(sharpe(curves[name].returns, 1.0) or 0.0 for name in tried),
        probability=likely if likely is not None else np.zeros(0),
        won=(rewards[ALWAYS] > 0).astype(float),
        checks=checks,
    )


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
