"""Does a version deserve promotion, and how sure are we? The held-out period, read once per
release.

Stages: the rebuild's own (found when they are finished); scenarios, labels and the base pass of the
held-out period; every version's answers; the checks; then contest, verdict and report, as one
artefact. Each version that is judged on the held-out period is a look; looks are counted beside the
versions before anything is seen, and told in the report (`training.judging.gate.looks`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from app.domain.rules.limits import Limits, read_limits
from app.policy.versions.store import find_version, load_manifest, report_beside
from training.arrays import instant
from training.config.data import HeldOutConfig
from training.config.file import RebuildConfig
from training.config.judging import Kind
from training.config.learning import Algorithm
from training.config.section import ConfigError
from training.judging.contest.arms import (
    BASE_MODEL,
    CHAMPION,
    POLICY,
    PROBE,
    SHUFFLED,
    TEACHER,
    WARM_UP,
)
from training.judging.evaluation import evaluation
from training.judging.gate.checks import checks
from training.judging.gate.evidence import Before
from training.judging.gate.looks import Look
from training.judging.gate.sealed import verdict_file
from training.judging.gate.texts import SCENARIOS
from training.judging.report.findings import Making, Terms
from training.learning.algorithms.measures import CollapsedPolicy
from training.learning.algorithms.probe import of_probe
from training.learning.algorithms.teacher import of_teacher
from training.learning.model.answers import of_base, of_policy, steps_of
from training.learning.model.base import Base
from training.learning.model.base_pass import encoded
from training.learning.model.published import Published, of_published
from training.learning.teacher.expectations import taught
from training.learning.teacher.teacher import teacher
from training.pipeline.rebuild import (
    Rebuilt,
    base_of,
    labelled,
    market_of,
    numbers_alone,
    rebuild,
    scenarios_of,
    unlimited,
)
from training.publish.version import publish, release_of
from training.scenarios.history import History, wanted
from training.scenarios.splits import embargo_s
from training.stages.store import Artifact
from training.stages.workshop import Workshop


class Evaluated(NamedTuple):
    """A finished evaluation."""

    artifact: Artifact
    version: Path
    report: dict[str, Any]
    """The gate's, signed: as a trader."""
    veto: dict[str, Any]
    """The same as a veto."""


def evaluate(
    config: RebuildConfig,
    shop: Workshop,
    now: datetime,
    rivals: Sequence[Algorithm] = (),
    database: str | None = None,
    champion: str | None = None,
    entrant: str | None = None,
) -> Evaluated:
    """Rebuild and publish, or take the `entrant`, a published version; hold the contest, ask the
    gate, write the report.

    `now` is the time that is written down. `rivals` are further policies, by name of their
    algorithm, that take part in the contest and count as trials. `champion` is a published version
    that must be beaten; None: there is none yet.
    """
    limits, judged = limits_of(config), judged_by(config)
    market = _market_that_judges(config, judged)
    rival, known = (published_of(config, name) for name in (champion, entrant))
    require_unseen(config.evaluate.held_out, known, rival)
    base = base_of(config, shop)
    rebuilt, collapsed = ({}, {}) if known else rebuild_all(config, rivals, shop, database, base)
    made = rebuilt[POLICY] if rebuilt else numbers_alone(config, shop, database)
    version = known or newly_published(config, made.policy, now)

    held_out = labelled(judged, market, shop, database)
    every = labelled(unlimited(judged), market, shop, database)
    schools = {TEACHER: made.artifacts["teacher"], SHUFFLED: shuffled_teacher(config, made, shop)}
    asked = Asked(config, shop, base, held_out["scenarios"], schools, whole=known is not None)
    answers, checked = _answers(asked, version, rival, rebuilt, judged, market, database)
    look = look_of(config, version, now)
    artifact = shop.make(
        evaluation,
        held_out={**held_out, "answers": answers},
        every={**every, "answers": asked.of_numbers(every["scenarios"])},
        trained=made.trained,
        candidates=made.candidates,
        taught=asked.taught,
        checks=checked,
        market=market,
        limits=limits,
        version=version.path.name,
        terms=terms_of(config, known),
        before=before_of(look),
        collapsed=collapsed,
        now=now,
        making=_making(rebuilt),
    )
    look.note(artifact.facts["tried"])
    return _evaluated(artifact, version)


def look_of(config: RebuildConfig, version: Published, now: datetime) -> Look:
    """The look at this version, beside all versions that are published there."""
    period = config.evaluate.held_out
    return Look(config.publish.models, version.path.name, config.market, period, now)


def before_of(look: Look) -> Before:
    """The look counted, and what others found on these days before."""
    return Before(looks=look.count(), tried=look.tried_before())


def _making(rebuilt: Mapping[str, Rebuilt]) -> dict[str, Making]:
    return {name: Making(each.cpu_seconds, steps_of(each.policy)) for name, each in rebuilt.items()}


def _evaluated(artifact: Artifact, version: Published) -> Evaluated:
    _keep_report(artifact, version.path)
    reports = (read_report(artifact, kind) for kind in (Kind.TRADER, Kind.VETO))
    return Evaluated(artifact, version.path, *reports)


def _answers(
    asked: Asked,
    version: Published,
    rival: Published | None,
    rebuilt: Mapping[str, Rebuilt],
    judged: RebuildConfig,
    market: History,
    database: str | None,
) -> tuple[dict[str, Artifact], Artifact]:
    """Everybody's, by the names of their arms, and the checks. Those of a published version read a
    base pass of no more scenarios than they ask about."""
    if rebuilt:
        answers = asked.of_all(rebuilt, rival)
        return answers, asked.checks(version, answers[POLICY])
    few = scenarios_of(sample_of(judged), market, asked.shop, database)
    checked = replace(asked, scenarios=few, whole=False).checks(version)
    return asked.of_published({POLICY: version, CHAMPION: rival}), checked


def rebuild_all(
    config: RebuildConfig,
    rivals: Sequence[Algorithm],
    shop: Workshop,
    database: str | None,
    base: Base,
) -> tuple[dict[str, Rebuilt], dict[str, str]]:
    """The policy's rebuild and its rivals', by the name of the arm; and why a rival is not among
    them, whose training collapsed: the others are judged without it. Raises `CollapsedPolicy` where
    the policy's own did, and `UnknownVersion` before anything is trained where the base lies in no
    folder that versions are served from."""
    find_version(base.manifest.model_version, folders_of(config))
    rebuilt, collapsed = {POLICY: rebuild(config, shop, database, base)}, {}
    for rival in rivals:
        if rival.algorithm == config.policy.algorithm:
            continue
        arm, other = f"{POLICY} {rival.algorithm}", config.model_copy(update={"policy": rival})
        try:
            rebuilt[arm] = rebuild(other, shop, database, base)
        except CollapsedPolicy as error:
            collapsed[arm] = str(error)
            shop.tell(f"{arm}: takes no part: {error}")
    return rebuilt, collapsed


def shuffled_teacher(config: RebuildConfig, made: Rebuilt, shop: Workshop) -> Artifact:
    """An ablation: a teacher of numbers alone whose candidates were dealt each other's outcomes."""
    return shop.make(
        teacher,
        SHUFFLED,
        **made.candidates,
        settings=config.teacher,
        outcomes=config.outcomes,
        embargo_s=embargo_s(config.scenarios),
        shuffled=True,
    )


@dataclass(frozen=True)
class Asked:
    """The held-out scenarios, and who is asked about them."""

    config: RebuildConfig
    shop: Workshop
    base: Base
    scenarios: Artifact
    schools: Mapping[str, Artifact]
    """Teachers, by the names of their arms."""
    whole: bool = False
    """Prompts are asked whole, one by one as the service asks; there is no base pass."""

    @cached_property
    def base_pass(self) -> Artifact:
        """Their prompts, read once."""
        settings = self.config.encode
        return self.shop.make(encoded, scenarios=self.scenarios, base=self.base, settings=settings)

    @cached_property
    def _asides(self) -> dict[str, Any]:
        return {"models": self.config.publish.models, "threads": self.config.threads}

    @cached_property
    def taught(self) -> Artifact:
        """What the teacher says of them, who has read prompts."""
        return self._read(TEACHER, "held out", encoded=None if self.whole else self.base_pass)

    def of_all(
        self, rebuilt: Mapping[str, Rebuilt], rival: Published | None
    ) -> dict[str, Artifact]:
        """Everybody's answers, by the names of their arms: policies and the warm-up that some of
        them started from, a linear probe of the base model, teachers, a champion, the base."""
        answers = self._of_policies(rebuilt) | {PROBE: self._of_probe(rebuilt[POLICY])}
        answers |= self.of_published({CHAMPION: rival})
        answers[BASE_MODEL] = self.shop.make(
            of_base, BASE_MODEL, encoded=self.base_pass, base=self.base
        )
        return answers

    def of_published(self, versions: Mapping[str, Published | None]) -> dict[str, Artifact]:
        """Published versions' answers, where there is one, and teachers'."""
        fooled = self._read(SHUFFLED, f"{SHUFFLED}, held out")
        return self._of_teachers({TEACHER: self.taught, SHUFFLED: fooled}) | {
            arm: self.of_version(arm, version) for arm, version in versions.items() if version
        }

    def of_numbers(self, every: Artifact) -> dict[str, Artifact]:
        """What teachers answer to every candidate of the period, by numbers alone."""
        return self._of_teachers({
            name: self._read(name, f"{name}, every candidate", scenarios=every)
            for name in self.schools
        })  # fmt: skip

    def checks(self, version: Published, answers: Artifact | None = None) -> Artifact:
        """Does serving answer so too?"""
        answers = answers or self.of_version("checks", version)
        return self.shop.make(
            checks, version=version, scenarios=self.scenarios, answers=answers, **self._asides
        )

    def _of_policies(self, rebuilt: Mapping[str, Rebuilt]) -> dict[str, Artifact]:
        policies = {name: made.policy for name, made in rebuilt.items()}
        for made in rebuilt.values():
            if "warm_up" in made.artifacts:
                policies.setdefault(WARM_UP, made.artifacts["warm_up"])
        return {
            name: self.shop.make(
                of_policy, name, policy=policy, encoded=self.base_pass, base=self.base
            )
            for name, policy in policies.items()
        }

    def _of_probe(self, made: Rebuilt) -> Artifact:
        return self.shop.make(
            of_probe,
            PROBE,
            **made.learnt_from,
            base=self.base,
            held_out=self.base_pass,
            beta=self.config.warm_up.beta,
            targets=self.config.targets,
            seed=self.config.scenarios.seed,
        )

    def _of_teachers(self, said: Mapping[str, Artifact]) -> dict[str, Artifact]:
        worth = {"beta": self.config.policy.beta, "targets": self.config.targets}
        return {
            arm: self.shop.make(of_teacher, arm, taught=words, **worth)
            for arm, words in said.items()
        }

    def of_version(self, arm: str, version: Published) -> Artifact:
        """A published version's answers."""
        return self.shop.make(
            of_published,
            arm,
            version=version,
            scenarios=self.scenarios,
            encoded=None if self.whole else self.base_pass,
            base=None if self.whole else self.base,
            shipped=self.config.publish.shipped,
            **self._asides,
        )

    def _read(self, arm: str, about: str, **given: Artifact | None) -> Artifact:
        all_given = {"scenarios": self.scenarios, "teacher": self.schools[arm]} | given
        return self.shop.make(taught, about, **all_given)


def judged_by(config: RebuildConfig) -> RebuildConfig:
    """The same on the held-out period, at the costs that judge."""
    outcomes = config.evaluate.outcomes or config.outcomes
    held_out = {"scenarios": config.evaluate.held_out, "outcomes": outcomes}
    return config.model_copy(update=held_out)


def sample_of(judged: RebuildConfig) -> RebuildConfig:
    """As few scenarios as checks read."""
    few = judged.scenarios.model_copy(update={"limit": SCENARIOS})
    return judged.model_copy(update={"scenarios": few})


def terms_of(config: RebuildConfig, known: Published | None = None) -> Terms:
    """What the contest is judged by; the algorithm is what a published version says of itself."""
    algorithm = known.manifest.provenance.get("algorithm", "not known") if known else None
    return Terms(
        algorithm or config.policy.algorithm,
        config.market,
        config.evaluate.outcomes or config.outcomes,
        config.evaluate,
        config.gate,
        embargo_s(config.scenarios),
    )


def limits_of(config: RebuildConfig) -> Limits:
    """What the rules judge by. Raises `LimitsError` or `ConfigError`."""
    path = config.evaluate.limits
    if not path.is_file():
        raise ConfigError(f"there are no limits at {path}: name a file with evaluate.limits")
    return read_limits(path)


def folders_of(config: RebuildConfig) -> list[Path]:
    """Where versions lie."""
    return [config.publish.models, config.publish.shipped]


def newly_published(config: RebuildConfig, policy: Artifact, now: datetime) -> Published:
    """The policy as a version in its folder."""
    models = config.publish.models
    return published(publish(release_of(policy, config.publish.name, [models]), models, now))


def published_of(config: RebuildConfig, name: str | None) -> Published | None:
    """A version by its name, verified. Raises `UnknownVersion` where there is none."""
    return published(find_version(name, folders_of(config))) if name else None


def published(directory: Path) -> Published:
    """A version, verified."""
    return Published(directory, load_manifest(directory))


def read_report(artifact: Artifact, kind: Kind) -> dict[str, Any]:
    """The gate's signed report of a finished evaluation."""
    return dict(json.loads((artifact / verdict_file(kind)).read_text(encoding="utf-8")))


def _keep_report(artifact: Artifact, version: Path) -> None:
    """For people, beside the version: the service's page of it shows the newest."""
    kept = report_beside(version)
    draft = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.copyfile(artifact / "report.html", draft)
    draft.replace(kept)


def require_unseen(held_out: HeldOutConfig, *versions: Published | None) -> None:
    """What versions say that they were trained on lies before what judges them. Raises
    `ConfigError`."""
    for version in versions:
        *_, last = (version.manifest.provenance.get("period") if version else None) or [0]
        if version and held_out.since is not None and last >= instant(held_out.since):
            raise ConfigError(
                f"{version.path.name} was trained on decisions up to"
                f" {datetime.fromtimestamp(last, UTC):%Y-%m-%d}, and what judges begins on"
                f" {held_out.since}: move evaluate.held_out.since behind them"
            )


def _market_that_judges(config: RebuildConfig, judged: RebuildConfig) -> History:
    """It reaches into the held-out period and has its symbols: known before anything is trained,
    which takes minutes."""
    market, since = market_of(judged), config.evaluate.held_out.since
    if config.evaluate.held_out.source == "history":
        wanted(market, config.evaluate.held_out)
    last = max(int(bars.closed_at[-1]) for bars in market.bars)
    if since is not None and last <= instant(since):
        raise ConfigError(
            f"the bars end on {datetime.fromtimestamp(last, UTC):%Y-%m-%d}, and what judges"
            f" begins on {since}: bring later bars (market.directory), or move scenarios.until"
            " and evaluate.held_out.since back"
        )
    return market
