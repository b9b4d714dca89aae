"""The report's details: where the policy earned, are its probabilities honest, who was right, what
vetoes saved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
from matplotlib.figure import Figure

from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.record.comparison import regime
from training.arrays import Floats
from training.judging.contest.arena import Played
from training.judging.contest.arms import AGENT, ALWAYS, HEURISTICS, POLICY, RANDOM, RAW
from training.judging.gate.verdict import Foretold
from training.judging.report.document import Cell, Section
from training.judging.report.findings import Findings, cell, maybe
from training.statistics.bootstrap import mean_intervals
from training.statistics.calibration import (
    brier_score,
    expected_calibration_error,
    log_loss,
    reliability_curve,
)

LEDGER = 25
CALIBRATION = (
    "reading",
    "expected calibration error",
    "Brier score",
    "of the base rate",
    "log score, nats",
)


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
    whose = "the teacher's" if findings.told.own is None else "the version's"
    weighed = findings.evidence.foretold
    readings = {f"{name}, {whose}": reading for name, reading in weighed.items()}
    if findings.told.own is not None:
        for name, chance in findings.told.teacher.chances.items():
            readings[f"{name}, the teacher's"] = Foretold(chance, weighed[name].came)
    for name in HEURISTICS:
        probability = contest.played[name].arm.probability
        if probability is not None:
            readings[name] = Foretold(probability, won)
    for name, reading in readings.items():
        error, brier = (
            measure(reading.probability, reading.came)
            for measure in (expected_calibration_error, brier_score)
        )
        rate = float(reading.came.mean()) if len(reading.came) else 0.0
        score = log_loss(reading.probability, reading.came)
        rows.append((Cell(name), cell(error), cell(brier), Cell(rate * (1 - rate)), maybe(score)))
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
        " (`stopped`). A probability of approving foretells none of them and is not judged. A"
        " version that answers no question is judged by the teacher that it learned from."
    )
    section.table("Calibration", CALIBRATION, rows, note)
    section.plot("Reliability, 95 % Wilson intervals", figure)
    _numbers(section, findings)


def _numbers(section: Section, findings: Findings) -> None:
    """What is foretold and no chance: the range, and the expected R."""
    rows = findings.contest.arena.rows
    came, plans = findings.held_out.labels.range_atr[rows], findings.contest.played[ALWAYS].r
    told = {"the teacher's": findings.told.teacher}
    if findings.told.own is not None:
        told["the version's"] = findings.told.own
    lines = []
    for whose, foretelling in told.items():
        error = (np.log(came) - np.log(foretelling.range_atr)) ** 2
        levels = _levels_score(foretelling.levels, came)
        lines.append((Cell(f"range, {whose}"), maybe(_mean(error)), maybe(levels), Cell("-")))
        slope = _slope(foretelling.expected_r, plans)
        bias = _mean(foretelling.expected_r - plans)
        if slope is not None:
            lines.append((Cell(f"expected R, {whose}"), maybe(bias), Cell("-"), maybe(slope)))
    section.table(
        "Range and expected R",
        ("reading", "error", "log score of levels", "slope of what came"),
        lines,
        "Error: of a range, the mean square of its logarithm; of an expected R, the mean of what"
        " was expected less what came. A slope of 1 means what it says.",
    )


def _levels_score(levels: Floats, came: Floats) -> float | None:
    """Mean of -log of the chance of the level that came, nats; None where none is said."""
    edges = BY_NAME[QuestionName.RANGE].edges
    known = np.flatnonzero(np.isfinite(levels).all(1) & np.isfinite(came))
    if not len(known):
        return None
    chances = levels[known, np.searchsorted(edges, came[known], side="right")]
    return float(-np.log(np.maximum(chances, 1e-6)).mean())


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _slope(predicted: Floats, came: Floats) -> float | None:
    """Of what came on what was predicted, by least squares; None of fewer than three, or of one
    prediction for all."""
    known = np.isfinite(predicted) & np.isfinite(came)
    if known.sum() < 3 or np.ptp(predicted[known]) == 0:
        return None
    return float(np.polyfit(predicted[known], came[known], 1)[0])


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
