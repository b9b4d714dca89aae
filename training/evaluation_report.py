"""The evaluation's report: what happened to every arm, how sure that is, and why the gate said what it said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from app.domain.regime import regime
from training.arena import Played
from training.calibration_measures import brier_score, expected_calibration_error, reliability_curve
from training.config import RebuildConfig
from training.contest import AGENT, ALWAYS, HEURISTICS, HOLD, POLICY, RANDOM, RAW, Contest
from training.gate import Check, Verdict
from training.market import Floats
from training.performance import sharpe
from training.rebuild import Rebuilt
from training.report import Cell, Report, Section
from training.statistics import (
    DAY_S,
    Estimate,
    holm,
    mean_intervals,
    model_confidence_set,
    probability_of_overfitting,
    superior_predictive_ability,
)

SHOWN = (POLICY, AGENT, ALWAYS, RANDOM, HOLD)
LEDGER = 25
OF_CURVE = ("sharpe", "sortino", "cagr", "max_drawdown", "drawdown_days", "tail_ratio")
OF_TRADES = ("win_rate", "expectancy_r", "profit_factor", "turnover", "exposure")


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report tells."""

    model_version: str
    contest: Contest
    verdict: Verdict
    checks: tuple[Check, ...]
    rebuilt: Rebuilt
    look: int
    config: RebuildConfig
    made_at: datetime


def evaluation_report(found: Findings) -> Report:
    """The whole report, in the order in which people ask."""
    arena = found.contest.arena
    first, last = (datetime.fromtimestamp(int(at), UTC) for at in (arena.as_of[0], arena.as_of[-1]))
    codes = sorted({refusal.code.value for refusal in found.verdict.refusals})
    headline = (
        f"{found.model_version} passes the gate."
        if found.verdict.promote
        else f"{found.model_version} is refused: {', '.join(code.replace('_', ' ') for code in codes)}."
    )
    facts = {
        "model version": found.model_version,
        "algorithm": found.config.policy.algorithm,
        "period": f"{first:%Y-%m-%d} to {last:%Y-%m-%d}, held out",
        "scenarios": f"{len(arena):,} of {', '.join(np.unique(arena.symbols))}",
        "costs": f"fee {found.config.outcomes.fee:.2%} and slippage {found.config.outcomes.slippage:.2%}, each side",
        "looks at this period": f"{found.look}, this one included",
    }
    report = Report("Does it deserve promotion?", headline, found.made_at, facts)
    _verdict(report.section("The gate's verdict"), found)
    _rewards(report.section("Every arm on the same scenarios"), found)
    _books(report.section("As a portfolio"), found)
    _groups(report.section("Where"), found)
    _calibration(report.section("Are its probabilities honest?"), found)
    _disagreements(report.section("When policy and agent disagreed"), found)
    _vetoes(report.section("What each veto was worth"), found)
    _distribution(report.section("Rewards of trades"), found)
    _worth(report.section("Is it worth it?"), found)
    return report


def cell(estimate: Estimate, digits: int = 3) -> Cell:
    """An estimate as a cell, with its reason when there is none."""
    return Cell(estimate.value, estimate.low, estimate.high, estimate.n, digits, estimate.reason or "not defined")


def _verdict(section: Section, found: Findings) -> None:
    section.say(
        "A version is promoted when every bound holds: better than the agent, than every heuristic and than a random "
        "veto at its own rate, on scenarios that nothing was trained on, after costs. A refusal is a result too."
    )
    rows = [
        (Cell(each.code.value), Cell(each.about), _maybe(each.observed), _maybe(each.limit), Cell(each.detail or "-"))
        for each in found.verdict.refusals
    ]
    if rows:
        section.table("Reasons for the refusal", ("reason", "about", "observed", "limit", "detail"), rows)
    checks = [
        (Cell(each.name.value), Cell("passed" if each.passed else "failed"), Cell(each.evidence))
        for each in found.checks
    ]
    section.table("Checks", ("check", "result", "evidence"), checks)
    differences = [(Cell(name), cell(each)) for name, each in found.verdict.differences.items()]
    if differences:
        section.table(
            "Policy less rival, mean R per scenario",
            ("rival", "difference"),
            differences,
            f"Paired by scenario; {found.config.gate.confidence:.1%} one-sided bounds, stationary bootstrap over days.",
        )


def _rewards(section: Section, found: Findings) -> None:
    contest = found.contest
    rewards, played = contest.rewards, contest.played
    names = list(rewards)
    values = np.stack([rewards[name] for name in names], axis=1)
    arena, draws = contest.arena, found.config.evaluate.draws
    means = mean_intervals(values, as_of=arena.as_of, draws=draws)
    rows = []
    for name, mean in zip(names, means, strict=True):
        trades = played[name].arm.approve if name in played else played[POLICY].arm.approve
        own = _own_r(played[name], arena.as_of, draws) if name in played else Estimate(None, reason="dealt at random")
        rows.append((Cell(name), cell(mean), Cell(int(trades.sum())), Cell(float(trades.mean()), digits=2), cell(own)))
    section.table(
        "Mean reward per scenario, net of costs",
        ("arm", "mean R per scenario", "trades", "share traded", "mean R per trade"),
        rows,
        "R is the risk of the agent's plan; not trading earns 0. 95 % intervals, stationary bootstrap over days. The "
        f"random veto is the mean of {found.config.evaluate.random_vetoes} draws of the policy's own answers.",
    )
    _tests(section, found, rewards)


def _tests(section: Section, found: Findings, rewards: dict[str, Floats]) -> None:
    policy, as_of, draws = rewards[POLICY], found.contest.arena.as_of, found.config.evaluate.draws
    rivals = [name for name in rewards if name not in (POLICY, RAW)]
    against = mean_intervals(np.stack([policy - rewards[name] for name in rivals], 1), as_of=as_of, draws=draws)
    adjusted = holm({name: each.p for name, each in zip(rivals, against, strict=True) if each.p is not None})
    best = model_confidence_set({name: rewards[name] for name in (*rivals, POLICY)}, draws=draws)
    rows = [
        (
            Cell(name),
            cell(each),
            _maybe(each.p, "constant difference"),
            _maybe(adjusted.get(name), "constant difference"),
            Cell(best[name]),
        )
        for name, each in zip(rivals, against, strict=True)
    ]
    section.table(
        "Policy less each arm",
        ("arm", "difference, R per scenario", "p", "p after Holm", "p of being among the best"),
        rows,
        "p: one-sided, how likely such a difference were the policy no better. The last column is the arm's own, in "
        f"the model confidence set; the policy's is {best[POLICY]:.3f}.",
    )
    spa = superior_predictive_ability(
        rewards[AGENT], np.stack([rewards[n] for n in rewards if n != AGENT], 1), draws=draws
    )
    section.say(
        "Does any arm beat the agent at all (Hansen's test of superior predictive ability)? "
        + (spa.reason if spa.consistent is None else f"p = {spa.consistent:.3f}.")
    )


def _books(section: Section, found: Findings) -> None:
    contest, config = found.contest, found.config.evaluate
    for title, measures in (("by curve", OF_CURVE), ("by trade", OF_TRADES)):
        rows = [
            (Cell(name), *(cell(getattr(each, measure), 2) for measure in measures))
            for name, each in contest.performances.items()
        ]
        columns = ("arm", *(name.replace("_", " ") for name in measures))
        section.table(f"Measures of the portfolio, {title}", columns, rows)
    section.say(
        f"Capital {config.capital:g}, at most {config.max_open} open; curves are seen once a day; Sharpe and Sortino "
        "are annualised by that clock, without a risk-free rate. Drawdown as a fraction, expectancy in R of the trade "
        "itself, turnover per year over mean equity, exposure as a share of time."
    )
    dealt = [each.curve.sampled(DAY_S) for each in contest.random.books]
    draws = [sharpe(each.returns, each.steps_per_year) for each in dealt]
    known = np.array([each for each in draws if each is not None])
    if len(known):
        low, high = np.quantile(known, [0.05, 0.95])
        section.say(
            f"Sharpe of the random veto over {len(known)} draws: median {np.median(known):.2f}, "
            f"90 % within {low:.2f} to {high:.2f}."
        )
    returns = np.stack([each.curve.sampled(DAY_S).returns for name, each in contest.books.items() if name != HOLD], 1)
    overfit = probability_of_overfitting(returns)
    section.say(
        "Probability that the arm that looked best in one half of the days is below the median in the other (PBO): "
        + (overfit.reason if overfit.pbo is None else f"{overfit.pbo:.2f}.")
    )
    _curves(section, found)


def _curves(section: Section, found: Findings) -> None:
    contest = found.contest
    equity, fall = Figure((10, 4)), Figure((10, 3))
    above, below = equity.add_subplot(), fall.add_subplot()
    for each in contest.random.books:
        curve = each.curve.sampled(DAY_S)
        above.plot(_dates(curve.at), curve.value, color="0.85", linewidth=0.6, zorder=1)
    for name in SHOWN:
        if name in contest.books:
            curve = contest.books[name].curve.sampled(DAY_S)
            above.plot(_dates(curve.at), curve.value, label=name, linewidth=1.2, zorder=2)
            peak = np.maximum.accumulate(np.concatenate([[curve.capital], curve.value]))[1:]
            below.plot(_dates(curve.at), 100 * (curve.value / peak - 1), label=name, linewidth=1.0)
    above.set_ylabel("equity, quote")
    below.set_ylabel("below the last peak, %")
    for axes in (above, below):
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.2)
    section.plot("Equity. Grey: draws of the random veto at the policy's rate", equity)
    section.plot("Drawdown", fall)


def _groups(section: Section, found: Findings) -> None:
    contest = found.contest
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
            found_means = mean_intervals(
                np.stack(columns, 1)[here], as_of=as_of[here], draws=found.config.evaluate.draws
            )
            rate = float(contest.played[POLICY].arm.approve[here].mean())
            rows.append((Cell(str(label)), Cell(rate, digits=2), *(cell(each) for each in found_means)))
        section.table(
            f"By {title}",
            (title, "policy trades", "policy", "agent", "policy - agent", "policy - random veto"),
            rows,
            "Mean R per scenario. Many groups are looked at: some intervals miss 0 by chance.",
        )


def _calibration(section: Section, found: Findings) -> None:
    contest = found.contest
    rows = []
    figure = Figure((5, 4.5))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    won = (contest.rewards[ALWAYS] > 0).astype(float)
    for name in (POLICY, *HEURISTICS[1:]):
        probability = contest.played[name].arm.probability
        if probability is None:
            continue
        error, brier = (measure(probability, won) for measure in (expected_calibration_error, brier_score))
        rows.append((Cell(name), cell(error), cell(brier)))
        curve = reliability_curve(probability, won)
        bounds = np.stack([curve.observed - curve.low, curve.high - curve.observed])
        axes.errorbar(
            curve.predicted, curve.observed, yerr=np.maximum(bounds, 0), label=name, fmt="o-", markersize=3, linewidth=1
        )
    axes.set_xlabel("probability of approving")
    axes.set_ylabel("share of plans that made money")
    axes.legend(fontsize=8, frameon=False)
    note = "Event: the agent's plan makes money after costs."
    section.table("Calibration", ("arm", "expected calibration error", "Brier score"), rows, note)
    section.plot("Reliability, 95 % Wilson intervals", figure)


def _disagreements(section: Section, found: Findings) -> None:
    contest = found.contest
    mine, theirs = contest.played[POLICY], contest.played[AGENT]
    apart = np.flatnonzero(mine.arm.approve != theirs.arm.approve)
    gap = mine.r - theirs.r
    if not len(apart):
        section.say("They never disagreed.")
        return
    mean = mean_intervals(gap[apart, None], as_of=contest.arena.as_of[apart], draws=found.config.evaluate.draws)[0]
    right, wrong = int((gap[apart] > 0).sum()), int((gap[apart] < 0).sum())
    section.say(
        f"{len(apart):,} of {len(gap):,} scenarios: the policy was right in {right:,}, the agent in {wrong:,}. "
        f"Policy less agent: {cell(mean).text} R each."
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
    section.table(f"The {len(rows)} widest", ("when, UTC", "symbol", "agent", "policy", "agent R", "policy R"), rows)
    figure = Figure((6, 4))
    axes = figure.add_subplot()
    probability = mine.arm.probability if mine.arm.probability is not None else np.zeros(len(gap))
    axes.scatter(probability[apart], gap[apart], s=6, alpha=0.5)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("policy's approval probability")
    axes.set_ylabel("policy less agent, R")
    section.plot("Disagreements", figure)


def _vetoes(section: Section, found: Findings) -> None:
    contest = found.contest
    codes = contest.played[POLICY].arm.vetoes or ()
    before = contest.played[RAW].r
    rows = []
    for code in sorted({code for each in codes for code in each}):
        here = np.array([code in each for each in codes])
        saved = -before[here]
        mean = mean_intervals(saved[:, None], as_of=contest.arena.as_of[here], draws=found.config.evaluate.draws)[0]
        rows.append((Cell(code), Cell(int(here.sum())), Cell(float(saved.sum()), digits=1), cell(mean)))
    if not rows:
        section.say("No veto refused an order of the policy.")
        return
    section.table(
        "R saved (above 0) or lost by refusing the policy's orders",
        ("code", "refused", "total R", "mean R"),
        rows,
        "An order refused by several rules counts for each.",
    )


def _distribution(section: Section, found: Findings) -> None:
    contest = found.contest
    figure = Figure((8, 3.5))
    axes = figure.add_subplot()
    for name in (ALWAYS, AGENT, POLICY):
        own = _traded(contest.played[name])
        if len(own):
            axes.hist(np.clip(own, -2, 5), bins=70, histtype="step", density=True, label=f"{name} (n={len(own):,})")
    axes.set_xlabel("R of the trade, after costs (clipped to -2 and 5)")
    axes.legend(fontsize=8, frameon=False)
    section.plot("Rewards of trades", figure)


def _worth(section: Section, found: Findings) -> None:
    """The seed's last question: does tuning a language model pay, beside simpler rules that learn the same?"""
    contest, draws = found.contest, found.config.evaluate.draws
    rewards = contest.rewards
    rivals = [name for name in (*HEURISTICS, "base model") if name in rewards]
    gaps = np.stack([rewards[POLICY] - rewards[name] for name in rivals], 1)
    gains = mean_intervals(gaps, as_of=contest.arena.as_of, draws=draws)
    tuning = sum(artifact.cpu_seconds for artifact in found.rebuilt.artifacts.values()) / 60
    section.say(
        f"Tuning took {tuning:.1f} CPU minutes for {found.rebuilt.artifacts['scenarios'].facts['real']:,} scenarios; a "
        "decision takes one pass of the language model. The simpler arms are fitted in seconds and answer in "
        "microseconds. What the tuned policy earns more than each of them, rules on:"
    )
    rows = [
        (Cell(name), cell(gain), Cell(contest.played[name].arm.fitted_in_s, digits=1))
        for name, gain in zip(rivals, gains, strict=True)
    ]
    section.table("Policy less simpler arms", ("arm", "gain, R per scenario", "fitted in, CPU s"), rows)
    sure = [gain for gain in gains if gain.low is not None and gain.low > 0]
    section.say(
        "Its gain over every one of them is above 0 with 95 % confidence."
        if len(sure) == len(gains)
        else f"Its gain is above 0 with 95 % confidence over {len(sure)} of {len(gains)} of them: on this evidence "
        "deploying the tuned model is not justified."
    )


def _traded(played: Played) -> Floats:
    return np.asarray(played.own_r[played.arm.approve])


def _own_r(played: Played, as_of: NDArray[np.int64], draws: int) -> Estimate:
    traded = played.arm.approve
    if not traded.any():
        return Estimate(None, reason="no trades")
    return mean_intervals(played.own_r[traded][:, None], as_of=as_of[traded], draws=draws)[0]


def _maybe(value: float | None, reason: str = "") -> Cell:
    """A number, or in its place the reason or a dash."""
    return Cell(value) if value is not None else Cell(reason or "-")


def _dates(seconds: NDArray[np.int64]) -> Any:
    return seconds.astype("datetime64[s]")
