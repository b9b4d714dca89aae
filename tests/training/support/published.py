"""A finished policy artefact of made-up scenarios on a tiny random model, ready to be published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import Calibration
from app.policy.encoding import PromptEncoder
from app.policy.in_process.whole.weights import load_model
from tests.builders import scenario
from tests.domain.scenarios import AS_OF
from tests.policy.tiny_models import POSITIONS, save_adapter, save_tiny_model, write_manifest
from tests.training.support.artifacts import made_up
from training.config.data import ScenariosConfig
from training.scenarios.table import RealScenario, build_scenarios
from training.stages.store import Artifact

COUNT = 40
SIZE = np.array([action.risk_fraction for action in ACTIONS])
BASE = "base-1"
LANGUAGE = {
    name: {
        "perplexity": perplexity,
        "kl_to_base": kl,
        "consistency": 0.75,
        "dialogues": 8,
        "tokens": 240,
    }
    for name, perplexity, kl in (("before", 20.0, 0.0), ("after", 12.5, 0.25))
}
QUESTIONS = {
    "win": {"teaches": "network", "errors": {"ridge": 0.24, "network": 0.23, "stack": 0.2350}}
}
"""What the stage `taught` says of its teacher."""
START = AS_OF.replace(year=2022, month=6)


def save_base(models: Path) -> Path:
    """A tiny base model under `models`, as version `base-1`."""
    directory = save_tiny_model(models / "tiny")
    write_manifest(directory, BASE)
    return directory


def finished_policy(folder: Path, base: Path, seed: int = 1, activated: bool = True) -> Artifact:
    """Stages scenarios to policy as a rebuild leaves them, the numbers made up: the policy approves
    by action 9 where that earns 1 R, on every second scenario, and rejects where it loses 1 R. The
    base model always approves by 9."""
    found = [
        RealScenario(scenario(as_of=START + timedelta(days=i), candidate__rsi=30.0 + i / 2))
        for i in range(COUNT)
    ]

    def stage(name: str, inputs: Mapping[str, Artifact], **arrays: np.ndarray) -> Artifact:
        def build(target: Path) -> dict[str, Any]:
            for key, values in arrays.items():
                np.save(target / f"{key}.npy", values)
            if name == "labels":
                _labels_table().write_parquet(target / "labels.parquet")
            return {"clip_r": 3.0, "questions": QUESTIONS, "left_out": ["book", "scores"]}

        return made_up(folder, name, build, {"made": "up"}, inputs)

    def build_set(target: Path) -> dict[str, Any]:
        return build_scenarios(target, found, ScenariosConfig(), {}, 3600)

    wins = np.where(np.arange(COUNT) % 2 == 0, 1.0, -1.0)
    rewards = SIZE * wins[:, None]
    made = {"scenarios": made_up(folder, "scenarios", build_set, {"seed": 0})}
    made["labels"] = stage("labels", made, rewards=rewards)
    always = np.full((COUNT, 10), -4.0)
    always[:, 9] = -0.1
    made["encoded"] = stage("encoded", {"scenarios": made["scenarios"]}, label_log_probs=always)
    made["taught"] = stage("taught", {"scenarios": made["scenarios"]})
    chosen = np.full((COUNT, 10), -4.0)
    chosen[np.arange(COUNT), np.where(wins > 0, 9, 0)] = -0.1

    def build_policy(target: Path) -> dict[str, Any]:
        tail = PromptEncoder.from_directory(base, POSITIONS).tail if activated else None
        save_adapter(target / "adapter", load_model(base), tail, seed, base_model_name_or_path=BASE)
        np.save(target / "policy_log_probs.npy", chosen)
        document = {"calibration": Calibration(temperature=1.5).as_json()}
        (target / "training.json").write_text(json.dumps(document))
        return {
            "algorithm": "expected",
            "metrics": {"entropy": 0.7},
            "language": LANGUAGE,
            "steps": 3,
        }

    config = {"policy": {"seed": seed}, "activated": activated}
    return made_up(folder, "policy", build_policy, config, made)


def _labels_table() -> pl.DataFrame:
    """The plan traded earns what action 9 earns."""
    rows = np.arange(COUNT)
    return pl.DataFrame(
        {"row": rows, "action": ["agent"] * COUNT, "reward": np.where(rows % 2 == 0, 1.0, -1.0)}
    )
