"""Versions on disk: where they lie, their manifests, and whether their bytes are what those say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord, ManifestMismatch, ModelFileError, UnknownVersion
from app.domain.features import FEATURE_SCHEMA
from app.domain.model.actions import ACTION_SPACE_HASH
from app.domain.model.manifest import MANIFEST_NAME, BaseModelRef, ModelManifest
from app.domain.model.prompt import PROMPT_VERSION
from app.policy.versions.files import PICKLE_SUFFIXES, read_object, refusals, walk

_HARMLESS_SUFFIXES = frozenset({".md", ".png", ".jpg", ".svg", ".pdf"})
_HARMLESS_NAMES = frozenset({"LICENSE", "LICENSE.TXT", "NOTICE", "NOTICE.TXT"})
NUMBERS_NAME = "numbers.safetensors"
"""What an adapter has beside PEFT's files when it reads numbers past the text."""
REPORT_SUFFIX = ".report.html"
"""Beside a version's directory: what its evaluation found."""
_CHUNK_BYTES = 1 << 22
"""Large, since Python's lock is asked for after each, and what else starts holds it for long."""
log = structlog.get_logger()


def find_version(
    model_version: str, roots: Sequence[Path], manifest_hash: str | None = None
) -> Path:
    """The directory under one of `roots` whose manifest has this name; not verified yet.

    Parameters
    ----------
    manifest_hash : of the manifest that the registry has under this name; None when it has none.

    Raises
    ------
    UnknownVersion : there is none.
    ManifestMismatch : the registry knows another version under this name; or it knows none, and two
        directories with different files claim it.
    """
    named = [
        (directory, manifest)
        for directory, manifest in described(roots)
        if manifest.model_version == model_version
    ]
    if not named:
        where = ", ".join(str(root) for root in roots)
        raise UnknownVersion(
            f"no directory under {where} holds model version {model_version}: publish or copy it"
            " there first"
        )
    directory, first = named[0]
    if manifest_hash is None:
        for other, manifest in named[1:]:
            if manifest.files != first.files:
                raise ManifestMismatch(
                    f"{directory} and {other} are both called {model_version} and hold different"
                    " files: remove the one that is not it"
                )
        return directory
    for path, manifest in named:
        if manifest.hash() == manifest_hash:
            return path
    raise ManifestMismatch(
        f"model version {model_version} is registered with manifest {manifest_hash}, {directory}"
        f" has {first.hash()}: versions are immutable, give the new one a new name"
    )


def report_beside(directory: Path) -> Path:
    """Where the report of a version's evaluation lies: beside the version, which it comes after."""
    return directory.with_name(f"{directory.name}{REPORT_SUFFIX}")


def find_base(
    base: BaseModelRef, roots: Sequence[Path], files_hash: str | None = None
) -> tuple[Path, ModelManifest]:
    """The directory and manifest of an adapter's base model: the one whose whole content it was
    trained on, on whatever day that was imported; not verified yet.

    Parameters
    ----------
    files_hash : `ModelManifest.base_files_hash()` of the adapter; default: what the reference says.
        Without either, only the same manifest will do.

    Raises
    ------
    ManifestMismatch : what is there has other weights, another tokenizer, template or configuration
        than the adapter was trained on.
    ModelFileError : there is none.
    """
    namesake = alike = None
    wanted = files_hash or base.files_hash
    for directory, manifest in described(roots):
        if manifest.base is not None or not manifest.files:
            continue
        if manifest.model_version == base.model_version:
            namesake = directory
        if not manifest.has_weights() or manifest.weights_hash() != base.weights_hash:
            continue
        if manifest.hash() == base.manifest_hash or manifest.files_hash() == wanted:
            return directory, manifest
        alike = directory
    if alike is not None:
        raise ManifestMismatch(
            f"{alike} has the weights of {base.model_version}, but not the tokenizer, chat template"
            " and configuration that the adapter was trained with: bring that model back, or"
            " publish the adapter again"
        )
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


def base_of(manifest: ModelManifest, roots: Sequence[Path]) -> tuple[Path, ModelManifest] | None:
    """Where an adapter's base lies, as `find_base` finds it; None for a whole model."""
    if manifest.base is None:
        return None
    return find_base(manifest.base, roots, manifest.base_files_hash())


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


def find_manifest(directory: Path, manifests: Path | None) -> ModelManifest:
    """The directory's own manifest, verified; without one, the manifest that is kept for
    exactly these bytes, this prompt version, action space and feature schema.

    Raises
    ------
    ManifestMismatch, ModelFileError : as `load_manifest`, and when none is kept.
    """
    if (directory / MANIFEST_NAME).is_file() or manifests is None:
        return load_manifest(directory)
    path, files = manifest_entry(directory, manifests)
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


def manifest_entry(directory: Path, manifests: Path) -> tuple[Path, dict[str, str]]:
    """Where the manifest of a directory that has none is kept, and the hashes of its
    files.

    The name follows from those hashes and from what this code makes of a model, so that other bytes
    or another prompt version have another manifest.
    """
    files = {name: file_hash(directory / name) for name in sorted(model_files(directory))}
    identity = content_hash([files, PROMPT_VERSION, ACTION_SPACE_HASH, FEATURE_SCHEMA])
    return manifests / f"{identity.removeprefix('sha256:')}.json", files


def load_manifest(directory: Path) -> ModelManifest:
    """Read a version's manifest and verify every file of the directory against it.

    Raises
    ------
    ModelFileError : no directory, no manifest, a pickle, a link, a file that is missing or that the
        manifest does not list.
    ManifestMismatch : a file's bytes changed, or it was made for another prompt, action space or
        feature schema.
    """
    manifest = read_manifest(directory / MANIFEST_NAME)
    manifest.require_compatible()
    require_names(directory, manifest.files)
    require_hashes(directory, directory, manifest.files)
    return manifest


def require_names(directory: Path, files: Mapping[str, str]) -> None:
    """Raise `ModelFileError` unless the directory holds files of these names, and no others that
    loading may read."""
    names = model_files(directory)
    unlisted = sorted(names - files.keys())
    if unlisted:
        raise ModelFileError(
            f"{directory}: not in the manifest: {', '.join(unlisted)}. Remove them, or import again"
        )
    missing = sorted(files.keys() - names)
    if missing:
        raise ModelFileError(
            f"{directory}: in the manifest, but missing: {', '.join(missing)}. Import the model"
            " again"
        )


def require_hashes(directory: Path, copy: Path, files: Mapping[str, str]) -> None:
    """Raise `ManifestMismatch` unless the files in `copy`, which came from `directory`, have these
    hashes."""
    with refusals(directory):
        changed = [name for name, value in files.items() if file_hash(copy / name) != value]
    if changed:
        raise ManifestMismatch(
            f"{directory}: bytes differ from the manifest: {', '.join(changed)}. Import it again"
        )


def read_manifest(path: Path) -> ModelManifest:
    """Parse a manifest file. Raises `ModelFileError`."""
    if not path.is_file():
        raise ModelFileError(
            f"there is no manifest at {path}: import the model with `advisor model import`"
        )
    try:
        with refusals(path):
            manifest = ModelManifest.from_json(read_object(path))
            manifest.hash()  # Whatever it holds, it can be compared.
            return manifest
    except (ModelFileError, InvalidRecord) as error:
        raise ModelFileError(f"{path} is not a manifest: {' '.join(str(error).split())}") from error


def model_files(directory: Path) -> set[str]:
    """Names, relative to the directory, of every file that loading may read: all but hidden ones,
    documents and the manifest. Raises `ModelFileError` when there is a pickle or a link among them,
    or no directory."""
    if not directory.is_dir():
        raise ModelFileError(
            f"there is no model directory {directory}: set MODEL to one, or make one with `advisor"
            " model import`"
        )
    names = set()
    with refusals(directory):
        for name, path in walk(directory):
            if name == MANIFEST_NAME:
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
                names.add(name)
    return names


def file_hash(path: Path) -> str:
    """`sha256:` and the hex digest of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        chunk = memoryview(bytearray(_CHUNK_BYTES))
        while size := stream.readinto(chunk):
            sha.update(chunk[:size])
    return f"sha256:{sha.hexdigest()}"
