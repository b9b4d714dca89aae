"""The command `model import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from app.cli.options import AsJson, console, group, say, tell
from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import MANIFEST_NAME
from app.settings import read_settings

model_app = group("Model versions on disk.")


@model_app.command("import")
def model_import(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A Hugging Face causal LM directory. Default: the bundled small model."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Model version to give it. Default: the directory's name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model servable: verify its labels, measure their bias, hash its files, write its
    manifest."""
    from app.policy.in_process.importer import import_directory, import_smollm2
    from app.policy.versions.store import read_manifest

    settings = read_settings()
    if path is None:
        path = import_smollm2(settings.models_dir, console.print, threads=settings.threads)
        manifest = read_manifest(path / MANIFEST_NAME)
    else:
        manifest = import_directory(path, settings.manifests_dir, name, threads=settings.threads)
    if as_json:
        told = {"model_version": manifest.model_version, "manifest_hash": manifest.hash()}
        tell({**told, "path": path})
        return
    _show_proposals(manifest.provenance.get("illustrative_proposals"))
    say(f"version {manifest.model_version}, manifest {manifest.hash()}")
    say(f"ready: MODEL={path}")


def _show_proposals(shown: Any) -> None:
    """What removing the label bias does: how often each action was proposed on made-up scenarios,
    before and after."""
    if not isinstance(shown, dict) or not {"raw", "corrected"} <= shown.keys():
        return  # A published version need not carry it.
    table = Table(
        title="Proposals on made-up scenarios",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    for heading in ("label", "action", "before calibration", "after"):
        table.add_column(heading, justify="left" if heading in ("label", "action") else "right")
    for action in ACTIONS:
        before, after = (shown[which].get(action.label, 0) for which in ("raw", "corrected"))
        table.add_row(action.label, action.name, str(before), str(after))
    console.print(table)
