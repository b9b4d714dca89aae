"""Artefacts of what a test made up, without a declared stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from training.stages.store import Artifact, Facts, Store


def made_up(
    root: Path,
    stage: str,
    fill: Callable[[Path], Facts],
    config: Any = None,
    inputs: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """Found again when the same configuration made it from the same inputs."""
    hashes = {name: given.hash for name, given in (inputs or {}).items()}
    depends = {
        "config": to_jsonable_python(config),
        "inputs": hashes,
        "data": {},
        "code": "made up",
    }
    store = Store(root)
    return store.find(stage, depends) or store.build(stage, depends, fill)
