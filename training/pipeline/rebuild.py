"""The pipeline: history or shadow log -> scenarios -> labels -> encoded -> reward ->
preferences -> policy.

Each stage reads finished artefacts and writes one; what is finished is found again, so that a
rebuild that was killed goes on where it stopped. Publishing what comes out is
`training.publish.version`'s work, judging it is `training.pipeline.evaluate`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.domain.manifest import ModelManifest
from app.domain.prompt import lines_of
from app.policy.in_process.importer import import_directory, import_smollm2
from app.policy.in_process.label_reader import LabelReader
from training.agent.words import Demonstrations
from training.arrays import Meter
from training.config.data import HeldOutConfig, instant
from training.config.file import RebuildConfig
from training.config.learning import TrainingConfig
from training.config.section import ConfigError
from training.learning.algorithms import dpo, expected, ppo, preferences, rrhf
from training.learning.algorithms import warm_up as train_warm_up
from training.learning.algorithms.preferences import Preferences, build_preferences
from training.learning.algorithms.run import Problem, TrainedPolicy
from training.learning.algorithms.targets import dealt_out, targets
from training.learning.model import base_pass, language
from training.learning.model.base_pass import Encoded, build_encoded
from training.learning.reward import ensemble
from training.learning.reward.ensemble import RewardData, Rewards, build_reward
from training.outcomes import labels
from training.outcomes.labels import Labels, build_labels
from training.scenarios import history, recorded
from training.scenarios import table as scenario_tables
from training.scenarios.history import History, find_scenarios, load_history
from training.scenarios.recorded import log_state, read_log
from training.scenarios.table import ScenarioSet, build_scenarios, evenly
from training.stages.store import Artifact, Workshop

ALGORITHMS: dict[str, Any] = {"expected": expected, "dpo": dpo, "ppo": ppo, "rrhf": rrhf}
"""Where each algorithm's script is."""
DIALOGUES = 16
"""Held-out dialogues on which the language is looked at."""


class Base(NamedTuple):
    """The base model: its directory and manifest."""

    path: Path
    manifest: ModelManifest


class Rebuilt(NamedTuple):
    """Every artefact of a rebuild, by stage; `policy` is last."""

    artifacts: dict[str, Artifact]

    @property
    def policy(self) -> Artifact:
        """The trained adapter with its measures."""
        return self.artifacts["policy"]

    @property
    def cpu_seconds(self) -> float:
        """What making it took, all stages."""
        return sum(artifact.cpu_seconds for artifact in self.artifacts.values())


@dataclass
class Rebuild:
    """One rebuild. `meter` opens a progress bar; `tell` hears a line per stage.

    `database` is Postgres' URL, needed when scenarios come from the shadow log; bars then only
    judge.
    """

    config: RebuildConfig
    meter: Meter
    tell: Callable[[str], None]
    database: str | None = None

    def __post_init__(self) -> None:
        torch.set_num_threads(self.config.threads)
        self.shop = Workshop(self.config.artifacts, self.tell)

    def run(self) -> Rebuilt:
        """All stages in order. Raises an `AdvisorError` of the stage that cannot go on; what is
        finished stays."""
        made = {"scenarios": self.scenarios()}
        made["labels"] = self.labels(made["scenarios"])
        made["encoded"] = self.encoded(made["scenarios"])
        made["reward"] = self.reward(made)
        made["preferences"] = self.preferences(made)
        if self.config.policy.start == "warm_up":
            made["warm_up"] = self.warm_up(made)
        made["policy"] = self.policy(made)
        return Rebuilt(made)

    @cached_property
    def history(self) -> History:
        """Bars and context up to the end of what a rebuild may read; all of them for the held-out
        period."""
        config = self.config.scenarios
        until = None if isinstance(config, HeldOutConfig) else config.bars_until
        return load_history(self.config.market, instant(until) if until else None)

    @cached_property
    def base(self) -> Base:
        """The model that is adapted, imported when it was not yet."""
        wanted, models, threads = (
            self.config.encode.base,
            self.config.publish.models,
            self.config.threads,
        )
        if wanted is None:
            wanted = import_smollm2(models, self.tell, threads=threads)
        return Base(wanted, import_directory(wanted, models, threads=threads))

    @cached_property
    def reader(self) -> LabelReader:
        """The base model, loaded."""
        return LabelReader.load(self.base.path)

    def scenarios(self) -> Artifact:
        """Scenarios with splits and weights. Raises `ConfigError` when the log is asked for and has
        no URL."""
        config, seconds = self.config.scenarios, self.history.seconds
        depends = {
            "scenarios": config.model_dump(mode="json"),
            "market": self.history.fingerprint(),
            "log": (
                log_state(self._log(), config, seconds) if config.source == "shadow_log" else None
            ),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter("scenarios") as progress:
                if config.source == "shadow_log":
                    found, excluded = read_log(self._log(), config, seconds, progress)
                else:
                    found, excluded = find_scenarios(self.history, config, progress)
                return build_scenarios(folder, found, config, excluded, seconds, progress)

        reading = recorded if config.source == "shadow_log" else history
        return self.shop.stage("scenarios", depends, {}, build, (scenario_tables, reading))

    def _log(self) -> str:
        if self.database is None:
            raise ConfigError(
                "scenarios.source is the shadow log: say where it is with --database or"
                " DATABASE_URL"
            )
        return self.database

    def labels(self, scenarios: Artifact) -> Artifact:
        """What every action would have earned."""
        depends = {
            "outcomes": self.config.outcomes.model_dump(mode="json"),
            "market": self.history.fingerprint(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            found = ScenarioSet.open(scenarios)
            with self.meter("labels") as progress:
                series = self.history.series()
                return build_labels(
                    folder,
                    found.scenarios(),
                    found.as_of,
                    found.real,
                    series,
                    self.config.outcomes,
                    progress,
                )

        return self.shop.stage("labels", depends, {"scenarios": scenarios}, build, (labels,))

    def encoded(self, scenarios: Artifact) -> Artifact:
        """The base pass. Its cache survives a change of anything but model and prompt."""
        depends = {
            "base": self.base.manifest.files,
            "encode": self.config.encode.model_dump(mode="json"),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            texts = [lines_of(one) for one in ScenarioSet.open(scenarios).scenarios()]
            cache = self.config.artifacts / "cache"
            with self.meter("base pass") as progress:
                return build_encoded(
                    folder,
                    texts,
                    self.reader,
                    self.base.path,
                    self.config.encode,
                    cache,
                    progress,
                )

        return self.shop.stage("encoded", depends, {"scenarios": scenarios}, build, (base_pass,))

    def reward(self, made: Mapping[str, Artifact]) -> Artifact:
        """The reward model, with predictions out of fold."""
        inputs = {name: made[name] for name in ("scenarios", "labels", "encoded")}

        def build(folder: Path) -> Mapping[str, Any]:
            data = self.reward_data(made)
            embargo = self.config.scenarios.embargo_hours * 3600
            with self.meter("reward model") as progress:
                return build_reward(folder, data, self.config.reward, embargo, progress)

        return self.shop.stage("reward", self.config.reward, inputs, build, (ensemble,))

    def reward_data(self, made: Mapping[str, Artifact]) -> RewardData:
        """What the reward model is trained on."""
        return RewardData.of(
            ScenarioSet.open(made["scenarios"]),
            Labels.open(made["labels"]),
            Encoded.open(made["encoded"]),
        )

    def preferences(self, made: Mapping[str, Artifact]) -> Artifact:
        """Pairs of actions, from outcomes and from the reward model."""
        inputs = {name: made[name] for name in ("scenarios", "labels", "reward")}

        def build(folder: Path) -> Mapping[str, Any]:
            return build_preferences(
                folder,
                ScenarioSet.open(made["scenarios"]),
                Labels.open(made["labels"]),
                Rewards.open(made["reward"]),
                self.config.preferences,
            )

        return self.shop.stage(
            "preferences", self.config.preferences, inputs, build, (preferences,)
        )

    def warm_up(self, made: Mapping[str, Artifact]) -> Artifact:
        """The supervised warm-up, which all preference algorithms of the same targets share."""

        def build(folder: Path) -> Mapping[str, Any]:
            with self.meter("supervised warm-up") as progress:
                problem, settings = self.problem(made), self.config.warm_up
                trained = train_warm_up.train(
                    problem, settings, self.config.adapter, self.reader, folder, progress
                )
            return {"metrics": trained.metrics, "steps": len(trained.history)}

        depends = self._policy_depends(self.config.warm_up)
        return self.shop.stage(
            "warm_up", depends, self._policy_inputs(made), build, (train_warm_up,)
        )

    def policy(self, made: Mapping[str, Artifact]) -> Artifact:
        """The adapter, and what became of the language. A policy that collapsed raises and leaves
        nothing."""
        algorithm = ALGORITHMS[self.config.policy.algorithm]

        def build(folder: Path) -> Mapping[str, Any]:
            problem = self.problem(made)
            with self.meter(f"policy ({self.config.policy.algorithm})") as progress:
                trained = algorithm.train(
                    problem, self.config.policy, self.config.adapter, self.reader, folder, progress
                )
            return {
                "algorithm": self.config.policy.algorithm,
                "metrics": trained.metrics,
                "language": self._language(problem, trained),
                "steps": len(trained.history),
            }

        depends, inputs = self._policy_depends(self.config.policy), self._policy_inputs(made)
        if self.config.policy.start == "warm_up":
            inputs["warm_up"] = made["warm_up"]
        return self.shop.stage("policy", depends, inputs, build, (algorithm, language))

    def _policy_inputs(self, made: Mapping[str, Artifact]) -> dict[str, Artifact]:
        return {
            name: made[name] for name in ("scenarios", "labels", "encoded", "reward", "preferences")
        }

    def _policy_depends(self, settings: TrainingConfig) -> dict[str, Any]:
        return {
            "policy": settings.model_dump(mode="json"),
            "adapter": self.config.adapter.model_dump(mode="json"),
            "targets": self.config.targets.model_dump(mode="json"),
            "calibration": self.base.manifest.calibration.as_json(),
        }

    def _language(self, problem: Problem, trained: TrainedPolicy) -> dict[str, Any] | None:
        """Fluency before and after, on dialogues of the validation period; None when the agent
        never said anything."""
        if problem.demonstrations is None:
            return None
        rows = problem.validate_rows
        rows = rows[evenly(len(rows), DIALOGUES)]
        actions = trained.answers.action
        with self.meter("language, before and after") as progress:
            return language.compare(
                self.reader,
                problem.encoded,
                trained.adapter,
                rows,
                problem.demonstrations,
                actions,
                progress,
            )

    def problem(self, made: Mapping[str, Artifact]) -> Problem:
        """What the algorithm is given."""
        found = ScenarioSet.open(made["scenarios"])
        pairs = Preferences.open(made["preferences"])
        train = found.rows("train")
        rewards = targets(
            Labels.open(made["labels"]).rewards,
            Rewards.open(made["reward"]).predictions,
            train,
            self.config.targets,
        )
        controls = found.controls()
        said = (
            Demonstrations.of(found.scenarios(), [one for one in controls if one])
            if all(controls)
            else None
        )
        indices = pairs.indices
        if self.config.targets.shuffled:
            rewards, indices = dealt_out(rewards, indices, train, self.config.scenarios.seed)
        return Problem(
            encoded=Encoded.open(made["encoded"]),
            rewards=rewards,
            weights=found.weight,
            train_rows=train,
            validate_rows=found.rows("validate", real_only=True),
            calibration=self.base.manifest.calibration,
            base_name=self.base.manifest.model_version,
            pairs=indices,
            pair_weights=pairs.weights,
            demonstrations=said,
            warm_up=made["warm_up"].path if "warm_up" in made else None,
        )
