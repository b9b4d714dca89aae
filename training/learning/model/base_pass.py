"""The one base pass over every scenario's prompt: what training, the teacher and drift read of the
base model.

For every distinct prompt: label log-probabilities, the last token's final hidden state, mean hidden
states by line of the prompt, and the keys and values of the user's tokens (float16). An activated
adapter changes nothing before the prompt's tail, so with these a training step reads the tail
alone.

The cache is content-addressed: a shard holds prompts of one model, named by both, and is written
whole or not at all. A killed stage loses one shard; a second run over the same prompts reads
nothing but the cache. One shard is in memory at a time, whatever the number of prompts, and how
much of the disk all may take is bounded (`encode.most_gib`). The artefact holds the small arrays,
aligned with the scenarios' rows, and finds keys and values in the cache; a cache that was cleared
is refilled by building the stage again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.cache_utils import DynamicCache, DynamicLayer

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError, PolicyAbstained
from app.domain.model.prompt import Line, LineKind, Prompt, lines_of, prompt_of
from app.policy.in_process.label_reader import LabelReader
from app.policy.versions.store import file_hash, model_files
from training.arrays import Progress, silent
from training.config.learning import EncodeConfig
from training.learning.model.base import Base
from training.scenarios.table import ScenarioSet
from training.stages.declared import stage
from training.stages.store import Artifact, Facts

LINES = len(LineKind) + 1
"""One place for each kind of line, in the order of `LineKind`, and the last for the tail."""
CACHE = "cache"
NUMBERS = "numbers.npy"
FORMAT = 2
"""Part of every shard's name: another layout is another cache."""
_PLACE = {kind: place for place, kind in enumerate(LineKind)}
_SMALL = ("label_log_probs", "hidden", "lines", "last", "text")


class EncodeError(AdvisorError):
    """A prompt cannot be encoded, the base model keeps its keys and values in another way, or the
    cache is damaged."""


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
        cache = Path(artifact.facts["cache"])
        shards = tuple(cache / name for name in artifact.facts["shards"])
        absent = [path.name for path in shards if not path.is_file()]
        if absent:
            raise EncodeError(
                f"{cache} lacks {absent[0]}: remove {artifact.path} and build the stage again"
            )
        names = (*_SMALL, "tokens", "offsets", "where")
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
    progress: Progress = silent,
) -> Facts:
    """The base pass. Its cache, beside the artefacts, survives a change of anything but model and
    prompt."""
    texts = [
        tuple(line for line in lines_of(scenario) if line.kind not in settings.leave_out)
        for scenario in scenarios.scenarios()
    ]
    cache = folder.parent / CACHE
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

    Raises
    ------
    EncodeError : a prompt is too long for the model; the message names its row. Or keys and values
        of all prompts would take more than `config.most_gib`; nothing is read then.
    """
    cache = (
        cache / content_hash([FORMAT, _model_hash(base)]).removeprefix("sha256:")[:16]
    ).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    names = [prompt_of(lines).hash for lines in texts]
    distinct = dict(zip(names, texts, strict=True))
    place_of = _places(cache)
    missing = [(name, lines) for name, lines in distinct.items() if name not in place_of]
    if missing:
        _require_room(reader, distinct, config.most_gib)
    progress(len(distinct) - len(missing), len(distinct))
    for begin in range(0, len(missing), config.shard):
        part = missing[begin : begin + config.shard]
        path = write_shard(cache, part, reader, config.batch)
        place_of.update({name: (path.name, position) for position, (name, _) in enumerate(part)})
        progress(len(distinct) - len(missing) + begin + len(part), len(distinct))
    shards = sorted({place_of[name][0] for name in names})
    _write_arrays(folder, cache, [place_of[name] for name in names], shards)
    return {"cache": str(cache), "shards": shards, "prompts": len(distinct), "read": len(missing)}


def _require_room(
    reader: LabelReader, prompts: Mapping[str, Sequence[Line]], most_gib: float
) -> None:
    """Keys and values are two bytes a number, of the users' tokens alone."""
    layers, two, heads, _, size = head_states(reader).shape
    tokens = sum(
        len(_user_tokens(reader, name, prompt_of(lines))) for name, lines in prompts.items()
    )
    gib = tokens * layers * two * heads * size * 2 / 2**30
    if gib > most_gib:
        raise EncodeError(
            f"keys and values of {len(prompts):,} prompts would take {gib:.2g} GiB, more than"
            f" encode.most_gib = {most_gib:g}: lower scenarios.limit, or allow more"
        )


def _user_tokens(reader: LabelReader, name: str, prompt: Prompt) -> list[int]:
    try:
        return list(reader.encoder.encode(prompt))[: -len(reader.encoder.tail)]
    except PolicyAbstained as error:
        raise EncodeError(f"the prompt {name} cannot be encoded: {error}") from error


def write_shard(
    cache: Path, prompts: Sequence[tuple[str, Sequence[Line]]], reader: LabelReader, batch: int
) -> Path:
    """Encode prompts (hash, lines), shortest together, and write them as one file under its final
    name."""
    ids: list[list[int]] = []
    masks: list[torch.Tensor] = []
    texts: list[int] = []
    for name, lines in prompts:
        prompt = prompt_of(lines)
        ids.append(_user_tokens(reader, name, prompt))
        masks.append(_line_masks(reader, lines, prompt))
        texts.append(reader.encoder.text_tokens(prompt))
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    read: dict[int, dict[str, torch.Tensor]] = {}
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        results = encode_batch(reader, [ids[i] for i in chosen], [masks[i] for i in chosen])
        read.update(zip(chosen, results, strict=True))
    readings = [read[i] | {"text": torch.tensor(texts[i])} for i in range(len(prompts))]
    keys_values = [reading["keys_values"] for reading in readings]
    layers, _, heads, _, size = keys_values[0].shape
    tensors = {name: torch.stack([reading[name] for reading in readings]) for name in _SMALL}
    tensors |= {
        "keys_values": torch.cat([states.flatten() for states in keys_values]),
        "starts": torch.tensor([0, *(states.numel() for states in keys_values)]).cumsum(0),
        "shape": torch.tensor([layers, heads, size]),
        "tokens": torch.tensor([token for user in ids for token in user], dtype=torch.int32),
        "offsets": torch.tensor([0, *(len(user) for user in ids)]).cumsum(0),
    }
    names = [name for name, _ in prompts]
    path = cache / f"{content_hash(names).removeprefix('sha256:')[:24]}.safetensors"
    _save(path, tensors, {"prompts": json.dumps(names)})
    return path


def encode_batch(
    reader: LabelReader, ids: Sequence[Sequence[int]], masks: Sequence[torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """One base pass over head + user's tokens + tail; per row what a shard holds of it.

    Rows are padded on the right, where causal attention never looks.
    """
    head, tail = reader.encoder.head, list(reader.encoder.tail)
    texts = [[*user, *tail] for user in ids]
    ends = torch.tensor([len(text) - 1 for text in texts])
    width = int(ends.max()) + 1
    full = torch.tensor([text + [tail[-1]] * (width - len(text)) for text in texts])
    device = next(reader.model.parameters()).device
    cache = expanded(head_states(reader), len(ids))
    with torch.inference_mode():
        output = reader.model(
            input_ids=full.to(device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=ends.to(device),
        )
    states = output.hidden_states[-1].float().cpu()
    begin = len(head)
    # (layers, 2, rows, heads, width, head size), from the device at once.
    keys_values = torch.stack(
        [
            torch.stack([layer.keys[:, :, begin:], layer.values[:, :, begin:]]).half()
            for layer in cache.layers
        ]
    ).cpu()
    labels = torch.tensor(reader.encoder.label_ids)
    for i, (user, mask) in enumerate(zip(ids, masks, strict=True)):
        # logits_to_keep keeps every row's end for every row: the i-th end is this row's.
        logits = output.logits[i, i].float().cpu()
        own = states[i, : len(texts[i])]
        weight = mask / mask.sum(1, keepdim=True).clamp(min=1)
        yield {
            "label_log_probs": torch.log_softmax(logits, -1)[labels],
            "hidden": (weight @ own).half(),
            "lines": mask.any(1),
            "last": own[-1].clone(),
            "keys_values": keys_values[:, :, i, :, : len(user)],
        }


def head_states(reader: LabelReader) -> torch.Tensor:
    """Keys and values of the fixed head, (layers, 2, heads, head tokens, head size) float32.

    Raises
    ------
    EncodeError : the model's layers do not all keep plain, equal keys and values of every token.
    """
    device = next(reader.model.parameters()).device
    cache = DynamicCache(config=reader.model.config)
    with torch.inference_mode():
        reader.model(
            input_ids=torch.tensor([reader.encoder.head], device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    kinds = {(type(layer), getattr(layer, "keys", torch.empty(0)).shape) for layer in cache.layers}
    if len(kinds) != 1 or next(iter(kinds))[0] is not DynamicLayer:
        raise EncodeError(
            f"{type(reader.model).__name__} does not keep all keys and values alike in every layer "
            f"(sliding windows, for example): choose another base model"
        )
    return torch.stack(
        [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    ).clone()


def expanded(head: torch.Tensor, rows: int) -> DynamicCache:
    """A cache that holds the head for `rows` prompts: views, which a growing layer never writes
    into."""
    cache = DynamicCache()
    for keys, values in head.unsqueeze(2).expand(-1, -1, rows, -1, -1, -1):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # taken as they are: `update` would copy them
        cache.layers.append(layer)
    return cache


def _line_masks(reader: LabelReader, lines: Sequence[Line], prompt: Prompt) -> torch.Tensor:
    """(LINES, user tokens + tail) float: 1 where a token belongs to a line of that kind; a token on
    a border, to where it ends."""
    place_of_character = [_PLACE[kind] for kind, text in lines for _ in f"{text}\n"]
    places = [place_of_character[max(end - 1, 0)] for _, end in reader.encoder.spans(prompt)]
    places += [LINES - 1] * len(reader.encoder.tail)
    return torch.nn.functional.one_hot(torch.tensor(places), LINES).T.float()


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
            path.unlink()
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
            small: Mapping[str, NDArray[Any]] = {kind: handle.get_tensor(kind) for kind in _SMALL}
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


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    handle, draft = tempfile.mkstemp(prefix=".shard-", dir=path.parent)
    os.close(handle)
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, draft, metadata)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
