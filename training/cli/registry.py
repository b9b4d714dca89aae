"""The commands `publish`, `publish-rivals`, `rollback` and `versions`."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from app.domain.errors import ModelFileError
from app.domain.model.manifest import PRIMARY_ALIAS, ModelManifest
from app.operator_client import OperatorClient
from app.policy.versions.store import described
from training.cli.options import (
    By,
    Token,
    Url,
    finite,
    point,
    tell,
    tell_move,
)
from training.config.judging import PublishConfig
from training.stages.store import Artifact

DEFAULTS = PublishConfig()

Policy = Annotated[
    Path,
    typer.Argument(help="a finished policy artefact, for example var/artifacts/cpu/policy-..."),
]
Name = Annotated[str, typer.Option(help="first part of the version's name")]
Models = Annotated[Path, typer.Option(help="folder of versions; the service reads the same one")]
Listed = Annotated[
    Path | None,
    typer.Option(
        "--models",
        help="folder of versions; default: the service's, and those that came with the release",
    ),
]
Merged = Annotated[
    bool,
    typer.Option(
        "--merged",
        help="publish a whole model, an ordinary adapter merged into its base, as for vLLM",
    ),
]
Half = Annotated[
    bool,
    typer.Option("--half", help="publish the adapter's weights as float16: half the size, rounded"),
]
RivalsName = Annotated[str, typer.Option("--name", help="first part of the versions' names")]
Embargo = Annotated[
    float,
    typer.Option(callback=finite, help="hours between what is fitted and what a cut is chosen on"),
]
Serve = Annotated[
    bool, typer.Option("--serve", help="point the alias `shadow-RIVAL` at each of them")
]
Alias = Annotated[str, typer.Option(help="`shadow` is the primary, `shadow-...` are beside it")]
Pointed = Annotated[
    str, typer.Option("--alias", help="point this alias at it; empty: on disk only")
]
Asked = Annotated[
    str,
    typer.Option("--url", envvar="ADVISOR_URL", help="ask this service for aliases; empty: do not"),
]
Reason = Annotated[str, typer.Option(help="why; recorded")]


def publish_policy(
    policy: Policy,
    url: Url,
    name: Name = DEFAULTS.name,
    models: Models = DEFAULTS.models,
    merged: Merged = False,
    half: Half = False,
    alias: Pointed = "",
    token: Token = None,
    reason: Reason = "published",
    by: By = "",
) -> None:
    """Write an immutable version; with --alias, let a running service serve it without a
    restart."""
    from training.publish.version import (
        PublishError,
        in_half_precision,
        merge,
        publish,
        release_of,
    )

    if merged and half:
        raise PublishError("--half is for adapters: leave out --half or --merged")
    artifact = Artifact.open(policy, "policy", deep=True)
    roots = (models, DEFAULTS.models)
    with tempfile.TemporaryDirectory() as work:
        files = None
        if merged:
            files = merge(artifact, roots, Path(work))
        elif half:
            files = in_half_precision(artifact / "adapter", Path(work))
        path = publish(release_of(artifact, name, roots, files), models, datetime.now(UTC), roots)
    tell(f"published {path}")
    if alias:
        point(url, token, alias, path.name, reason, by)


def publish_rivals(
    policy: Policy,
    url: Url,
    name: RivalsName = "rival",
    models: Models = DEFAULTS.models,
    embargo: Embargo = 24.0,
    serve: Serve = False,
    token: Token = None,
    reason: Reason = "published",
    by: By = "",
) -> None:
    """Fit the contest's simpler rivals on what a policy learned from, and write each as a version;
    with --serve, a running service serves them beside the primary without a restart."""
    from training.publish.rivals import rivals_of
    from training.publish.version import publish

    artifact, now = Artifact.open(policy, "policy", deep=True), datetime.now(UTC)
    with tempfile.TemporaryDirectory() as work:
        for release in rivals_of(artifact, name, embargo * 3600, now, Path(work)):
            path = publish(release, models, now)
            tell(f"published {path}")
            if serve:
                alias = f"shadow-{release.base.model_version}"
                point(url, token, alias, path.name, reason, by)


def roll_back(
    url: Url,
    alias: Alias = PRIMARY_ALIAS,
    token: Token = None,
    reason: Reason = "",
    by: By = "",
) -> None:
    """Point an alias back at the version before; a running service follows without a restart."""
    service = OperatorClient(url, token)
    tell_move(service.roll_back(alias, reason, by or getpass.getuser()))


def list_versions(models: Listed = None, url: Asked = "", token: Token = None) -> None:
    """List the versions on disk, oldest first, and which aliases point at them."""
    roots = [DEFAULTS.models, DEFAULTS.shipped] if models is None else [models]
    named: dict[str, list[str]] = {}
    moves = OperatorClient(url, token).aliases()["aliases"] if url else {}
    for alias, move in moves.items():
        named.setdefault(move["model_version"], []).append(alias)
    versions = sorted(
        (manifest for _, manifest in described(roots)),
        key=lambda version: version.created_at,
    )
    if not versions:
        raise ModelFileError(
            f"no version is under {', '.join(map(str, roots))}: publish one, or give --models"
        )
    for manifest in versions:
        tell(manifest.model_version)
        facts = _facts(manifest) | {
            "aliases": ", ".join(sorted(named.get(manifest.model_version, ())))
        }
        for name, fact in facts.items():
            if fact:
                tell(f"  {name:<9} {fact}")


def _facts(manifest: ModelManifest) -> dict[str, str]:
    """A line each: a table of them is wider than a window."""
    lead = manifest.provenance.get("results", {}).get("lead", {}).get("never_approve")
    return {
        "created": f"{manifest.created_at:%Y-%m-%d %H:%M}",
        "base": manifest.base.model_version if manifest.base else "",
        "algorithm": str(manifest.provenance.get("algorithm", "")),
        "lead": f"{_interval(lead)} R over never trading" if lead else "",
    }


def _interval(estimate: Mapping[str, float | None]) -> str:
    numbers = (estimate[name] for name in ("value", "low", "high"))
    value, low, high = ("unknown" if number is None else f"{number:+z.4f}" for number in numbers)
    return f"{value} [{low}, {high}]"
