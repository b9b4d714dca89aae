"""What a published version is worth on every candidate of a configuration's held-out period:
`python -m bench.learning.held_out VERSION --config release --set ...`.

Asks the version as the service asks it, prompt by prompt (what was read is kept: a killed run goes
on), and its teacher, which learns from every candidate before. Ranks, chances and sizes are
measured as `python -m bench.learning.teacher` measures the teacher's, so that the two stand side by
side; rules, books and the gate are `advisor-train evaluate --version`'s. Prints the tables of
docs/results.md and keeps the numbers in the history of benches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from scipy.stats import spearmanr

from app.domain.features import FEATURE_NAMES
from app.domain.model.actions import ACTIONS
from app.domain.model.outlook import Outlook
from app.policy.versions.store import find_version
from bench.asked import entry, looked
from bench.history import record
from bench.learning.teacher import (
    ATR,
    MOVES,
    PLAN,
    SHUFFLED,
    SIZES,
    TEACHER,
    WHOLE_FROM,
    daily,
    interval,
    moved,
    shares_by_risk,
    tail,
    tail_gain,
)
from training.arrays import DAY_S, Floats, Rows
from training.cli.options import Config, Set, chosen, meter
from training.config.file import RebuildConfig
from training.learning.algorithms.measures import rank_agreement
from training.learning.model.answers import Answers
from training.learning.teacher.accuracy import (
    RangeControls,
    chance,
    range_baselines,
    slope,
    uplift,
)
from training.learning.teacher.expectations import taught
from training.learning.teacher.lessons import QUESTIONS, RANGE, Lessons
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.pipeline.evaluate import (
    Asked,
    folders_of,
    judged_by,
    published,
    require_unseen,
    shuffled_teacher,
)
from training.pipeline.rebuild import base_of, labelled, market_of, numbers_alone
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact
from training.stages.workshop import Workshop
from training.statistics.bootstrap import Cluster, compare_means

POLICY, EXPECTED = "policy, approval", "policy, expected R"
EVERY, IDLE = "agent, every candidate", "not trading"
HALF = next(n for n, a in enumerate(ACTIONS) if a.name == "approve_r0.50_s1.5")
LEAST_RISK = 1e-3
"""R; below it the whole plan is taken anyway."""
SHARE = np.array([action.risk_fraction for action in ACTIONS])


class HeldOut(NamedTuple):
    """Every candidate that bars can judge, N of them, and what was said of it."""

    as_of: Rows
    features: Floats
    stake: Floats
    """(N,) risk of the plan over the account's equity."""
    costs: Floats
    """(N,) both sides together, R of the plan."""
    stop_atr: Floats
    rewards: Floats
    """(N, 10) R of each action."""
    plan: Floats
    """(N,) R of the agent's plan."""
    stopped: Floats
    range_atr: Floats
    answers: Answers
    outlooks: list[Outlook]
    teacher: Predictions
    shuffled: Predictions
    """A teacher of shuffled labels."""
    ranges: RangeControls

    def foretold(self, name: str) -> Floats:
        """(N,) one number of the outlooks."""
        return np.array([getattr(outlook, name) for outlook in self.outlooks], np.float64)


def held_out(config: RebuildConfig, name: str) -> HeldOut:
    """Ask version and teachers."""
    shop = Workshop(config.artifacts, typer.echo, meter)
    version = published(find_version(name, folders_of(config)))
    require_unseen(config.evaluate.held_out, version)
    made = numbers_alone(config, shop, None)
    judged = judged_by(config)
    asked_of = labelled(judged, market_of(judged), shop, None)
    scenarios = asked_of["scenarios"]
    schools = {TEACHER: made.artifacts["teacher"], SHUFFLED: shuffled_teacher(config, made, shop)}
    asked = Asked(config, shop, base_of(config, shop), scenarios, schools, whole=True)
    said = Answers.open(asked.of_version(POLICY, version))
    looked(version.path.name, config.market, config.evaluate.held_out, config.publish.models)
    teachers, random = (
        Predictions.open(
            shop.make(taught, f"{name}, held out", scenarios=scenarios, teacher=school)
        )
        for name, school in schools.items()
    )
    table, fate = ScenarioSet.open(scenarios), Labels.open(asked_of["labels"])
    rows = np.flatnonzero(np.isfinite(fate.rewards).all(axis=1))
    told = Lessons.of(table, fate, config.outcomes).told.at(rows)
    whole = table.scenarios()
    answers = said.at(rows)
    outlooks = answers.outlooks([whole[row] for row in rows])
    return HeldOut(
        table.as_of[rows],
        table.features()[rows],
        told.stake,
        told.costs,
        told.stop_atr,
        fate.rewards[rows],
        fate.agent_reward[rows],
        fate.stopped[rows].astype(np.float64),
        fate.range_atr[rows],
        answers,
        [outlook or Outlook() for outlook in outlooks],
        teachers.at(rows),
        random.at(rows),
        _ranges(made.candidates, config, table.features()[rows]),
    )


def _ranges(made: Mapping[str, Artifact], config: RebuildConfig, features: Floats) -> RangeControls:
    """Of simple regressions that are fitted to every candidate before."""
    table, fate = ScenarioSet.open(made["scenarios"]), Labels.open(made["labels"])
    lessons = Lessons.of(table, fate, config.outcomes)
    learned = np.flatnonzero(np.isfinite(lessons.answers).all(axis=1))
    came = lessons.answers[learned, QUESTIONS.index(RANGE)]
    return range_baselines(table.features()[learned], came, features)


def ranks(them: HeldOut) -> Iterator[str]:
    """Lines of Markdown: what each ranking's better half adds to a random veto of the same rate."""
    margin = them.answers.log_policy[:, 1:].max(1) - them.answers.log_policy[:, 0]
    rankings = {
        POLICY: margin,
        EXPECTED: them.foretold("expected_r"),
        TEACHER: them.teacher.expected[:, PLAN],
        ATR: -them.costs,
        SHUFFLED: them.shuffled.expected[:, PLAN],
    }
    known = {name: value for name, value in rankings.items() if np.isfinite(value).all()}
    gains, leads = uplift(known, them.plan, them.as_of, POLICY)
    yield f"{len(them.plan):,} candidates, mean R of taking all {them.plan.mean():+.3f}"
    yield "\n| the better half less a random veto of the same rate | R | the policy's lead |"
    yield "|---|---|---|"
    for name, gain in gains.items():
        yield f"| {name} | {interval(gain)} | {interval(leads[name]) if name in leads else ''} |"
    agreement = rank_agreement(them.answers.log_policy, them.teacher.expected)
    yield f"\nSpearman's correlation with the teacher: {agreement:.2f} (what approving is worth)"
    for name in known.keys() & {EXPECTED}:
        ranked = float(spearmanr(known[name], known[TEACHER]).statistic)
        yield f"and {ranked:.2f} (expected R of the plan)"


def choices(them: HeldOut) -> Iterator[str]:
    """Lines of Markdown: what the policy's own choices earn, and a teacher's, before any veto."""
    every = np.arange(len(them.plan))
    takes = {
        "policy": them.answers.action,
        TEACHER: np.where(them.teacher.expected.max(1) > 0, them.teacher.expected.argmax(1), 0),
    }
    values = {name: them.rewards[every, action] for name, action in takes.items()}
    share = float((them.answers.action > 0).mean())
    dealt = np.bincount(them.answers.action, minlength=len(ACTIONS)) / len(every)
    values |= {
        EVERY: them.plan,
        "random veto of the agent's plans, same rate": share * them.plan,
        "the policy's own actions dealt at random": them.rewards @ dealt,
        IDLE: np.zeros(len(every)),
    }
    approves = {name: float((taken > 0).mean()) for name, taken in takes.items()}
    approves |= {EVERY: 1.0, IDLE: 0.0}
    days = them.as_of // DAY_S
    means, leads = compare_means(values, np.ones(len(every)), Cluster(days, days), "policy")
    yield "\n| who chooses | approves | R a candidate | the policy's lead |"
    yield "|---|---|---|---|"
    for name, mean in means.items():
        lead = interval(leads[name]) if name in leads else ""
        yield f"| {name} | {approves.get(name, share):.1%} | {interval(mean)} | {lead} |"


def questions(them: HeldOut) -> Iterator[str]:
    """Lines of Markdown: how good chances, range and expectation are."""
    yield "\n| question | measure | policy | teacher |"
    yield "|---|---|---|---|"
    events = {
        "win": (
            them.foretold("win_probability"),
            them.teacher.win,
            (them.plan > 0).astype(np.float64),
        ),
        "stopped": (them.foretold("stopped_probability"), them.teacher.stopped, them.stopped),
    }
    for name, (own, others, came) in events.items():
        if np.isfinite(own).all():
            good, rival = chance(own, came), chance(others, came)
            yield f"| {name} | AUC | {good.auc:.3f} | {rival.auc:.3f} |"
            error = f"{good.calibration_error:.3f} | {rival.calibration_error:.3f}"
            yield f"| {name} | calibration error | {error} |"
    yield from _range_errors(them)
    expected = them.foretold("expected_r")
    if np.isfinite(expected).all():
        slopes = slope(expected, them.plan), slope(them.teacher.expected[:, PLAN], them.plan)
        yield f"| expected R | slope of realised on it | {slopes[0]:.2f} | {slopes[1]:.2f} |"


def _range_errors(them: HeldOut) -> Iterator[str]:
    own = them.foretold("range_atr")
    if not np.isfinite(own).all():
        return
    said = (np.log(own), np.log(them.teacher.range_atr), them.ranges.atr, them.ranges.har)
    came = np.log(them.range_atr)
    mine, teachers, atr, har = (float(np.mean((came - foretold) ** 2)) for foretold in said)
    yield f"| range | squared error of its logarithm | {mine:.4f} | {teachers:.4f} |"
    for baseline, error in (("ATR alone", atr), ("HAR with hour of day", har)):
        gains = f"{1 - mine / error:.1%} | {1 - teachers / error:.1%}"
        yield f"| range | below {baseline}, {error:.4f} | {gains} |"


def own_shares(answers: Answers, beta: float) -> Floats:
    """(N,) share of the plan, 1 at most, that the version's own utility ranks best if every plan
    were expected to earn `WHOLE_FROM`, so that nothing but risk tells them apart.

    Scores are utilities over beta, and a share f of the plan is worth m f - r f^2: what risk costs
    is r = 2 (2 u(1/2) - u(1)), whatever m is, and the best share at `WHOLE_FROM` that over 2 r.
    """
    utility = beta * (answers.log_policy - answers.log_policy[:, :1])
    risk = 2 * (2 * utility[:, HALF] - utility[:, PLAN])
    return np.asarray(np.clip(WHOLE_FROM / 2 / np.maximum(risk, LEAST_RISK), 0, 1))


def tails(them: HeldOut, beta: float) -> Iterator[str]:
    """Lines of Markdown: every plan taken in sizes that know its risk, at one mean notional."""
    approving = them.answers.probabilities[:, 1:]
    own, sure = own_shares(them.answers, beta), np.ones(len(them.plan))
    size = {
        "agent's": sure,
        "1/ATR": 1 / them.features[:, FEATURE_NAMES.index("atr_fraction")],
        "inverse to ATR and notional": them.stop_atr / them.stake,
        "policy's, by its utility of risk": own,
        "the same in sizes of actions": SIZES[np.abs(SIZES - own[:, None]).argmin(1)],
        "policy's weights of sizes": (approving @ SHARE[1:]) / approving.sum(1),
        "teacher's utility of risk": shares_by_risk(them.teacher.sd[:, PLAN], them.stake),
    }
    for who, foretold in (
        ("policy", them.foretold("range_atr")),
        ("teacher", them.teacher.range_atr),
    ):
        if np.isfinite(foretold).all():
            moves = moved(them.stake, foretold, them.stop_atr)
            size[f"inverse to the range that the {who} foretells"] = 1 / moves
            size[f"the {who}'s range, limit of {MOVES:.2%}"] = np.minimum(1, MOVES / moves)
    notional, earned, days = them.stake * them.costs, them.plan * them.stake, them.as_of // DAY_S
    agents = daily(sure, notional, earned, days)
    yield "\n| sizes, at one mean notional | 5 % tail of days, of equity | less than the agent's |"
    yield "|---|---|---|"
    for name, sizes in size.items():
        sums = daily(sizes, notional, earned, days)
        low, high = tail_gain(sums, agents)
        gain = 1 - tail(sums) / tail(agents)
        yield f"| {name} | {tail(sums):.3%} | {gain:.1%} [{low:.1%}, {high:.1%}] |"


def figures(them: HeldOut) -> Mapping[str, float]:
    """What the history keeps."""
    return {
        "candidates": float(len(them.plan)),
        "rank": rank_agreement(them.answers.log_policy, them.teacher.expected),
        "approves": float((them.answers.action > 0).mean()),
    }


def main(
    version: Annotated[str, typer.Argument(help="a published version's name")],
    config: Config = "release",
    overrides: Set = None,
    lines: Annotated[Path | None, typer.Option(help="file for the tables too")] = None,
) -> None:
    """Print the tables."""
    settings = chosen(config, overrides)
    them = held_out(settings, version)
    parts = (ranks(them), choices(them), questions(them), tails(them, settings.policy.beta))
    text = "\n".join(line for part in parts for line in part)
    typer.echo(text)
    if lines is not None:
        lines.write_text(text + "\n", encoding="utf-8")
    record("held_out", figures(them))


if __name__ == "__main__":
    entry(main)
