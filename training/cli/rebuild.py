"""The command `rebuild`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from app.domain.text import counted
from training.cli.options import Adopt, Config, Database, Set, chosen, console, meter, tell
from training.stages.store import Artifact
from training.stages.workshop import Workshop

if TYPE_CHECKING:
    from training.pipeline.rebuild import Rebuilt

SETBACK = 0.1
"""Of the probability on labels; a smaller one is noise."""


def rebuild(
    config: Config = "bundled",
    overrides: Set = None,
    database: Database = "",
    adopt: Adopt = None,
) -> None:
    """From scenarios to a trained policy, stage by stage. What is finished is found again; a killed
    run goes on.

    Prints where the artefacts lie and what the policy's choices are worth on the validation period,
    by its targets.
    `advisor-train publish` makes a version of it, `advisor-train evaluate` judges it on the
    held-out period.
    """
    settings = chosen(config, overrides)
    from training.pipeline import rebuild as pipeline

    shop = Workshop(settings.artifacts, tell, meter, adopt or ())
    print_rebuilt(pipeline.rebuild(settings, shop, database or None))


def print_rebuilt(rebuilt: Rebuilt) -> None:
    """Artefacts, and the policy on the validation period."""
    table = Table("stage", "artefact", title="Artefacts", title_justify="left")
    for stage, artifact in rebuilt.artifacts.items():
        table.add_row(stage, str(artifact.path))
    console.print(table)
    console.print(_counts(rebuilt.artifacts["scenarios"], rebuilt.artifacts["labels"]))
    metrics = rebuilt.policy.facts["metrics"]
    table = Table(
        "on the validation period", "worth, R a scenario", title="Policy", title_justify="left"
    )
    for key, name in (
        ("greedy", "policy's choice"),
        ("reference_greedy", "before training"),
        ("best_constant", "the one action that was best in training"),
        ("oracle", "the best action of each scenario"),
    ):
        table.add_row(name, f"{metrics[key]:+.3f}")
    console.print(table)
    console.print(
        f"entropy {metrics['entropy']:.3f} nats, KL to the reference {metrics['kl']:.3f} nats,"
        f" majority action {metrics['majority']:.0%}, mass on labels {metrics['label_mass']:.3f}."
        " Worth is by what the policy learned from (`targets`): what the teacher expects of an"
        " action, net of costs and less the price of its risk, not what came of it;"
        " `advisor-train evaluate` says what it earns."
    )
    if metrics["setback"] > SETBACK:
        console.print(
            f"Training forgot what it had learned: mass on labels fell by {metrics['setback']:.2f}"
            " on its way. Rebuild with a lower policy.learning_rate."
        )


def _counts(scenarios: Artifact, labels: Artifact) -> str:
    splits = scenarios.facts["splits"]
    excluded = (
        ", ".join(f"{reason} {count}" for reason, count in labels.facts["excluded"].items())
        or "none"
    )
    return (
        f"{counted(scenarios.facts['real'], 'scenario')}: {splits['train']} train,"
        f" {splits['validate']} validate, {splits['purged']} purged; not labelled: {excluded}"
    )
