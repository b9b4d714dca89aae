"""How often is the gate wrong? Simulated markets whose truth is known, judged by the very code that
judges versions.

Simulated are outcomes of scenarios in R, not prices: half of the plans are stopped at about -1.1 R
(some gap lower), a third leave in time with little, a fifth trail to as much as +3 R; after costs
the mean is about -0.33 R. Outcomes of a day hang together, and so do days. An arm trades where its
score is high; its skill is the correlation of its score with the outcome (in normal scores), and
scores of a day hang together as outcomes do. As a veto the policy lets the agent's trades through
where its score is high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from training.arrays import DAY_S, Floats, Rows
from training.config.judging import DriftConfig, GateConfig, Kind
from training.judging.gate.verdict import (
    RANDOM_VETO,
    WIN,
    Check,
    CheckName,
    Evidence,
    Foretold,
    Mode,
    Verdict,
    judge,
)
from training.live.drift.demotion import Paired, worse
from training.stages.parallel import over
from training.statistics.anytime import log_wealth, period_means
from training.statistics.bootstrap import day_totals, mean_intervals, wilson
from training.statistics.selection import deflated_sharpe

STOPPED, TIMED = 0.47, 0.33
"""Shares of plans that are stopped, and that leave in time."""
LOWEST, HIGHEST = -2.5, 3.0
RISK = 0.005
"""Of equity, at one R."""
VETO_DRAWS = 20
PASSED = tuple(Check(name, True, "simulated") for name in CheckName)


@dataclass(frozen=True)
class World:
    """A market and its arms. Rates are shares of scenarios traded; skills are correlations, 0:
    none.

    shift : added to every outcome, R; costs are in the outcomes already.
    per_day : mean number of scenarios. day_share : of an outcome's variance that is common to its
    day. carry : correlation of one day's common part with the next's. tried : versions tried
    before, without skill.
    """

    name: str
    shift: float = 0.0
    policy_rate: float = 0.3
    agent_rate: float = 0.5
    heuristic_rate: float = 0.3
    policy_skill: float = 0.0
    agent_skill: float = 0.0
    heuristic_skill: float = 0.0
    per_day: float = 4.0
    day_share: float = 0.3
    carry: float = 0.2
    tried: int = 4


NO_EDGE = (
    World("no arm has skill"),
    World("the policy only trades less", policy_rate=0.1, agent_rate=0.7),
    World(
        "the policy only trades more, in a rising market",
        shift=0.6,
        policy_rate=0.8,
        agent_rate=0.4,
    ),
    World(
        "the policy is as good as the heuristic", shift=0.3, policy_skill=0.35, heuristic_skill=0.35
    ),
)
"""In each, the policy is no better than one rival, and in the last three better than another."""
NO_SAVING = (
    *NO_EDGE[:3],
    World("the agent has skill, the veto none", policy_rate=0.7, agent_skill=0.5, shift=0.3),
)
"""In each, the policy's refusals are no better than others at the same rate; in the first two any
refusal saves R."""
NO_WORSE = (
    World("the acting version is as good as both", policy_rate=0.5, heuristic_rate=0.5),
    World("as good, in a rising market", 0.6, policy_rate=0.5, heuristic_rate=0.5),
    World("it is better than both", policy_rate=0.5, heuristic_rate=0.5, policy_skill=0.35),
)
"""Neither the agent nor the version before (the market's `heuristic`) earns more than what acts."""
WORSE = (
    World("the version before has a little skill", policy_rate=0.5, heuristic_rate=0.5,
          heuristic_skill=0.2),
    World("the version before has skill", policy_rate=0.5, heuristic_rate=0.5, heuristic_skill=0.5),
    World("the acting version trades what it should not", policy_rate=0.9),
)  # fmt: skip
TRIES = 8


def outcome(score: Floats) -> Floats:
    """R of a plan from its normal score: stop, time exit, trailing winner. Skewed, with fat tails,
    mean about -0.33."""
    u = ndtr(score)
    gap = np.maximum(0.03 - u, 0) / 0.03
    stopped = -1.1 + (LOWEST + 1.1) * gap**2
    timed = -0.9 + 1.3 * (u - STOPPED) / TIMED
    won = (
        0.4 + (HIGHEST - 0.4) * (np.maximum(u - STOPPED - TIMED, 0) / (1 - STOPPED - TIMED)) ** 1.5
    )
    return np.asarray(np.where(u < STOPPED, stopped, np.where(u < STOPPED + TIMED, timed, won)))


@dataclass(frozen=True, eq=False)
class Market:
    """One simulated history, (N,) scenarios: time, R of the plan, each arm's answers, the policy's
    own score."""

    as_of: Rows
    r: Floats
    policy: Floats
    agent: Floats
    heuristic: Floats
    score: Floats


def simulate(world: World, decisions: int, seed: int) -> Market:
    """A history of about so many decisions. Answers are 1 (trade) or 0."""
    source = np.random.default_rng([seed, decisions])
    days = max(2, round(decisions / world.per_day))
    day = np.repeat(np.arange(days), source.poisson(world.per_day, days))

    def normal_scores() -> Floats:
        common = source.normal(size=days)
        for t in range(1, days):
            common[t] = world.carry * common[t - 1] + math.sqrt(1 - world.carry**2) * common[t]
        own = source.normal(size=len(day))
        return np.asarray(
            math.sqrt(world.day_share) * common[day] + math.sqrt(1 - world.day_share) * own
        )

    truth = normal_scores()

    def score(skill: float) -> Floats:
        return skill * truth + math.sqrt(1 - skill**2) * normal_scores()

    policy, agent, heuristic = (
        score(skill) for skill in (world.policy_skill, world.agent_skill, world.heuristic_skill)
    )
    r = np.clip(outcome(truth) + world.shift, -HIGHEST, HIGHEST)

    def answers(scores: Floats, rate: float) -> Floats:
        return np.asarray(scores > ndtri(1 - rate), dtype=np.float64)

    return Market(
        as_of=day * DAY_S,
        r=r,
        policy=answers(policy, world.policy_rate),
        agent=answers(agent, world.agent_rate),
        heuristic=answers(heuristic, world.heuristic_rate),
        score=policy,
    )


def evidence(market: Market, world: World, seed: int) -> Evidence:
    """What the gate sees of a history when it is asked once: the random veto has the policy's rate
    in all of it."""
    source = np.random.default_rng([seed, 1])
    dealt = np.stack([source.permutation(market.policy) for _ in range(VETO_DRAWS)], axis=1)
    arms = np.column_stack([market.policy, market.agent, market.heuristic, dealt])
    totals, _ = day_totals(arms * market.r[:, None], market.as_of)
    returns = RISK * totals.T
    sharpes = source.normal(0, 1 / math.sqrt(returns.shape[1]), world.tried)
    own = returns[0].mean() / returns[0].std() if returns[0].std() > 0 else 0.0
    lowest = np.interp(-world.shift, np.sort(outcome(_GRID)), _GRID)
    probability = ndtr(
        (world.policy_skill * market.score - lowest) / math.sqrt(1 - world.policy_skill**2)
    )
    return Evidence(
        model_version=world.name,
        as_of=market.as_of,
        trained_until=-2 * DAY_S,
        policy=market.policy * market.r,
        agent=market.agent * market.r,
        random_veto=market.policy.mean() * market.r,
        heuristics={"heuristic": market.heuristic * market.r},
        traded=market.policy > 0,
        agent_traded=market.agent > 0,
        policy_returns=returns[0],
        agent_returns=returns[1],
        random_veto_returns=returns[3:],
        heuristic_returns={"heuristic": returns[2]},
        steps_per_year=365.25,
        trial_sharpes=(*sharpes, float(own)),
        trials=world.tried + 1,
        looks=world.tried + 1,
        foretold={WIN: Foretold(probability, (market.r > 0).astype(np.float64))},
        checks=PASSED,
    )


def as_veto(seen: Evidence, market: Market) -> Evidence:
    """The same history, the policy's refusals of the agent's trades alone."""
    kept = market.policy * market.agent
    returns = RISK * day_totals((kept * market.r)[:, None], market.as_of)[0].T
    return replace(
        seen,
        kind=Kind.VETO,
        policy=kept * market.r,
        random_veto=kept.sum() / market.agent.sum() * market.agent * market.r,
        traded=kept > 0,
        policy_returns=returns[0],
        random_veto_returns=np.empty((0, returns.shape[1])),
        heuristics={},
        heuristic_returns={},
    )


def kept_until(market: Market) -> Floats:
    """Share of the agent's trades of earlier days that the policy let through, 1 before there were
    any. (N,)"""
    both = np.column_stack([market.policy * market.agent, market.agent])
    totals, counts = day_totals(both, market.as_of)
    kept, asked = (np.cumsum(totals, axis=0) - totals).T
    rate = np.divide(kept, asked, out=np.ones(len(kept)), where=asked > 0)
    return np.asarray(np.repeat(rate, counts.astype(int)))


_GRID = np.linspace(-4, 4, 20_001)
_WEIGHTS = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()
PRIOR = 100.0
"""Scenarios that the rate known from validation is worth, when the live rate is reckoned."""


def running_rate(market: Market, world: World) -> Floats:
    """Share of earlier days' scenarios that the policy traded: known before the day begins. (N,)"""
    totals, counts = day_totals(market.policy[:, None], market.as_of)
    traded, seen = np.cumsum(totals[:, 0]) - totals[:, 0], np.cumsum(counts) - counts
    rate = (PRIOR * world.policy_rate + traded) / (PRIOR + seen)
    return np.asarray(np.repeat(rate, counts.astype(int)))


class Share(NamedTuple):
    """How many of the runs, and the 95 % Wilson interval of the share."""

    name: str
    hits: int
    runs: int

    @property
    def share(self) -> float:
        """Of the runs."""
        return self.hits / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound."""
        low, high = wilson(np.array([self.share]), np.array([self.runs]))
        return float(low[0]), float(high[0])


class Run(NamedTuple):
    """What the gate did with one history."""

    fixed: bool
    """Promoted, asked once."""
    fixed_bounds: bool
    """All three lower bounds were above 0, whatever else."""
    live: bool
    """Promoted in live mode, asked at the end."""
    live_bounds: bool
    """All three anytime-valid bounds rose above 0 at some day: no promotion at any look happens
    without."""
    veto: bool
    """Promoted as a veto, asked once."""
    live_veto: bool
    """Promoted as a veto in live mode, asked at the end."""
    repeated: bool
    """The bounds of FIXED, wrongly asked every 20 days, were all above 0 at some look; only if so
    wished."""
    edge: float
    """The policy's mean R less that of the random veto."""


def one_run(world: World, decisions: int, config: GateConfig, repeated: bool, seed: int) -> Run:
    """One history through the gate."""
    market = simulate(world, decisions, seed)
    seen = evidence(market, world, seed)
    fixed = judge(seen, config, Mode.FIXED)
    vetoing = as_veto(seen, market)
    veto = judge(vetoing, config, Mode.FIXED)
    # Live, nobody knows the rate of days to come: the random veto has the rate that the policy had
    # until then.
    vetoing = replace(vetoing, random_veto=kept_until(market) * vetoing.agent)
    live_veto = judge(vetoing, config, Mode.LIVE)
    seen = replace(seen, random_veto=running_rate(market, world) * market.r)
    live = judge(seen, config, Mode.LIVE)
    wealth = [
        log_wealth(
            period_means(seen.policy - other, seen.as_of, config.block_days), 2 * config.bound_r
        ).max()
        for other in seen.rivals.values()
    ]
    return Run(
        fixed=fixed.promote,
        fixed_bounds=_bounds_hold(fixed),
        live=live.promote,
        live_bounds=bool(min(wealth) >= -math.log(1 - config.confidence)),
        veto=veto.promote,
        live_veto=live_veto.promote,
        repeated=repeated and _ever(market, config),
        edge=fixed.differences[RANDOM_VETO].value or 0.0,
    )


def _bounds_hold(verdict: Verdict) -> bool:
    return all(each.low is not None and each.low > 0 for each in verdict.differences.values())


def _ever(market: Market, config: GateConfig) -> bool:
    """The fixed bounds at looks every 20 days from the least number of days on."""
    days = market.as_of // DAY_S
    for until in range(config.min_days, int(days[-1]) + 2, 20):
        part = days < until
        policy, r = market.policy[part], market.r[part]
        answers = np.stack(
            [policy - market.agent[part], policy - market.heuristic[part], policy - policy.mean()],
            axis=1,
        )
        bounds = mean_intervals(
            answers * r[:, None],
            as_of=market.as_of[part],
            level=2 * config.confidence - 1,
            draws=200,
            block=1.0,
        )
        if all(each.low is not None and each.low > 0 for each in bounds):
            return True
    return False


def runs(
    world: World,
    decisions: int,
    count: int,
    config: GateConfig,
    *,
    repeated: bool = False,
    workers: int = 1,
    backend: str = "processes",
    first_seed: int = 0,
) -> list[Run]:
    """Many histories of one world, each with its own seed, over so many processes, or on Ray."""
    judged = partial(one_run, world, decisions, config, repeated)
    seeds = range(first_seed, first_seed + count)
    return over(judged, seeds, workers, backend)


FLAGS = ("fixed", "fixed_bounds", "live", "live_bounds", "veto", "live_veto")


def shares(name: str, asked: Sequence[Run], of: Iterable[str]) -> list[Share]:
    """Of the runs, how many have each flag."""
    return [
        Share(f"{name}: {flag}", sum(getattr(run, flag) for run in asked), len(asked))
        for flag in of
    ]


class PowerPoint(NamedTuple):
    """Share of promotions after so many decisions. `edge`: mean R per decision above the random
    veto's."""

    skill: float
    edge: float
    per_trade: float
    """Mean R of the policy's own trades, after costs."""
    decisions: int
    fixed: Share
    fixed_bounds: Share
    live: Share
    live_bounds: Share
    veto: Share
    live_veto: Share


def power_curve(
    base: World,
    skills: Sequence[float],
    decisions: Sequence[int],
    count: int,
    config: GateConfig,
    *,
    workers: int = 1,
    tell: Callable[[PowerPoint], None] = lambda point: None,
) -> list[PowerPoint]:
    """Power of both modes against the number of decisions, for policies of such skills in the world
    `base`."""
    curve = []
    for skill in skills:
        world = replace(base, policy_skill=skill)
        edge, per_trade = true_edge(world)
        for number in decisions:
            asked = runs(world, number, count, config, workers=workers, first_seed=10_000)
            name = f"skill {skill}, {number} decisions"
            curve.append(PowerPoint(skill, edge, per_trade, number, *shares(name, asked, FLAGS)))
            tell(curve[-1])
    return curve


def best_of_many(
    tries: int, count: int, config: GateConfig, days: int = 730, seed: int = 0
) -> tuple[Share, Share]:
    """Of so many versions that earn nothing but luck, how often the best one's deflated Sharpe
    ratio is confident enough: when the gate knows of it alone, and when it knows of every try."""
    alone = together = 0
    for run in range(count):
        scores = np.random.default_rng([seed, run]).normal(size=(tries, days))
        returns = RISK * (outcome(scores) - outcome(_GRID) @ _WEIGHTS)
        sharpes = returns.mean(axis=1) / returns.std(axis=1, ddof=1)
        best = int(sharpes.argmax())
        tries_known = (float(sharpes[best]),), tuple(map(float, sharpes))
        passed = [
            (deflated_sharpe(returns[best], tried).confidence or 0.0) >= config.deflated_sharpe
            for tried in tries_known
        ]
        alone, together = alone + passed[0], together + passed[1]
    name = f"the best of {tries} without skill"
    return Share(f"{name}, known alone", alone, count), Share(f"{name}, all known", together, count)


def true_edge(world: World) -> tuple[float, float]:
    """The policy's mean R per decision less the random veto's, and its mean R per trade: by
    integration over scores."""
    weights = _WEIGHTS
    r = np.clip(outcome(_GRID) + world.shift, -HIGHEST, HIGHEST)
    cut = ndtri(1 - world.policy_rate)
    chance = ndtr((world.policy_skill * _GRID - cut) / math.sqrt(1 - world.policy_skill**2))
    earned = float((weights * r * chance).sum())
    return earned - world.policy_rate * float((weights * r).sum()), earned / world.policy_rate


def demoted(world: World, decisions: int, config: DriftConfig, seed: int) -> bool:
    """Whether the acting version stepped back on any day of a history: its bound, consulted at the
    end, remembers every day."""
    market = simulate(world, decisions, seed)
    rivals = {"agent": market.agent * market.r, "before": market.heuristic * market.r}
    return worse(Paired(market.as_of, market.policy * market.r, rivals), config) is not None


def demotions(
    world: World, decisions: int, count: int, config: DriftConfig, workers: int = 1
) -> Share:
    """How many of so many histories end with a demotion."""
    work = partial(demoted, world, decisions, config)
    return Share(world.name, sum(over(work, range(count), workers)), count)
