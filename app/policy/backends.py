"""Builds the policy that a version's directory names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.domain.errors import ModelFileError
from app.domain.manifest import ModelManifest
from app.policy.encoding import PROMPT_TOKENS, PromptEncoder
from app.policy.in_process.bases import Bases
from app.policy.port import Policy
from app.policy.scripted import ScriptedPolicy
from app.policy.store import (
    find_manifest,
    model_files,
)
from app.policy.vllm import VllmPolicy


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
    roots: Sequence[Path] = (),
    bases: Bases | None = None,
    threads: int = 1,
    max_batch: int | None = None,
    max_queue: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    vllm_url: str = "http://127.0.0.1:8000",
    vllm_model: str | None = None,
    observe: Callable[[str, float], None] | None = None,
) -> Policy:
    """Verify a model and build its policy. Blocks for seconds: call it before serving, or in a
    thread.

    Parameters
    ----------
    model : the version's directory: a whole model, or an adapter; not needed for the scripted
        backend.
    registry : where manifests of directories without one are kept; None refuses such a directory.
        The transformers backend measures and stores a missing one; vLLM wants it made before.
    roots : directories of model directories in which an adapter's base model is looked for.
    bases : models in memory, to be shared between versions; None shares with nobody. Not for two
        calls at once.
    threads, max_batch, max_queue : as `Batcher` has them; `max_queue` also bounds vLLM's requests.
    prompt_tokens : longest prompt, head and tail included.
    vllm_url, vllm_model : the server, and the model's name there (default: the directory as it was
        given).

    Raises
    ------
    ManifestMismatch, ModelFileError : this model must not be served; the message says why and how
        to mend it.
    """
    if backend is Backend.SCRIPTED:
        return ScriptedPolicy()
    if model is None:
        raise ModelFileError(f"the {backend} backend needs MODEL, the path of a model directory")
    if backend is Backend.VLLM:
        bounds = _given(max_in_flight=max_queue)
        manifest = _whole_model(model, registry)
        encoder = PromptEncoder.from_directory(model, prompt_tokens)
        return VllmPolicy(
            vllm_url, vllm_model or str(model), manifest, encoder, observe=observe, **bounds
        )
    model_files(model)  # What is no model directory is refused before torch is loaded for nothing.
    # Only this backend needs torch; the others start without it.
    from app.policy.in_process.loading import InProcess

    bounds = _given(max_batch=max_batch, max_queue=max_queue)
    in_process = InProcess(
        bases or Bases(), roots, prompt_tokens, threads=threads, observe=observe, **bounds
    )
    return in_process.load(model, registry)


def _whole_model(model: Path, registry: Path | None) -> ModelManifest:
    """As `find_manifest`, for a backend that takes no adapter."""
    manifest = find_manifest(model, registry)
    if manifest.base is not None:
        raise ModelFileError(
            f"{model} is an adapter: vLLM takes whole models here; merge it into its base, or unset"
            " VLLM_URL"
        )
    return manifest


def _given(**arguments: int | None) -> dict[str, Any]:
    """The arguments that were set; a backend's own defaults stand for the others."""
    return {name: value for name, value in arguments.items() if value is not None}
