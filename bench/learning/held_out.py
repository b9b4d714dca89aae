"""What a configuration's policy is worth on every candidate of its held-out period:
`python -m bench.learning.held_out --config release --set ...`.

Rebuilds what is not finished, reads the held-out prompts once and asks the policy and its teacher
about each. Ranks, chances and sizes are measured as `python -m bench.learning.teacher` measures the
teacher's, so that the two stand side by side; rules, books and the gate are `advisor-train
evaluate`'s. Prints the tables of docs/results.md and keeps the numbers in the history of benches.
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
from bench.history import record
from bench.learning.teacher import ATR, PLAN, TEACHER, daily, tail, tail_gain
from training.arrays import DAY_S, Floats, Rows
from training.cli.options import Config, Set, chosen, meter
from training.config.file import RebuildConfig
from training.learning.algorithms.measures import rank_agreement
from training.learning.model.answers import Answers, of_policy
from training.learning.model.base_pass import encoded
from training.learning.teacher.accuracy import chance, slope, uplift
from training.learning.teacher.expectations import taught
from training.learning.teacher.lessons import Lessons
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels, labels
from training.pipeline.rebuild import base_of, market_of, rebuild, scenarios_of
from training.scenarios.table import ScenarioSet
from training.stages.workshop import Workshop
from training.statistics.bootstrap import Cluster, Estimate, compare_means

POLICY, EXPECTED = "policy, approval", "policy, expected R"
SHARE = np.array([action.risk_fraction for action in ACTIONS])


class HeldOut(NamedTuple):
    """Every candidate that bars can judge, N of them, and what was said of it."""

    as_of: Rows
    features: Floats
    stake: Floats
    """(N,) risk of the plan over the account's equity."""
    costs: Floats
    """(N,) both sides together, R of the plan."""
    rewards: Floats
    """(N, 10) R of each action."""
    plan: Floats
    """(N,) R of the agent's plan."""
    stopped: Floats
    range_atr: Floats
    answers: Answers
    outlooks: list[Outlook]
    teacher: Predictions

    def foretold(self, name: str) -> Floats:
        """(N,) one number of the outlooks."""
        return np.array([getattr(outlook, name) for outlook in self.outlooks], np.float64)


def held_out(config: RebuildConfig) -> HeldOut:
    """Rebuild, read, ask."""
    shop = Workshop(config.artifacts, typer.echo, meter)
    base = base_of(config, shop)
    made = rebuild(config, shop, None, base)
    judged = config.model_copy(update={"scenarios": config.evaluate.held_out})
    market = market_of(judged)
    scenarios = scenarios_of(judged, market, shop, None)
    base_pass = shop.make(encoded, scenarios=scenarios, base=base, settings=config.encode)
    fates = shop.make(labels, scenarios=scenarios, market=market, settings=config.outcomes)
    said = shop.make(of_policy, POLICY, policy=made.policy, encoded=base_pass, base=base)
    teacher = shop.make(
        taught,
        "held out",
        scenarios=scenarios,
        teacher=made.artifacts["teacher"],
        encoded=base_pass,
    )
    asked, fate = ScenarioSet.open(scenarios), Labels.open(fates)
    lessons = Lessons.of(asked, fate, config.outcomes)
    rows = np.flatnonzero(np.isfinite(fate.rewards).all(axis=1))
    whole = asked.scenarios()
    answers = Answers.open(said).at(rows)
    outlooks = answers.outlooks([whole[row] for row in rows])
    told = lessons.told.at(rows)
    return HeldOut(
        lessons.as_of[rows],
        asked.features()[rows],
        told.stake,
        told.costs,
        fate.rewards[rows],
        fate.agent_reward[rows],
        fate.stopped[rows].astype(np.float64),
        fate.range_atr[rows],
        answers,
        [outlook or Outlook() for outlook in outlooks],
        Predictions.open(teacher).at(rows),
    )


def ranks(them: HeldOut) -> Iterator[str]:
    """Lines of Markdown: what each ranking's better half adds to a random veto of the same rate."""
    margin = them.answers.log_policy[:, 1:].max(1) - them.answers.log_policy[:, 0]
    rankings = {
        POLICY: margin,
        EXPECTED: them.foretold("expected_r"),
        TEACHER: them.teacher.expected[:, PLAN],
        ATR: -them.costs,
    }
    known = {name: value for name, value in rankings.items() if np.isfinite(value).all()}
    gains, leads = uplift(known, them.plan, them.as_of, POLICY)
    yield f"{len(them.plan):,} candidates, mean R of taking all {them.plan.mean():+.3f}"
    yield "\n| the better half less a random veto of the same rate | R | the policy's lead |"
    yield "|---|---|---|"
    for name, gain in gains.items():
        yield f"| {name} | {_interval(gain)} | {_interval(leads[name]) if name in leads else ''} |"
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
    values |= {"agent, every candidate": them.plan, "not trading": np.zeros(len(every))}
    days = them.as_of // DAY_S
    means, leads = compare_means(values, np.ones(len(every)), Cluster(days, days), "policy")
    yield "\n| who chooses | approves | R a candidate | the policy's lead |"
    yield "|---|---|---|---|"
    for name, mean in means.items():
        share = float((takes[name] > 0).mean()) if name in takes else float(name != "not trading")
        lead = _interval(leads[name]) if name in leads else ""
        yield f"| {name} | {share:.1%} | {_interval(mean)} | {lead} |"


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
    log_range = np.log(them.range_atr)
    own, others = them.foretold("range_atr"), them.teacher.range_atr
    if np.isfinite(own).all():
        errors = [float(np.mean((log_range - np.log(said)) ** 2)) for said in (own, others)]
        yield f"| range | squared error of its logarithm | {errors[0]:.4f} | {errors[1]:.4f} |"
    expected = them.foretold("expected_r")
    if np.isfinite(expected).all():
        slopes = slope(expected, them.plan), slope(them.teacher.expected[:, PLAN], them.plan)
        yield f"| expected R | slope of realised on it | {slopes[0]:.2f} | {slopes[1]:.2f} |"


def tails(them: HeldOut) -> Iterator[str]:
    """Lines of Markdown: sizes by the policy's weights over its approvals, at one mean notional."""
    approving = them.answers.probabilities[:, 1:]
    size = (approving @ SHARE[1:]) / approving.sum(1)
    atr = them.features[:, FEATURE_NAMES.index("atr_fraction")]
    notional, earned, days = them.stake * them.costs, them.plan * them.stake, them.as_of // DAY_S
    agents = daily(np.ones(len(size)), notional, earned, days)
    yield "\n| sizes, at one mean notional | 5 % tail of days, of equity | less than the agent's |"
    yield "|---|---|---|"
    for name, sizes in (("agent's", np.ones(len(size))), ("1/ATR", 1 / atr), ("policy's", size)):
        sums = daily(sizes, notional, earned, days)
        low, high = tail_gain(sums, agents)
        gain = 1 - tail(sums) / tail(agents)
        yield f"| {name} | {tail(sums):.3%} | {gain:.1%} [{low:.1%}, {high:.1%}] |"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def figures(them: HeldOut) -> Mapping[str, float]:
    """What the history keeps."""
    return {
        "candidates": float(len(them.plan)),
        "rank": rank_agreement(them.answers.log_policy, them.teacher.expected),
        "approves": float((them.answers.action > 0).mean()),
    }


def main(
    config: Config = "release",
    overrides: Set = None,
    lines: Annotated[Path | None, typer.Option(help="file for the tables too")] = None,
) -> None:
    """Print the tables."""
    them = held_out(chosen(config, overrides))
    text = "\n".join(line for part in (ranks, choices, questions, tails) for line in part(them))
    typer.echo(text)
    if lines is not None:
        lines.write_text(text + "\n", encoding="utf-8")
    record("held_out", figures(them))


if __name__ == "__main__":
    typer.run(main)
