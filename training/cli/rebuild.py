"""The command `rebuild`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.cli.meter import meter
from training.config.file import RebuildConfig, read_config
from training.config.section import ConfigError
from training.stages.store import Artifact

if TYPE_CHECKING:
    from training.pipeline.rebuild import Rebuilt

CONFIGS = Path(__file__).parents[1] / "config"
console = Console()
Settings = Annotated[
    str, typer.Option("--config", help="a TOML file, or bundled, cpu, gpu, planted or tiny")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="""one setting, as TOML: --set 'market.directory="bars"'"""),
]
Database = Annotated[
    str | None,
    typer.Option(envvar="DATABASE_URL", help="of the shadow log, when scenarios come from it"),
]


def rebuild(
    config: Settings = "bundled", overrides: Overrides = None, database: Database = None
) -> None:
    """From scenarios to a trained policy, stage by stage. What is finished is found again; a killed
    run goes on.

    Prints where the artefacts lie and what the policy earned on the validation period.
    `advisor-train publish` makes a version of it, `advisor-train evaluate` judges it on the
    held-out period.
    """
    settings = chosen(config, overrides)
    from training.pipeline.rebuild import Rebuild

    made = Rebuild(settings, meter, tell, database).run()
    print_rebuilt(made)


def chosen(config: str, overrides: list[str] | None) -> RebuildConfig:
    """The configuration of that name, or of that path."""
    path = CONFIGS / f"{config}.toml"
    if not path.is_file():
        path = Path(config)
        if not path.is_file():
            names = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.toml")))
            raise ConfigError(
                f"there is no configuration {config}: name a TOML file, or one of {names}"
            )
    return read_config(path, overrides or ())


def tell(line: str) -> None:
    """One line for people."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_rebuilt(made: Rebuilt) -> None:
    """Artefacts, the reward model's headline, and the policy on the validation period."""
    table = Table("stage", "artefact", title="Artefacts", title_justify="left")
    for stage, artifact in made.artifacts.items():
        table.add_row(stage, str(artifact.path))
    console.print(table)
    console.print(_counts(made.artifacts["scenarios"], made.artifacts["labels"]))
    metrics = made.policy.facts["metrics"]
    table = Table(
        "on the validation period", "R per scenario", title="Policy", title_justify="left"
    )
    for key, name in (
        ("greedy", "policy's choice"),
        ("reference_greedy", "before training"),
        ("best_constant", "the one action that was best in training"),
        ("oracle", "best action in hindsight"),
    ):
        table.add_row(name, f"{metrics[key]:+.3f}")
    console.print(table)
    console.print(
        f"entropy {metrics['entropy']:.3f} nats, KL to the reference {metrics['kl']:.3f} nats,"
        f" majority action {metrics['majority']:.0%}, mass on labels {metrics['label_mass']:.3f}."
        " Rewards are net of costs and, if targets.centre is set, relative to each action's mean."
    )


def _counts(scenarios: Artifact, labels: Artifact) -> str:
    splits = scenarios.facts["splits"]
    excluded = (
        ", ".join(f"{reason} {count}" for reason, count in labels.facts["excluded"].items())
        or "none"
    )
    return (
        f"{scenarios.facts['real']} scenarios: {splits['train']} train, {splits['validate']}"
        f" validate, {splits['purged']} purged; not labelled: {excluded}"
    )
