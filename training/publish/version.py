"""From a finished policy artefact to a version: an immutable folder that other people can serve.

A version is a folder `NAME-DATE-HASH8` under the models folder that the service reads: PEFT's two
files of an adapter, or a whole model, with a model card, and the manifest written last into a
folder that then gets its name. Nothing is ever overwritten: the same content finds its version
again. What the manifest tells of it (where it came from, how well it does) is read from the
artefacts that the policy was made from.
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
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError
from app.domain.model.manifest import MANIFEST_NAME, BaseModelRef, Calibration, ModelManifest
from app.policy.in_process.label_reader import LabelReader
from app.policy.rivals import RIVAL_NAME
from app.policy.versions.store import (
    NUMBERS_NAME,
    file_hash,
    find_base,
    find_version,
    load_manifest,
    model_files,
    read_manifest,
)
from training.arrays import DAY_S, Floats, Rows
from training.learning.model.adapted import save_merged
from training.learning.model.answers import Answers, calibration_of
from training.outcomes.labels import Labels
from training.publish.card import model_card
from training.scenarios.table import TRAIN, VALIDATE, ScenarioSet
from training.stages.store import Artifact, ArtifactError
from training.statistics.bootstrap import Cluster, Estimate, compare_means

ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
NUMBERS = frozenset({NUMBERS_NAME})
"""What an adapter may have beside them."""
CARD = "README.md"
_SEED = 0
_DIGITS = 4


class PublishError(AdvisorError):
    """A version cannot be published."""


@dataclass(frozen=True)
class Release:
    """What is to be published.

    Parameters
    ----------
    files : folder with PEFT's two files of an adapter, a whole model, or a rival's `rival.json`.
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


def publish(
    release: Release, models: Path, created_at: datetime, roots: Sequence[Path] = ()
) -> Path:
    """Write a version under `models`; its directory. The same content, published before, is
    verified and found again.

    `roots` are further folders where the service finds model directories: the base model may lie
    there.

    Raises
    ------
    PublishError : the files are no adapter and no model, or the version's name is taken by other
        content.
    ModelFileError, ManifestMismatch : a pickle, no base model at hand, or what was published was
        changed.
    """
    names = _names(release.files)
    files = {name: file_hash(release.files / name) for name in sorted(names)}
    base = BaseModelRef.of(release.base) if names - NUMBERS == ADAPTER_FILES else None
    if base is not None:
        find_base(base, [models, *roots])
    content = {
        "files": files,
        "base": None if base is None else base.as_json(),
        "calibration": release.calibration.as_json(),
        "provenance": dict(release.provenance),
    }
    digest = content_hash(content).removeprefix("sha256:")[:8]
    earlier = sorted(models.glob(f"{release.name}-????????-{digest}/{MANIFEST_NAME}"))
    if earlier:
        load_manifest(earlier[0].parent)
        return earlier[0].parent
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


def release_of(
    policy: Artifact, name: str, roots: Sequence[Path], files: Path | None = None
) -> Release:
    """What `publish` wants, from a finished stage `policy` whose inputs lie beside it.

    Parameters
    ----------
    roots : folders of model directories; the base model's is found there by its version.
    files : what to publish instead of the adapter: it, merged into the base.

    Raises
    ------
    ArtifactError : an input is not there any more. UnknownVersion : the base model is not there.
    """
    inputs = lineage(policy)
    artifacts = sorted((inputs | {"policy": policy}).items())
    base = base_of(policy, roots)
    calibration, raw = calibration_of(policy), np.load(policy / "policy_log_probs.npy")
    scenarios = ScenarioSet.open(inputs["scenarios"])
    real = scenarios.table.filter(scenarios.real)
    used = real.filter(real["split"].is_in((TRAIN, VALIDATE)))
    sources, symbols = (", ".join(sorted(used[column].unique())) for column in ("source", "symbol"))
    config = {
        stage: artifact.manifest["config"] | artifact.manifest["data"]
        for stage, artifact in artifacts
    }
    provenance = {
        "algorithm": policy.facts["algorithm"],
        "ablations": policy.facts.get("ablations", []),
        "left_out": inputs["encoded"].facts.get("left_out", []),
        "market": f"{sources}: {symbols}",
        "period": [int(used["as_of"].min()), int(used["as_of"].max())],  # type: ignore[arg-type]
        "scenarios": {
            "training": len(scenarios.rows(TRAIN)),
            "validation": len(scenarios.rows(VALIDATE)),
        },
        "data": {stage: artifact.hash for stage, artifact in artifacts},
        "code": policy.manifest["code"],
        "config": config,
        "config_hash": content_hash(config),
        "metrics": policy.facts["metrics"],
        "questions": policy.facts.get("questions", {}),
        "results": results(inputs, scenarios, raw, calibration, base.calibration),
        "language": policy.facts["language"],
        "teacher": inputs["taught"].facts["questions"] if "taught" in inputs else None,
    }
    return Release(files or policy / "adapter", name, base, calibration, provenance)


def lineage(policy: Artifact) -> dict[str, Artifact]:
    """The artefacts that a policy was made from, by stage: found beside it, by their hashes."""
    inputs = {}
    for stage, wanted in policy.manifest["inputs"].items():
        for path in sorted(policy.path.parent.glob(f"{stage}-*/{MANIFEST_NAME}")):
            artifact = Artifact.open(path.parent, stage)
            if artifact.hash == wanted:
                inputs[stage] = artifact
        if stage not in inputs:
            raise ArtifactError(
                f"{policy.path} was made from a {stage} artefact {wanted[:23]} that is not in"
                f" {policy.path.parent}: rebuild, or publish from the folder where it was made"
            )
    return inputs


def base_of(policy: Artifact, roots: Sequence[Path]) -> ModelManifest:
    """Manifest of the base model, named in the adapter's own configuration."""
    config = json.loads((policy / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return read_manifest(find_version(config["base_model_name_or_path"], roots) / MANIFEST_NAME)


def results(
    inputs: Mapping[str, Artifact],
    scenarios: ScenarioSet,
    raw: Floats,
    own: Calibration,
    base: Calibration,
) -> dict[str, Any]:
    """Mean net R per validation scenario of the policy's choices, the base model's, the plan always
    traded, and none.

    Before rules, realised rewards, weighted by uniqueness, with intervals by days, as `_compared`
    tells it; also `approval_rate` by arm, `scenarios` and `days`. `raw` is (N, 10), the policy's
    label log-probabilities.
    """
    labels = Labels.open(inputs["labels"])
    rows = scenarios.rows(VALIDATE)
    rows = rows[np.isfinite(labels.rewards[rows]).all(1) & np.isfinite(labels.agent_reward[rows])]
    untuned = np.load(inputs["encoded"] / "label_log_probs.npy")
    taken = {
        "policy": Answers(raw[rows], own).action,
        "base_model": Answers(untuned[rows], base).action,
    }
    values = {name: labels.rewards[rows, chosen] for name, chosen in taken.items()}
    values |= {"always_approve": labels.agent_reward[rows], "never_approve": np.zeros(len(rows))}
    weight, day = scenarios.weight[rows], scenarios.as_of[rows] // DAY_S
    rates = (
        {name: round(float((chosen > 0).mean()), 4) for name, chosen in taken.items()}
        if len(rows)
        else {}
    )
    return {
        "scenarios": len(rows),
        "days": len(np.unique(day)),
        "approval_rate": rates | {"always_approve": 1.0, "never_approve": 0.0},
        **_compared(values, weight, day, "policy"),
    }


def _compared(
    values: Mapping[str, Floats], weight: Floats, day: Rows, subject: str
) -> dict[str, Any]:
    """Weighted means of named values (N,) with intervals, and by how much `subject` leads each of
    the others.

    Returns
    -------
    {NAME: {"value", "low", "high"}, "lead": {NAME: the same of the difference}}; numbers are None
    where N is 0.
    """
    means, leads = compare_means(values, weight, Cluster(day, day), subject, seed=_SEED)
    lead = {name: _summary(estimate) for name, estimate in leads.items()}
    return {name: _summary(estimate) for name, estimate in means.items()} | {"lead": lead}


def _summary(estimate: Estimate) -> dict[str, float | None]:
    ends = {name: getattr(estimate, name) for name in ("value", "low", "high")}
    return {name: None if end is None else round(float(end), _DIGITS) for name, end in ends.items()}


def merge(policy: Artifact, roots: Sequence[Path], folder: Path) -> Path:
    """The policy's adapter merged into its base model, as a whole model in `folder`.

    Raises
    ------
    PublishError : it is an activated adapter.
    """
    config = json.loads((policy / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("alora_invocation_tokens") is not None:
        raise PublishError(
            f"{policy.path} holds an activated adapter, which cannot be merged: train with"
            " adapter.kind = 'ordinary'"
        )
    base = find_version(base_of(policy, roots).model_version, roots)
    save_merged(policy / "adapter", LabelReader.load(base), base, folder)
    return folder


def in_half_precision(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter in `folder` with its weights as float16; serving computes in float32 as
    before.

    Raises
    ------
    PublishError : a weight is too large for float16.
    """
    weights = load_file(adapter / "adapter_model.safetensors")
    with np.errstate(over="ignore"):  # what overflows is refused below
        halved = {name: values.astype(np.float16) for name, values in weights.items()}
    beyond = [name for name, values in halved.items() if not np.isfinite(values).all()]
    if beyond:
        raise PublishError(
            f"{adapter}: {beyond[0]} has weights beyond float16: publish it as it is"
        )
    save_file(halved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    for name in model_files(adapter) - {"adapter_model.safetensors"}:
        shutil.copyfile(adapter / name, folder / name)
    return folder


def _names(folder: Path) -> set[str]:
    """The files to publish: an adapter's two or three, a whole model's, or a rival's one."""
    names = model_files(folder)
    if names == {RIVAL_NAME}:
        return names
    adapter = names - NUMBERS == ADAPTER_FILES
    if "adapter_config.json" in names and not adapter:
        wrong = ", ".join(sorted(names ^ ADAPTER_FILES))
        raise PublishError(
            f"{folder}: an adapter is {' and '.join(sorted(ADAPTER_FILES))} alone; at fault:"
            f" {wrong}"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise PublishError(
            f"{folder} holds no safetensors: train a policy first, or name its folder `adapter`"
        )
    if not adapter and not {"config.json", "tokenizer.json"} <= names:
        raise PublishError(
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
            raise PublishError(
                f"{target} exists with other content: versions are immutable, remove it"
            ) from error
        _sync(models)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
