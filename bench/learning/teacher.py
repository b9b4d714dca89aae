"""How good the teacher is: `python -m bench.learning.teacher --market DIRECTORY`.

Learns from every candidate before 2023 and is asked about every one of the held-out period, which
is looked at by this command alone, or of later days (`--since 2025-01-01 --until 2027-01-01`).
`--develop` asks about 2021 and 2022 instead, each after
learning from what lies before it: for every choice of features, learners and settings. Prints the
table of docs/teacher.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from app.domain.features import FEATURE_NAMES
from app.domain.model.actions import ACTIONS
from bench.asked import SINCE, UNTIL, Since, Until, entry, period_of, tell_beyond
from training.arrays import DAY_S, HELD_OUT_FROM, Flags, Floats, Rows, instant
from training.cli.options import finite, meter
from training.config.data import MarketConfig, OutcomesConfig, ScenariosConfig
from training.config.learning import NetworkConfig, TargetsConfig, TeacherConfig
from training.config.section import at_home
from training.learning.targets.utility import aversion, utility
from training.learning.teacher.accuracy import chance, range_baselines, slope, uplift
from training.learning.teacher.lessons import GROSS, QUESTIONS, RANGE, STOPPED, WIN, Lessons
from training.learning.teacher.network import Inputs
from training.learning.teacher.predictions import Predictions
from training.learning.teacher.teacher import said_by_all, teach
from training.outcomes.labels import Labels, labels
from training.scenarios.history import History, load_history, of_history
from training.scenarios.table import ScenarioSet, evenly
from training.stages.workshop import Workshop
from training.statistics.bootstrap import Estimate

PLAN = next(n for n, a in enumerate(ACTIONS) if a.name == "approve_r1.00_s1.5")
"""The reference agent's own plan."""
CURVE = (480, 1000, 5000)
EMBARGO_S = float(DAY_S)
WHOLE_FROM = 0.15
"""R; what a usual plan of deviation 1 is taken whole from (docs/decisions/0024-objective.md)."""
SIZES = np.array([0.25, 0.5, 1.0])
MOVES = 0.0008
"""Share of equity that a foretold range may move (docs/decisions/0055-sizes.md): the calmest
twentieth of plans before 2023 moved less."""
TAIL, DRAWS = 0.05, 1000
TEACHER, ATR, SHUFFLED = "teacher", "ATR alone (a cost filter)", "teacher of shuffled labels"


class Period(NamedTuple):
    """Labelled candidates of a period."""

    lessons: Lessons
    features: Floats
    earned: Floats
    """(N,) R of the plan."""
    real: Flags
    """(N,) candidates as they were; the others have made-up terms and train alone."""


class Exam(NamedTuple):
    """What is learned from, and what is asked."""

    learned: Rows
    asked: Rows


def main(
    market: Annotated[Path, typer.Option(help="folder of bars: SYMBOL_1h.parquet")],
    develop: Annotated[bool, typer.Option(help="2021 and 2022 instead of the held-out")] = False,
    terms: Annotated[
        float,
        typer.Option(min=0, max=1, callback=finite, help="share with a variant on other terms"),
    ] = 0.5,
    baselines: Annotated[
        bool, typer.Option(help="teachers of few rows and of shuffled labels beside it")
    ] = True,
    folder: Annotated[Path, typer.Option(callback=at_home, help="where artefacts are kept")] = Path(
        "var/artifacts"
    ),
    since: Since = SINCE,
    until: Until = UNTIL,
) -> None:
    """Print the table."""
    asked_about = period_of(since, until)
    config = TeacherConfig(network=NetworkConfig(members=0))  # there are no prompts to read
    outcomes = OutcomesConfig()
    shop = Workshop(folder, typer.echo, meter)
    source = MarketConfig(source="directory", directory=market)
    known = load_history(source, instant(HELD_OUT_FROM))
    rows = period(shop, known, ScenariosConfig(terms=terms), outcomes)
    exams = list(years(rows)) if develop else []
    if not develop:
        whole = load_history(source, None)
        tell_beyond(asked_about, whole)
        held = period(shop, whole, asked_about, outcomes)
        exams = [Exam(np.arange(len(rows.earned)), len(rows.earned) + np.arange(len(held.earned)))]
        rows = joined(rows, held)
    asked = np.concatenate([exam.asked for exam in exams])
    counts = CURVE if baselines and not develop else ()
    schools = taught(rows, exams, config, counts, baselines)
    for line in (*table(rows, exams, asked, schools), *sizes(rows, asked, schools[TEACHER])):
        typer.echo(line)


def period(
    shop: Workshop, market: History, settings: ScenariosConfig, outcomes: OutcomesConfig
) -> Period:
    """Every candidate of a period that bars can judge."""
    made = shop.make(of_history, market=market, settings=settings)
    fates = shop.make(labels, scenarios=made, market=market, settings=outcomes)
    scenarios, fate = ScenarioSet.open(made), Labels.open(fates)
    lessons = Lessons.of(scenarios, fate, outcomes)
    known = np.flatnonzero(np.isfinite(lessons.answers).all(axis=1))
    return Period(
        lessons.at(known),
        scenarios.features()[known],
        fate.agent_reward[known],
        scenarios.real[known],
    )


def joined(one: Period, other: Period) -> Period:
    """One after the other."""
    return Period(
        Lessons.joined([one.lessons, other.lessons]),
        np.concatenate([one.features, other.features]),
        np.concatenate([one.earned, other.earned]),
        np.concatenate([one.real, other.real]),
    )


def years(rows: Period) -> Iterator[Exam]:
    """2021 and 2022, each after what lies before it and an embargo."""
    for year in (2021, 2022):
        begins, ends = instant(date(year, 1, 1)), instant(date(year + 1, 1, 1))
        as_of, ends_at = rows.lessons.as_of, rows.lessons.ends_at
        yield Exam(
            np.flatnonzero(ends_at + EMBARGO_S <= begins),
            np.flatnonzero((as_of >= begins) & (as_of < ends) & rows.real),
        )


def taught(
    rows: Period,
    exams: list[Exam],
    config: TeacherConfig,
    counts: tuple[int, ...],
    dealt_out: bool,
) -> dict[str, Predictions]:
    """What teachers say of all that is asked: of all rows, of some, and of shuffled fates."""
    said: dict[str, list[Predictions]] = {}
    for exam in exams:
        few = {f"teacher of {n:,} rows": exam.learned[evenly(len(exam.learned), n)] for n in counts}
        for name, learned in ({TEACHER: exam.learned} | few).items():
            said.setdefault(name, []).append(_asked(name, rows.lessons, learned, exam, config))
        if dealt_out:
            # The net result is dealt out, costs are added back: what a plan costs tells nothing.
            dealt = shuffled(rows.lessons, exam.learned)
            answers = _asked(SHUFFLED, dealt, exam.learned, exam, config)
            said.setdefault(SHUFFLED, []).append(answers)
    return {name: Predictions.joined(parts) for name, parts in said.items()}


def shuffled(lessons: Lessons, learned: Rows) -> Lessons:
    """The fates of the learned rows dealt to each other at random, net of costs, ATR."""
    source = np.random.default_rng(0).permutation(learned)
    answers = lessons.answers.copy()
    answers[learned] = lessons.answers[source]
    gross = slice(QUESTIONS.index(GROSS[0]), QUESTIONS.index(GROSS[-1]) + 1)
    costs = lessons.told.costs * lessons.told.stop_atr
    answers[learned, gross] += (costs[learned] - costs[source])[:, None]
    return replace(lessons, answers=answers)


def table(
    rows: Period, exams: list[Exam], asked: Rows, said: Mapping[str, Predictions]
) -> Iterator[str]:
    """Lines of Markdown."""
    lessons, earned = rows.lessons, rows.earned[asked]
    rankings = {name: words.expected[:, PLAN] for name, words in said.items()}
    rankings[ATR] = -lessons.told.costs[asked]
    gains, leads = uplift(rankings, earned, lessons.as_of[asked], TEACHER)
    teacher = said[TEACHER]
    yield f"{len(asked):,} candidates, mean R of taking all {earned.mean():+.3f}"
    yield "\n| the better half less a random veto of the same rate | R | the teacher's lead |"
    yield "|---|---|---|"
    for name, gain in gains.items():
        yield f"| {name} | {interval(gain)} | {interval(leads[name]) if name in leads else ''} |"
    yield "\n| question | measure | value | baseline |"
    yield "|---|---|---|---|"
    for name, probability in ((WIN, teacher.win), (STOPPED, teacher.stopped)):
        good = chance(probability, lessons.answers[asked, QUESTIONS.index(name)])
        yield f"| {name} | AUC | {good.auc:.3f} | 0.5 |"
        yield f"| {name} | calibration error | {good.calibration_error:.3f} | |"
        yield f"| {name} | Brier's score | {good.brier:.4f} | {good.of_base_rate:.4f}, base rate |"
        yield f"| {name} | log score | {good.log_score:.4f} | |"
    yield from _range(rows, exams, asked, teacher)
    yield f"| expected | slope of realised on it | {slope(rankings[TEACHER], earned):.2f} | 1 |"
    deviation = (earned - rankings[TEACHER]) / teacher.sd[:, PLAN]
    yield f"| sd | of (realised - expected) / sd | {deviation.std():.2f} | 1 |"
    doubt = float(np.median(teacher.doubt[:, PLAN]))
    yield f"| doubt | standard error of expected, median | {doubt:.3f} | |"


def _range(rows: Period, exams: list[Exam], asked: Rows, teacher: Predictions) -> Iterator[str]:
    ranges = rows.lessons.answers[:, QUESTIONS.index(RANGE)]
    known = [
        range_baselines(
            rows.features[exam.learned], ranges[exam.learned], rows.features[exam.asked]
        )
        for exam in exams
    ]
    atr, har = (np.concatenate([getattr(c, name) for c in known]) for name in ("atr", "har"))
    errors = [
        float(np.mean((ranges[asked] - said) ** 2))
        for said in (np.log(teacher.range_atr), atr, har)
    ]
    own, alone, hours = errors
    below = f"{1 - own / alone:.1%} below ATR alone"
    yield f"| range | squared error of its logarithm | {own:.4f} | {alone:.4f}, ATR alone |"
    yield f"| range | the same | {below} | {hours:.4f}, HAR with hour of day |"


def _asked(
    name: str, lessons: Lessons, learned: Rows, exam: Exam, config: TeacherConfig
) -> Predictions:
    with meter(name) as progress:
        made = teach(lessons, learned, config, EMBARGO_S, progress)
    blends = {question: choice.blend for question, choice in made.choices.items()}
    asked = lessons.told.at(exam.asked)
    inputs, nobody = Inputs.without_prompts(asked.inputs), np.full(len(exam.asked), -1)
    return said_by_all(made.schools, blends, asked, inputs, nobody)


def sizes(rows: Period, asked: Rows, teacher: Predictions) -> Iterator[str]:
    """Lines of Markdown: what sizes alone do. Every plan is taken, in the agent's size, inverse to
    the ATR, or in the share that is worth most if all plans were expected to earn alike, so that
    nothing but risk tells them apart, or as the foretold range allows; all at one mean
    notional."""
    told, earned = rows.lessons.told.at(asked), rows.earned[asked]
    chosen = shares_by_risk(teacher.sd[:, PLAN], told.stake)
    atr = rows.features[asked, FEATURE_NAMES.index("atr_fraction")]
    notional = told.stake * told.costs
    days = rows.lessons.as_of[asked] // DAY_S
    agents = daily(np.ones(len(asked)), notional, earned * told.stake, days)
    yield "\n| sizes, at one mean notional | 5 % tail of days, of equity | less than the agent's |"
    yield "|---|---|---|"
    moves = moved(told.stake, teacher.range_atr, told.stop_atr)
    for name, size in (
        ("agent's", np.ones(len(asked))),
        ("1/ATR", 1 / atr),
        ("inverse to ATR and notional", told.stop_atr / told.stake),
        ("utility", chosen),
        ("inverse to the foretold range", 1 / moves),
        (f"limit of {MOVES:.2%} on it", np.minimum(1, MOVES / moves)),
    ):
        sums = daily(size, notional, earned * told.stake, days)
        low, high = tail_gain(sums, agents)
        gain = 1 - tail(sums) / tail(agents)
        yield f"| {name} | {tail(sums):.3%} | {gain:.1%} [{low:.1%}, {high:.1%}] |"
    yield "\n| share of the plan | candidates | stake, median | deviation of R, median |"
    yield "|---|---|---|---|"
    for share in SIZES:
        here = chosen == share
        if here.any():
            stake, spread = (np.median(v[here]) for v in (told.stake, teacher.sd[:, PLAN]))
            yield f"| {share:g} | {here.sum():,} | {stake:.2%} | {spread:.2f} |"


def shares_by_risk(sd: Floats, stake: Floats) -> Floats:
    """(N,) of the plan, by utility, where every plan is expected to earn `WHOLE_FROM`."""
    worth = utility(WHOLE_FROM * SIZES, sd[:, None] * SIZES, aversion(stake, TargetsConfig()))
    return np.asarray(SIZES[worth.argmax(axis=1)])


def moved(stake: Floats, range_atr: Floats, stop_atr: Floats) -> Floats:
    """(N,) share of equity that the plan gains or loses over the foretold range."""
    return stake * range_atr / stop_atr


def daily(size: Floats, notional: Floats, earned: Floats, days: Rows) -> Floats:
    """(D,) sums of sized results by day, sizes scaled to the mean notional of the agent's."""
    scaled = size * notional.mean() / (size * notional).mean()
    day = np.unique(days, return_inverse=True)[1]
    return np.asarray(np.bincount(day, scaled * earned), np.float64)


def tail(sums: Floats) -> float:
    """Mean loss of the worst twentieth of days."""
    worst = np.sort(sums)[: max(1, round(TAIL * len(sums)))]
    return -float(worst.mean())


def tail_gain(sums: Floats, agents: Floats) -> tuple[float, float]:
    """95 % interval of the share by which the tail is smaller, days drawn anew."""
    source = np.random.default_rng(0)
    drawn = [source.integers(0, len(sums), len(sums)) for _ in range(DRAWS)]
    gains = [1 - tail(sums[rows]) / tail(agents[rows]) for rows in drawn]
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


def interval(estimate: Estimate) -> str:
    """With three decimals; what rounds to zero has no sign."""
    told = (f"{number:+.3f}" for number in (estimate.value, estimate.low, estimate.high))
    value, low, high = (text[1:] if text[1:] == "0.000" else text for text in told)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    entry(main)
