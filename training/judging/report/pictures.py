"""What a trader would rather see than read: who is beaten by how much, in which months, how far
trades went before they ended, what costs do to it, and where agent and policy part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.domain.scenario import pair_of
from training.arrays import Flags, Floats, Rows
from training.config.data import OutcomesConfig
from training.judging.contest.arena import Arena, Played
from training.judging.contest.arms import AGENT, ALWAYS, POLICY
from training.judging.report import words
from training.judging.report.document import Cell, Report, Section
from training.judging.report.findings import Findings, cell
from training.market.bars import Bars
from training.statistics.bootstrap import Estimate, mean_intervals

GOOD, BAD, QUIET = "#1f7a6d", "#b3263a", "0.5"
MOST_TRADES = 3
"""On candles, of those that a policy saved, and of those that it missed."""
LEARNT = {"loss": "loss", "reward": "expected reward", "kl": "distance from the start, nats"}
"""Measures of a step that every algorithm notes, and what they are."""
COSTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Multiples of fee and slippage on the cost curve."""


def forest(section: Section, title: str, gaps: Mapping[str, Estimate]) -> None:
    """A line for each interval, its point, and nought: right of it the policy is better."""
    shown = {name: gap for name, gap in gaps.items() if gap.value is not None}
    if not shown:
        return
    figure = Figure((8, 0.7 + 0.32 * len(shown)))
    axes = figure.add_subplot()
    axes.axvline(0, color=QUIET, linewidth=0.8, linestyle="--")
    for at, gap in enumerate(shown.values()):
        value = float(gap.value or 0.0)
        low = value if gap.low is None else gap.low
        high = value if gap.high is None else gap.high
        sure = QUIET
        if low > 0:
            sure = GOOD
        elif high < 0:
            sure = BAD
        axes.plot([low, high], [at, at], color=sure, linewidth=2)
        axes.plot([value], [at], "o", color=sure, markersize=5)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("R per scenario")
    axes.grid(axis="x", alpha=0.2)
    section.plot(f"{title}. Green: surely better, red: surely worse, grey: may be luck", figure)


def months(section: Section, findings: Findings) -> None:
    """Policy less agent, R of each month: years down, months across."""
    rewards, as_of = findings.contest.rewards, findings.contest.arena.as_of
    years, table = by_month(as_of, rewards[POLICY] - rewards[AGENT])
    figure = Figure((9, 0.8 + 0.5 * len(years)))
    axes = figure.add_subplot()
    most = float(np.nanmax(np.abs(table))) or 1.0
    image = axes.imshow(table, cmap="RdYlGn", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            ink = readable_on(np.asarray(image.to_rgba(np.asarray(value))))
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(12), [datetime(2000, month, 1).strftime("%b") for month in range(1, 13)])
    axes.set_yticks(range(len(years)), [str(year) for year in years])
    figure.colorbar(image, ax=axes, label="R", pad=0.01)
    section.plot("Policy less agent by month, R summed", figure)


def readable_on(colour: Floats) -> str:
    """Black or white, whichever stands out more (WCAG 2's contrast) from a colour, whose red, green
    and blue are 0 to 1."""
    parts = np.asarray(colour[:3])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def by_month(as_of: Rows, gap: Floats) -> tuple[list[int], Floats]:
    """Years, and the sum of each month, (years, 12); NaN of a month without scenarios."""
    when = [datetime.fromtimestamp(int(at), UTC) for at in as_of]
    years = sorted({at.year for at in when})
    table = np.full((len(years), 12), np.nan)
    for at, value in zip(when, gap, strict=True):
        row, column = years.index(at.year), at.month - 1
        table[row, column] = np.nansum([table[row, column], value])
    return years, table


def trades(section: Section, findings: Findings) -> None:
    """The agent's trades that passing, or trading otherwise, saved or missed most, on candles."""
    played = findings.contest.played
    charts = {pair_of(bars.symbol): bars for bars in findings.market.bars}
    draw_trades(section, played[AGENT], played[POLICY].r, charts)


def draw_trades(section: Section, agent: Played, r: Floats, charts: Mapping[str, Bars]) -> None:
    """As `trades`; `r` is what the policy earned, `charts` are by pair (`pair_of`)."""
    shown = widest(agent.arm.approve & np.isfinite(agent.fates.sold), r - agent.r)
    if not len(shown):
        return
    figure = Figure((11, 3.1 * -(-len(shown) // MOST_TRADES)), layout="constrained")
    places = figure.subplots(-(-len(shown) // MOST_TRADES), MOST_TRADES, squeeze=False).flat
    for at, axes in zip(shown, places, strict=False):
        opened, ended = int(agent.fates.entered_at[at]), int(agent.fates.exited_at[at])
        bars = around(charts[pair_of(str(agent.arm.orders.symbol[at]))], opened, ended)
        _candles(axes, bars, agent.arm.orders.stop[at], agent.arm.orders.targets[at])
        for when, price, mark in (
            (opened, agent.fates.bought[at], "^"),
            (ended, agent.fates.sold[at], "v"),
        ):
            axes.plot([when], [price], mark, color="black", markersize=7)
        axes.set_title(
            f"{bars.symbol} {datetime.fromtimestamp(opened, UTC):%Y-%m-%d %H:%M}\n"
            f"agent {agent.r[at]:+.1f} R, policy {r[at]:+.1f} R",
            fontsize=9,
        )
    for axes in list(places):
        axes.set_axis_off()
    section.plot(
        "The agent's trades by which the policy saved most, then those by which it missed most:"
        " entry (up), end (down), stop (red), targets (green); a trailed stop is where it ended",
        figure,
    )


def widest(traded: Flags, gap: Floats) -> Rows:
    """Of what the agent traded: where the policy gained most beside it, then where it lost most."""
    rows = np.flatnonzero(traded)
    order = rows[np.argsort(-gap[rows], kind="stable")]
    saved, missed = order[:MOST_TRADES], order[::-1][:MOST_TRADES]
    return np.concatenate([saved[gap[saved] > 0], missed[gap[missed] < 0]])


def around(bars: Bars, opened: int, ended: int) -> Bars:
    """The bars of a trade, and as many before it and after it."""
    span = max(ended - opened, MOST_TRADES * bars.seconds)
    first, last = np.searchsorted(bars.closed_at, [opened - span, ended + span])
    return bars.part(int(first), int(last))


def _candles(axes: Axes, bars: Bars, stop: float, targets: Floats) -> None:
    rose = bars.close >= bars.open
    middle = bars.closed_at - bars.seconds // 2
    for colour, which in ((GOOD, rose), (BAD, ~rose)):
        axes.vlines(middle[which], bars.low[which], bars.high[which], colour, linewidth=0.7)
        axes.vlines(middle[which], bars.open[which], bars.close[which], colour, linewidth=3)
    axes.axhline(stop, color=BAD, linewidth=0.8, linestyle="--")
    for target in targets[np.isfinite(targets)]:
        axes.axhline(target, color=GOOD, linewidth=0.8, linestyle="--")
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=8)


def learning(report: Report, findings: Findings) -> None:
    """What each policy measured while it learned, a line an arm; nothing of a published version."""
    steps = {name: made.steps for name, made in findings.making.items() if made.steps}
    if steps:
        draw_learning(report.section(words.LEARNING), steps)


def draw_learning(section: Section, steps: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """As `learning`, smoothed: a step sees a few scenarios alone."""
    figure = Figure((11, 3), layout="constrained")
    for axes, (name, what) in zip(figure.subplots(1, len(LEARNT)), LEARNT.items(), strict=True):
        for arm, measures in steps.items():
            values = np.array([measure[name] for measure in measures if name in measure])
            if len(values):
                axes.plot(*smoothed(values), label=arm)
        axes.set_title(what, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(alpha=0.2)
    figure.axes[0].legend(fontsize=8)
    section.plot("Learning, on the scenarios that it learned from", figure)


def smoothed(values: Floats) -> tuple[Rows, Floats]:
    """Steps, from 1, and the mean of the last twentieth of all steps up to each."""
    window = max(len(values) // 20, 1)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return np.arange(window, len(values) + 1), means


def excursions(section: Section, findings: Findings) -> None:
    """How far trades went against and with their holder before they ended: a stop that winners
    never come near is too wide, a target far below what they reach too near."""
    figure = Figure((9, 4))
    sides = figure.subplots(1, 2, sharey=True)
    drawn = False
    for name, colour in ((AGENT, "#8b6fd6"), (POLICY, GOOD)):
        adverse, favourable, r = excursions_of(findings.contest.played[name])
        for axes, reached in zip(sides, (adverse, favourable), strict=True):
            axes.scatter(reached, r, s=5, alpha=0.4, color=colour, label=f"{name} (n={len(r):,})")
        drawn = drawn or bool(len(r))
    if not drawn:
        return
    for axes, end in zip(sides, ("worst", "best"), strict=True):
        axes.axhline(0, color=QUIET, linewidth=0.8)
        axes.set_xlabel(f"{end} while open, R of the agent's plan")
        axes.grid(alpha=0.2)
    sides[0].set_ylabel("R when it ended, after costs")
    sides[1].legend(fontsize=8, frameon=False)
    section.plot(
        "Worst (MAE) and best (MFE) excursion of each trade, against what it earned", figure
    )


def excursions_of(played: Played) -> tuple[Floats, Floats, Floats]:
    """Worst and best excursion, and R, of the trades of an arm; in R of the agent's plan, clipped
    to -3 and 6."""
    traded = played.arm.approve
    risk = played.arm.orders.plan_risk[traded]
    parts = played.fates.mae[traded] / risk, played.fates.mfe[traded] / risk, played.r[traded]
    adverse, favourable, r = (np.clip(np.nan_to_num(part), -3, 6) for part in parts)
    return adverse, favourable, r


def costs(section: Section, findings: Findings) -> None:
    """The same answers at other costs: where each arm stops earning."""
    curves: dict[str, list[float]] = {name: [] for name in (POLICY, AGENT, ALWAYS)}
    for times in COSTS:
        arena = at_costs(findings, times)
        usable = np.searchsorted(findings.contest.arena.rows, arena.rows)
        for name, curve in curves.items():
            played = arena.play(findings.contest.played[name].arm.at(usable))
            curve.append(float(played.r.mean()))
    figure = Figure((7, 3.5))
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(COSTS, curve, "o-", markersize=3, linewidth=1.2, label=name)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.axvline(1, color=QUIET, linewidth=0.8, linestyle="--")
    axes.set_xlabel("times the costs of this report (dashed: 1)")
    axes.set_ylabel("R per scenario")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
    section.plot("What costs do to it", figure)


def at_costs(findings: Findings, times: float) -> Arena:
    """The scenarios of the contest with fee and slippage so many times as high."""
    given: OutcomesConfig = findings.terms.outcomes
    changed = {"fee": times * given.fee, "slippage": times * given.slippage}
    outcomes = given.model_copy(update=changed)
    rows = findings.contest.arena.rows
    return Arena.of(findings.held_out.scenarios, findings.market.series(), outcomes, rows)


def answers(section: Section, findings: Findings) -> None:
    """Agent against policy: how often each pair of answers came, and what it was worth."""
    contest = findings.contest
    agent, policy = (contest.played[name].arm.approve for name in (AGENT, POLICY))
    plan, gap = contest.rewards[ALWAYS], contest.rewards[POLICY] - contest.rewards[AGENT]
    rows = [
        (
            Cell("trades" if theirs else "passes"),
            Cell("trades" if mine else "passes"),
            Cell(int(here.sum())),
            Cell(float(here.mean()), digits=2),
            *_means((plan, gap), here, contest.arena.as_of, findings.terms.evaluate.draws),
        )
        for theirs, mine, here in pairs(agent, policy)
    ]
    section.table(
        "Agent against policy",
        ("agent", "policy", "scenarios", "share", "R of the agent's plan", "policy - agent, R"),
        rows,
        "Mean R per scenario. The plan's R is what trading it as the agent would have earned,"
        " whoever passed.",
    )


def pairs(agent: Flags, policy: Flags) -> list[tuple[bool, bool, Flags]]:
    """Each pair of answers with the scenarios where it came."""
    both = ((True, True), (True, False), (False, True), (False, False))
    return [(one, other, (agent == one) & (policy == other)) for one, other in both]


def _means(values: Sequence[Floats], here: Flags, as_of: Rows, draws: int) -> list[Cell]:
    if not here.any():
        return [Cell(None, reason="it never came") for _ in values]
    columns = np.stack([value[here] for value in values], 1)
    return [cell(mean) for mean in mean_intervals(columns, as_of=as_of[here], draws=draws)]
