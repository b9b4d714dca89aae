"""A causal language model on the CPU: label log-probabilities of a batch of prompts, and greedy text.

Synchronous and for one thread at a time; `TransformersPolicy` gives it a thread, training and calibration
call it directly, so serving and training read labels through the same code.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as transformers_logging

from app.domain.errors import ModelFileError
from app.policy.encoding import PROMPT_TOKENS, PromptEncoder

PREFILL_TOKENS = 32
"""Tokens of a rationale's prompt that one step reads: about as long as a decision may have to wait for it."""


class LabelReader:
    """Reads labels with the head's keys and values computed once.

    Parameters
    ----------
    model : a causal LM in float32 and eval mode.
    encoder : its prompt encoder.
    """

    def __init__(self, model: Any, encoder: PromptEncoder):
        accepted = inspect.signature(model.forward).parameters
        missing = {"past_key_values", "logits_to_keep"} - accepted.keys()
        if missing:
            raise ModelFileError(f"{type(model).__name__} takes no {' and no '.join(sorted(missing))}: not supported")
        self.model = model
        self.encoder = encoder
        self._label_ids = torch.tensor(encoder.label_ids)
        self._stop_ids = encoder.control_ids | _end_tokens(model)
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([encoder.head]),
                past_key_values=DynamicCache(config=model.config),
                use_cache=True,
                logits_to_keep=1,
            )
        self._head: Cache = output.past_key_values

    @classmethod
    def load(cls, directory: Path, limit: int = PROMPT_TOKENS) -> LabelReader:
        """Load a Hugging Face causal LM directory from safetensors, in float32. Raises `ModelFileError`."""
        return cls(load_model(directory), PromptEncoder.from_directory(directory, limit))

    def read(self, batch: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability (nats, over the whole vocabulary) of every label after each prompt.

        Parameters
        ----------
        batch : ids after the head, as `PromptEncoder.encode` gives them; rows may differ in length.
            They are padded on the right: causal attention never looks there, so no mask is needed.

        Returns
        -------
        One tuple per row, in the order of `LABELS`.
        """
        last = [len(ids) - 1 for ids in batch]
        width = max(last) + 1
        rows = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in batch])
        ends, column = torch.unique(torch.tensor(last), return_inverse=True)
        with torch.inference_mode():
            output = self.model(
                input_ids=rows,
                past_key_values=self._expanded_head(len(batch)),
                use_cache=True,
                logits_to_keep=ends,
            )
            logits = output.logits[torch.arange(len(batch)), column].float()  # (rows, vocabulary)
            chosen = torch.log_softmax(logits, dim=-1)[:, self._label_ids]  # (rows, labels)
        return [tuple(row) for row in chosen.tolist()]

    def begin(self, ids: Sequence[int]) -> Continuation:
        """Start generating after head + `ids`; `advance` does the work."""
        return Continuation(self._expanded_head(1), list(ids))

    def advance(self, text: Continuation) -> None:
        """One short step: read up to `PREFILL_TOKENS` more of the prompt, or generate one token, greedily."""
        chunk, text.pending = text.pending[:PREFILL_TOKENS], text.pending[PREFILL_TOKENS:]
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.tensor([chunk]), past_key_values=text.cache, use_cache=True, logits_to_keep=1
            )
        text.cache = output.past_key_values
        if text.pending:
            return
        token = int(output.logits[0, -1].argmax())
        if token in self._stop_ids:
            text.finished = True
            return
        text.generated.append(token)
        text.pending = [token]

    def _expanded_head(self, rows: int) -> Cache:
        """The head's cache for `rows` prompts. Views where a layer replaces its tensors when it grows (it
        then never writes into ours), else a deep copy."""
        layers = self._head.layers
        if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            copied = copy.deepcopy(self._head)
            copied.batch_repeat_interleave(rows)
            return copied
        cache = copy.copy(self._head)
        cache.layers = [copy.copy(layer) for layer in layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache


class Continuation:
    """Text under way: `pending` ids are not read yet, `generated` ones are the text so far."""

    def __init__(self, cache: Cache, pending: list[int]):
        self.cache = cache
        self.pending = pending
        self.generated: list[int] = []
        self.finished = False


def load_model(directory: Path) -> Any:
    """The model of a Hugging Face directory: safetensors only, no remote code, no network. Raises
    `ModelFileError`."""
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{directory} holds no usable causal language model: {error}") from error
    return model.eval()


def _end_tokens(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
