"""Walk-forward: the whole rebuild before each of several periods, judged on what came next. No
held-out day is read.

An evaluation judges a version; this judges how versions are made, on years that development may
look at. Each period's policy and simple rivals were made from decisions before it, purged and an
embargo apart; all periods together are one contest, with one report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.domain.limits import read_limits
from app.domain.manifest import Calibration
from training.arrays import Meter
from training.config.data import ScenariosConfig, instant
from training.config.file import RebuildConfig
from training.judging.contest.contest import (
    BASE_MODEL,
    POLICY,
    Contest,
    Period,
    Trained,
    hold_contest,
)
from training.judging.gate import evidence
from training.judging.gate.verdict import Mode, judge
from training.judging.report import arms
from training.judging.report.document import Report
from training.judging.report.findings import Findings
from training.learning.model import answers
from training.learning.model.answers import Answers
from training.learning.model.base_pass import Encoded
from training.outcomes.labels import Labels
from training.pipeline.evaluate import REPLAY_LIMITS, calibration_of, stressed_labels
from training.pipeline.rebuild import Rebuild, Rebuilt
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact

NAME = "retrained before each period"


class Step(NamedTuple):
    """A period, seconds, with what was made before it, and its policy's answers to all judged
    scenarios."""

    begins: int
    ends: int
    made: Rebuilt
    answers: Artifact


class WalkForward:
    """One run over the configured periods. `now` is the time that is written down."""

    def __init__(
        self, config: RebuildConfig, meter: Meter, tell: Callable[[str], None], now: datetime
    ) -> None:
        self.config, self.meter, self.tell, self.now = config, meter, tell, now
        periods = config.walk_forward
        judged = ScenariosConfig(
            since=periods.first,
            until=periods.until,
            limit=periods.limit,
            symbols=config.scenarios.symbols,
        )
        self.judged = Rebuild(config.model_copy(update={"scenarios": judged}), meter, tell)

    def run(self) -> Artifact:
        """Rebuild for every period, hold the contest, write the report."""
        scenarios = self.judged.scenarios()
        labels, encoded = self.judged.labels(scenarios), self.judged.encoded(scenarios)
        steps = list(self._steps(encoded))
        stressed = stressed_labels(
            self.judged, self.config.outcomes, scenarios, self.meter, self.tell
        )
        inputs = {"scenarios": scenarios, "labels": labels, "encoded": encoded, **stressed}
        inputs |= {f"answers {number}": step.answers for number, step in enumerate(steps)}
        limits = read_limits(self.config.evaluate.limits or REPLAY_LIMITS)
        depends = {
            "walk_forward": self.config.walk_forward.model_dump(mode="json"),
            "evaluate": self.config.evaluate.model_dump(mode="json"),
            "limits": limits.hash(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            judged, known = ScenarioSet.open(scenarios), Labels.open(labels)
            untuned = Answers(
                np.asarray(Encoded.open(encoded).label_log_probs),
                self.judged.base.manifest.calibration,
            )
            periods = [self._period(judged, known, step, untuned) for step in steps]
            config = self.config.evaluate
            with self.meter("contest, period by period") as progress:
                contest = hold_contest(
                    judged,
                    known,
                    self.judged.history.bars,
                    periods,
                    limits,
                    config,
                    self.config.outcomes,
                    progress,
                )
            worse = {name: Labels.open(each) for name, each in stressed.items()}
            self._report(contest, steps, judged, known, worse).write(folder)
            return {"periods": len(steps), "scenarios": len(contest.arena)}

        return self.judged.shop.stage("walk_forward", depends, inputs, build, (arms, evidence))

    def _steps(self, encoded: Artifact) -> Iterator[Step]:
        periods = self.config.walk_forward
        begin = periods.first
        while begin < periods.until:
            end = min(begin + timedelta(days=periods.period_days), periods.until)
            self.tell(f"period {begin} to {end}")
            before = self.config.scenarios.model_copy(update={"until": begin})
            rebuild = Rebuild(
                self.config.model_copy(update={"scenarios": before}), self.meter, self.tell
            )
            made = rebuild.run()
            yield Step(
                instant(begin), instant(end), made, self._answers(rebuild, made.policy, encoded)
            )
            begin = end

    def _answers(self, rebuild: Rebuild, policy: Artifact, encoded: Artifact) -> Artifact:
        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter("judged scenarios") as progress:
                found = answers.of_adapter(
                    rebuild.reader, Encoded.open(encoded), policy / "adapter", progress
                )
            np.save(folder / answers.FILE, found)
            return {"rows": len(found), "calibration": calibration_of(policy).as_json()}

        return rebuild.shop.stage(
            "answers", {}, {"policy": policy, "encoded": encoded}, build, (answers,)
        )

    def _trained(self, made: Rebuilt) -> Trained:
        scenarios, labels = (
            ScenarioSet.open(made.artifacts["scenarios"]),
            Labels.open(made.artifacts["labels"]),
        )
        return Trained(scenarios, labels, self.config.scenarios.embargo_hours * 3600)

    def _period(self, judged: ScenarioSet, labels: Labels, step: Step, untuned: Answers) -> Period:
        trained = self._trained(step.made)
        within = (judged.as_of >= max(step.begins, trained.until + trained.embargo_s)) & (
            judged.as_of < step.ends
        )
        rows = np.flatnonzero(judged.real & within & np.isfinite(labels.rewards).all(1))
        calibration = Calibration.from_json(step.answers.facts["calibration"])
        tuned = Answers(np.load(step.answers / answers.FILE), calibration)
        return Period(rows, {POLICY: tuned.at(rows), BASE_MODEL: untuned.at(rows)}, trained.known())

    def _report(
        self,
        contest: Contest,
        steps: list[Step],
        judged: ScenarioSet,
        labels: Labels,
        worse: Mapping[str, Labels],
    ) -> Report:
        first = self._trained(steps[0].made)
        verdict = judge(
            evidence.evidence_of(NAME, contest, first, ()), self.config.gate, Mode.FIXED
        )
        return arms.evaluation_report(
            Findings(
                model_version=NAME,
                contest=contest,
                verdict=verdict,
                checks=(),
                cpu_seconds={POLICY: steps[-1].made.cpu_seconds},
                look=0,
                config=self.config,
                made_at=self.now,
                held_out=judged,
                labels=labels,
                stressed=worse,
                trained=first,
                decision_s=0.0,
            )
        )
