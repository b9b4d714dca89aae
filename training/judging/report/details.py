"""The report's details: where the policy earned, are its probabilities honest, who was right, what
vetoes saved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
from matplotlib.figure import Figure

from app.domain.comparison import regime
from training.arrays import Floats
from training.judging.contest.arena import Played
from training.judging.contest.arms import AGENT, ALWAYS, HEURISTICS, POLICY, RANDOM, RAW
from training.judging.gate.verdict import Foretold
from training.judging.report.document import Cell, Section
from training.judging.report.findings import Findings, cell
from training.statistics.bootstrap import mean_intervals
from training.statistics.calibration import (
    brier_score,
    expected_calibration_error,
    reliability_curve,
)

LEDGER = 25


def groups(section: Section, findings: Findings) -> None:
    """Mean R by symbol, year, regime, setup and session."""
    contest = findings.contest
    scenarios, as_of = contest.scenarios, contest.arena.as_of
    groups: tuple[tuple[str, Callable[[int], str]], ...] = (
        ("symbol", lambda i: str(contest.arena.symbols[i])),
        ("year", lambda i: str(scenarios[i].as_of.year)),
        ("volatility regime", lambda i: regime(scenarios[i].candidate).value),
        ("setup", lambda i: scenarios[i].candidate.setup_type.value),
        ("session", lambda i: scenarios[i].candidate.session.value),
    )
    rewards = contest.rewards
    for title, key in groups:
        labels = np.array([key(i) for i in range(len(scenarios))])
        rows = []
        for label in np.unique(labels):
            here = labels == label
            columns = [
                rewards[POLICY],
                rewards[AGENT],
                rewards[POLICY] - rewards[AGENT],
                rewards[POLICY] - rewards[RANDOM],
            ]
            means = mean_intervals(
                np.stack(columns, 1)[here], as_of=as_of[here], draws=findings.terms.evaluate.draws
            )
            rate = float(contest.played[POLICY].arm.approve[here].mean())
            rows.append((Cell(str(label)), Cell(rate, digits=2), *map(cell, means)))
        section.table(
            f"By {title}",
            (title, "policy trades", "policy", "agent", "policy - agent", "policy - random veto"),
            rows,
            "Mean R per scenario. Many groups are looked at: some intervals miss 0 by chance.",
        )


def calibration(section: Section, findings: Findings) -> None:
    """Whether it comes as often as it is foretold: what the version reads of a plan, and that it
    makes money, by the rivals that give a chance of it."""
    contest = findings.contest
    rows = []
    figure = Figure((5, 4.5))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    won = (contest.rewards[ALWAYS] > 0).astype(float)
    readings = {f"{name}, foretold": reading for name, reading in findings.foretold.items()}
    for name in HEURISTICS:
        probability = contest.played[name].arm.probability
        if probability is not None:
            readings[name] = Foretold(probability, won)
    for name, reading in readings.items():
        error, brier = (
            measure(reading.probability, reading.came)
            for measure in (expected_calibration_error, brier_score)
        )
        rows.append((Cell(name), cell(error), cell(brier)))
        curve = reliability_curve(reading.probability, reading.came)
        bounds = np.stack([curve.observed - curve.low, curve.high - curve.observed])
        axes.errorbar(
            curve.predicted,
            curve.observed,
            yerr=np.maximum(bounds, 0),
            label=name,
            fmt="o-",
            markersize=3,
            linewidth=1,
        )
    axes.set_xlabel("probability")
    axes.set_ylabel("share of plans")
    axes.legend(fontsize=8, frameon=False)
    note = (
        "Events: the agent's plan makes money after costs (`win`, and of rivals), its stop is hit"
        " (`stopped`). A probability of approving foretells none of them and is not judged."
    )
    section.table(
        "Calibration", ("reading", "expected calibration error", "Brier score"), rows, note
    )
    section.plot("Reliability, 95 % Wilson intervals", figure)


def disagreements(section: Section, findings: Findings) -> None:
    """Who was right where one traded and the other did not."""
    contest = findings.contest
    mine, theirs = contest.played[POLICY], contest.played[AGENT]
    apart = np.flatnonzero(mine.arm.approve != theirs.arm.approve)
    gap = mine.r - theirs.r
    if not len(apart):
        section.say("They never disagreed.")
        return
    mean = mean_intervals(
        gap[apart, None], as_of=contest.arena.as_of[apart], draws=findings.terms.evaluate.draws
    )[0]
    right, wrong = int((gap[apart] > 0).sum()), int((gap[apart] < 0).sum())
    section.say(
        f"{len(apart):,} of {len(gap):,} scenarios: the policy was right in {right:,}, the agent in"
        f" {wrong:,}. Policy less agent: {cell(mean).text} R each."
    )
    worst = apart[np.argsort(-np.abs(gap[apart]), kind="stable")][:LEDGER]
    rows = [
        (
            Cell(f"{contest.scenarios[i].as_of:%Y-%m-%d %H:%M}"),
            Cell(str(contest.arena.symbols[i])),
            Cell("trades" if theirs.arm.approve[i] else "passes"),
            Cell("trades" if mine.arm.approve[i] else "passes"),
            Cell(float(theirs.r[i])),
            Cell(float(mine.r[i])),
        )
        for i in worst
    ]
    section.table(
        f"The {len(rows)} widest",
        ("when, UTC", "symbol", "agent", "policy", "agent R", "policy R"),
        rows,
    )
    figure = Figure((6, 4))
    axes = figure.add_subplot()
    probability = mine.arm.probability
    if probability is None:
        probability = np.zeros(len(gap))
    axes.scatter(probability[apart], gap[apart], s=6, alpha=0.5)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("policy's approval probability")
    axes.set_ylabel("policy less agent, R")
    section.plot("Disagreements", figure)


def vetoes(section: Section, findings: Findings) -> None:
    """What the policy's refused orders would have earned, by the code that refused them."""
    contest = findings.contest
    codes = contest.played[POLICY].arm.vetoes or ()
    before = contest.played[RAW].r
    rows = []
    for code in sorted(set(chain.from_iterable(codes))):
        here = np.array([code in refusals for refusals in codes])
        saved = -before[here]
        mean = mean_intervals(
            saved[:, None], as_of=contest.arena.as_of[here], draws=findings.terms.evaluate.draws
        )[0]
        rows.append(
            (Cell(code), Cell(int(here.sum())), Cell(float(saved.sum()), digits=1), cell(mean))
        )
    if not rows:
        section.say("No veto refused an order of the policy.")
        return
    section.table(
        "R saved (above 0) or lost by refusing the policy's orders",
        ("code", "refused", "total R", "mean R"),
        rows,
        "An order refused by several rules counts for each.",
    )


def distribution(section: Section, findings: Findings) -> None:
    """A histogram of R over the trades of three arms."""
    contest = findings.contest
    figure = Figure((8, 3.5))
    axes = figure.add_subplot()
    for name in (ALWAYS, AGENT, POLICY):
        r = _of_trades(contest.played[name])
        if len(r):
            axes.hist(
                np.clip(r, -2, 5),
                bins=70,
                histtype="step",
                density=True,
                label=f"{name} (n={len(r):,})",
            )
    axes.set_xlabel("R of the agent's plan, after costs (clipped to -2 and 5)")
    axes.legend(fontsize=8, frameon=False)
    section.plot("Rewards of trades", figure)


def _of_trades(played: Played) -> Floats:
    return np.asarray(played.r[played.arm.approve])
