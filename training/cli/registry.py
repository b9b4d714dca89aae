"""The commands `publish`, `rollback` and `versions`."""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from training.config.judging import PublishConfig
from training.publish.registry import (
    PRIMARY_ALIAS,
    Move,
    RegistryError,
    aliases,
    in_half_precision,
    publish,
    register_and_alias,
    rollback,
    versions,
)
from training.stages.store import Artifact

DEFAULT_URL = "http://127.0.0.1:8321"
DEFAULTS = PublishConfig()
console = Console()

Models = Annotated[Path, typer.Option(help="folder of versions; the service reads the same one")]
Url = Annotated[str, typer.Option(envvar="ADVISOR_URL", help="where the service answers")]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="ADVISOR_ADMIN_TOKEN", help="the service's bearer token", show_default=False
    ),
]
Alias = Annotated[str, typer.Option(help="`shadow` is the primary, `shadow-...` are beside it")]
Reason = Annotated[str, typer.Option(help="why; recorded")]
By = Annotated[str, typer.Option(help="who; recorded. Default: who runs this")]


def publish_policy(
    policy: Annotated[
        Path,
        typer.Argument(help="a finished policy artefact, for example var/artifacts/cpu/policy-..."),
    ],
    name: Annotated[str, typer.Option(help="first part of the version's name")] = DEFAULTS.name,
    models: Models = DEFAULTS.models,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged",
            help="publish a whole model, an ordinary adapter merged into its base, as for vLLM",
        ),
    ] = False,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="publish the adapter's weights as float16: half the size, rounded"
        ),
    ] = False,
    alias: Annotated[str, typer.Option(help="point this alias at it; empty: on disk only")] = "",
    url: Url = DEFAULT_URL,
    token: Token = None,
    reason: Reason = "published",
    by: By = "",
) -> None:
    """Write an immutable version; with --alias, let a running service serve it without a
    restart."""
    from training.publish.version import release_of

    if merged and half:
        raise RegistryError("--half is for adapters: leave out --half or --merged")
    artifact = Artifact.open(policy, "policy", deep=True)
    roots = (models, DEFAULTS.models)
    with tempfile.TemporaryDirectory() as work:
        files = None
        if merged:
            files = _merge(artifact, roots, Path(work))
        elif half:
            files = in_half_precision(artifact / "adapter", Path(work))
        path = publish(release_of(artifact, name, roots, files), models, datetime.now(UTC), roots)
    console.print(f"published {path}", markup=False, highlight=False, soft_wrap=True)
    if alias:
        _say(register_and_alias(url, token, path.name, alias, reason, by or getpass.getuser()))


def roll_back(
    alias: Alias = PRIMARY_ALIAS,
    url: Url = DEFAULT_URL,
    token: Token = None,
    reason: Reason = "rollback",
    by: By = "",
) -> None:
    """Point an alias back at the version before; a running service follows without a restart."""
    _say(rollback(url, token, alias, reason, by or getpass.getuser()))


def list_versions(
    models: Models = DEFAULTS.models,
    url: Annotated[
        str, typer.Option(envvar="ADVISOR_URL", help="ask this service for aliases; empty: do not")
    ] = "",
    token: Token = None,
) -> None:
    """List the versions on disk, oldest first, and which aliases point at them."""
    named: dict[str, list[str]] = {}
    for alias, version in aliases(url, token).items() if url else ():
        named.setdefault(version, []).append(alias)
    found = versions(models)
    if not found:
        raise RegistryError(f"no version is under {models}: publish one, or give --models")
    table = Table(
        Column("version", no_wrap=True),
        "created",
        "base",
        "algorithm",
        "lead over never trading, R",
        "aliases",
    )
    for _, manifest in found:
        lead = manifest.provenance.get("results", {}).get("lead", {}).get("never_approve")
        table.add_row(
            manifest.model_version,
            f"{manifest.created_at:%Y-%m-%d %H:%M}",
            manifest.base.model_version if manifest.base else "",
            str(manifest.provenance.get("algorithm", "")),
            f"{lead['value']} ({lead['low']} to {lead['high']})" if lead else "",
            ", ".join(sorted(named.get(manifest.model_version, ()))),
        )
    console.print(table)


def _merge(policy: Artifact, roots: Sequence[Path], folder: Path) -> Path:
    """The adapter merged into its base model, in `folder`. Raises `RegistryError` for an activated
    one."""
    from app.policy.in_process.label_reader import LabelReader
    from app.policy.store import find_version
    from training.learning.model.adapted import save_merged
    from training.publish.version import base_of

    config = json.loads((policy / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("alora_invocation_tokens") is not None:
        raise RegistryError(
            f"{policy.path} holds an activated adapter, which cannot be merged: train with"
            " adapter.kind = 'ordinary'"
        )
    base = find_version(base_of(policy, roots).model_version, roots)
    save_merged(policy / "adapter", LabelReader.load(base), base, folder)
    return folder


def _say(move: Move) -> None:
    before = f" (was {move.before})" if move.before else ""
    console.print(
        f"{move.alias} -> {move.now}{before}", markup=False, highlight=False, soft_wrap=True
    )
