"""From a finished policy artefact to what is published: files, calibration, where it came from, how
well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.domain.canonical import content_hash
from app.domain.manifest import MANIFEST_NAME, Calibration, ModelManifest
from app.policy.store import find_version, read_manifest
from training.arrays import DAY_S, Floats
from training.learning.model.answers import Answers
from training.learning.reward.accuracy import compared
from training.learning.reward.ensemble import Rewards
from training.outcomes.labels import Labels
from training.publish.registry import Release
from training.scenarios.table import TRAIN, VALIDATE, ScenarioSet
from training.stages.store import Artifact, ArtifactError

RANKINGS = ("pairwise_head", "scalar_head", "linear", "constant")
_SEED = 0


def release_of(
    policy: Artifact, name: str, roots: Sequence[Path], files: Path | None = None
) -> Release:
    """What `registry.publish` wants, from a finished stage `policy` whose inputs lie beside it.

    Parameters
    ----------
    roots : folders of model directories; the base model's is found there by its version.
    files : what to publish instead of the adapter: it, merged into the base.

    Raises
    ------
    ArtifactError : an input is not there any more. UnknownVersion : the base model is not there.
    """
    made = lineage(policy)
    base = base_of(policy, roots)
    trained = json.loads((policy / "training.json").read_text(encoding="utf-8"))
    calibration = Calibration.from_json(trained["calibration"])
    scenarios = ScenarioSet.open(made["scenarios"])
    real = scenarios.table.filter(scenarios.real)
    used = real.filter(real["split"].is_in((TRAIN, VALIDATE)))
    sources, symbols = (", ".join(sorted(used[column].unique())) for column in ("source", "symbol"))
    config = {
        stage: one.manifest["config"] for stage, one in sorted((made | {"policy": policy}).items())
    }
    provenance = {
        "algorithm": policy.facts["algorithm"],
        "market": f"{sources}: {symbols}",
        "period": [int(used["as_of"].min()), int(used["as_of"].max())],  # type: ignore[arg-type]
        "scenarios": {
            "training": len(scenarios.rows(TRAIN)),
            "validation": len(scenarios.rows(VALIDATE)),
        },
        "data": {stage: one.hash for stage, one in sorted((made | {"policy": policy}).items())},
        "code": policy.manifest["code"],
        "config": config,
        "config_hash": content_hash(config),
        "metrics": policy.facts["metrics"],
        "results": results(
            made, scenarios, np.load(policy / "policy_log_probs.npy"), calibration, base.calibration
        ),
        "language": policy.facts["language"],
        "reward": _reward_summary(made["reward"]),
    }
    return Release(files or policy / "adapter", name, base, calibration, provenance)


def lineage(policy: Artifact) -> dict[str, Artifact]:
    """The artefacts that a policy was made from, by stage: found beside it, by their hashes."""
    found = {}
    for stage, wanted in policy.manifest["inputs"].items():
        for path in sorted(policy.path.parent.glob(f"{stage}-*/{MANIFEST_NAME}")):
            artifact = Artifact.open(path.parent, stage)
            if artifact.hash == wanted:
                found[stage] = artifact
        if stage not in found:
            raise ArtifactError(
                f"{policy.path} was made from a {stage} artefact {wanted[:23]} that is not in"
                f" {policy.path.parent}: rebuild, or publish from the folder where it was made"
            )
    return found


def base_of(policy: Artifact, roots: Sequence[Path]) -> ModelManifest:
    """Manifest of the base model, named in the adapter's own configuration."""
    config = json.loads((policy / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return read_manifest(find_version(config["base_model_name_or_path"], roots) / MANIFEST_NAME)


def results(
    made: Mapping[str, Artifact],
    scenarios: ScenarioSet,
    raw: Floats,
    own: Calibration,
    base: Calibration,
) -> dict[str, Any]:
    """Mean net R per validation scenario of the policy's choices, the base model's, the plan always
    traded, and none.

    Before rules, realised rewards, weighted by uniqueness, with intervals by days, as `compared`
    tells it; also `approval_rate` by arm, `scenarios` and `days`. `raw` is (N, 10), the policy's
    label log-probabilities.
    """
    labels = Labels.open(made["labels"])
    rows = scenarios.rows(VALIDATE)
    rows = rows[np.isfinite(labels.rewards[rows]).all(1) & np.isfinite(labels.agent_reward[rows])]
    untuned = np.load(made["encoded"] / "label_log_probs.npy")
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
        **compared(values, weight, day, day, "policy", _SEED),
    }


def _reward_summary(artifact: Artifact) -> dict[str, Any]:
    """Pairwise accuracies of the reward model and its controls."""
    report = Rewards.open(artifact).report
    return {
        split: {name: part["within"][name] for name in RANKINGS} for split, part in report.items()
    }
