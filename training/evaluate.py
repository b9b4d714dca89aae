"""Does a version deserve promotion, and how sure are we? The held-out period, read once per release.

Stages: the rebuild's own (found when they are finished), scenarios, labels and the base pass of the held-out period,
then the contest, the gate's verdict and the report, as one artefact. Each evaluation that reads the held-out period is
a look; looks are counted beside the artefacts and written into the report, since many looks find something by luck.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.limits import Limits, read_limits
from app.domain.manifest import Calibration
from training.artifacts import Artifact
from training.checks import run_checks
from training.config import Algorithm, ConfigError, RebuildConfig
from training.contest import AGENT, ALWAYS, HEURISTICS, POLICY, Contest, Trained, Version, hold_contest
from training.encode import Encoded
from training.evaluation_report import Findings, evaluation_report
from training.gate import Check, Evidence, Mode, judge
from training.gate_report import sign_off
from training.labels import Labels
from training.performance import sharpe
from training.policy_model import opened
from training.rebuild import Meter, Rebuild, Rebuilt
from training.registry import publish
from training.release import release_of
from training.scenarios import ScenarioSet
from training.statistics import DAY_S

LOOKS = "looks.jsonl"
REPLAY_LIMITS = Path("deploy/limits.replay.toml")
_ROWS = 32


class Evaluated(NamedTuple):
    """A finished evaluation."""

    artifact: Artifact
    version: Path
    report: dict[str, Any]
    """The gate's, signed."""


class Evaluate:
    """One evaluation of what a configuration rebuilds.

    Parameters
    ----------
    rivals : further policies, by name of their algorithm, that take part in the contest and count as trials.
    now : the time that is written down.
    """

    def __init__(
        self,
        config: RebuildConfig,
        meter: Meter,
        tell: Callable[[str], None],
        now: datetime,
        rivals: Sequence[Algorithm] = (),
        database: str | None = None,
    ) -> None:
        self.config, self.meter, self.tell, self.now = config, meter, tell, now
        self.database = database
        self.rebuild = Rebuild(config, meter, tell, database)
        self.others = {
            each.algorithm: Rebuild(config.model_copy(update={"policy": each}), meter, tell, database)
            for each in rivals
            if each.algorithm != config.policy.algorithm
        }
        held_out = config.model_copy(update={"scenarios": config.evaluate.held_out})
        self.held_out = Rebuild(held_out, meter, tell, database)

    def run(self) -> Evaluated:
        """Rebuild if need be, publish the version to its folder, hold the contest, ask the gate, write the report."""
        made = self.rebuild.run()
        others: dict[str, Rebuilt] = {name: each.run() for name, each in self.others.items()}
        name, models = self.config.publish.name, self.config.publish.models
        version = publish(release_of(made.policy, name, [models]), models, self.now)
        scenarios = self.held_out.scenarios()
        inputs = {"held_out": scenarios, "labels": self.held_out.labels(scenarios)}
        inputs["encoded"] = self.held_out.encoded(scenarios)
        inputs |= {"policy": made.policy} | {f"policy_{name}": each.policy for name, each in others.items()}
        depends = {
            "evaluate": self.config.evaluate.model_dump(mode="json"),
            "gate": self.config.gate.model_dump(mode="json"),
            "market": self.held_out.history.fingerprint(),
            "limits": self.limits.hash(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            look = self._count_look(version.name)
            contest, answers = self._contest(inputs, made, others)
            checks = self._checks(version, contest, answers[POLICY])
            evidence = evidence_of(version.name, contest, self._trained(made), answers, checks)
            verdict = judge(evidence, self.config.gate, Mode.FIXED)
            report = sign_off(verdict, evidence, self.config.gate, by="advisor-train evaluate", at=self.now)
            (folder / "verdict.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            findings = Findings(version.name, contest, verdict, checks, made, look, self.config, self.now)
            evaluation_report(findings).write(folder)
            return {"model_version": version.name, "promote": verdict.promote, "look": look}

        artifact = self.rebuild.shop.stage("evaluation", depends, inputs, build)
        return Evaluated(artifact, version, read_report(artifact))

    @cached_property
    def limits(self) -> Limits:
        """What the rules judge by. Raises `LimitsError` or `ConfigError`."""
        path = self.config.evaluate.limits or REPLAY_LIMITS
        if not path.is_file():
            raise ConfigError(f"there are no limits at {path}: name a file with evaluate.limits")
        return read_limits(path)

    def _contest(
        self, inputs: Mapping[str, Artifact], made: Rebuilt, others: Mapping[str, Rebuilt]
    ) -> tuple[Contest, dict[str, Version]]:
        encoded = Encoded.open(inputs["encoded"])
        named = {POLICY: made} | {f"{POLICY} {name}": each for name, each in others.items()}
        answers = {}
        for name, each in named.items():
            with self.meter(f"{name}, held-out scenarios") as progress:
                answers[name] = Version(self._read(encoded, each.policy, progress), calibration_of(each.policy))
        manifest = self.rebuild.base.manifest
        answers["base model"] = Version(np.asarray(encoded.label_log_probs), manifest.calibration)
        held_out, labels = ScenarioSet.open(inputs["held_out"]), Labels.open(inputs["labels"])
        bars = self.held_out.history.bars
        self.tell("contest: playing every arm")
        contest = hold_contest(
            held_out,
            labels,
            bars,
            answers,
            self._trained(made),
            self.limits,
            self.config.evaluate,
            self.config.outcomes,
        )
        return contest, answers

    def _trained(self, made: Rebuilt) -> Trained:
        scenarios, labels = ScenarioSet.open(made.artifacts["scenarios"]), Labels.open(made.artifacts["labels"])
        return Trained(scenarios, labels, self.config.scenarios.embargo_hours * 3600)

    def _read(self, encoded: Encoded, policy: Artifact, progress: Callable[[int, int], None]) -> NDArray[np.float32]:
        """(N, 10) raw label log-probabilities of the adapter on held-out scenarios."""
        parts = []
        with opened(self.rebuild.reader, encoded, policy / "adapter") as model, torch.no_grad():
            for begin in range(0, len(encoded), _ROWS):
                rows = torch.arange(begin, min(begin + _ROWS, len(encoded)))
                parts.append(model(rows).labels.float().cpu().numpy())
                progress(int(rows[-1]) + 1, len(encoded))
        return np.concatenate(parts)

    def _checks(self, version: Path, contest: Contest, answers: Version) -> tuple[Check, ...]:
        rows = answers.log_probabilities[contest.arena.rows]
        with self.meter("parity and injection checks") as progress:
            models, threads = self.config.publish.models, self.config.threads
            return run_checks(version, models, contest.scenarios, rows, self.limits, threads, progress)

    def _count_look(self, version: str) -> int:
        """Write the look down before anything is seen; which look at this period it is, counting from 1."""
        path = self.config.artifacts / LOOKS
        path.parent.mkdir(parents=True, exist_ok=True)
        period = self.config.evaluate.held_out
        seen = {"since": str(period.since), "until": str(period.until)}
        before = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        number = 1 + sum({key: each[key] for key in seen} == seen for each in before)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"version": version, "at": self.now.isoformat(), **seen}) + "\n")
        return number


def calibration_of(policy: Artifact) -> Calibration:
    """As it was fitted on the validation scenarios."""
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    return Calibration.from_json(trained["calibration"])


def evidence_of(
    model_version: str, contest: Contest, trained: Trained, answers: Mapping[str, Version], checks: tuple[Check, ...]
) -> Evidence:
    """What the gate weighs: rewards per scenario, and daily returns of the books."""
    rewards = contest.rewards
    curves = {name: each.curve.sampled(DAY_S) for name, each in contest.books.items()}
    played = contest.played[POLICY]
    rivals = (*HEURISTICS, ALWAYS)
    tried = [name for name in answers if name != "base model"]
    sharpes = [sharpe(curves[name].returns, 1.0) or 0.0 for name in tried]
    likely = played.arm.probability
    return Evidence(
        model_version=model_version,
        as_of=contest.arena.as_of,
        trained_until=trained.until,
        policy=played.r,
        agent=rewards[AGENT],
        random_veto=contest.random.mean,
        heuristics={name: rewards[name] for name in rivals},
        traded=played.arm.approve,
        policy_returns=curves[POLICY].returns,
        agent_returns=curves[AGENT].returns,
        random_veto_returns=np.stack([each.curve.sampled(DAY_S).returns for each in contest.random.books]),
        heuristic_returns={name: curves[name].returns for name in rivals},
        steps_per_year=curves[POLICY].steps_per_year,
        trial_sharpes=tuple(sharpes),
        probability=likely if likely is not None else np.zeros(0),
        won=(rewards[ALWAYS] > 0).astype(float),
        checks=checks,
    )


def read_report(artifact: Artifact) -> dict[str, Any]:
    """The gate's signed report of a finished evaluation."""
    return dict(json.loads((artifact / "verdict.json").read_text(encoding="utf-8")))


def utc_now() -> datetime:
    """For the command line: the time is an argument everywhere else."""
    return datetime.now(UTC)
