"""An evaluation: hold the contest, ask the gate, write rollouts, verdict and report.

Of one version on a held-out period (each such look is counted), or of how versions are made, period
by period before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.domain.rules.limits import Limits
from training.arrays import Progress, silent
from training.judging.contest.arms import POLICY
from training.judging.contest.contest import Contest, Period, Trained, hold_contest, play, refitted
from training.judging.contest.rollouts import ROLLOUTS, rollouts
from training.judging.gate.checks import Checked
from training.judging.gate.evidence import Before, as_veto, evidence_of, sharpes_tried
from training.judging.gate.foretelling import Told
from training.judging.gate.sealed import sign_off, verdict_file
from training.judging.gate.verdict import Evidence, Mode, judge
from training.judging.report.arms import evaluation_report
from training.judging.report.findings import Everything, Findings, Making, Terms
from training.learning.model.answers import Answers
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labelled, Labels
from training.scenarios.history import History
from training.scenarios.table import ScenarioSet
from training.stages.declared import Aside, stage
from training.stages.store import Facts

NAME = "retrained before each period"
"""What stands for a model version when many are judged together."""


class Answered(NamedTuple):
    """Scenarios, what became of every answer to them, and what versions answer, by their arms."""

    scenarios: ScenarioSet
    labels: Labels
    answers: Mapping[str, Answers]


class Walked(NamedTuple):
    """What was made before one period of a walk, and what that says of all scenarios."""

    trained: Labelled
    answers: Answers
    taught: Predictions


@stage("evaluation")
def evaluation(
    folder: Path,
    held_out: Answered,
    every: Answered,
    trained: Labelled,
    candidates: Labelled,
    taught: Predictions,
    checks: Checked,
    market: History,
    limits: Limits,
    *,
    version: str,
    terms: Terms,
    before: Before,
    collapsed: Mapping[str, str],
    now: Aside[datetime],
    making: Aside[Mapping[str, Making]],
    progress: Progress = silent,
) -> Facts:
    """Judge a version by its answers to the `held_out` scenarios and what was looked at `before`;
    of `every` candidate of the period, and of training's, what needs no language model as well.
    collapsed : why a rival's policy takes no part, by the name of its arm."""
    learnt = Trained(*trained, terms.embargo_s)
    periods = refitted(*held_out, learnt, terms.evaluate.refit_days)
    contest = hold_contest(
        held_out.scenarios, market, periods, limits, terms.evaluate, terms.outcomes, progress
    )
    told = Told.of(held_out.answers[POLICY], taught, contest.arena.rows, contest.scenarios)
    chances, bound_r = told.chances, terms.gate.bound_r
    evidence = evidence_of(
        version, contest, learnt, checks.checks, terms.mode, bound_r, before, chances
    )
    findings = replace(
        _judged(contest, evidence, told, terms.mode, terms, held_out, market, learnt, now),
        making=making,
        collapsed=collapsed,
        look=before.looks,
        decision_s=checks.decision_s,
        everything=_everything(every, candidates, market, limits, terms),
    )
    _seal(folder, findings)
    _write(folder, findings)
    return {
        "model_version": version,
        "promote": findings.verdict.promote,
        "promote_as_veto": findings.veto.promote,
        "look": before.looks,
        "tried": sharpes_tried(contest),
    }


@stage("walk_forward")
def walk_forward(
    folder: Path,
    held_out: Answered,
    walked: Mapping[str, Walked],
    market: History,
    limits: Limits,
    *,
    spans: Mapping[str, Sequence[int]],
    terms: Terms,
    now: Aside[datetime],
    making: Aside[Making],
    progress: Progress = silent,
) -> Facts:
    """Judge how versions are made: all periods together are one contest.

    held_out : the scenarios of all periods, and the base model's answers.
    walked, spans : by period, in order of time. A span has the seconds at which it begins and ends.
    """
    scenarios, parsed = held_out.scenarios, held_out.scenarios.scenarios()
    periods, told = [], []
    for name, (begins, ends) in spans.items():
        made = walked[name]
        period = _period(held_out, made, terms.embargo_s, begins, ends)
        if not len(period.rows):  # all lie within the embargo, or have no known fate
            continue
        asked = [parsed[row] for row in period.rows]
        periods.append(period)
        told.append(Told.of(made.answers, made.taught, period.rows, asked))
    contest = hold_contest(
        scenarios, market, periods, limits, terms.evaluate, terms.outcomes, progress
    )
    first = Trained(*walked[next(iter(spans))].trained, terms.embargo_s)
    everything = Told.joined(told)
    evidence = evidence_of(NAME, contest, first, (), readings=everything.chances)
    findings = replace(
        _judged(contest, evidence, everything, Mode.FIXED, terms, held_out, market, first, now),
        making={POLICY: making},
    )
    _write(folder, findings)
    return {"periods": len(periods), "scenarios": len(contest.arena)}


def _period(held_out: Answered, made: Walked, embargo_s: float, begins: int, ends: int) -> Period:
    """The rows of a span that lie an embargo behind what was trained on and have a known fate."""
    scenarios, trained = held_out.scenarios, Trained(*made.trained, embargo_s)
    judged = np.isfinite(held_out.labels.rewards).all(1) & scenarios.real
    first = max(begins, trained.until + embargo_s)
    rows = np.flatnonzero(judged & (scenarios.as_of >= first) & (scenarios.as_of < ends))
    versions = {POLICY: made.answers, **held_out.answers}
    return Period(
        rows, {name: answers.at(rows) for name, answers in versions.items()}, trained.past()
    )


def _everything(
    every: Answered, candidates: Labelled, market: History, limits: Limits, terms: Terms
) -> Everything:
    """What every arm that needs no language model does with all candidates."""
    trained = Trained(*candidates, terms.embargo_s)
    periods = refitted(*every, trained, terms.evaluate.refit_days)
    arena, played = play(every.scenarios, market, periods, limits, terms.outcomes)
    return Everything(arena, played, len(periods[0].past.rewards))


def _judged(
    contest: Contest,
    evidence: Evidence,
    told: Told,
    mode: Mode,
    terms: Terms,
    held_out: Answered,
    market: History,
    trained: Trained,
    now: datetime,
) -> Findings:
    """The gate asked, as a trader and as a veto on the agent."""
    vetoing = as_veto(evidence, contest, mode, terms.gate.bound_r)
    return Findings(
        contest=contest,
        evidence=evidence,
        verdict=judge(evidence, terms.gate, mode),
        vetoing=vetoing,
        veto=judge(vetoing, terms.gate, mode),
        told=told,
        terms=terms,
        made_at=now,
        held_out=Labelled(held_out.scenarios, held_out.labels),
        market=market,
        trained=trained,
    )


def _seal(folder: Path, findings: Findings) -> None:
    """The gate's reports, signed."""
    for evidence, verdict in (
        (findings.evidence, findings.verdict),
        (findings.vetoing, findings.veto),
    ):
        by, gate = "advisor-train evaluate", findings.terms.gate
        signed = sign_off(verdict, evidence, gate, by=by, at=findings.made_at)
        path = folder / verdict_file(evidence.kind)
        path.write_text(json.dumps(signed, indent=1) + "\n", encoding="utf-8")


def _write(folder: Path, findings: Findings) -> None:
    rollouts(findings.contest).write_parquet(folder / ROLLOUTS)
    evaluation_report(findings).write(folder)
