"""Does a version deserve promotion, and how sure are we? The held-out period, read once per
release.

Stages: the rebuild's own (found when they are finished); scenarios, labels and the base pass of the
held-out period; every version's answers; the checks; then contest, verdict and report, as one
artefact. Each version that is judged on the held-out period is a look; looks are counted beside the
versions and told in the report (`training.judging.gate.looks`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from app.domain.rules.limits import Limits, read_limits
from app.policy.versions.store import find_version, load_manifest, report_beside
from training.arrays import instant
from training.config.file import RebuildConfig
from training.config.judging import Kind
from training.config.learning import Algorithm
from training.config.section import ConfigError
from training.judging.contest.arms import CHAMPION, POLICY, PROBE, SHUFFLED, TEACHER, WARM_UP
from training.judging.evaluation import evaluation
from training.judging.gate.checks import checks
from training.judging.gate.sealed import verdict_file
from training.judging.report.findings import Terms
from training.learning.algorithms.probe import of_probe
from training.learning.algorithms.teacher import of_teacher
from training.learning.model.answers import Published, of_policy, of_published
from training.learning.model.base import Base
from training.learning.model.base_pass import encoded
from training.learning.teacher.expectations import taught
from training.learning.teacher.teacher import teacher
from training.outcomes.labels import labels
from training.pipeline.rebuild import (
    Rebuilt,
    base_of,
    every_candidate,
    market_of,
    rebuild,
    scenarios_of,
)
from training.publish.version import publish, release_of
from training.scenarios.history import History
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


def evaluate(  # long: a list of calls, read from top to bottom
    config: RebuildConfig,
    shop: Workshop,
    now: datetime,
    rivals: Sequence[Algorithm] = (),
    database: str | None = None,
    champion: str | None = None,
) -> Evaluated:
    """Rebuild if need be, publish the version to its folder, hold the contest, ask the gate, write
    the report.

    Parameters
    ----------
    now : the time that is written down.
    rivals : further policies, by name of their algorithm, that take part in the contest and count
        as trials.
    champion : a published version that must be beaten; None: there is none yet.
    """
    terms, limits = terms_of(config), limits_of(config)
    judged = config.model_copy(
        update={"scenarios": config.evaluate.held_out, "outcomes": terms.outcomes}
    )
    market = market_of(judged)
    _require_held_out_bars(config, market)
    models, roots = config.publish.models, [config.publish.models, config.publish.shipped]
    rival = published(find_version(champion, roots)) if champion else None

    base = base_of(config, shop)
    rebuilt = rebuild_all(config, rivals, shop, database, base)
    made = rebuilt[POLICY]
    release = release_of(made.policy, config.publish.name, [models])
    version = published(publish(release, models, now))

    scenarios = scenarios_of(judged, market, shop, database)
    base_pass = shop.make(encoded, scenarios=scenarios, base=base, settings=config.encode)
    every = every_candidate(judged, market, shop, database)
    schools = {TEACHER: made.artifacts["teacher"], SHUFFLED: shuffled_teacher(config, made, shop)}
    read = shop.make(
        taught, "held out", scenarios=scenarios, teacher=schools[TEACHER], encoded=base_pass
    )
    answers = answers_of(rebuilt, base_pass, base, shop)
    answers |= controls_of(config, made, scenarios, base_pass, read, schools[SHUFFLED], base, shop)
    of_numbers = {
        name: shop.make(
            taught, f"{name}, every candidate", scenarios=every["candidates"], teacher=school
        )
        for name, school in schools.items()
    }
    asides = {"models": models, "threads": config.threads}
    if rival:
        answers[CHAMPION] = shop.make(
            of_published,
            CHAMPION,
            version=rival,
            scenarios=scenarios,
            encoded=base_pass,
            base=base,
            shipped=config.publish.shipped,
            **asides,
        )
    checked = shop.make(
        checks,
        version=version,
        scenarios=scenarios,
        answers=answers[POLICY],
        **asides,
    )
    artifact = shop.make(
        evaluation,
        scenarios=scenarios,
        labels=shop.make(labels, scenarios=scenarios, market=market, settings=terms.outcomes),
        every=every["candidates"],
        every_labels=every["candidate_labels"],
        encoded=base_pass,
        answers=answers,
        every_answers=teachers_answers(config, of_numbers, shop),
        checks=checked,
        taught=read,
        trained_scenarios=made.artifacts["scenarios"],
        trained_labels=made.artifacts["labels"],
        candidates=made.artifacts["candidates"],
        candidate_labels=made.artifacts["candidate_labels"],
        base=base,
        market=market,
        limits=limits,
        version=version.path.name,
        terms=terms,
        period=config.evaluate.held_out,
        embargo_s=embargo_s(config.scenarios),
        models=models,
        now=now,
        cpu_seconds={name: each.cpu_seconds for name, each in rebuilt.items()},
    )
    _keep_report(artifact, version.path)
    reports = (read_report(artifact, kind) for kind in (Kind.TRADER, Kind.VETO))
    return Evaluated(artifact, version.path, *reports)


def shuffled_teacher(config: RebuildConfig, made: Rebuilt, shop: Workshop) -> Artifact:
    """A control: a teacher of numbers alone whose candidates' outcomes were dealt to each other."""
    return shop.make(
        teacher,
        SHUFFLED,
        scenarios=made.artifacts["candidates"],
        labels=made.artifacts["candidate_labels"],
        settings=config.teacher,
        outcomes=config.outcomes,
        embargo_s=embargo_s(config.scenarios),
        shuffled=True,
    )


def teachers_answers(
    config: RebuildConfig, said: Mapping[str, Artifact], shop: Workshop
) -> dict[str, Artifact]:
    """What teachers answer alone, by the names of their arms."""
    worth = {"beta": config.policy.beta, "targets": config.targets}
    return {arm: shop.make(of_teacher, arm, taught=words, **worth) for arm, words in said.items()}


def rebuild_all(
    config: RebuildConfig,
    rivals: Sequence[Algorithm],
    shop: Workshop,
    database: str | None,
    base: Base,
) -> dict[str, Rebuilt]:
    """The policy's rebuild and its rivals', by the name of the arm."""
    rebuilt = {POLICY: rebuild(config, shop, database, base)}
    for rival in rivals:
        if rival.algorithm != config.policy.algorithm:
            other = config.model_copy(update={"policy": rival})
            rebuilt[f"{POLICY} {rival.algorithm}"] = rebuild(other, shop, database, base)
    return rebuilt


def answers_of(
    rebuilt: Mapping[str, Rebuilt], held_out: Artifact, base: Base, shop: Workshop
) -> dict[str, Artifact]:
    """Every policy's to the held-out scenarios, and those of the warm-up that some of them started
    from."""
    policies = {name: made.policy for name, made in rebuilt.items()}
    for made in rebuilt.values():
        if "warm_up" in made.artifacts:
            policies.setdefault(WARM_UP, made.artifacts["warm_up"])
    return {
        name: shop.make(of_policy, name, policy=policy, encoded=held_out, base=base)
        for name, policy in policies.items()
    }


def controls_of(
    config: RebuildConfig,
    made: Rebuilt,
    scenarios: Artifact,
    base_pass: Artifact,
    read: Artifact,
    shuffled: Artifact,
    base: Base,
    shop: Workshop,
) -> dict[str, Artifact]:
    """Answers of what is no policy: a linear probe of the base model, the teacher itself, and one
    that learnt from `shuffled` labels. `read` is what the teacher says of the held-out ones."""
    probe = shop.make(
        of_probe,
        PROBE,
        **made.learnt_from,
        base=base,
        held_out=base_pass,
        beta=config.warm_up.beta,
        targets=config.targets,
        seed=config.scenarios.seed,
    )
    fooled = shop.make(taught, f"{SHUFFLED}, held out", scenarios=scenarios, teacher=shuffled)
    said = {TEACHER: read, SHUFFLED: fooled}
    return {PROBE: probe, **teachers_answers(config, said, shop)}


def terms_of(config: RebuildConfig) -> Terms:
    """What the contest is judged by."""
    outcomes = config.evaluate.outcomes or config.outcomes
    return Terms(config.policy.algorithm, config.market, outcomes, config.evaluate, config.gate)


def limits_of(config: RebuildConfig) -> Limits:
    """What the rules judge by. Raises `LimitsError` or `ConfigError`."""
    path = config.evaluate.limits
    if not path.is_file():
        raise ConfigError(f"there are no limits at {path}: name a file with evaluate.limits")
    return read_limits(path)


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


def _require_held_out_bars(config: RebuildConfig, market: History) -> None:
    """Before anything is trained: a rebuild takes minutes, and this can be known at once."""
    since = config.evaluate.held_out.since
    last = max(int(bars.closed_at[-1]) for bars in market.bars)
    if since is not None and last <= instant(since):
        raise ConfigError(
            f"the bars end on {datetime.fromtimestamp(last, UTC):%Y-%m-%d}, and what judges"
            f" begins on {since}: bring later bars (market.directory), or move scenarios.until"
            " and evaluate.held_out.since back"
        )
