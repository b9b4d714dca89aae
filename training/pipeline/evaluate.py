"""Does a version deserve promotion, and how sure are we? The held-out period, read once per
release.

Stages: the rebuild's own (found when they are finished); scenarios, labels and the base pass of the
held-out period; every version's answers; the checks; then contest, verdict and report, as one
artefact. Each version that is judged on the held-out period is a look; looks are counted beside the
versions and told in the report (`training.judging.gate.looks`).
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
from app.policy.store import find_version, load_manifest, read_manifest
from training.arrays import Meter
from training.config.data import OutcomesConfig, instant
from training.config.file import RebuildConfig
from training.config.learning import Algorithm
from training.config.section import ConfigError
from training.judging.contest.contest import (
    BASE_MODEL,
    CHAMPION,
    POLICY,
    PROBE,
    WARM_UP,
    Contest,
    Trained,
    hold_contest,
    refitted,
)
from training.judging.gate import checks, evidence
from training.judging.gate.looks import count_look
from training.judging.gate.sealed import sign_off
from training.judging.gate.verdict import Check, CheckName, Mode, judge
from training.judging.report import arms
from training.judging.report.findings import Findings
from training.learning.algorithms import probe
from training.learning.model import answers
from training.learning.model.answers import Answers
from training.learning.model.base_pass import Encoded
from training.outcomes.labels import Labels
from training.pipeline.rebuild import Rebuild, Rebuilt
from training.publish.version import ADAPTER_FILES, publish, release_of
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact

REPLAY_LIMITS = Path("deploy/limits.replay.toml")
SHIPPED = Path("models")
"""Versions that come with a release."""
STRESSES: dict[str, Callable[[OutcomesConfig], OutcomesConfig]] = {
    "costs doubled": lambda given: given.model_copy(
        update={"fee": 2 * given.fee, "slippage": 2 * given.slippage}
    ),
    "every order an hour late": lambda given: given.model_copy(
        update={"delay_s": given.delay_s + 3600}
    ),
}
"""The same answers under worse conditions: an edge that vanishes in one of them was never one to
trade."""


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


class Gathered(NamedTuple):
    """What a contest is held with: policies by arm's name, the version that is judged, everyone's
    answers, checks."""

    rebuilt: dict[str, Rebuilt]
    version: Path
    held: HeldOut
    read: dict[str, Artifact]
    checked: Artifact


class Evaluate:
    """One evaluation of what a configuration rebuilds.

    Parameters
    ----------
    rivals : further policies, by name of their algorithm, that take part in the contest and count
        as trials.
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
            each.algorithm: Rebuild(
                config.model_copy(update={"policy": each}), meter, tell, database
            )
            for each in rivals
            if each.algorithm != config.policy.algorithm
        }
        self.outcomes = config.evaluate.outcomes or config.outcomes
        held_out = {"scenarios": config.evaluate.held_out, "outcomes": self.outcomes}
        self.held_out = Rebuild(config.model_copy(update=held_out), meter, tell, database)

    def run(self) -> Evaluated:
        """Rebuild if need be, publish the version to its folder, hold the contest, ask the gate,
        write the report."""
        given = self._gather()
        policies = {f"policy of {name}": each.policy for name, each in given.rebuilt.items()}
        read = {f"answers of {name}": each for name, each in given.read.items()}
        held = {name: getattr(given.held, name) for name in ("scenarios", "labels", "encoded")}
        inputs = {"checks": given.checked, **held, **given.held.stressed, **policies, **read}
        depends = {
            "evaluate": self.config.evaluate.model_dump(mode="json"),
            "gate": self.config.gate.model_dump(mode="json"),
            "market": self.held_out.history.fingerprint(),
            "limits": self.limits.hash(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            return self._judge(folder, given)

        artifact = self.rebuild.shop.stage("evaluation", depends, inputs, build, (arms, evidence))
        return Evaluated(artifact, given.version, read_report(artifact))

    def _gather(self) -> Gathered:
        self._require_held_out_bars()
        roots = [self.config.publish.models, SHIPPED]
        champion = find_version(self.champion, roots) if self.champion else None
        rebuilt = {POLICY: self.rebuild.run()} | {
            f"{POLICY} {name}": each.run() for name, each in self.others.items()
        }
        made, (name, models) = (
            rebuilt[POLICY],
            (self.config.publish.name, self.config.publish.models),
        )
        version = publish(release_of(made.policy, name, [models]), models, self.now)
        held = self._held_out()
        read = {name: self._answers(name, each.policy, held) for name, each in rebuilt.items()}
        warm = next(
            (each.artifacts["warm_up"] for each in rebuilt.values() if "warm_up" in each.artifacts),
            None,
        )
        if warm:
            read[WARM_UP] = self._answers(WARM_UP, warm, held)
        read[PROBE] = self._probe(made, held)
        if champion:
            read[CHAMPION] = self._champions(champion, roots, held)
        return Gathered(rebuilt, version, held, read, self._checks(version, held, read[POLICY]))

    def _judge(self, folder: Path, given: Gathered) -> Mapping[str, Any]:
        """Count the look, hold the contest, ask the gate, and write verdict and report."""
        period, gate, name = self.config.evaluate.held_out, self.config.gate, given.version.name
        look = count_look(self.config.publish.models, name, self.config.market, period, self.now)
        trained = self._trained(given.rebuilt[POLICY])
        contest = self._contest(given.held, self._versions(given), trained)
        results = given.checked.facts["checks"]
        passed = tuple(
            Check(CheckName(each["name"]), each["passed"], each["evidence"]) for each in results
        )
        # The log grows, and the question is asked again and again.
        mode = Mode.LIVE if period.source == "shadow_log" else Mode.FIXED
        weighed = evidence.evidence_of(name, contest, trained, passed, mode, gate.bound_r)
        verdict = judge(weighed, gate, mode)
        report = sign_off(verdict, weighed, gate, by="advisor-train evaluate", at=self.now)
        (folder / "verdict.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        found = Findings(
            model_version=name,
            contest=contest,
            verdict=verdict,
            checks=passed,
            cpu_seconds={name: each.cpu_seconds for name, each in given.rebuilt.items()},
            look=look,
            config=self.config,
            made_at=self.now,
            held_out=ScenarioSet.open(given.held.scenarios),
            labels=Labels.open(given.held.labels),
            stressed={name: Labels.open(each) for name, each in given.held.stressed.items()},
            trained=trained,
            decision_s=given.checked.facts["decision_s"],
        )
        arms.evaluation_report(found).write(folder)
        return {"model_version": name, "promote": verdict.promote, "look": look}

    @cached_property
    def limits(self) -> Limits:
        """What the rules judge by. Raises `LimitsError` or `ConfigError`."""
        path = self.config.evaluate.limits or REPLAY_LIMITS
        if not path.is_file():
            raise ConfigError(f"there are no limits at {path}: name a file with evaluate.limits")
        return read_limits(path)

    def _require_held_out_bars(self) -> None:
        """Before anything is trained: a rebuild takes minutes, and this can be known at once."""
        since = self.config.evaluate.held_out.since
        last = max(int(each.closed_at[-1]) for each in self.held_out.history.bars)
        if since is not None and last <= instant(since):
            raise ConfigError(
                f"the bars end on {datetime.fromtimestamp(last, UTC):%Y-%m-%d}, and what judges"
                f" begins on {since}: bring later bars (market.directory), or move scenarios.until"
                " and evaluate.held_out.since back"
            )

    def _held_out(self) -> HeldOut:
        scenarios = self.held_out.scenarios()
        stressed = stressed_labels(self.held_out, self.outcomes, scenarios, self.meter, self.tell)
        return HeldOut(
            scenarios, self.held_out.labels(scenarios), self.held_out.encoded(scenarios), stressed
        )

    def _answers(self, name: str, policy: Artifact, held: HeldOut) -> Artifact:
        """The adapter's, on every held-out scenario."""

        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter(f"{name}, held-out scenarios") as progress:
                found = answers.of_adapter(
                    self.rebuild.reader, Encoded.open(held.encoded), policy / "adapter", progress
                )
            np.save(folder / answers.FILE, found)
            return {"rows": len(found), "calibration": calibration_of(policy).as_json()}

        return self.rebuild.shop.stage(
            "answers", {}, {"policy": policy, "encoded": held.encoded}, build, (answers,)
        )

    def _probe(self, made: Rebuilt, held: HeldOut) -> Artifact:
        """A linear probe of the base model's last hidden state: the control that a tuned model has
        to reach."""

        def build(folder: Path) -> Mapping[str, Any]:
            fitted = probe.fit_probe(self.rebuild.problem(made.artifacts), self.config.warm_up.beta)
            found = fitted.of(np.asarray(Encoded.open(held.encoded).last))
            np.save(folder / answers.FILE, found)
            return {
                "rows": len(found),
                "calibration": Calibration().as_json(),
                "strength": fitted.strength,
            }

        depends = {
            "beta": self.config.warm_up.beta,
            "targets": self.config.targets.model_dump(mode="json"),
        }
        inputs = {
            name: made.artifacts[name]
            for name in ("scenarios", "labels", "encoded", "reward", "preferences")
        }
        return self.rebuild.shop.stage(
            "answers", depends, inputs | {"held_out": held.encoded}, build, (probe,)
        )

    def _champions(self, directory: Path, roots: Sequence[Path], held: HeldOut) -> Artifact:
        """A published version's, verified: fast when it is an adapter over the same base, else
        prompt by prompt."""
        manifest = load_manifest(directory)
        base = self.rebuild.base.manifest.model_version
        ours = (
            manifest.files.keys() == ADAPTER_FILES
            and manifest.base
            and manifest.base.model_version == base
        )

        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter("champion, held-out scenarios") as progress:
                if ours:
                    found = answers.of_adapter(
                        self.rebuild.reader, Encoded.open(held.encoded), directory, progress
                    )
                else:
                    every = ScenarioSet.open(held.scenarios).scenarios()
                    found = answers.of_version(
                        directory, roots, every, self.config.threads, progress
                    )
            np.save(folder / answers.FILE, found)
            return {"rows": len(found), "calibration": manifest.calibration.as_json()}

        inputs = {"encoded": held.encoded, "scenarios": held.scenarios}
        return self.rebuild.shop.stage(
            "answers", {"version": manifest.hash()}, inputs, build, (answers,)
        )

    def _checks(self, version: Path, held: HeldOut, read: Artifact) -> Artifact:
        """Parity and injection, of the published version against what training read."""
        manifest = read_manifest(version / MANIFEST_NAME)

        def build(folder: Path) -> Mapping[str, Any]:
            every = ScenarioSet.open(held.scenarios).scenarios()
            rows = np.load(read / answers.FILE)
            with self.meter("parity and injection checks") as progress:
                models, threads = self.config.publish.models, self.config.threads
                found = checks.run_checks(
                    version, models, every, rows, self.limits, threads, progress
                )
            return {
                "checks": [asdict(each) for each in found.checks],
                "decision_s": found.decision_s,
            }

        depends = {"files": dict(manifest.files), "limits": self.limits.hash()}
        return self.rebuild.shop.stage(
            "checks", depends, {"held_out": held.scenarios, "answers": read}, build, (checks,)
        )

    def _versions(self, given: Gathered) -> dict[str, Answers]:
        found = {
            name: Answers(
                np.load(each / answers.FILE), Calibration.from_json(each.facts["calibration"])
            )
            for name, each in given.read.items()
        }
        untuned = np.asarray(Encoded.open(given.held.encoded).label_log_probs)
        return found | {BASE_MODEL: Answers(untuned, self.rebuild.base.manifest.calibration)}

    def _contest(self, held: HeldOut, versions: Mapping[str, Answers], trained: Trained) -> Contest:
        scenarios, labels = ScenarioSet.open(held.scenarios), Labels.open(held.labels)
        config = self.config.evaluate
        periods = refitted(scenarios, labels, versions, trained, config.refit_days)
        with self.meter("contest, period by period") as progress:
            return hold_contest(
                scenarios,
                labels,
                self.held_out.history.bars,
                periods,
                self.limits,
                config,
                self.outcomes,
                progress,
            )

    def _trained(self, made: Rebuilt) -> Trained:
        scenarios, labels = (
            ScenarioSet.open(made.artifacts["scenarios"]),
            Labels.open(made.artifacts["labels"]),
        )
        return Trained(scenarios, labels, self.config.scenarios.embargo_hours * 3600)


def stressed_labels(
    rebuild: Rebuild,
    outcomes: OutcomesConfig,
    scenarios: Artifact,
    meter: Meter,
    tell: Callable[[str], None],
) -> dict[str, Artifact]:
    """Labels of the same scenarios under each of `STRESSES`."""
    found = {}
    for name, harder in STRESSES.items():
        worse = Rebuild(
            rebuild.config.model_copy(update={"outcomes": harder(outcomes)}), meter, tell
        )
        worse.history = rebuild.history
        found[name] = worse.labels(scenarios)
    return found


def calibration_of(policy: Artifact) -> Calibration:
    """As it was fitted on the validation scenarios."""
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    return Calibration.from_json(trained["calibration"])


def read_report(artifact: Artifact) -> dict[str, Any]:
    """The gate's signed report of a finished evaluation."""
    return dict(json.loads((artifact / "verdict.json").read_text(encoding="utf-8")))
