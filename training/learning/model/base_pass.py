"""The one base pass over every scenario's prompt: what training, the teacher and drift read of the
base model.

An activated adapter changes nothing before the prompt's tail, so with the keys and values of what
lies before it a training step reads the tail alone.

The cache is content-addressed: a shard holds prompts of one model that the same code read with the
same libraries, named by all of these, and is written whole or not at all. A killed stage loses one
shard; a second run over the same prompts reads nothing but the cache. One shard is in memory at a
time, whatever the number of prompts, and how much of the disk all may take is bounded
(`encode.most_gib`). The artefact holds the small arrays, aligned with the scenarios' rows, and
finds keys and values in the cache; a cache that was cleared is refilled by building the stage
again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from app.domain.canonical import content_hash
from app.domain.model.prompt import Line, LineKind, lines_of, prompt_of
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.packed import has_onednn, is_faster, pack, put
from app.policy.versions.store import file_hash, model_files
from training.arrays import Progress, silent
from training.config.learning import EncodeConfig
from training.learning.model.base import Base
from training.learning.model.shards import (
    SMALL,
    EncodeError,
    head_states,
    user_tokens,
    write_shard,
)
from training.scenarios.table import ScenarioSet
from training.stages.declared import KeptBy, stage
from training.stages.store import Artifact, Facts

NUMBERS = "numbers.npy"


class KeysValues(NamedTuple):
    """Keys and values of the users' tokens of some rows, padded on the right.

    `states` is (layers, 2, rows, heads, width, head size) float32, keys first; `lengths` (rows,)
    int64.
    """

    states: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the base model says and knows of N scenarios, rows aligned with the scenario set.

    label_log_probs : (N, 10) float32, over the whole vocabulary, nats.
    hidden : (N, LINES, H) float16, last layer's states averaged by kind of line; zero where the
        prompt has no such line.
    lines : (N, LINES) bool, the kinds that are there.
    last : (N, H) float32, the state that the language-model head reads.
    text : (N,) int64, how many of a row's user tokens, the last ones, are of the text part.
    tokens, offsets : user tokens of row i are tokens[offsets[i]:offsets[i + 1]], int32.
    numbers : (N, features) float64, NaN where not known: what adapters may read past the text.
    left_out : kinds of lines that were not read.
    with_text : whether rows have their text part. Keys and values before it are the same without.
    """

    label_log_probs: NDArray[np.float32]
    hidden: NDArray[np.float16]
    lines: NDArray[np.bool_]
    last: NDArray[np.float32]
    text: NDArray[np.int64]
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    shards: tuple[Path, ...]
    where: NDArray[np.int64]
    numbers: NDArray[np.float64] | None = None
    left_out: frozenset[LineKind] = frozenset()
    with_text: bool = True
    _open: dict[int, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage; large arrays stay on disk. Raises `EncodeError` when the cache was
        cleared."""
        cache = artifact.path.parent / artifact.facts["cache"]
        shards = tuple(cache / name for name in artifact.facts["shards"])
        absent = [path.name for path in shards if not path.is_file()]
        if absent:
            raise EncodeError(
                f"{cache} lacks {absent[0]}: remove {artifact.path} and build the stage again"
            )
        names = (*SMALL, "tokens", "offsets", "where")
        arrays = {name: np.load(artifact / f"{name}.npy", mmap_mode="r") for name in names}
        numbers = artifact / NUMBERS
        return cls(
            shards=shards,
            numbers=np.load(numbers) if numbers.is_file() else None,
            left_out=frozenset(map(LineKind, artifact.facts.get("left_out", []))),
            **arrays,
        )

    def __len__(self) -> int:
        return len(self.where)

    def without_text(self) -> Encoded:
        """The same rows without their text parts, for whoever reads their keys and values; what the
        base model says and knows (the other arrays) stays that of whole prompts."""
        return replace(self, with_text=False, _open={})

    def ids(self, row: int) -> list[int]:
        """Token ids of the user's text of a row, without head and tail."""
        begin = self.offsets[row]
        return [int(number) for number in self.tokens[begin : begin + self.lengths[row]]]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """User tokens by row."""
        whole = np.asarray(self.offsets[1:] - self.offsets[:-1])
        return whole if self.with_text else whole - self.text

    def keys_values(self, rows: Sequence[int] | NDArray[np.int64]) -> KeysValues:
        """Of the users' tokens of `rows`, read from the cache. Raises `EncodeError` when a shard is
        damaged."""
        lengths = self.lengths[np.asarray(rows)]
        out: torch.Tensor | None = None
        for position, row in enumerate(rows):
            states = self._states(int(row))
            if out is None:
                layers, two, heads, _, size = states.shape
                out = torch.zeros(layers, two, len(rows), heads, int(lengths.max()), size)
            kept = int(lengths[position])
            out[:, :, position, :, :kept] = states[:, :, :, :kept]
        if out is None:
            raise EncodeError("keys and values of no rows were asked for")
        return KeysValues(out, torch.from_numpy(lengths))

    def _states(self, row: int) -> torch.Tensor:
        """(layers, 2, heads, tokens, head size) float16 of one row."""
        number, position = (int(value) for value in self.where[row])
        path = self.shards[number]
        try:
            if number not in self._open:
                handle: Any = safe_open(path, framework="pt")
                starts, shape = (handle.get_tensor(name).tolist() for name in ("starts", "shape"))
                self._open[number] = (handle, starts, shape)
            handle, starts, (layers, heads, size) = self._open[number]
            flat: torch.Tensor = handle.get_slice("keys_values")[
                starts[position] : starts[position + 1]
            ]
        except (OSError, SafetensorError) as error:
            raise EncodeError(
                f"{path} is damaged ({error}): remove it and build the encode stage again"
            ) from error
        return flat.view(layers, 2, heads, -1, size)


@stage("encoded")
def encoded(
    folder: Path,
    scenarios: ScenarioSet,
    base: Base,
    *,
    settings: EncodeConfig,
    cache: Annotated[Path, KeptBy(write_shard)],
    progress: Progress = silent,
) -> Facts:
    """The base pass. Its cache survives a change of anything but model, prompt, and how they are
    read."""
    texts = [
        tuple(line for line in lines_of(scenario) if line.kind not in settings.leave_out)
        for scenario in scenarios.scenarios()
    ]
    np.save(folder / NUMBERS, scenarios.features())
    facts = build_encoded(folder, texts, base.reader, base.path, settings, cache, progress)
    return facts | {"left_out": sorted(settings.leave_out)}


def build_encoded(
    folder: Path,
    texts: Sequence[Sequence[Line]],
    reader: LabelReader,
    base: Path,
    config: EncodeConfig,
    cache: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Fill `folder` with the arrays of `Encoded`, reading from `cache` what it holds and adding
    what it lacks.

    Parameters
    ----------
    texts : the lines of each scenario's prompt, in row order.
    reader, base : the base model, loaded, and its directory (its files' hashes name the cache).
    progress : told distinct prompts done and in all.

    Returns facts; of them `cache` is a path from the artefact's own folder's place, so that all of
    it may be moved together.

    Raises
    ------
    EncodeError : a prompt is too long for the model; the message names its row. Or keys and values
        of all prompts would take more than `config.most_gib`; nothing is read then.
    """
    cache = cache / _model_hash(base).removeprefix("sha256:")[:16]
    cache.mkdir(parents=True, exist_ok=True)
    names = [prompt_of(lines).hash for lines in texts]
    distinct = dict(zip(names, texts, strict=True))
    place_of = _places(cache)
    missing = [(name, lines) for name, lines in distinct.items() if name not in place_of]
    if missing:
        _require_room(reader, distinct, config.most_gib)
    progress(len(distinct) - len(missing), len(distinct))
    with _fast(reader):
        for begin in range(0, len(missing), config.shard):
            part = missing[begin : begin + config.shard]
            path = write_shard(cache, part, reader, config.batch)
            place_of.update({name: (path.name, place) for place, (name, _) in enumerate(part)})
            progress(len(distinct) - len(missing) + begin + len(part), len(distinct))
    shards = sorted({place_of[name][0] for name in names})
    _write_arrays(folder, cache, [place_of[name] for name in names], shards)
    from_artifact = os.path.relpath(cache.resolve(), folder.resolve().parent)
    return {
        "cache": from_artifact,
        "shards": shards,
        "prompts": len(distinct),
        "read": len(missing),
    }


@contextmanager
def _fast(reader: LabelReader) -> Iterator[None]:
    """For a while the model's layers multiply as they do in service, where that is faster: nothing
    is trained through them now. The same but for rounding, far below what float16 keeps."""
    model = reader.model
    here = next(model.parameters()).device.type == "cpu" and has_onednn()
    layers = pack(model) if here else {}
    try:
        if not is_faster(layers):
            put(model, layers)
        yield
    finally:
        put(model, layers)


def _require_room(
    reader: LabelReader, prompts: Mapping[str, Sequence[Line]], most_gib: float
) -> None:
    """Keys and values are two bytes a number, of the users' tokens alone."""
    layers, two, heads, _, size = head_states(reader).shape
    tokens = sum(
        len(user_tokens(reader, name, prompt_of(lines))) for name, lines in prompts.items()
    )
    gib = tokens * layers * two * heads * size * 2 / 2**30
    if gib > most_gib:
        raise EncodeError(
            f"keys and values of {len(prompts):,} prompts would take {gib:.2g} GiB, more than"
            f" encode.most_gib = {most_gib:g}: lower scenarios.limit, or allow more"
        )


def _model_hash(base: Path) -> str:
    return content_hash({name: file_hash(base / name) for name in sorted(model_files(base))})


def _places(cache: Path) -> dict[str, tuple[str, int]]:
    """Prompt hash to shard and position in it. A shard that cannot be read is removed: it is built
    again."""
    place_of: dict[str, tuple[str, int]] = {}
    for path in sorted(cache.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as handle:
                names = json.loads(handle.metadata()["prompts"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            path.unlink(missing_ok=True)
            continue
        for position, name in enumerate(names):
            place_of.setdefault(name, (path.name, position))
    return place_of


def _write_arrays(
    folder: Path, cache: Path, places: Sequence[tuple[str, int]], names: Sequence[str]
) -> None:
    """The artefact's arrays: rows gathered from the shards, one shard in memory at a time."""
    rows_of: dict[str, list[tuple[int, int]]] = {}
    for row, (name, position) in enumerate(places):
        rows_of.setdefault(name, []).append((row, position))
    arrays: dict[str, NDArray[Any]] = {}
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(places)
    for name in names:
        rows, positions = (np.array(column) for column in zip(*rows_of[name], strict=True))
        with safe_open(cache / name, framework="np") as handle:
            small: Mapping[str, NDArray[Any]] = {kind: handle.get_tensor(kind) for kind in SMALL}
            tokens, offsets = handle.get_tensor("tokens"), handle.get_tensor("offsets")
        for kind, values in small.items():
            if kind not in arrays:
                shape = (len(places), *values.shape[1:])
                arrays[kind] = np.lib.format.open_memmap(
                    folder / f"{kind}.npy", "w+", values.dtype, shape
                )
            arrays[kind][rows] = values[positions]
        for row, position in zip(rows, positions, strict=True):
            ids[row] = tokens[offsets[position] : offsets[position + 1]]
    for values in arrays.values():
        values.flush()  # type: ignore[attr-defined]
    numbers = {name: number for number, name in enumerate(names)}
    np.save(folder / "tokens.npy", np.concatenate(ids) if ids else np.empty(0, np.int32))
    np.save(folder / "offsets.npy", np.cumsum([0, *(len(user) for user in ids)]))
    np.save(
        folder / "where.npy",
        np.array([(numbers[name], position) for name, position in places], np.int64),
    )
