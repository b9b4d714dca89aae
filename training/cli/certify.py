"""The command `certify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from app.domain.errors import InvalidRecord, ModelFileError
from app.domain.scenario import Scenario
from app.domain.text import counted
from app.policy.options import BackendOptions
from training.arrays import Progress
from training.cli.options import Config, Database, Set, chosen, meter, tell
from training.config.section import home
from training.stages.workshop import Workshop

Version = Annotated[Path, typer.Argument(help="folder of a version that is read in this process")]
Prompts = Annotated[int, typer.Option(help="how many scenarios are read, spread over all")]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--models", help="further folders of versions, where its base model lies"),
]
To = Annotated[
    Path | None,
    typer.Option(
        help="folder of certificates; default: models/certificates under ADVISOR_HOME, which the"
        " service reads"
    ),
]


def certify(
    version: Version,
    config: Config = "bundled",
    overrides: Set = None,
    database: Database = "",
    prompts: Prompts = 2200,
    models: Roots = None,
    to: To = None,
) -> None:
    """Measure how far readings in bfloat16 are from exact ones, on a version's real prompts.

    With the certificate that this writes, the service reads the version in bfloat16 on processors
    of this kind, and again exactly wherever that could change an advice. Takes a quarter of an hour
    of one core.
    """
    settings = chosen(config, overrides)
    from app.policy.in_process.certificate import LEAST_PROMPTS
    from app.policy.in_process.certifying import certify as certified
    from app.policy.in_process.loading import InProcess
    from training.pipeline.rebuild import market_of, scenarios_of
    from training.scenarios.table import ScenarioSet

    shop = Workshop(settings.artifacts, tell, meter)
    every = settings.scenarios.model_copy(update={"limit": None})
    settings = settings.model_copy(update={"scenarios": every})
    table = ScenarioSet.open(scenarios_of(settings, market_of(settings), shop, database or None))
    scenarios = spread(table.scenarios(), prompts)
    if len(scenarios) < LEAST_PROMPTS:
        raise InvalidRecord(
            f"{counted(len(scenarios), 'scenario is', 'scenarios are')} too few for a"
            f" certificate, which takes {LEAST_PROMPTS:,}: ask for more by --prompts, of more bars"
            " by --config or --set"
        )
    roots = (version.parent, settings.publish.models, *(models or ()))
    policy = InProcess(BackendOptions(roots=roots, threads=settings.threads)).load(version)
    if policy.cascade is not None:
        raise ModelFileError(f"{version} is read roughly already")
    with meter("prompts read") as progress:
        certificate = certified(policy, _counted(scenarios, progress), datetime.now(UTC))
    tell(
        f"within {certificate.within:.2g} nats on {certificate.kind}: {certificate.prompts} prompts"
        f" differ by {certificate.mean:.2g} in the mean, {certificate.largest:.2g} at most;"
        f" {certificate.actions_equal:.2%} propose the same, {certificate.read_again:.2%} would be"
        " read again"
    )
    tell(f"written: {certificate.write(to or home() / 'models' / 'certificates')}")


def spread(scenarios: Sequence[Scenario], most: int) -> list[Scenario]:
    """At most so many of them, evenly over all."""
    step = max(len(scenarios) / most, 1.0)
    return [scenarios[int(step * turn)] for turn in range(min(most, len(scenarios)))]


def _counted(scenarios: Sequence[Scenario], progress: Progress) -> Iterator[Scenario]:
    for done, scenario in enumerate(scenarios, start=1):
        yield scenario
        progress(done, len(scenarios))
