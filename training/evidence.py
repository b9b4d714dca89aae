"""What the gate weighs, from a contest: rewards per scenario, and daily returns of the books."""

from __future__ import annotations

import numpy as np

from training.contest import AGENT, ALWAYS, BASE_MODEL, CHAMPION, HEURISTICS, POLICY, Contest, Trained
from training.gate import Check, Evidence
from training.performance import sharpe
from training.statistics import DAY_S


def evidence_of(model_version: str, contest: Contest, trained: Trained, checks: tuple[Check, ...]) -> Evidence:
    """Every simple rival, trading always, and a champion are heuristics to the gate: each must be beaten."""
    rewards = contest.rewards
    curves = {name: each.curve.sampled(DAY_S) for name, each in contest.books.items()}
    played = contest.played[POLICY]
    rivals = [*HEURISTICS, ALWAYS, *([CHAMPION] if CHAMPION in contest.played else [])]
    tried = [name for name in contest.probabilities if name not in (BASE_MODEL, CHAMPION)]
    likely = played.arm.probability
    return Evidence(
        model_version=model_version,
        as_of=contest.arena.as_of,
        trained_until=trained.until,
        policy=played.r,
        agent=rewards[AGENT],
        random_veto=contest.random.mean,
        heuristics={name: rewards[name] for name in rivals},
        traded=played.arm.approve,
        policy_returns=curves[POLICY].returns,
        agent_returns=curves[AGENT].returns,
        random_veto_returns=np.stack([each.curve.sampled(DAY_S).returns for each in contest.random.books]),
        heuristic_returns={name: curves[name].returns for name in rivals},
        steps_per_year=curves[POLICY].steps_per_year,
        trial_sharpes=tuple(sharpe(curves[name].returns, 1.0) or 0.0 for name in tried),
        probability=likely if likely is not None else np.zeros(0),
        won=(rewards[ALWAYS] > 0).astype(float),
        checks=checks,
    )
