"""The report's doubts: would it hold under worse conditions, with fewer outcomes known, in truth,
or with more data?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy.special import ndtr, ndtri

from app.domain.model.actions import ACTIONS
from app.domain.record.control import AgentAction
from training.agent.words import agents_label
from training.arrays import Floats, Rows
from training.config.data import OutcomesConfig
from training.judging.contest.arena import Arena
from training.judging.contest.arms import (
    AGENT,
    ALWAYS,
    BASE_MODEL,
    HEURISTICS,
    POLICY,
    RANDOM,
    Past,
)
from training.judging.contest.oracle import oracle, states
from training.judging.report.document import Cell, Section
from training.judging.report.findings import Findings, cell
from training.learning.model.answers import choices
from training.scenarios.splits import backtest_paths, combinatorial_purged
from training.scenarios.table import TRAIN, evenly
from training.statistics.bootstrap import Estimate, mean_intervals
from training.statistics.off_policy import (
    LoggedDecisions,
    doubly_robust,
    full_information,
    inverse_propensity,
    self_normalised,
)

STRESSES: dict[str, Callable[[OutcomesConfig], OutcomesConfig]] = {
    "costs doubled": lambda given: given.model_copy(
        update={"fee": 2 * given.fee, "slippage": 2 * given.slippage}
    ),
    "every order an hour late": lambda given: given.model_copy(
        update={"delay_s": given.delay_s + 3600}
    ),
}
"""The same answers under worse conditions: an edge that vanishes in one of them was never one to
trade."""
DRAWS_OF_CHANCE = 50
EDGES = (0.02, 0.05, 0.1)
POWER = 0.8
GROUPS, TESTED = 6, 2
MOST_KNOWN = 3000
"""Training scenarios that the combinatorial paths look at, evenly over time."""
INNER_FOLDS = 2


def stresses(section: Section, findings: Findings) -> None:
    """The same answers with costs doubled, or every order late."""
    contest, draws = findings.contest, findings.terms.evaluate.draws
    rewards = contest.rewards
    columns = {
        "as it is": (contest.arena, {name: rewards[name] for name in (POLICY, AGENT, RANDOM)})
    }
    for name, harder in STRESSES.items():
        outcomes = harder(findings.terms.outcomes)
        asked, bars = findings.held_out.scenarios, findings.market.series()
        arena = Arena.of(asked, bars, outcomes, contest.arena.rows)
        usable = np.searchsorted(contest.arena.rows, arena.rows)
        mine, theirs = (contest.played[arm].arm.at(usable) for arm in (POLICY, AGENT))
        dealt = arena.random_veto(mine, DRAWS_OF_CHANCE, findings.terms.evaluate.seed)
        columns[name] = (
            arena,
            {
                POLICY: arena.play(mine).r,
                AGENT: arena.play(theirs).r,
                RANDOM: np.mean([played.r for played in dealt], axis=0),
            },
        )
    rows = []
    for name, (arena, r) in columns.items():
        gaps = np.stack([r[POLICY], r[POLICY] - r[AGENT], r[POLICY] - r[RANDOM]], 1)
        means = mean_intervals(gaps, as_of=arena.as_of, draws=draws)
        rows.append((Cell(name), Cell(len(arena)), *map(cell, means)))
    section.table(
        "The same answers under worse conditions",
        ("condition", "scenarios", "policy", "policy - agent", "policy - random veto"),
        rows,
        "Mean R per scenario. An edge over chance that vanishes with an hour's delay or twice the"
        " costs is not one to trade. Training on shuffled labels is a run of its own:"
        " targets.shuffled.",
    )


def power(section: Section, findings: Findings) -> None:
    """How many decisions the gate's bound would need, from this contest's own spread."""
    confidence = findings.terms.gate.confidence
    spreads = {
        name: (gap.value, (gap.value - gap.low) / ndtri(confidence), gap.n)
        for name, gap in findings.verdict.differences.items()
        if gap.value is not None and gap.low is not None and gap.low < gap.value
    }
    if not spreads:
        section.say("No bound has an interval, so nothing can be said about power.")
        return
    hardest = max(spreads, key=lambda name: spreads[name][1])
    _, error, n = spreads[hardest]
    z = ndtri(confidence)
    rows = [
        (
            Cell(name),
            *(Cell(math.ceil(count * ((z + ndtri(POWER)) * spread / edge) ** 2)) for edge in EDGES),
        )
        for name, (_, spread, count) in spreads.items()
    ]
    section.table(
        f"Decisions needed to see an edge with {POWER:.0%} power",
        ("bound against", *(f"{edge:g} R per decision" for edge in EDGES)),
        rows,
        f"One bound at {confidence:.1%}, normal approximation, errors as in this contest, shrinking"
        " with the root of the number of decisions. `make bench-gate` measures the whole gate on"
        " simulated markets.",
    )
    figure = Figure((7, 3.5))
    axes = figure.add_subplot()
    counts = np.geomspace(200, 50_000, 120)
    for edge in EDGES:
        axes.plot(
            counts, ndtr(edge / (error * np.sqrt(n / counts)) - z), label=f"{edge:g} R per decision"
        )
    axes.axvline(n, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel(f"decisions (dashed: this contest, {n:,})")
    axes.set_ylabel("power")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
    section.plot(f"Power of the hardest bound (against {hardest})", figure)


def off_policy(section: Section, findings: Findings) -> None:
    """What could be said of the policy if only the outcome of the logged action were known."""
    contest, config = findings.contest, findings.terms.evaluate
    rewards = findings.held_out.labels.rewards[contest.arena.rows]
    target, behaviour = contest.probabilities[POLICY], contest.probabilities[BASE_MODEL]
    source = np.random.default_rng(config.seed)
    action = (behaviour.cumsum(1) > source.random(len(behaviour))[:, None]).argmax(1)
    rows = np.arange(len(action))
    log = LoggedDecisions(
        action, behaviour[rows, action], rewards[rows, action], target, contest.arena.as_of
    )
    earned = findings.trained.labels.rewards[findings.trained.scenarios.rows(TRAIN, real_only=True)]
    predicted = np.tile(np.nanmean(earned, axis=0), (len(rows), 1))
    shown = [
        (
            Cell(name),
            cell(value.estimate),
            Cell(value.effective, digits=0),
            Cell(value.largest, digits=1),
        )
        for name, value in (
            ("inverse propensity", inverse_propensity(log, draws=config.draws)),
            ("self-normalised", self_normalised(log, draws=config.draws)),
            ("doubly robust", doubly_robust(log, predicted, draws=config.draws)),
        )
    ]
    truth = full_information(rewards, target)
    section.table(
        "Value of the policy as a distribution, from one logged action per scenario",
        ("estimate", "mean R per scenario", "effective sample", "largest weight"),
        [*shown, (Cell("all outcomes known"), Cell(truth), Cell(len(rows)), Cell("-"))],
        "Actions are drawn from the base model's probabilities, as if it had decided; the estimates"
        " see their outcomes only. Rewards are clipped, before rules. Doubly robust predicts each"
        " action's mean in training.",
    )


def truth(section: Section, findings: Findings) -> None:
    """In a synthetic market what every decision is worth on average is known: how much of the best
    was recovered?"""
    terms, contest = findings.terms, findings.contest
    planted = oracle(terms.market.synthetic, terms.outcomes)
    worth = planted.expected(states(contest.scenarios))
    best = float(worth.max(1).mean())
    rows = []
    for name, chosen in _choices(findings).items():
        value = worth[np.arange(len(worth)), chosen]
        (mean,) = mean_intervals(
            value[:, None], as_of=contest.arena.as_of, draws=terms.evaluate.draws
        )
        share = Cell(None, reason="nothing can be earned")
        if best > 0:
            share = cell(Estimate(*_scaled(mean, best)), 2)
        rows.append((Cell(name), cell(mean), share, Cell(float((chosen > 0).mean()), digits=2)))
    section.say(
        f"The planted edge is {terms.market.synthetic.edge:g}. Knowing the planted state and"
        f" nothing else, one could earn {best:.3f} R a scenario here; the one action that is best"
        f" throughout earns {planted.constant:.3f} R, and rejecting everything 0."
    )
    section.table(
        "Share of the best achievable reward",
        ("arm", "mean R per scenario", "share of best", "approves"),
        rows,
        "Each choice counts what it earns on average in its state, measured on an independent"
        " sample of the same market, so that luck of the held-out paths plays no part. Before"
        " rules, rewards clipped.",
    )


@dataclass(frozen=True, eq=False)
class Path:
    """One back-test path of a rival: mean R per scenario, share traded."""

    mean: float
    rate: float


def combinatorial(section: Section, findings: Findings) -> None:
    """How the simple rivals would have done in development, over all combinatorial purged paths."""
    past = findings.trained.past()
    past = past.at(evenly(len(past.as_of), MOST_KNOWN))
    if len(past.as_of) < 10 * GROUPS:
        section.say(f"{len(past.as_of)} training scenarios are too few for {GROUPS} groups.")
        return
    paths = combinatorial_paths(past)
    rows = []
    for name, mine in paths.items():
        means = np.array([path.mean for path in mine])
        rates = np.array([path.rate for path in mine])
        rows.append(
            (
                Cell(name),
                Cell(float(np.median(means)), float(means.min()), float(means.max()), len(mine)),
                Cell(float(rates.mean()), digits=2),
            )
        )
    section.table(
        "Simple rivals in development: combinatorial purged paths",
        ("rival", "mean R per scenario: median [lowest, highest path]", "share traded"),
        rows,
        f"{len(past.as_of):,} training scenarios in {GROUPS} groups, {TESTED} tested at a time,"
        f" purged and embargoed: {len(next(iter(paths.values())))} paths (López de Prado 2018,"
        " chapter 12). Nothing held out is used.",
    )


def combinatorial_paths(past: Past) -> dict[str, list[Path]]:
    """Every path of every rival, by name."""
    count = len(past.as_of)
    folds = combinatorial_purged(past.as_of, past.ends_at, GROUPS, TESTED, past.embargo_s)
    taken: dict[str, Floats] = {name: np.zeros((len(folds), count)) for name in HEURISTICS}
    for number, fold in enumerate(folds):
        train, features = past.at(fold.train), past.features[fold.test]
        for name, rival in HEURISTICS.items():
            taken[name][number, fold.test] = rival(train, features, INNER_FOLDS).trades
    group = np.minimum(
        np.argsort(np.argsort(past.as_of, kind="stable")) // (count // GROUPS), GROUPS - 1
    )
    paths: dict[str, list[Path]] = {}
    for name, answers in taken.items():
        for path in backtest_paths(GROUPS, TESTED):
            traded = answers[path[group], np.arange(count)]
            paths.setdefault(name, []).append(
                Path(float((traded * past.rewards).mean()), float(traded.mean()))
            )
    return paths


def _choices(findings: Findings) -> dict[str, Rows]:
    """(N,) index of the action that each arm takes, before rules; a plan's is the nearest one."""
    contest, yes = findings.contest, AgentAction(decision=True)
    plan = [ACTIONS.index(agents_label(scenario, yes)) for scenario in contest.scenarios]
    chosen = {name: choices(values) for name, values in contest.probabilities.items()}
    for name in (AGENT, ALWAYS, *HEURISTICS):
        chosen[name] = np.where(contest.played[name].arm.approve, plan, 0)
    return chosen


def _scaled(mean: Estimate, best: float) -> tuple[float | None, float | None, float | None, int]:
    value, low, high = (
        None if number is None else number / best for number in (mean.value, mean.low, mean.high)
    )
    return value, low, high, mean.n
