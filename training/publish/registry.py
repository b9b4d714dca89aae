"""Publishing: an immutable version on disk, made known to a running service, and aliases that move.

A version is a folder `NAME-DATE-HASH8` under the models folder that the service reads: PEFT's two
files of an adapter, or a whole model, with a model card, and the manifest written last into a
folder that then gets its name. Nothing is ever overwritten: the same content finds its version
again. The service verifies a version and loads it before an alias moves, so a refusal changes
nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError
from app.domain.manifest import MANIFEST_NAME, BaseModelRef, Calibration, ModelManifest
from app.policy.store import described, file_hash, find_base, load_manifest, model_files
from training.publish.card import model_card

ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
CARD = "README.md"
PRIMARY_ALIAS = "shadow"
ANSWER_S = 120.0
"""The service loads a version before its alias moves."""


class RegistryError(AdvisorError):
    """A version cannot be published, or the service refuses it or does not answer."""


@dataclass(frozen=True)
class Release:
    """What is to be published.

    Parameters
    ----------
    files : folder with PEFT's two files of an adapter, or a whole model.
    name : first part of the version's name.
    base : manifest of the model that the adapter belongs to, or that a whole model was made from.
    calibration : of the trained policy.
    provenance : hashes of data, code and configuration, metrics; JSON.
    """

    files: Path
    name: str
    base: ModelManifest
    calibration: Calibration
    provenance: Mapping[str, Any]


class Move(NamedTuple):
    """An alias that moved: `before` is None when it had not pointed anywhere."""

    alias: str
    before: str | None
    now: str


def publish(
    release: Release, models: Path, created_at: datetime, roots: Sequence[Path] = ()
) -> Path:
    """Write a version under `models`; its directory. The same content, published before, is
    verified and found again.

    `roots` are further folders where the service finds model directories: the base model may lie
    there.

    Raises
    ------
    RegistryError : the files are no adapter and no model, or the version's name is taken by other
        content.
    ModelFileError, ManifestMismatch : a pickle, no base model at hand, or what was published was
        changed.
    """
    names = _names(release.files)
    files = {name: file_hash(release.files / name) for name in sorted(names)}
    base = BaseModelRef.of(release.base) if names == ADAPTER_FILES else None
    if base is not None:
        find_base(base, [models, *roots])
    content = {
        "files": files,
        "base": None if base is None else base.as_json(),
        "calibration": release.calibration.as_json(),
        "provenance": dict(release.provenance),
    }
    digest = content_hash(content).removeprefix("sha256:")[:8]
    known = sorted(models.glob(f"{release.name}-????????-{digest}/{MANIFEST_NAME}"))
    if known:
        load_manifest(known[0].parent)
        return known[0].parent
    manifest = ModelManifest(
        model_version=f"{release.name}-{created_at:%Y%m%d}-{digest}",
        base_model=release.base.base_model,
        licence=release.base.licence,
        created_at=created_at,
        calibration=release.calibration,
        files=files,
        provenance=dict(release.provenance),
        base=base,
    )
    return _put(release.files, manifest, models)


def in_half_precision(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter in `folder` with its weights as float16; serving computes in float32 as
    before.

    Raises
    ------
    RegistryError : a weight is too large for float16.
    """
    weights = load_file(adapter / "adapter_model.safetensors")
    with np.errstate(over="ignore"):  # what overflows is refused below
        halved = {name: values.astype(np.float16) for name, values in weights.items()}
    beyond = [name for name, values in halved.items() if not np.isfinite(values).all()]
    if beyond:
        raise RegistryError(
            f"{adapter}: {beyond[0]} has weights beyond float16: publish it as it is"
        )
    save_file(halved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")
    return folder


def versions(models: Path) -> list[tuple[Path, ModelManifest]]:
    """Directories and manifests of every version under `models`, oldest first; not verified."""
    return sorted(described([models]), key=lambda each: each[1].created_at)


def register_and_alias(
    url: str, token: str | None, version: str, alias: str, reason: str, by: str
) -> Move:
    """Make a published version known to a running service, and point an alias at it. The service
    loads it first.

    Raises
    ------
    RegistryError : the service is away, or refuses; then the alias did not move.
    """
    _ask(url, token, "PUT", f"/models/{version}")
    return _move(url, token, version, alias, reason, by)


def rollback(url: str, token: str | None, alias: str, reason: str, by: str) -> Move:
    """Point an alias at the version it pointed at before its present one. Raises as
    `register_and_alias` does, and when there is no such version."""
    moves = [move["model_version"] for move in history(url, token) if move["alias"] == alias]
    earlier = [version for version in moves if version != moves[0]]
    if not earlier:
        raise RegistryError(
            f"the alias {alias} has never pointed anywhere else: there is nothing to go back to"
        )
    return _move(url, token, earlier[0], alias, reason, by)


def history(url: str, token: str | None) -> list[dict[str, Any]]:
    """Every move of every alias, newest first: alias, model_version, reason, changed_by,
    changed_at."""
    return list(_ask(url, token, "GET", "/aliases")["history"])


def aliases(url: str, token: str | None) -> dict[str, str]:
    """Where each alias points. Raises `RegistryError`."""
    return {
        name: move["model_version"]
        for name, move in _ask(url, token, "GET", "/aliases")["aliases"].items()
    }


def _names(folder: Path) -> set[str]:
    """The files to publish: an adapter's two, or a whole model's."""
    names = model_files(folder)
    if "adapter_config.json" in names and names != ADAPTER_FILES:
        wrong = ", ".join(sorted(names ^ ADAPTER_FILES))
        raise RegistryError(
            f"{folder}: an adapter is {' and '.join(sorted(ADAPTER_FILES))} alone; at fault:"
            f" {wrong}"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise RegistryError(
            f"{folder} holds no safetensors: train a policy first, or name its folder `adapter`"
        )
    if names != ADAPTER_FILES and not {"config.json", "tokenizer.json"} <= names:
        raise RegistryError(
            f"{folder} is no adapter, and no whole model either: config.json or tokenizer.json is"
            " missing"
        )
    return names


def _put(source: Path, manifest: ModelManifest, models: Path) -> Path:
    """Copy, write card and manifest, verify, rename: no reader ever sees half a version."""
    target = models / manifest.model_version
    models.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{manifest.model_version}-", dir=models))
    try:
        for name in manifest.files:
            copy = work / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copy)
            _sync(copy)
        (work / CARD).write_text(model_card(manifest), encoding="utf-8")
        draft = work / f".{MANIFEST_NAME}"
        draft.write_text(
            json.dumps(manifest.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        _sync(draft)
        draft.rename(work / MANIFEST_NAME)
        load_manifest(work)
        work.chmod(0o755)
        try:
            work.rename(target)
        except OSError as error:
            raise RegistryError(
                f"{target} exists with other content: versions are immutable, remove it"
            ) from error
        _sync(models)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _move(url: str, token: str | None, version: str, alias: str, reason: str, by: str) -> Move:
    body = {"model_version": version, "reason": reason, "changed_by": by}
    answer = _ask(url, token, "PUT", f"/aliases/{alias}", body)
    return Move(alias, answer["before"], version)


def _ask(
    url: str, token: str | None, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.request(
            method, url.rstrip("/") + path, json=body, headers=headers, timeout=ANSWER_S
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryError(
            f"{url} does not answer ({error or type(error).__name__}): start the service or give"
            " another --url. What was published stays, and can be pointed at later"
        ) from error
    try:
        document: dict[str, Any] = dict(answer.json())
    except (ValueError, TypeError) as error:
        raise RegistryError(f"{url} answers, but is not the advisor: give another --url") from error
    if answer.is_error:
        raise RegistryError(
            f"{url} refuses {method} {path} ({answer.status_code}):"
            f" {document.get('detail', answer.text)}"
        )
    return document


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
