"""The pipeline: history or shadow log -> candidates; of those that a limit keeps, scenarios ->
labels -> encoded; of both, teacher -> preferences -> policy.

Each stage reads finished artefacts and leaves one; what is finished is found again, so that a
rebuild that was killed goes on where it stopped. Publishing what comes out is
`training.publish.version`'s work, judging it is `training.pipeline.evaluate`'s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from training.arrays import instant
from training.config.data import HeldOutConfig
from training.config.file import RebuildConfig
from training.config.section import ConfigError
from training.learning.algorithms.policy import policy
from training.learning.algorithms.table import TRAINS
from training.learning.algorithms.warm_up import warm_up
from training.learning.model.base import Base
from training.learning.model.base_pass import encoded
from training.learning.targets.preferences import preferences
from training.learning.teacher.expectations import taught
from training.learning.teacher.teacher import teacher
from training.outcomes.labels import labels
from training.scenarios.history import History, bars_until, load_history, of_history
from training.scenarios.recorded import RecordedLog, of_log
from training.scenarios.splits import embargo_s
from training.stages.store import Artifact
from training.stages.workshop import Workshop

LEARNT_FROM = ("scenarios", "labels", "encoded", "taught", "preferences")
"""What a policy, a warm-up and a probe are made from."""


class Rebuilt(NamedTuple):
    """Every artefact of a rebuild, by stage; `policy` is last."""

    artifacts: dict[str, Artifact]

    @property
    def policy(self) -> Artifact:
        """The trained adapter with its measures."""
        return self.artifacts["policy"]

    @property
    def trained(self) -> dict[str, Artifact]:
        """Its scenarios and labels, by the fields of `Labelled`."""
        return {name: self.artifacts[name] for name in ("scenarios", "labels")}

    @property
    def candidates(self) -> dict[str, Artifact]:
        """The same of every candidate of the period."""
        return {name: self.artifacts[f"candidate_{name}"] for name in ("scenarios", "labels")}

    @property
    def cpu_seconds(self) -> float:
        """What making it took, all stages."""
        return sum(artifact.cpu_seconds for artifact in self.artifacts.values())

    @property
    def learnt_from(self) -> dict[str, Artifact]:
        """Those of them that a policy, a warm-up and a probe are made from."""
        return {name: self.artifacts[name] for name in LEARNT_FROM}


def rebuild(
    config: RebuildConfig,
    shop: Workshop,
    database: str | None = None,
    base: Base | None = None,
) -> Rebuilt:
    """All stages in order.

    `database` is Postgres' URL, needed when scenarios come from the shadow log; bars then only
    judge. `base` is the base model, when it is at hand; else it is imported.

    Raises an `AdvisorError` of the stage that cannot go on; what is finished stays.
    """
    torch.set_num_threads(config.threads)
    market = market_of(config)
    base = base or base_of(config, shop)
    made = taught_by_all(config, market, base, shop, database)
    made["preferences"] = shop.make(
        preferences,
        **{name: made[name] for name in ("scenarios", "labels", "taught")},
        settings=config.preferences,
        targets=config.targets,
    )
    learning: dict[str, Any] = {
        **{name: made[name] for name in LEARNT_FROM},
        "base": base,
        "adapter": config.adapter,
        "targets": config.targets,
        "outcomes": config.outcomes,
        "seed": config.scenarios.seed,
    }
    if config.policy.start == "warm_up":
        made["warm_up"] = shop.make(warm_up, **learning, settings=config.warm_up)
    made["policy"] = shop.make(
        policy,
        config.policy.algorithm,
        **learning,
        algorithm=TRAINS[config.policy.algorithm],
        warm_up=made.get("warm_up"),
        settings=config.policy,
    )
    return Rebuilt(made)


def taught_by_all(
    config: RebuildConfig, market: History, base: Base, shop: Workshop, database: str | None
) -> dict[str, Artifact]:
    """The stages up to what a teacher of all candidates says of those that a limit keeps."""
    every = labelled(unlimited(config), market, shop, database)
    made = labelled(config, market, shop, database)
    made["encoded"] = shop.make(
        encoded, scenarios=made["scenarios"], base=base, settings=config.encode
    )
    made["teacher"] = shop.make(
        teacher,
        **every,
        prompted=made["scenarios"],
        encoded=made["encoded"],
        settings=config.teacher,
        outcomes=config.outcomes,
        embargo_s=embargo_s(config.scenarios),
    )
    made["taught"] = shop.make(
        taught, scenarios=made["scenarios"], teacher=made["teacher"], encoded=made["encoded"]
    )
    return {f"candidate_{name}": artifact for name, artifact in every.items()} | made


def unlimited(config: RebuildConfig) -> RebuildConfig:
    """Every candidate of the period, on their own terms and on others: the teacher learns from all;
    `scenarios.limit` bounds the prompts alone."""
    everything = {"limit": None, "perturbations": 0, "texts": 0.0}
    scenarios = config.scenarios.model_copy(update=everything)
    return config.model_copy(update={"scenarios": scenarios})


def labelled(
    config: RebuildConfig, market: History, shop: Workshop, database: str | None
) -> dict[str, Artifact]:
    """Scenarios and what became of every answer to them, by the fields of `Labelled`."""
    scenarios = scenarios_of(config, market, shop, database)
    fates = shop.make(labels, scenarios=scenarios, market=market, settings=config.outcomes)
    return {"scenarios": scenarios, "labels": fates}


def numbers_alone(config: RebuildConfig, shop: Workshop, database: str | None) -> Rebuilt:
    """What is learned of every candidate without a language model: scenarios and labels, all of
    them, and the teacher."""
    every = labelled(unlimited(config), market_of(config), shop, database)
    made = shop.make(
        teacher,
        **every,
        settings=config.teacher,
        outcomes=config.outcomes,
        embargo_s=embargo_s(config.scenarios),
    )
    candidates = {f"candidate_{name}": artifact for name, artifact in every.items()}
    return Rebuilt(every | candidates | {"teacher": made})


def market_of(config: RebuildConfig) -> History:
    """Bars and context up to the end of what the scenarios' period may read; all of them for the
    held-out period."""
    scenarios = config.scenarios
    until = None if isinstance(scenarios, HeldOutConfig) else bars_until(scenarios)
    return load_history(config.market, instant(until) if until else None)


def base_of(config: RebuildConfig, shop: Workshop) -> Base:
    """The model that is adapted, imported when it was not yet."""
    return Base.imported(
        config.encode.base, config.publish.models, config.threads, shop.tell, device_of(config)
    )


def device_of(config: RebuildConfig) -> str:
    """Where the model is read and trained. Raises `ConfigError` for a GPU that is not there."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError('device is "cuda", and PyTorch finds no GPU: set device="cpu"')
    return "cuda" if there and config.device != "cpu" else "cpu"


def scenarios_of(
    config: RebuildConfig, market: History, shop: Workshop, database: str | None
) -> Artifact:
    """Scenarios with splits and weights. Raises `ConfigError` when the log is asked for and has no
    URL."""
    settings = config.scenarios
    if settings.source == "history":
        return shop.make(of_history, market=market, settings=settings)
    if database is None:
        raise ConfigError(
            "scenarios.source is the shadow log: say where it is with --database or DATABASE_URL"
        )
    log = RecordedLog.now(database, settings, market.seconds)
    return shop.make(of_log, log=log, settings=settings, label_seconds=market.seconds)
