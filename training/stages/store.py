"""Artefacts: what a stage leaves behind. Immutable folders, the manifest written last.

A folder is named by the hash of everything that it depends on. So a finished artefact is found
again, a changed one is built anew, and a kill at any moment leaves nothing that looks finished.
What it does leave is removed when the same is built again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError
from app.policy.versions.store import file_hash

MANIFEST = "manifest.json"
TO_WATCH = "tensorboard"
"""A folder whose files are for people who watch: they hold times, and no result reads them."""
Facts = dict[str, Any]
"""Counts and measures that a stage reports; JSON."""


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
            its_stage = manifest["stage"]
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} holds no finished artefact (no {MANIFEST}): build it again"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path / MANIFEST} is no manifest: remove the folder and build it again"
            ) from error
        if stage is not None and its_stage != stage:
            raise ArtifactError(
                f"{path} is an artefact of stage {its_stage!r}, wanted is {stage!r}"
            )
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


class Store:
    """A folder of artefacts, one sub-folder per stage and key. `root` is made when first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, stage: str, depends: Mapping[str, Any]) -> Artifact | None:
        """The finished artefact of a stage that depends on this (JSON), every byte as it was built.
        Raises `ArtifactError`: it was changed, or the folder of its name holds another."""
        target = self._target(stage, depends)
        if not (target / MANIFEST).is_file():
            return None
        artifact = Artifact.open(target, stage, deep=True)
        if artifact.manifest.get("key") != _key(stage, depends):
            raise ArtifactError(
                f"{target} holds another artefact, of key {artifact.manifest.get('key')}: remove"
                " the folder and build it again"
            )
        return artifact

    def build(
        self, stage: str, depends: Mapping[str, Any], fill: Callable[[Path], Facts]
    ) -> Artifact:
        """Let `fill` put files into an empty folder, and make an artefact of it. When another
        process finishes the same first, its artefact is taken and stays as it is.

        Raises
        ------
        ArtifactError : a file cannot be read or written: the disk is full, nobody may write there.
            And what `fill` raises.
        """
        target = self._target(stage, depends)
        with _files_at(target), _building(target) as work:
            wall, cpu = time.monotonic(), time.process_time()
            facts = fill(work)
            cost = {
                "wall_s": round(time.monotonic() - wall, 3),
                "cpu_s": round(time.process_time() - cpu, 3),
            }
            manifest = {
                "stage": stage,
                "key": _key(stage, depends),
                **depends,
                "facts": facts,
                "files": _files(work),
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
            _put(work, target)
        return Artifact.open(target, stage)

    def name(self, stage: str, depends: Mapping[str, Any]) -> str:
        """Of the folder."""
        return f"{stage}-{_key(stage, depends).removeprefix('sha256:')[:16]}"

    def _target(self, stage: str, depends: Mapping[str, Any]) -> Path:
        return self.root / self.name(stage, depends)


def _key(stage: str, depends: Mapping[str, Any]) -> str:
    return content_hash({"stage": stage, **depends})


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of all files that are a result."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "hash": file_hash(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and folder / TO_WATCH not in path.parents
    }


@contextmanager
def _files_at(target: Path) -> Iterator[None]:
    """Files may be made beside the target; what stands in the way of that is told as such. Each
    library tells of a full disk by an error of its own."""
    full = os.strerror(errno.ENOSPC)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except Exception as error:
        if isinstance(error, AdvisorError) or not (
            isinstance(error, OSError) or full in str(error)
        ):
            raise
        raise ArtifactError(
            f"{target.name} cannot be made in {target.parent}: {error}. What is finished stays:"
            " mend this, or name another folder with artifacts, and start again"
        ) from error


@contextmanager
def _building(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, locked while it is filled, and removed unless it was
    renamed. Those of the same target that nobody holds were left by processes that were killed."""
    with ExitStack() as held:
        with _locked(target.parent, fcntl.LOCK_EX):
            for left in target.parent.glob(f".{target.name}-*"):
                with _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as abandoned:
                    if abandoned:
                        shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            held.enter_context(_locked(work, fcntl.LOCK_EX))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Whether the lock was had; it ends with the process, however that ends. Not had of a folder
    that another process has finished, and so renamed."""
    with ExitStack() as opened:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, how)
            had = True
        except (BlockingIOError, FileNotFoundError):
            had = False
        yield had


def _put(work: Path, target: Path) -> None:
    """Give a finished folder its name, unless another process finished the same in the meantime:
    then that one stays, for somebody may be reading it."""
    if target.exists() and not (target / MANIFEST).is_file():
        shutil.rmtree(target)  # nothing that anybody finished
    try:
        work.rename(target)
    except OSError:
        if not (target / MANIFEST).is_file():
            raise


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
