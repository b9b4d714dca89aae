"""The base model: the one that is read once per scenario, and adapted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from app.domain.canonical import content_hash
from app.domain.model.manifest import ModelManifest
from app.policy.in_process.importer import import_directory, import_smollm2
from app.policy.in_process.label_reader import LabelReader


@dataclass(frozen=True, eq=False)
class Base:
    """A model directory and its manifest. Where it is read changes a result by rounding alone."""

    path: Path
    manifest: ModelManifest
    device: str = "cpu"

    @classmethod
    def imported(
        cls,
        wanted: Path | None,
        models: Path,
        threads: int,
        tell: Callable[[str], None],
        device: str = "cpu",
    ) -> Self:
        """A directory, or the bundled small model; it gets a manifest when it has none yet."""
        path = wanted or import_smollm2(models, tell, threads=threads)
        return cls(path, import_directory(path, models / "manifests", threads=threads), device)

    @cached_property
    def reader(self) -> LabelReader:
        """The model, loaded when it is first asked for."""
        reader = LabelReader.load(self.path)
        reader.model.to(self.device)
        return reader

    def hash(self) -> str:
        """Of its files, its name and its calibration: what a result may depend on."""
        manifest = self.manifest
        return content_hash(
            {
                "files": dict(manifest.files),
                "model_version": manifest.model_version,
                "calibration": manifest.calibration.as_json(),
            }
        )
