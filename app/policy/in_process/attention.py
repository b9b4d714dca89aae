"""Attention by oneDNN, where a pass brings a mask of its own, as joint passes do.

torch's own attention multiplies float32 with MKL, as its linear layers do (`packed`). Here heads
that look at the same keys do so together, in one product for each row and head of keys. Everything
else is left to torch: passes without such a mask, and models that change scores on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "onednn"
_CHANGES_SCORES = ("softcap", "s_aux", "position_bias")


def product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """states @ weight.T"""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    return found


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(query @ key.T * scaling + mask) @ value.

    Parameters
    ----------
    query : (rows, heads, tokens that look, size).
    key, value : (rows, heads of keys, tokens that are looked at, size).
    attention_mask : (rows, 1, tokens that look, tokens that are looked at), added to scores.

    Returns
    -------
    (rows, tokens that look, heads, size), and no weights.
    """
    plain = all(options.get(name) is None for name in _CHANGES_SCORES)
    if attention_mask is None or not attention_mask.is_floating_point() or not plain:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return whole
    rows, heads, looking, size = query.shape
    shared = heads // key.shape[1]  # Heads that look at one head of keys.
    together = query.reshape(rows, key.shape[1], shared * looking, size)
    together = together * (size**-0.5 if scaling is None else scaling)
    found = value.new_empty(rows, key.shape[1], shared * looking, value.shape[-1])
    for row in range(rows):
        for head in range(key.shape[1]):
            scores = product(together[row, head], key[row, head]).view(shared, looking, -1)
            weights = torch.softmax(scores + attention_mask[row], -1).flatten(0, 1)
            found[row, head] = product(weights, value[row, head].T)
    return found.view(rows, heads, looking, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
