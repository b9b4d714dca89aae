"""An evaluation: hold the contest, ask the gate, write rollouts, verdict and report.

Of one version on a held-out period (each such look is counted), or of how versions are made, period
by period before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from app.domain.rules.limits import Limits
from training.arrays import Progress, silent
from training.config.data import HeldOutConfig
from training.judging.contest.arms import BASE_MODEL, POLICY
from training.judging.contest.contest import Period, Trained, hold_contest, play, refitted
from training.judging.contest.rollouts import ROLLOUTS, rollouts
from training.judging.gate.checks import Checked
from training.judging.gate.evidence import Before, as_veto, evidence_of, sharpes_tried
from training.judging.gate.foretelling import Foretelling
from training.judging.gate.looks import count_look, note_tried, tried_before
from training.judging.gate.sealed import sign_off, verdict_file
from training.judging.gate.verdict import Evidence, Mode, Verdict, judge
from training.judging.report.arms import evaluation_report
from training.judging.report.findings import Everything, Findings, Terms
from training.learning.model.answers import Answers
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.scenarios.history import History
from training.scenarios.table import ScenarioSet
from training.stages.declared import Aside, stage
from training.stages.store import Facts

NAME = "retrained before each period"
"""What stands for a model version when many are judged together."""


@stage("evaluation")  # long: every input is a parameter, every finding a field
def evaluation(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    every: ScenarioSet,
    every_labels: Labels,
    encoded: Encoded,
    answers: Mapping[str, Answers],
    every_answers: Mapping[str, Answers],
    checks: Checked,
    taught: Predictions,
    trained_scenarios: ScenarioSet,
    trained_labels: Labels,
    candidates: ScenarioSet,
    candidate_labels: Labels,
    base: Base,
    market: History,
    limits: Limits,
    *,
    version: str,
    terms: Terms,
    period: HeldOutConfig,
    embargo_s: float,
    models: Aside[Path],
    now: Aside[datetime],
    cpu_seconds: Aside[Mapping[str, float]],
    progress: Progress = silent,
) -> Facts:
    """Judge a version. The look is counted beside the versions in `models` before anything is seen.

    answers : of the policy, and of all that stand beside it, to the held-out scenarios.
    every, every_labels, every_answers : all candidates of the period, and what answers them without
        a language model. candidates, candidate_labels : all of training, for what is fitted there.
    taught : what the teacher says of them; stands for what a version does not foretell itself.
    cpu_seconds : what making each policy took.
    """
    look = count_look(models, version, terms.market, period, now)
    trained = Trained(trained_scenarios, trained_labels, embargo_s)
    versions = {**answers, BASE_MODEL: _untuned(encoded, base)}
    periods = refitted(scenarios, labels, versions, trained, terms.evaluate.refit_days)
    contest = hold_contest(
        scenarios, market, periods, limits, terms.evaluate, terms.outcomes, progress
    )
    # The log grows, and the question is asked again and again.
    mode = Mode.LIVE if period.source == "shadow_log" else Mode.FIXED
    tried = tried_before(models, version, terms.market, period, now)
    note_tried(models, version, terms.market, period, now, sharpes_tried(contest))
    bound_r = terms.gate.bound_r
    rows = contest.arena.rows
    teacher = Foretelling.of_teacher(taught.at(rows))
    own = Foretelling.of_version(answers[POLICY].at(rows), contest.scenarios)
    evidence = evidence_of(
        version,
        contest,
        trained,
        checks.checks,
        mode,
        bound_r,
        Before(tried, look),
        (own or teacher).chances,
    )
    verdict = judge(evidence, terms.gate, mode)
    vetoing = as_veto(evidence, contest, mode, bound_r)
    veto = judge(vetoing, terms.gate, mode)
    for weighed, judged in ((evidence, verdict), (vetoing, veto)):
        _seal(folder, weighed, judged, terms, now)
    findings = Findings(
        model_version=version,
        contest=contest,
        verdict=verdict,
        veto=veto,
        foretold=evidence.foretold,
        own=own,
        teacher=teacher,
        checks=checks.checks,
        cpu_seconds=cpu_seconds,
        look=look,
        terms=terms,
        made_at=now,
        held_out=scenarios,
        market=market,
        labels=labels,
        trained=trained,
        decision_s=checks.decision_s,
        everything=_everything(
            every,
            every_labels,
            every_answers,
            Trained(candidates, candidate_labels, embargo_s),
            market,
            limits,
            terms,
        ),
    )
    _write(folder, findings)
    return {
        "model_version": version,
        "promote": verdict.promote,
        "promote_as_veto": veto.promote,
        "look": look,
    }


@stage("walk_forward")  # long: as above
def walk_forward(
    folder: Path,
    scenarios: ScenarioSet,
    labels: Labels,
    encoded: Encoded,
    answers: Mapping[str, Answers],
    taught: Mapping[str, Predictions],
    trained_scenarios: Mapping[str, ScenarioSet],
    trained_labels: Mapping[str, Labels],
    base: Base,
    market: History,
    limits: Limits,
    *,
    spans: Mapping[str, Sequence[int]],
    terms: Terms,
    embargo_s: float,
    now: Aside[datetime],
    cpu_seconds: Aside[float],
    progress: Progress = silent,
) -> Facts:
    """Judge how versions are made: all periods together are one contest.

    answers, taught, trained_scenarios, trained_labels, spans : by period, in order of time. A span
        has the seconds at which the period begins and ends; answers and what is taught are of all
        scenarios.
    """
    untuned = _untuned(encoded, base)
    judged = np.isfinite(labels.rewards).all(1) & scenarios.real
    parsed = scenarios.scenarios()
    before = {
        name: Trained(learnt, trained_labels[name], embargo_s)
        for name, learnt in trained_scenarios.items()
    }
    periods, read, own = [], [], []
    for name, (begins, ends) in spans.items():
        trained = before[name]
        first = max(begins, trained.until + trained.embargo_s)
        rows = np.flatnonzero(judged & (scenarios.as_of >= first) & (scenarios.as_of < ends))
        versions = {POLICY: answers[name].at(rows), BASE_MODEL: untuned.at(rows)}
        periods.append(Period(rows, versions, trained.past()))
        read.append(Foretelling.of_teacher(taught[name].at(rows)))
        asked = [parsed[row] for row in rows]
        own.append(Foretelling.of_version(versions[POLICY], asked))
    contest = hold_contest(
        scenarios, market, periods, limits, terms.evaluate, terms.outcomes, progress
    )
    first_trained = before[next(iter(spans))]
    teacher = Foretelling.joined(read)
    told = [each for each in own if each is not None]
    ours = Foretelling.joined(told) if len(told) == len(periods) else None
    readings = (ours or teacher).chances
    evidence = evidence_of(NAME, contest, first_trained, (), readings=readings)
    verdict = judge(evidence, terms.gate, Mode.FIXED)
    findings = Findings(
        model_version=NAME,
        contest=contest,
        verdict=verdict,
        veto=judge(as_veto(evidence, contest, Mode.FIXED), terms.gate, Mode.FIXED),
        foretold=evidence.foretold,
        own=ours,
        teacher=teacher,
        checks=(),
        cpu_seconds={POLICY: cpu_seconds},
        look=0,
        terms=terms,
        made_at=now,
        held_out=scenarios,
        market=market,
        labels=labels,
        trained=first_trained,
        decision_s=0.0,
    )
    _write(folder, findings)
    return {"periods": len(periods), "scenarios": len(contest.arena)}


def _everything(
    every: ScenarioSet,
    labels: Labels,
    answers: Mapping[str, Answers],
    trained: Trained,
    market: History,
    limits: Limits,
    terms: Terms,
) -> Everything:
    periods = refitted(every, labels, answers, trained, terms.evaluate.refit_days)
    arena, played = play(every, market, periods, limits, terms.outcomes)
    return Everything(arena, played, len(periods[0].past.rewards))


def _seal(folder: Path, evidence: Evidence, verdict: Verdict, terms: Terms, now: datetime) -> None:
    """The gate's report, signed."""
    signed = sign_off(verdict, evidence, terms.gate, by="advisor-train evaluate", at=now)
    path = folder / verdict_file(evidence.kind)
    path.write_text(json.dumps(signed, indent=1) + "\n", encoding="utf-8")


def _write(folder: Path, findings: Findings) -> None:
    rollouts(findings.contest).write_parquet(folder / ROLLOUTS)
    evaluation_report(findings).write(folder)


def _untuned(encoded: Encoded, base: Base) -> Answers:
    """What the base model says."""
    return Answers(np.asarray(encoded.label_log_probs), base.manifest.calibration)
