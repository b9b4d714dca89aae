"""The evaluation's report: what happened to every arm, how sure that is, and why the gate said what
it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    BASE_MODEL,
    BASELINES,
    HEURISTICS,
    HOLD,
    POLICY,
    RANDOM,
    RAW,
)
from training.judging.contest.performance import sharpe
from training.judging.contest.portfolio import Curve
from training.judging.gate.verdict import Verdict
from training.judging.report import details, doubts, pictures, words
from training.judging.report.document import Cell, Report, Section
from training.judging.report.findings import Everything, Findings, cell, maybe
from training.statistics.bootstrap import Estimate, mean_intervals, none
from training.statistics.selection import (
    holm,
    model_confidence_set,
    probability_of_overfitting,
    superior_predictive_ability,
)

EARNED = ("arm", "mean R per scenario", "trades", "share traded", "mean R per trade")
MOST_TOLD = 3
"""Reasons for a refusal in the headline; the table under it has all."""
SHOWN = (POLICY, AGENT, ALWAYS, RANDOM, HOLD)
OF_CURVE = ("total_return", "sharpe", "cagr", "max_drawdown", "drawdown_days")
OF_TAILS = ("sortino", "tail_ratio")
OF_TRADES = ("win_rate", "expectancy_r", "profit_factor", "turnover", "exposure")


def evaluation_report(findings: Findings) -> Report:
    """The whole report, in the order in which people ask."""
    arena = findings.contest.arena
    first, last = (datetime.fromtimestamp(int(at), UTC) for at in (arena.as_of[0], arena.as_of[-1]))
    costs = findings.terms.outcomes
    facts = {
        "model version": findings.evidence.model_version,
        "algorithm": findings.terms.algorithm,
        "period": (
            f"{first:%Y-%m-%d} to {last:%Y-%m-%d},"
            f" {'held out' if findings.look else 'walking forward'}"
        ),
        "scenarios": _counted(findings),
        "costs": f"fee {costs.fee:.2%} and slippage {costs.slippage:.2%}, each side",
        "simple rivals": (
            f"fitted anew every {findings.terms.evaluate.refit_days:g} days on all that was over"
        ),
    }
    if findings.look:
        facts["versions that looked at this period"] = f"{findings.look}, this one included"
    report = Report("Does it deserve promotion?", _headline(findings), findings.made_at, facts)
    report.glossary = words.GLOSSARY
    _verdict(report.section(words.VERDICT), findings)
    _rewards(report.section(words.ARMS), findings)
    _books(report.section(words.PORTFOLIO), findings)
    if findings.terms.market.source == "synthetic":
        doubts.truth(report.section("The truth, known here"), findings)
    section = report.section("Would it hold?")
    doubts.stresses(section, findings)
    pictures.costs(section, findings)
    doubts.power(report.section(words.DATA), findings)
    section = report.section("Where, and when")
    pictures.months(section, findings)
    details.groups(section, findings)
    details.calibration(report.section(words.HONEST), findings)
    section = report.section(words.APART)
    pictures.answers(section, findings)
    details.disagreements(section, findings)
    pictures.trades(section, findings)
    details.vetoes(report.section("What each veto was worth"), findings)
    pictures.learning(report, findings)
    section = report.section("Rewards of trades")
    details.distribution(section, findings)
    pictures.excursions(section, findings)
    if BASE_MODEL in findings.contest.probabilities:  # It stands for the policy that is logged.
        section = report.section("If only the logged action's outcome were known")
        doubts.off_policy(section, findings)
    doubts.combinatorial(report.section("The simple rivals before the held-out period"), findings)
    _worth(report.section("Is it worth it?"), findings)
    return report


def _counted(findings: Findings) -> str:
    arena, everything = findings.contest.arena, findings.everything
    symbols = ", ".join(np.unique(arena.symbols))
    if everything is None:
        return f"{len(arena):,} of {symbols}"
    return (
        f"{len(arena):,} whose prompts were read, of {len(everything.arena):,} candidates of"
        f" {symbols}"
    )


def _headline(findings: Findings) -> str:
    contest = findings.contest
    policy, agent = contest.played[POLICY], contest.played[AGENT]
    opened = words.opening(
        float(np.mean(policy.r)),
        float(np.mean(agent.r)),
        -float(np.mean(np.where(policy.arm.approve, 0.0, agent.r))),
        findings.verdict.differences.get(AGENT, none("the evidence was refused before")),
        len(contest.arena),
        len(np.unique(contest.arena.as_of // DAY_S)),
    )
    if findings.verdict.promote:
        return f"{opened} {findings.evidence.model_version} passes the gate."
    reasons = [*dict.fromkeys(words.REASONS[each.code] for each in findings.verdict.refusals)]
    told = ", ".join(reasons[:MOST_TOLD])
    more = len(reasons) - MOST_TOLD
    told += f", and {more} reasons more" if more > 0 else ""
    return f"{opened} {findings.evidence.model_version} is refused: {told}."


def _verdict(section: Section, findings: Findings) -> None:
    section.say(
        "A version is promoted when every bound holds: better than the agent, than every heuristic,"
        " than a random veto at its own rate and than not trading, on scenarios that nothing was"
        " trained on, after costs. A refusal is a result too."
    )
    _reasons(section, "Reasons for the refusal", findings.verdict)
    checks = [
        (Cell(check.name.value), Cell("passed" if check.passed else "failed"), Cell(check.evidence))
        for check in findings.evidence.checks
    ]
    section.table("Checks", ("check", "result", "evidence"), checks)
    note = (
        f"Paired by scenario; {findings.terms.gate.confidence:.1%} one-sided bounds, stationary"
        " bootstrap over days."
    )
    _differences(section, "Policy less rival, mean R per scenario", findings.verdict, note)
    section.say(
        "As a veto it may be promoted without trading better than nobody: it refuses trades of the"
        " agent's, adds none, and must save R against the agent and against as many refusals dealt"
        f" at random. {'It passes.' if findings.veto.promote else 'It is refused.'}"
    )
    _reasons(section, "Reasons for the refusal as a veto", findings.veto)
    note += " The bounds' error is divided by the number of versions that looked."
    _differences(section, "Veto less rival, mean R per scenario", findings.veto, note)


def _reasons(section: Section, title: str, verdict: Verdict) -> None:
    rows = [
        (
            Cell(words.REASONS[refusal.code], section=words.EVIDENCE.get(refusal.code, "")),
            Cell(refusal.about),
            _weighed(refusal.observed),
            _weighed(refusal.limit),
            Cell(refusal.detail or "-"),
            Cell(refusal.code.value),
        )
        for refusal in verdict.refusals
    ]
    if rows:
        section.table(
            title, ("reason", "about", "observed", "limit", "detail", "code in docs/gate.md"), rows
        )


def _weighed(value: float | None) -> Cell:
    """A count without decimals; R with enough of them that a miss by a hair is seen."""
    if value is None:
        return Cell("-")
    return Cell(int(value)) if float(value).is_integer() else Cell(value, digits=4)


def _differences(section: Section, title: str, verdict: Verdict, note: str) -> None:
    rows = [(Cell(name), cell(gap)) for name, gap in verdict.differences.items()]
    if rows:
        section.table(title, ("rival", "difference"), rows, note)


def _rewards(section: Section, findings: Findings) -> None:
    contest, draws = findings.contest, findings.terms.evaluate.draws
    rewards, played, as_of = contest.rewards, contest.played, contest.arena.as_of
    means = mean_intervals(np.stack(list(rewards.values()), axis=1), as_of=as_of, draws=draws)
    # The random veto is no arm that was played: it deals the policy's own answers.
    rows = [
        _earned(name, mean, played.get(name), played[POLICY], as_of, draws)
        for name, mean in zip(rewards, means, strict=True)
    ]
    section.table(
        "Mean reward per scenario, net of costs",
        EARNED,
        rows,
        "R is the risk of the agent's plan, in both columns; not trading earns 0. 95 % intervals,"
        " stationary bootstrap over days. The random veto is the mean of"
        f" {findings.terms.evaluate.random_vetoes} draws of the policy's own answers.",
    )
    if findings.everything is not None:
        _everything(section, findings.everything, len(contest.arena), draws)
    _tests(section, findings, rewards)


def _earned(
    name: str,
    mean: Estimate,
    own: Played | None,
    policy: Played,
    as_of: NDArray[np.int64],
    draws: int,
) -> tuple[Cell, ...]:
    """A row of `EARNED`; `own` is None for the random veto."""
    trades = (own or policy).arm.approve
    per_trade = Estimate(None, reason="dealt at random")
    if own is not None:
        per_trade = _per_trade(own, as_of, draws)
    return (
        Cell(name),
        cell(mean),
        Cell(int(trades.sum())),
        Cell(float(trades.mean()), digits=2),
        cell(per_trade),
    )


def _everything(section: Section, everything: Everything, prompts: int, draws: int) -> None:
    """A language model reads as many prompts as there is time for; the others read all there is."""
    arena, played = everything.arena, everything.played
    values = np.stack([each.r for each in played.values()], axis=1)
    means = mean_intervals(values, as_of=arena.as_of, draws=draws)
    rows = [
        _earned(name, mean, own, own, arena.as_of, draws)
        for (name, own), mean in zip(played.items(), means, strict=True)
    ]
    section.table(
        "Every candidate of the period, arms without a language model",
        EARNED,
        rows,
        f"{len(arena):,} candidates; {prompts:,} of them are the scenarios above. What is fitted"
        f" was fitted on {everything.fitted_on:,} first, and anew on all that was over.",
    )


def _tests(section: Section, findings: Findings, rewards: dict[str, Floats]) -> None:
    policy, as_of, draws = (
        rewards[POLICY],
        findings.contest.arena.as_of,
        findings.terms.evaluate.draws,
    )
    rivals = [name for name in rewards if name not in (POLICY, RAW)]
    against = mean_intervals(
        np.stack([policy - rewards[name] for name in rivals], 1), as_of=as_of, draws=draws
    )
    adjusted = holm(
        {name: gap.p for name, gap in zip(rivals, against, strict=True) if gap.p is not None}
    )
    best = model_confidence_set({name: rewards[name] for name in (*rivals, POLICY)}, draws=draws)
    rows = [
        (
            Cell(name),
            cell(gap),
            maybe(gap.p, "constant difference"),
            maybe(adjusted.get(name), "constant difference"),
            Cell(best[name]),
        )
        for name, gap in zip(rivals, against, strict=True)
    ]
    gaps = dict(zip(rivals, against, strict=True))
    pictures.forest(section, "Policy less each arm, intervals of 95 %", gaps)
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


def _books(section: Section, findings: Findings) -> None:
    contest, config = findings.contest, findings.terms.evaluate
    for title, measures in (
        ("by curve", OF_CURVE),
        ("by its tails", OF_TAILS),
        ("by trade", OF_TRADES),
    ):
        rows = [
            (Cell(name), *(cell(getattr(performance, measure), 2) for measure in measures))
            for name, performance in contest.performances.items()
        ]
        columns = ("arm", *(name.replace("_", " ") for name in measures))
        section.table(f"Measures of the portfolio, {title}", columns, rows)
    section.say(
        f"Capital {config.capital:g}, at most {config.max_open} open; curves are seen once a day;"
        " Sharpe and Sortino are annualised by that clock, without a risk-free rate. Drawdown as a"
        " fraction, expectancy in R of the agent's plan, turnover per year over mean equity,"
        " exposure as a share of time."
    )
    dealt = [book.curve.sampled(DAY_S) for book in contest.random.books]
    ratios = [sharpe(curve.returns, curve.steps_per_year) for curve in dealt]
    defined = np.array([ratio for ratio in ratios if ratio is not None])
    if len(defined):
        low, high = np.quantile(defined, [0.05, 0.95])
        section.say(
            f"Sharpe of the random veto over {len(defined)} draws: median"
            f" {np.median(defined):.2f}, 90 % within {low:.2f} to {high:.2f}."
        )
    returns = np.stack(
        [book.curve.sampled(DAY_S).returns for name, book in contest.books.items() if name != HOLD],
        1,
    )
    overfit = probability_of_overfitting(returns)
    section.say(
        "Probability that the arm that looked best in one half of the days is below the median in"
        " the other (PBO): " + (overfit.reason if overfit.pbo is None else f"{overfit.pbo:.2f}.")
    )
    _curves(section, findings)


def _curves(section: Section, findings: Findings) -> None:
    contest = findings.contest
    curves = {n: contest.books[n].curve.sampled(DAY_S) for n in SHOWN if n in contest.books}
    dealt = [book.curve.sampled(DAY_S) for book in contest.random.books]
    draw_curves(section, curves, dealt)


def draw_curves(section: Section, curves: Mapping[str, Curve], dealt: Sequence[Curve]) -> None:
    """Equity and drawdown of arms, and the policy's equity among that of random vetoes, on a scale
    of its own: whoever trades little is flat beside a market."""
    equity, among, fall = (Figure((10, height), layout="tight") for height in (4, 3, 3))
    above, beside, below = (figure.add_subplot() for figure in (equity, among, fall))
    for number, curve in enumerate(dealt):
        label = f"random veto, {len(dealt)} draws" if number == 0 else None
        beside.plot(_dates(curve.at), curve.value, color="0.6", linewidth=0.6, label=label)
    for name, curve in curves.items():
        above.plot(_dates(curve.at), curve.value, label=name, linewidth=1.2)
        below.plot(_dates(curve.at), -100 * curve.drawdown, label=name, linewidth=1.0)
        if name == POLICY:
            beside.plot(_dates(curve.at), curve.value, label=name, linewidth=1.2)
    above.set_ylabel("equity, quote")
    beside.set_ylabel("equity, quote")
    below.set_ylabel("below the last peak, %")
    for axes in (above, beside, below):
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.2)
    section.plot("Equity", equity)
    if dealt:
        section.plot("Equity of the policy among draws of the random veto at its rate", among)
    section.plot("Drawdown", fall)


def _worth(section: Section, findings: Findings) -> None:
    """The seed's last question: does tuning a language model pay, beside simpler rules that learn
    the same?"""
    contest, draws = findings.contest, findings.terms.evaluate.draws
    rewards = contest.rewards
    rivals = [name for name in (*HEURISTICS, *BASELINES) if name in rewards]
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
            maybe(1e3 * findings.decision_s or None, "not measured"),
        )
        for name, (seconds, _) in findings.making.items()
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
        f" {int(findings.trained.scenarios.real.sum()):,} scenarios; a decision is"
        " one pass of the language model, median of the parity check. Of simple rivals: all"
        " refits, each with its choice of a cut.",
    )
    for name, why in findings.collapsed.items():
        section.say(f"{name} takes no part: {why}.")
    sure = [gain for gain in gains if gain.low is not None and gain.low > 0]
    if len(sure) == len(gains):
        section.say("Its gain over every one of them is above 0 with 95 % confidence.")
    else:
        section.say(
            f"Its gain is above 0 with 95 % confidence over {len(sure)} of {len(gains)} of them: on"
            " this evidence deploying the tuned model is not justified."
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
