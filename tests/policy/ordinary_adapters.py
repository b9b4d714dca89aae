"""Writes versions that are ordinary adapters over a model: random terms, which change what it says.

usage: python -m tests.policy.ordinary_adapters MODEL_DIRECTORY DIRECTORY VERSION...
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.policy.in_process.label_reader import LabelReader
from app.policy.versions.store import load_manifest
from tests.policy.tiny_models import save_adapter, write_manifest

SCALE = 0.2


def write(model: Path, directory: Path, versions: list[str]) -> None:
    """Each under its version's name."""
    base, reader = load_manifest(model), LabelReader.load(model)
    for seed, version in enumerate(versions, start=1):
        folder = save_adapter(directory / version, reader.model, None, seed, SCALE)
        write_manifest(folder, version, base)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
