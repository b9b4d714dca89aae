"""Versions on disk: where they lie, their manifests, and whether their bytes are what those say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import structlog

from app.domain.actions import ACTION_SPACE_HASH
from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord, ManifestMismatch, ModelFileError, UnknownVersion
from app.domain.features import FEATURE_SCHEMA
from app.domain.manifest import MANIFEST_NAME, BaseModelRef, ModelManifest
from app.domain.prompt import PROMPT_VERSION

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_HARMLESS_SUFFIXES = frozenset({".md", ".png", ".jpg", ".svg", ".pdf"})
_HARMLESS_NAMES = frozenset({"LICENSE", "LICENSE.TXT", "NOTICE", "NOTICE.TXT"})
_CHUNK_BYTES = 1 << 20
log = structlog.get_logger()


def find_version(model_version: str, roots: Sequence[Path]) -> Path:
    """The directory under one of `roots` whose manifest has this name; not verified yet.

    Raises
    ------
    UnknownVersion : there is none.
    """
    for directory, manifest in described(roots):
        if manifest.model_version == model_version:
            return directory
    where = ", ".join(str(root) for root in roots)
    raise UnknownVersion(
        f"no directory under {where} holds model version {model_version}: publish or copy it there"
        " first"
    )


def find_base(base: BaseModelRef, roots: Sequence[Path]) -> tuple[Path, ModelManifest]:
    """The directory and manifest of an adapter's base model, found by its weights; not verified
    yet.

    Raises
    ------
    ManifestMismatch : the model of that name has other weights than the adapter was trained on.
    ModelFileError : there is none.
    """
    namesake = None
    for directory, manifest in described(roots):
        if manifest.base is not None or not manifest.files:
            continue
        if manifest.weights_hash() == base.weights_hash:
            return directory, manifest
        if manifest.model_version == base.model_version:
            namesake = directory
    if namesake is not None:
        raise ManifestMismatch(
            f"{namesake} has other weights than the {base.model_version} that the adapter was"
            " trained on: train the adapter on these, or bring that model back"
        )
    raise ModelFileError(
        f"the adapter's base model {base.model_version} is not under"
        f" {', '.join(str(root) for root in roots)}: import it with `advisor model import`, or copy"
        " its directory there"
    )


def described(roots: Sequence[Path]) -> Iterator[tuple[Path, ModelManifest]]:
    """Directories with a readable manifest, in a fixed order; hidden ones are work in progress. One
    version's unreadable manifest must not hide the others; asking for that version names it as
    missing."""
    for root in dict.fromkeys(roots):
        for path in sorted(root.glob(f"[!.]*/{MANIFEST_NAME}")):
            try:
                yield path.parent, read_manifest(path)
            except ModelFileError as error:
                log.warning("a version is passed over", reason=str(error))


def find_manifest(directory: Path, registry: Path | None) -> ModelManifest:
    """The directory's own manifest, verified; without one, the manifest that `registry` holds for
    exactly these bytes, this prompt version, action space and feature schema.

    Raises
    ------
    ManifestMismatch, ModelFileError : as `load_manifest`, and when the registry holds no such
        manifest.
    """
    if (directory / MANIFEST_NAME).is_file() or registry is None:
        return load_manifest(directory)
    path, files = registry_entry(directory, registry)
    if not path.is_file():
        raise ModelFileError(
            f"{directory} has no manifest: make one with `advisor model import {directory}`"
        )
    manifest = read_manifest(path)
    manifest.require_compatible()
    if manifest.files != files:
        raise ManifestMismatch(
            f"{path} does not describe {directory}: remove it, then `advisor model import"
            f" {directory}`"
        )
    return manifest


def registry_entry(directory: Path, registry: Path) -> tuple[Path, dict[str, str]]:
    """Where the registry keeps the manifest of a directory that has none, and the hashes of its
    files.

    The name follows from those hashes and from what this code makes of a model, so that other bytes
    or another prompt version have another manifest.
    """
    files = {name: file_hash(directory / name) for name in sorted(model_files(directory))}
    identity = content_hash([files, PROMPT_VERSION, ACTION_SPACE_HASH, FEATURE_SCHEMA])
    return registry / "manifests" / f"{identity.removeprefix('sha256:')}.json", files


def load_manifest(directory: Path) -> ModelManifest:
    """Read a version's manifest and verify every file of the directory against it.

    Raises
    ------
    ModelFileError : no directory, no manifest, a pickle, a file that is missing or that the
        manifest does not list.
    ManifestMismatch : a file's bytes changed, or it was made for another prompt, action space or
        feature schema.
    """
    manifest = read_manifest(directory / MANIFEST_NAME)
    manifest.require_compatible()
    names = model_files(directory)
    unlisted = sorted(names - manifest.files.keys())
    if unlisted:
        raise ModelFileError(
            f"{directory}: not in the manifest: {', '.join(unlisted)}. Remove them, or import again"
        )
    missing = sorted(manifest.files.keys() - names)
    if missing:
        raise ModelFileError(
            f"{directory}: in the manifest, but missing: {', '.join(missing)}. Import the model"
            " again"
        )
    changed = [
        name for name, expected in manifest.files.items() if file_hash(directory / name) != expected
    ]
    if changed:
        raise ManifestMismatch(
            f"{directory}: bytes differ from the manifest: {', '.join(changed)}. Import it again"
        )
    return manifest


def read_manifest(path: Path) -> ModelManifest:
    """Parse a manifest file. Raises `ModelFileError`."""
    if not path.is_file():
        raise ModelFileError(
            f"there is no manifest at {path}: import the model with `advisor model import`"
        )
    try:
        return ModelManifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, InvalidRecord) as error:
        raise ModelFileError(f"{path} is not a manifest: {error}") from error


def model_files(directory: Path) -> set[str]:
    """Names, relative to the directory, of every file that loading may read: all but hidden ones,
    documents and the manifest. Raises `ModelFileError` when there is a pickle among them, or no
    directory."""
    if not directory.is_dir():
        raise ModelFileError(
            f"there is no model directory {directory}: set MODEL to one, or make one with `advisor"
            " model import`"
        )
    names = set()
    for path in directory.rglob("*"):
        name = PurePosixPath(path.relative_to(directory).as_posix())
        if (
            not path.is_file()
            or any(part.startswith(".") for part in name.parts)
            or str(name) == MANIFEST_NAME
        ):
            continue
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ModelFileError(
                f"{path} may hold pickled code and is never loaded: convert the weights to"
                " safetensors and remove it"
            )
        if (
            path.suffix.lower() not in _HARMLESS_SUFFIXES
            and path.name.upper() not in _HARMLESS_NAMES
        ):
            names.add(str(name))
    return names


def file_hash(path: Path) -> str:
    """`sha256:` and the hex digest of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"
