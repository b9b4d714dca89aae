"""Shards: what the base model says and knows of some prompts, a file of them.

For every prompt: label log-probabilities, the last token's final hidden state, mean hidden states
by line of the prompt, and the keys and values of the user's tokens (float16).

A shard is found again by this module's code and what that imports, the model and the prompts
(`training.learning.model.base_pass`); so nothing stands here that only looks at what was read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.cache_utils import DynamicCache, DynamicLayer

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError, PolicyAbstained
from app.domain.model.prompt import Line, LineKind, Prompt, prompt_of
from app.policy.in_process.label_reader import LabelReader

LINES = len(LineKind) + 1
"""One place for each kind of line, in the order of `LineKind`, and the last for the tail."""
SMALL = ("label_log_probs", "hidden", "lines", "last", "text")
"""Arrays of one row a prompt."""
_PLACE = {kind: place for place, kind in enumerate(LineKind)}


class EncodeError(AdvisorError):
    """A prompt cannot be encoded, the base model keeps its keys and values in another way, or the
    cache is damaged."""


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
        ids.append(user_tokens(reader, name, prompt))
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
    tensors = {name: torch.stack([reading[name] for reading in readings]) for name in SMALL}
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


def user_tokens(reader: LabelReader, name: str, prompt: Prompt) -> list[int]:
    """Tokens of a prompt (its name is told) without head and tail. Raises `EncodeError`."""
    try:
        return list(reader.encoder.encode(prompt))[: -len(reader.encoder.tail)]
    except PolicyAbstained as error:
        raise EncodeError(f"the prompt {name} cannot be encoded: {error}") from error


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    handle, draft = tempfile.mkstemp(prefix=".shard-", dir=path.parent)
    os.close(handle)
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, draft, metadata)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
