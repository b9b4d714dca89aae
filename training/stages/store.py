"""Artefacts: what a stage leaves behind. Immutable folders, the manifest written last.

A stage's folder is named by the hash of everything that it depends on: its configuration, the
artefacts it reads, the code, and the prompt, action space and feature schema. So a finished stage
is found again, a changed one is built anew, and a kill at any moment leaves nothing that looks
finished.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from app.domain.actions import ACTION_SPACE_HASH
from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError
from app.domain.features import FEATURE_SCHEMA
from app.domain.prompt import PROMPT_VERSION
from app.policy.store import file_hash
from training.stages.key import sources_of

MANIFEST = "manifest.json"


class ArtifactError(AdvisorError):
    """An artefact is incomplete, was changed, or belongs to another stage."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path, stage: str | None = None, *, deep: bool = False) -> Self:
        """Read a finished stage and check every file's size, and with `deep` its bytes.

        Raises
        ------
        ArtifactError : no manifest (the stage did not finish), another stage, a file is absent,
            truncated or changed.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            files = dict(manifest["files"])
            found = manifest["stage"]
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} holds no finished artefact (no {MANIFEST}): build it again"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path / MANIFEST} is no manifest: remove the folder and build it again"
            ) from error
        if stage is not None and found != stage:
            raise ArtifactError(f"{path} is an artefact of stage {found!r}, wanted is {stage!r}")
        for name, expected in files.items():
            file = path / name
            size = file.stat().st_size if file.is_file() else None
            if size != expected["bytes"] or (deep and file_hash(file) != expected["hash"]):
                state = "is missing" if size is None else "was cut or changed"
                raise ArtifactError(f"{file} {state}: remove {path} and build the stage again")
        return cls(path, manifest)

    @property
    def hash(self) -> str:
        """Content hash: stage, key and every file. The same data, code, configuration and seed give
        the same hash."""
        return content_hash({name: self.manifest[name] for name in ("stage", "key", "files")})

    @property
    def facts(self) -> dict[str, Any]:
        """Counts and measures that the stage reported."""
        return dict(self.manifest["facts"])

    @property
    def cpu_seconds(self) -> float:
        """What building it took, of this process."""
        return float(self.manifest["cost"]["cpu_s"])

    def __truediv__(self, name: str) -> Path:
        return self.path / name


Build = Callable[[Path], Mapping[str, Any]]
"""Fills an empty folder and returns facts (JSON) for the manifest."""


class Workshop:
    """A folder of artefacts, one sub-folder per stage and key.

    Parameters
    ----------
    root : where artefacts live; made when first needed.
    tell : hears one line per stage, for people.
    """

    def __init__(self, root: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self.root = root
        self._tell = tell

    def stage(
        self,
        name: str,
        config: Any,
        inputs: Mapping[str, Artifact],
        build: Build,
        code: Sequence[ModuleType] = (),
    ) -> Artifact:
        """The artefact of a stage: found when it is finished, else built.

        `config` is JSON-like or a pydantic model: whatever the result depends on besides `inputs`
        and the code. `code` names the modules that do the work: with `build` itself and all that
        they import, they are the code that the artefact depends on. So a change of the report
        retrains nothing.
        """
        plain = config.model_dump(mode="json") if hasattr(config, "model_dump") else config
        depends = {
            "config": plain,
            "inputs": {key: one.hash for key, one in inputs.items()},
            "code": code_hash(build, code),
            "prompt_version": PROMPT_VERSION,
            "action_space": ACTION_SPACE_HASH,
            "feature_schema": FEATURE_SCHEMA,
        }
        key = content_hash({"stage": name, **depends})
        target = self.root / f"{name}-{key.removeprefix('sha256:')[:16]}"
        if (target / MANIFEST).is_file():
            self._tell(f"{name}: found {target.name}")
            return Artifact.open(target, name)
        self._tell(f"{name}: building {target.name}")
        self._build(target, name, key, depends, build)
        return Artifact.open(target, name)

    def _build(
        self, target: Path, name: str, key: str, depends: dict[str, Any], build: Build
    ) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=self.root))
        try:
            wall, cpu = time.monotonic(), time.process_time()
            facts = dict(build(work))
            cost = {
                "wall_s": round(time.monotonic() - wall, 3),
                "cpu_s": round(time.process_time() - cpu, 3),
            }
            files = {
                path.relative_to(work).as_posix(): {
                    "bytes": path.stat().st_size,
                    "hash": file_hash(path),
                }
                for path in sorted(work.rglob("*"))
                if path.is_file()
            }
            manifest = {
                "stage": name,
                "key": key,
                **depends,
                "facts": facts,
                "files": files,
                "cost": cost,
                "created_at": datetime.now(UTC).isoformat(),
            }
            draft = work / f".{MANIFEST}"
            draft.write_text(
                json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8"
            )
            _sync(draft)
            draft.rename(work / MANIFEST)
            work.chmod(0o755)
            if target.exists():  # a folder without a manifest: nothing that anybody finished
                shutil.rmtree(target)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def code_hash(build: Build, modules: Sequence[ModuleType]) -> str:
    """Content hash of what makes an artefact: the text of `build`, and of all modules that
    `modules` lead to."""
    sources = {
        f"{path.parent.name}/{path.name}": file_hash(path)
        for path in sources_of(each.__name__ for each in modules)
    }
    return content_hash({"build": inspect.getsource(build), "sources": sources})


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
