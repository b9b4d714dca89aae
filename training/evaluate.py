"""Does a version deserve promotion, and how sure are we? The held-out period, read once per release.

Stages: the rebuild's own (found when they are finished); scenarios, labels and the base pass of the held-out period;
every version's answers; the checks; then contest, verdict and report, as one artefact. Each version that is judged on
the held-out period is a look; looks are counted beside the versions and told in the report (`training.looks`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.domain.limits import Limits, read_limits
from app.domain.manifest import MANIFEST_NAME, Calibration
from app.policy.loader import find_version, read_manifest
from training import answers, checks, evaluation_report, evidence
from training.artifacts import Artifact
from training.config import Algorithm, ConfigError, OutcomesConfig, RebuildConfig
from training.contest import BASE_MODEL, CHAMPION, POLICY, Contest, Trained, Version, hold_contest, refitted
from training.encode import Encoded
from training.findings import Findings
from training.gate import Check, CheckName, Mode, judge
from training.gate_report import sign_off
from training.labels import Labels
from training.looks import count_look
from training.rebuild import Meter, Rebuild, Rebuilt
from training.registry import ADAPTER_FILES, publish
from training.release import release_of
from training.scenarios import ScenarioSet

REPLAY_LIMITS = Path("deploy/limits.replay.toml")
SHIPPED = Path("models")
"""Versions that come with a release."""
STRESSES: dict[str, Callable[[OutcomesConfig], OutcomesConfig]] = {
    "costs doubled": lambda given: given.model_copy(update={"fee": 2 * given.fee, "slippage": 2 * given.slippage}),
    "every order an hour late": lambda given: given.model_copy(update={"delay_s": given.delay_s + 3600}),
}
"""The same answers under worse conditions: an edge that vanishes in one of them was never one to trade."""


class Evaluated(NamedTuple):
    """A finished evaluation."""

    artifact: Artifact
    version: Path
    report: dict[str, Any]
    """The gate's, signed."""


class HeldOut(NamedTuple):
    """Artefacts of the held-out period; `stressed` are labels under `STRESSES`."""

    scenarios: Artifact
    labels: Artifact
    encoded: Artifact
    stressed: dict[str, Artifact]


class Evaluate:
    """One evaluation of what a configuration rebuilds.

    Parameters
    ----------
    rivals : further policies, by name of their algorithm, that take part in the contest and count as trials.
    champion : a published version that must be beaten; None: there is none yet.
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
        champion: str | None = None,
    ) -> None:
        self.config, self.meter, self.tell, self.now = config, meter, tell, now
        self.champion = champion
        self.rebuild = Rebuild(config, meter, tell, database)
        self.others = {
            each.algorithm: Rebuild(config.model_copy(update={"policy": each}), meter, tell, database)
            for each in rivals
            if each.algorithm != config.policy.algorithm
        }
        self.outcomes = config.evaluate.outcomes or config.outcomes
        held_out = {"scenarios": config.evaluate.held_out, "outcomes": self.outcomes}
        self.held_out = Rebuild(config.model_copy(update=held_out), meter, tell, database)

    def run(self) -> Evaluated:
        """Rebuild if need be, publish the version to its folder, hold the contest, ask the gate, write the report."""
        made = self.rebuild.run()
        others: dict[str, Rebuilt] = {name: each.run() for name, each in self.others.items()}
        name, models = self.config.publish.name, self.config.publish.models
        version = publish(release_of(made.policy, name, [models]), models, self.now)
        held = self._held_out()
        read = {POLICY: self._answers(made.policy, held)}
        read |= {f"{POLICY} {name}": self._answers(each.policy, held) for name, each in others.items()}
        if self.champion:
            read[CHAMPION] = self._champions(self.champion, held)
        checked = self._checks(version, held, read[POLICY])
        inputs = {"held_out": held.scenarios, "labels": held.labels, "encoded": held.encoded, "checks": checked}
        inputs |= {f"answers of {name}": each for name, each in read.items()} | held.stressed
        inputs |= {"policy": made.policy} | {f"policy {name}": each.policy for name, each in others.items()}
        depends = {
            "evaluate": self.config.evaluate.model_dump(mode="json"),
            "gate": self.config.gate.model_dump(mode="json"),
            "market": self.held_out.history.fingerprint(),
            "limits": self.limits.hash(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            period = self.config.evaluate.held_out
            look = count_look(models, version.name, self.config.market, period, self.now)
            versions = self._versions(made, others, read, held)
            trained = self._trained(made)
            contest = self._contest(held, versions, trained)
            passed = tuple(
                Check(CheckName(each["name"]), each["passed"], each["evidence"]) for each in checked.facts["checks"]
            )
            # The log grows, and the question is asked again and again.
            mode = Mode.LIVE if self.config.evaluate.held_out.source == "shadow_log" else Mode.FIXED
            bound = self.config.gate.bound_r
            weighed = evidence.evidence_of(version.name, contest, trained, passed, mode, bound)
            verdict = judge(weighed, self.config.gate, mode)
            report = sign_off(verdict, weighed, self.config.gate, by="advisor-train evaluate", at=self.now)
            (folder / "verdict.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            rebuilt = {POLICY: made} | {f"{POLICY} {name}": each for name, each in others.items()}
            stressed = {name: Labels.open(each) for name, each in held.stressed.items()}
            held_set = ScenarioSet.open(held.scenarios)
            findings = Findings(
                version.name,
                contest,
                verdict,
                passed,
                rebuilt,
                look,
                self.config,
                self.now,
                held_set,
                Labels.open(held.labels),
                stressed,
                trained,
                checked.facts["decision_s"],
            )
            evaluation_report.evaluation_report(findings).write(folder)
            return {"model_version": version.name, "promote": verdict.promote, "look": look}

        code = (evaluation_report, evidence)
        artifact = self.rebuild.shop.stage("evaluation", depends, inputs, build, code)
        return Evaluated(artifact, version, read_report(artifact))

    @cached_property
    def limits(self) -> Limits:
        """What the rules judge by. Raises `LimitsError` or `ConfigError`."""
        path = self.config.evaluate.limits or REPLAY_LIMITS
        if not path.is_file():
            raise ConfigError(f"there are no limits at {path}: name a file with evaluate.limits")
        return read_limits(path)

    def _held_out(self) -> HeldOut:
        scenarios = self.held_out.scenarios()
        stressed = {}
        for name, harder in STRESSES.items():
            config = self.held_out.config.model_copy(update={"outcomes": harder(self.outcomes)})
            worse = Rebuild(config, self.meter, self.tell)
            worse.history = self.held_out.history
            stressed[name] = worse.labels(scenarios)
        return HeldOut(scenarios, self.held_out.labels(scenarios), self.held_out.encoded(scenarios), stressed)

    def _answers(self, policy: Artifact, held: HeldOut) -> Artifact:
        """The adapter's, on every held-out scenario."""

        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter(f"{policy.facts['algorithm']}, held-out scenarios") as progress:
                found = answers.of_adapter(
                    self.rebuild.reader, Encoded.open(held.encoded), policy / "adapter", progress
                )
            np.save(folder / answers.FILE, found)
            return {"rows": len(found), "calibration": calibration_of(policy).as_json()}

        return self.rebuild.shop.stage("answers", {}, {"policy": policy, "encoded": held.encoded}, build, (answers,))

    def _champions(self, name: str, held: HeldOut) -> Artifact:
        """A published version's: fast when it is an adapter over the same base, else one prompt after the other."""
        roots = [self.config.publish.models, SHIPPED]
        directory = find_version(name, roots)
        manifest = read_manifest(directory / MANIFEST_NAME)
        base = self.rebuild.base.manifest.model_version
        ours = manifest.files.keys() == ADAPTER_FILES and manifest.base and manifest.base.model_version == base

        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter("champion, held-out scenarios") as progress:
                if ours:
                    found = answers.of_adapter(self.rebuild.reader, Encoded.open(held.encoded), directory, progress)
                else:
                    every = ScenarioSet.open(held.scenarios).scenarios()
                    found = answers.of_version(directory, roots, every, self.config.threads, progress)
            np.save(folder / answers.FILE, found)
            return {"rows": len(found), "calibration": manifest.calibration.as_json()}

        inputs = {"encoded": held.encoded, "scenarios": held.scenarios}
        return self.rebuild.shop.stage("answers", {"version": manifest.hash()}, inputs, build, (answers,))

    def _checks(self, version: Path, held: HeldOut, read: Artifact) -> Artifact:
        """Parity and injection, of the published version against what training read."""
        manifest = read_manifest(version / MANIFEST_NAME)

        def build(folder: Path) -> Mapping[str, Any]:
            every = ScenarioSet.open(held.scenarios).scenarios()
            rows = np.load(read / answers.FILE)
            with self.meter("parity and injection checks") as progress:
                models, threads = self.config.publish.models, self.config.threads
                found = checks.run_checks(version, models, every, rows, self.limits, threads, progress)
            return {"checks": [asdict(each) for each in found.checks], "decision_s": found.decision_s}

        depends = {"files": dict(manifest.files), "limits": self.limits.hash()}
        return self.rebuild.shop.stage(
            "checks", depends, {"held_out": held.scenarios, "answers": read}, build, (checks,)
        )

    def _versions(
        self, made: Rebuilt, others: Mapping[str, Rebuilt], read: Mapping[str, Artifact], held: HeldOut
    ) -> dict[str, Version]:
        found = {
            name: Version(np.load(each / answers.FILE), Calibration.from_json(each.facts["calibration"]))
            for name, each in read.items()
        }
        untuned = np.asarray(Encoded.open(held.encoded).label_log_probs)
        return found | {BASE_MODEL: Version(untuned, self.rebuild.base.manifest.calibration)}

    def _contest(self, held: HeldOut, versions: Mapping[str, Version], trained: Trained) -> Contest:
        scenarios, labels = ScenarioSet.open(held.scenarios), Labels.open(held.labels)
        config = self.config.evaluate
        periods = refitted(scenarios, labels, versions, trained, config.refit_days)
        with self.meter("contest, period by period") as progress:
            return hold_contest(
                scenarios, labels, self.held_out.history.bars, periods, self.limits, config, self.outcomes, progress
            )

    def _trained(self, made: Rebuilt) -> Trained:
        scenarios, labels = ScenarioSet.open(made.artifacts["scenarios"]), Labels.open(made.artifacts["labels"])
        return Trained(scenarios, labels, self.config.scenarios.embargo_hours * 3600)


def calibration_of(policy: Artifact) -> Calibration:
    """As it was fitted on the validation scenarios."""
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    return Calibration.from_json(trained["calibration"])


def read_report(artifact: Artifact) -> dict[str, Any]:
    """The gate's signed report of a finished evaluation."""
    return dict(json.loads((artifact / "verdict.json").read_text(encoding="utf-8")))


def utc_now() -> datetime:
    """For the command line: the time is an argument everywhere else."""
    return datetime.now(UTC)
