"""A whole rebuild on a tiny random model and a synthetic market, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.arrays import Meter
from training.config.file import RebuildConfig
from training.config.learning import DpoConfig
from training.pipeline.evaluate import Evaluated
from training.stages.store import Artifact
from training.stages.workshop import Workshop

NOW = datetime(2026, 11, 24, tzinfo=UTC)
RIVAL = DpoConfig(epochs=1, max_majority=1.0, beta=0.1)
"""Takes part in the contest beside `expected`."""


@contextmanager
def silent(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def shop_of(
    config: RebuildConfig,
    tell: Callable[[str], None] = lambda line: None,
    meter: Meter = silent,
) -> Workshop:
    """Where its artefacts are made."""
    return Workshop(config.artifacts, tell, meter)


def config_in(folder: Path, base: Path, **sections: Any) -> RebuildConfig:
    """A rebuild that takes seconds, in a folder; `section__key=value` changes it."""
    document: dict[str, Any] = {
        "artifacts": folder / "artifacts",
        "threads": 1,
        "market": {
            "source": "synthetic",
            "synthetic": {
                "edge": 0.5,
                "symbols": 2,
                "bars": 4000,
                "begins": "2022-09-15",
                "seed": 7,
            },
        },
        "scenarios": {"limit": 80},
        "encode": {"base": base, "shard": 32, "leave_out": ["scores", "book"]},
        "teacher": {
            "folds": 3,
            "trees": 20,
            "network": {"members": 1, "width": 8, "components": 4, "epochs": 1},
        },
        "adapter": {"rank": 2, "alpha": 4.0, "numbers": 2},
        "policy": {"algorithm": "expected", "epochs": 1, "max_majority": 1.0, "min_entropy": 0.0},
        "publish": {"models": base.parent, "name": "tiny"},
        "evaluate": {"draws": 100, "random_vetoes": 20, "held_out": {"limit": 60}, "workers": 1},
    }
    for path, value in sections.items():
        *parents, last = path.split("__")
        target = document
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = value
    return RebuildConfig.model_validate(document)


def read_by(done: Evaluated, name: str) -> Artifact:
    """An artefact that an evaluation read, by the name under which it did."""
    artifact = done.artifact
    wanted = artifact.manifest["inputs"][name]
    beside = (
        Artifact.open(path.parent)
        for path in sorted(artifact.path.parent.glob("*-*/manifest.json"))
    )
    return next(each for each in beside if each.hash == wanted)
