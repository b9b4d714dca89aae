"""From a model's name or path to a policy that is verified and ready to answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from app.domain.actions import ACTION_SPACE_HASH
from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord, ManifestMismatch, ModelFileError
from app.domain.features import FEATURE_SCHEMA
from app.domain.manifest import MANIFEST_NAME, ModelManifest
from app.domain.prompt import PROMPT_VERSION
from app.policy.base import Policy
from app.policy.encoding import PROMPT_TOKENS, PromptEncoder
from app.policy.scripted import ScriptedPolicy
from app.policy.vllm import VllmPolicy

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_HARMLESS_SUFFIXES = frozenset({".md", ".png", ".jpg", ".svg", ".pdf"})
_HARMLESS_NAMES = frozenset({"LICENSE", "LICENSE.TXT", "NOTICE", "NOTICE.TXT"})
_CHUNK_BYTES = 1 << 20


class Backend(StrEnum):
    """Where the model runs."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    SCRIPTED = "scripted"


def load_policy(
    backend: Backend,
    model: Path | None = None,
    *,
    registry: Path | None = None,
    threads: int = 1,
    max_batch: int | None = None,
    max_queue: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    vllm_url: str = "http://127.0.0.1:8000",
    vllm_model: str | None = None,
    observe: Callable[[str, float], None] | None = None,
) -> Policy:
    """Verify a model and build its policy. Blocks for seconds: call it before serving, or in a thread.

    Parameters
    ----------
    model : the model's directory; not needed for the scripted backend.
    registry : where manifests of directories without one are kept; None refuses such a directory. The
        transformers backend measures and stores a missing one; vLLM wants it made before.
    threads, max_batch, max_queue : as `TransformersPolicy` has them; `max_queue` also bounds vLLM's requests.
    prompt_tokens : longest prompt, head and tail included.
    vllm_url, vllm_model : the server, and the model's name there (default: the directory as it was given).

    Raises
    ------
    ManifestMismatch, ModelFileError : this model must not be served; the message says why and how to mend it.
    """
    if backend is Backend.SCRIPTED:
        return ScriptedPolicy()
    if model is None:
        raise ModelFileError(f"the {backend} backend needs MODEL, the path of a model directory")
    if backend is Backend.VLLM:
        bounds = _given(max_in_flight=max_queue)
        manifest = find_manifest(model, registry)
        encoder = PromptEncoder.from_directory(model, prompt_tokens)
        return VllmPolicy(vllm_url, vllm_model or str(model), manifest, encoder, observe=observe, **bounds)
    model_files(model)  # What is no model directory is refused before torch is loaded for nothing.
    # Only this backend needs torch; the others start without it.
    from app.policy.importer import import_directory
    from app.policy.label_reader import LabelReader
    from app.policy.transformers_cpu import TransformersPolicy

    bounds = _given(max_batch=max_batch, max_queue=max_queue)
    if registry is None:
        manifest = load_manifest(model)
    else:
        manifest = import_directory(model, registry, threads=threads, prompt_tokens=prompt_tokens)
    reader = LabelReader.load(model, prompt_tokens)
    return TransformersPolicy(reader, manifest, threads=threads, observe=observe, **bounds)


def find_manifest(directory: Path, registry: Path | None) -> ModelManifest:
    """The directory's own manifest, verified; without one, the manifest that `registry` holds for exactly
    these bytes, this prompt version, action space and feature schema.

    Raises
    ------
    ManifestMismatch, ModelFileError : as `load_manifest`, and when the registry holds no such manifest.
    """
    if (directory / MANIFEST_NAME).is_file() or registry is None:
        return load_manifest(directory)
    path, files = registry_entry(directory, registry)
    if not path.is_file():
        raise ModelFileError(f"{directory} has no manifest: make one with `advisor model import {directory}`")
    manifest = read_manifest(path)
    manifest.require_compatible()
    if manifest.files != files:
        raise ManifestMismatch(
            f"{path} does not describe {directory}: remove it, then `advisor model import {directory}`"
        )
    return manifest


def registry_entry(directory: Path, registry: Path) -> tuple[Path, dict[str, str]]:
    """Where the registry keeps the manifest of a directory that has none, and the hashes of its files.

    The name follows from those hashes and from what this code makes of a model, so that other bytes or
    another prompt version have another manifest.
    """
    files = {name: file_hash(directory / name) for name in sorted(model_files(directory))}
    identity = content_hash([files, PROMPT_VERSION, ACTION_SPACE_HASH, FEATURE_SCHEMA])
    return registry / "manifests" / f"{identity.removeprefix('sha256:')}.json", files


def _given(**arguments: int | None) -> dict[str, Any]:
    """The arguments that were set; a backend's own defaults stand for the others."""
    return {name: value for name, value in arguments.items() if value is not None}


def load_manifest(directory: Path) -> ModelManifest:
    """Read a version's manifest and verify every file of the directory against it.

    Raises
    ------
    ModelFileError : no directory, no manifest, a pickle, a file that is missing or that the manifest does not
        list.
    ManifestMismatch : a file's bytes changed, or it was made for another prompt, action space or feature
        schema.
    """
    manifest = read_manifest(directory / MANIFEST_NAME)
    manifest.require_compatible()
    names = model_files(directory)
    unlisted = sorted(names - manifest.files.keys())
    if unlisted:
        raise ModelFileError(f"{directory}: not in the manifest: {', '.join(unlisted)}. Remove them, or import again")
    missing = sorted(manifest.files.keys() - names)
    if missing:
        raise ModelFileError(f"{directory}: in the manifest, but missing: {', '.join(missing)}. Import the model again")
    changed = [name for name, expected in manifest.files.items() if file_hash(directory / name) != expected]
    if changed:
        raise ManifestMismatch(f"{directory}: bytes differ from the manifest: {', '.join(changed)}. Import it again")
    return manifest


def read_manifest(path: Path) -> ModelManifest:
    """Parse a manifest file. Raises `ModelFileError`."""
    if not path.is_file():
        raise ModelFileError(f"there is no manifest at {path}: import the model with `advisor model import`")
    try:
        return ModelManifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, InvalidRecord) as error:
        raise ModelFileError(f"{path} is not a manifest: {error}") from error


def model_files(directory: Path) -> set[str]:
    """Names, relative to the directory, of every file that loading may read: all but hidden ones, documents
    and the manifest. Raises `ModelFileError` when there is a pickle among them, or no directory."""
    if not directory.is_dir():
        raise ModelFileError(
            f"there is no model directory {directory}: set MODEL to one, or make one with `advisor model import`"
        )
    names = set()
    for path in directory.rglob("*"):
        name = PurePosixPath(path.relative_to(directory).as_posix())
        if not path.is_file() or any(part.startswith(".") for part in name.parts) or str(name) == MANIFEST_NAME:
            continue
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ModelFileError(
                f"{path} may hold pickled code and is never loaded: convert the weights to safetensors and remove it"
            )
        if path.suffix.lower() not in _HARMLESS_SUFFIXES and path.name.upper() not in _HARMLESS_NAMES:
            names.add(str(name))
    return names


def file_hash(path: Path) -> str:
    """`sha256:` and the hex digest of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"
