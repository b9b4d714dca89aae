"""The evaluation's report: what happened to every arm, how sure that is, and why the gate said what
it said."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.arrays import DAY_S, Floats
from training.judging.contest.arena import Played
from training.judging.contest.arms import (
    AGENT,
    ALWAYS,
    CONTROLS,
    HEURISTICS,
    HOLD,
    POLICY,
    RANDOM,
    RAW,
)
from training.judging.contest.performance import sharpe
from training.judging.report import details, doubts
from training.judging.report.document import Cell, Report, Section
from training.judging.report.findings import Findings, cell, maybe
from training.statistics.bootstrap import Estimate, mean_intervals
from training.statistics.selection import (
    holm,
    model_confidence_set,
    probability_of_overfitting,
    superior_predictive_ability,
)

SHOWN = (POLICY, AGENT, ALWAYS, RANDOM, HOLD)
OF_CURVE = ("total_return", "sharpe", "cagr", "max_drawdown", "drawdown_days")
OF_TAILS = ("sortino", "tail_ratio")
OF_TRADES = ("win_rate", "expectancy_r", "profit_factor", "turnover", "exposure")


def evaluation_report(found: Findings) -> Report:
    """The whole report, in the order in which people ask."""
    arena = found.contest.arena
    first, last = (datetime.fromtimestamp(int(at), UTC) for at in (arena.as_of[0], arena.as_of[-1]))
    costs = found.terms.outcomes
    codes = sorted({refusal.code.value for refusal in found.verdict.refusals})
    headline = (
        f"{found.model_version} passes the gate."
        if found.verdict.promote
        else (
            f"{found.model_version} is refused:"
            f" {', '.join(code.replace('_', ' ') for code in codes)}."
        )
    )
    facts = {
        "model version": found.model_version,
        "algorithm": found.terms.algorithm,
        "period": (
            f"{first:%Y-%m-%d} to {last:%Y-%m-%d},"
            f" {'held out' if found.look else 'walking forward'}"
        ),
        "scenarios": f"{len(arena):,} of {', '.join(np.unique(arena.symbols))}",
        "costs": f"fee {costs.fee:.2%} and slippage {costs.slippage:.2%}, each side",
        "simple rivals": (
            f"fitted anew every {found.terms.evaluate.refit_days:g} days on all that was over"
        ),
    }
    if found.look:
        facts["versions that looked at this period"] = f"{found.look}, this one included"
    report = Report("Does it deserve promotion?", headline, found.made_at, facts)
    _verdict(report.section("The gate's verdict"), found)
    _rewards(report.section("Every arm on the same scenarios"), found)
    _books(report.section("As a portfolio"), found)
    if found.terms.market.source == "synthetic":
        doubts.truth(report.section("The truth, known here"), found)
    doubts.stresses(report.section("Would it hold?"), found)
    doubts.power(report.section("How much data would it take?"), found)
    details.groups(report.section("Where"), found)
    details.calibration(report.section("Are its probabilities honest?"), found)
    details.disagreements(report.section("When policy and agent disagreed"), found)
    details.vetoes(report.section("What each veto was worth"), found)
    details.distribution(report.section("Rewards of trades"), found)
    doubts.off_policy(report.section("If only the logged action's outcome were known"), found)
    doubts.combinatorial(report.section("The simple rivals before the held-out period"), found)
    _worth(report.section("Is it worth it?"), found)
    return report


def _verdict(section: Section, found: Findings) -> None:
    section.say(
        "A version is promoted when every bound holds: better than the agent, than every heuristic"
        " and than a random veto at its own rate, on scenarios that nothing was trained on, after"
        " costs. A refusal is a result too."
    )
    rows = [
        (
            Cell(each.code.value),
            Cell(each.about),
            maybe(each.observed),
            maybe(each.limit),
            Cell(each.detail or "-"),
        )
        for each in found.verdict.refusals
    ]
    if rows:
        section.table(
            "Reasons for the refusal", ("reason", "about", "observed", "limit", "detail"), rows
        )
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
            f"Paired by scenario; {found.terms.gate.confidence:.1%} one-sided bounds, stationary"
            " bootstrap over days.",
        )


def _rewards(section: Section, found: Findings) -> None:
    contest = found.contest
    rewards, played = contest.rewards, contest.played
    names = list(rewards)
    values = np.stack([rewards[name] for name in names], axis=1)
    arena, draws = contest.arena, found.terms.evaluate.draws
    means = mean_intervals(values, as_of=arena.as_of, draws=draws)
    rows = []
    for name, mean in zip(names, means, strict=True):
        trades = played[name].arm.approve if name in played else played[POLICY].arm.approve
        per_trade = (
            _per_trade(played[name], arena.as_of, draws)
            if name in played
            else Estimate(None, reason="dealt at random")
        )
        rows.append(
            (
                Cell(name),
                cell(mean),
                Cell(int(trades.sum())),
                Cell(float(trades.mean()), digits=2),
                cell(per_trade),
            )
        )
    section.table(
        "Mean reward per scenario, net of costs",
        ("arm", "mean R per scenario", "trades", "share traded", "mean R per trade"),
        rows,
        "R is the risk of the agent's plan, in both columns; not trading earns 0. 95 % intervals,"
        " stationary bootstrap over days. The random veto is the mean of"
        f" {found.terms.evaluate.random_vetoes} draws of the policy's own answers.",
    )
    _tests(section, found, rewards)


def _tests(section: Section, found: Findings, rewards: dict[str, Floats]) -> None:
    policy, as_of, draws = rewards[POLICY], found.contest.arena.as_of, found.terms.evaluate.draws
    rivals = [name for name in rewards if name not in (POLICY, RAW)]
    against = mean_intervals(
        np.stack([policy - rewards[name] for name in rivals], 1), as_of=as_of, draws=draws
    )
    adjusted = holm(
        {name: each.p for name, each in zip(rivals, against, strict=True) if each.p is not None}
    )
    best = model_confidence_set({name: rewards[name] for name in (*rivals, POLICY)}, draws=draws)
    rows = [
        (
            Cell(name),
            cell(each),
            maybe(each.p, "constant difference"),
            maybe(adjusted.get(name), "constant difference"),
            Cell(best[name]),
        )
        for name, each in zip(rivals, against, strict=True)
    ]
    section.table(
        "Policy less each arm",
        ("arm", "difference, R per scenario", "p", "p after Holm", "p of being among the best"),
        rows,
        "p: one-sided, how likely such a difference were the policy no better. The last column is"
        f" the arm's own, in the model confidence set; the policy's is {best[POLICY]:.3f}.",
    )
    spa = superior_predictive_ability(
        rewards[AGENT], np.stack([rewards[n] for n in rewards if n != AGENT], 1), draws=draws
    )
    section.say(
        "Does any arm beat the agent at all (Hansen's test of superior predictive ability)? "
        + (spa.reason if spa.consistent is None else f"p {_p(spa.consistent, draws)}.")
    )


def _books(section: Section, found: Findings) -> None:
    contest, config = found.contest, found.terms.evaluate
    for title, measures in (
        ("by curve", OF_CURVE),
        ("by its tails", OF_TAILS),
        ("by trade", OF_TRADES),
    ):
        rows = [
            (Cell(name), *(cell(getattr(each, measure), 2) for measure in measures))
            for name, each in contest.performances.items()
        ]
        columns = ("arm", *(name.replace("_", " ") for name in measures))
        section.table(f"Measures of the portfolio, {title}", columns, rows)
    section.say(
        f"Capital {config.capital:g}, at most {config.max_open} open; curves are seen once a day;"
        " Sharpe and Sortino are annualised by that clock, without a risk-free rate. Drawdown as a"
        " fraction, expectancy in R of the agent's plan, turnover per year over mean equity,"
        " exposure as a share of time."
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
    returns = np.stack(
        [each.curve.sampled(DAY_S).returns for name, each in contest.books.items() if name != HOLD],
        1,
    )
    overfit = probability_of_overfitting(returns)
    section.say(
        "Probability that the arm that looked best in one half of the days is below the median in"
        " the other (PBO): " + (overfit.reason if overfit.pbo is None else f"{overfit.pbo:.2f}.")
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
            below.plot(_dates(curve.at), -100 * curve.drawdown, label=name, linewidth=1.0)
    above.set_ylabel("equity, quote")
    below.set_ylabel("below the last peak, %")
    for axes in (above, below):
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.2)
    section.plot("Equity. Grey: draws of the random veto at the policy's rate", equity)
    section.plot("Drawdown", fall)


def _worth(section: Section, found: Findings) -> None:
    """The seed's last question: does tuning a language model pay, beside simpler rules that learn
    the same?"""
    contest, draws = found.contest, found.terms.evaluate.draws
    rewards = contest.rewards
    rivals = [name for name in (*HEURISTICS, *CONTROLS) if name in rewards]
    gaps = np.stack([rewards[POLICY] - rewards[name] for name in rivals], 1)
    gains = mean_intervals(gaps, as_of=contest.arena.as_of, draws=draws)
    rows = [(Cell(name), cell(gain)) for name, gain in zip(rivals, gains, strict=True)]
    section.table(
        "What the tuned policy earns more than simpler arms", ("arm", "gain, R per scenario"), rows
    )
    costs = [
        (
            Cell(name),
            Cell(seconds / 60, digits=1),
            maybe(1e3 * found.decision_s or None, "not measured"),
        )
        for name, seconds in found.cpu_seconds.items()
    ]
    costs += [
        (Cell(name), Cell(contest.played[name].arm.fitted_in_s / 60, digits=2), Cell("under 1"))
        for name in HEURISTICS
    ]
    section.table(
        "What each costs",
        ("arm", "making it, CPU minutes", "a decision, ms"),
        costs,
        "Of policies: every stage of the rebuild, for"
        f" {int(found.trained.scenarios.real.sum()):,} scenarios; a decision is"
        " one pass of the language model, median of the parity check. Of simple rivals: all"
        " refits, each with its choice of a cut.",
    )
    sure = [gain for gain in gains if gain.low is not None and gain.low > 0]
    section.say(
        "Its gain over every one of them is above 0 with 95 % confidence."
        if len(sure) == len(gains)
        else (
            f"Its gain is above 0 with 95 % confidence over {len(sure)} of {len(gains)} of them: on"
            " this evidence deploying the tuned model is not justified."
        )
    )


def _p(value: float, draws: int) -> str:
    """As far as so many draws can tell."""
    return f"= {value:.3f}" if value >= 1 / draws else f"< {1 / draws:g}"


def _per_trade(played: Played, as_of: NDArray[np.int64], draws: int) -> Estimate:
    traded = played.arm.approve
    if not traded.any():
        return Estimate(None, reason="no trades")
    return mean_intervals(played.r[traded][:, None], as_of=as_of[traded], draws=draws)[0]


def _dates(seconds: NDArray[np.int64]) -> Any:
    return seconds.astype("datetime64[s]")
