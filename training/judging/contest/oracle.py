"""What is best on a planted market: the value of knowing the planted state, for who sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.model.actions import ACTIONS
from app.domain.scenario import Scenario
from training.agent.reference import Agent, chart, opportunities
from training.arrays import Floats
from training.config.data import OutcomesConfig, SyntheticConfig
from training.market.synthetic import STATE_EDGES, synthetic_bars
from training.outcomes.labels import judge, plan_orders, shares_of
from training.outcomes.simulate import Costs
from training.scenarios.table import NEUTRAL


def states(scenarios: Sequence[Scenario]) -> NDArray[np.int64]:
    """The planted state of each scenario, 0 (volume falling fastest) to 6, from what its prompt
    shows. Shape (N,)."""
    ratios = np.array(
        [
            s.candidate.volume_ratio if s.candidate.volume_ratio is not None else 0.0
            for s in scenarios
        ]
    )
    return np.searchsorted(STATE_EDGES, ratios)


@dataclass(frozen=True, eq=False)
class Oracle:
    """What knowing the planted state is worth, estimated on a large independent sample. Rewards in
    agent R, clipped.

    mean : (states, 10) mean reward of every action by state. error : their standard errors.
    count : (states,) scenarios.
    best : mean reward of the best action of each state, chosen on one half of the sample and paid
        on the other.
    constant : the same of the one action that is best throughout. agent : of trading every plan.
    """

    mean: Floats
    error: Floats
    count: NDArray[np.int64]
    best: float
    best_error: float
    constant: float
    agent: float

    def expected(self, state: NDArray[np.int64]) -> Floats:
        """(N, 10) mean rewards of every action, given states: what a held-out scenario is worth
        without its luck."""
        return self.mean[state]


def sample(
    config: SyntheticConfig, outcomes: OutcomesConfig
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """States (N,), clipped rewards (N, 10) and those of the agent's plan (N,) of all candidates of
    a market."""
    agent = Agent([chart(bars) for bars in synthetic_bars(config)])
    candidates = sorted(opportunities(agent.charts), key=lambda opportunity: opportunity.chart)
    scenarios = [agent.scenario(opportunity, NEUTRAL) for opportunity in candidates]
    series = {chart.bars.symbol: [chart.bars] for chart in agent.charts}
    judged = judge(series, plan_orders(scenarios), shares_of(scenarios), Costs.of(outcomes))
    every, whole = judged.rewards(), judged.agent_reward()
    labelled = ~np.isnan(every[:, 0])
    clip = outcomes.clip_r
    return (
        states(scenarios)[labelled],
        np.clip(every[labelled], -clip, clip),
        np.clip(whole[labelled], -clip, clip),
    )


def oracle(
    config: SyntheticConfig, outcomes: OutcomesConfig, bars: int = 30_000, symbols: int = 6
) -> Oracle:
    """The best achievable mean reward in this market, out of sample, for who sees the state and
    nothing else.

    It is measured on other symbols-worth of bars of the same market (another seed), not on any
    scenario to be scored.
    """
    other = _elsewhere(config, bars, symbols)
    state, rewards, agent = sample(other, outcomes)
    count = len(STATE_EDGES) + 1
    half = np.arange(len(state)) % 2 == 0
    paid = np.empty(len(state))
    for chosen, scored in ((half, ~half), (~half, half)):
        action = np.array([_best(rewards[chosen & (state == number)]) for number in range(count)])
        paid[scored] = rewards[scored, action[state[scored]]]
    groups = [rewards[state == number] for number in range(count)]
    return Oracle(
        mean=np.array(
            [group.mean(axis=0) if len(group) else np.zeros(len(ACTIONS)) for group in groups]
        ),
        error=np.array([_errors(group) for group in groups]),
        count=np.array([len(group) for group in groups]),
        best=float(paid.mean()),
        best_error=float(paid.std(ddof=1) / np.sqrt(len(paid))),
        constant=float(rewards.mean(axis=0).max()),
        agent=float(agent.mean()),
    )


def _elsewhere(config: SyntheticConfig, bars: int, symbols: int) -> SyntheticConfig:
    """The same market at another time: an independent seed, and so many bars."""
    return config.model_copy(
        update={"seed": config.seed + 1_000_003, "bars": bars, "symbols": symbols}
    )


def _best(rewards: Floats) -> int:
    return int(rewards.mean(axis=0).argmax()) if len(rewards) else 0


def _errors(rewards: Floats) -> Floats:
    if len(rewards) < 2:
        return np.full(len(ACTIONS), np.inf)
    return np.asarray(rewards.std(axis=0, ddof=1) / np.sqrt(len(rewards)))
