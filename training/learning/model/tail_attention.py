"""Attention of a prompt's tail over keys and values that are already known.

What transformers' own attention would do over one joined cache, in three parts: the fixed head (the
same for every row, so one product serves the batch), the user's tokens, and the tail itself.
Nothing is copied or repeated per query head, and no gradient is computed for what is frozen: a
training step takes a third of the time. Plain softmax attention with grouped heads; tests compare
it with whole passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from app.domain.errors import AdvisorError

_NAME = "advisor_tail"
_UNSUPPORTED = ("softcap", "s_aux", "sliding_window")


class AttentionUnsupported(AdvisorError):
    """The base model's attention is not plain softmax over all tokens."""


class Past(NamedTuple):
    """What the tail looks back on.

    `head` (layers, 2, heads, head tokens, size); `user` (layers, 2, rows, heads, width, size),
    padded on the right; `hidden` (rows, width) float, 0 for a token and -inf for padding, added to
    scores. `seen` (tail, tail) bool, by the one that looks: which tokens of the tail a token sees;
    None is all up to itself.
    """

    head: Tensor
    user: Tensor
    hidden: Tensor
    seen: Tensor | None = None


_past: ContextVar[Past] = ContextVar("past")


@contextmanager
def looking_back(model: Any, past: Past) -> Iterator[None]:
    """Within, `model` (transformers) reads tails over `past`: give it no cache and no mask, but
    position ids."""
    before = model.config._attn_implementation
    token = _past.set(past)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _past.reset(token)


def tail_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers' interface: query (B, query heads, T, size), key and
    value (B, heads, T, size) of the tail. Returns (B, T, query heads, size)."""
    given = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if given:
        raise AttentionUnsupported(
            f"{type(module).__name__} attends with {', '.join(given)}, which activated adapters are"
            " not trained over: choose another base model, or adapter.kind = 'ordinary'"
        )
    past = _past.get()
    (head_key, head_value), (user_key, user_value) = (
        past.head[module.layer_idx],
        past.user[module.layer_idx],
    )
    rows, query_heads, tokens, size = query.shape
    heads = key.shape[1]
    # Query heads that share a key head stand together: (rows, heads, asking, size), where `asking`
    # counts all their tokens. The head's keys are the same for every row, so the rows are lined up
    # under each key head for one product.
    asking = query_heads // heads * tokens
    grouped = (query * scaling).reshape(rows, heads, asking, size)
    by_head = grouped.transpose(0, 1).reshape(heads, rows * asking, size)
    to_head = (by_head @ head_key.transpose(1, 2)).view(heads, rows, asking, -1).transpose(0, 1)
    to_user = grouped @ user_key.transpose(2, 3) + past.hidden[:, None, None, :]
    seen = past.seen
    if seen is None:
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    unseen = ~seen.repeat(query_heads // heads, 1)
    to_tail = (grouped @ key.transpose(2, 3)).masked_fill(unseen, -torch.inf)
    share = torch.softmax(torch.cat([to_head, to_user, to_tail], -1), -1)
    of_head, of_user, of_tail = torch.split(
        share, [head_key.shape[1], user_key.shape[2], tokens], -1
    )
    from_head = of_head.transpose(0, 1).reshape(heads, rows * asking, -1) @ head_value
    attended = (
        from_head.view(heads, rows, asking, size).transpose(0, 1)
        + of_user @ user_value
        + of_tail @ value
    )
    return attended.reshape(rows, query_heads, tokens, size).transpose(1, 2), None


AttentionInterface.register(_NAME, tail_attention)
