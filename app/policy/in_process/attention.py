"""Attention by torch, and by oneDNN, where a pass brings a mask of its own, as joint passes do.

torch's own attention multiplies float32 with MKL, as its linear layers do (`packed`). By oneDNN
heads that look at the same keys do so together, in one product for each row and head of keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SDPA, NAME = "sdpa", "onednn"
"""What transformers calls attention by torch, and what we call ours."""
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def product(states: Tensor, weight: Tensor) -> Tensor:
    """states @ weight.T"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    return found


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scaling: float,
) -> Tensor:
    """softmax(query @ keys.T * scaling + mask) @ values.

    Parameters
    ----------
    query : (rows, heads, tokens that look, size).
    keys, values : (rows, heads of keys, tokens that are looked at, size).
    mask : (rows, 1, tokens that look, tokens that are looked at), added to scores.

    Returns
    -------
    (rows, tokens that look, heads, size).
    """
    rows, heads, looking, size = query.shape
    shared = heads // keys.shape[1]  # Heads that look at one head of keys.
    together = query.reshape(rows, keys.shape[1], shared * looking, size) * scaling
    found = values.new_empty(rows, keys.shape[1], shared * looking, values.shape[-1])
    for row in range(rows):
        for head in range(keys.shape[1]):
            scores = product(together[row, head], keys[row, head]).view(shared, looking, -1)
            weights = torch.softmax(scores.add_(mask[row]), -1).flatten(0, 1)
            found[row, head] = product(weights, values[row, head].T)
    return found.view(rows, heads, looking, -1).transpose(1, 2).contiguous()


def by_torch(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """As `attend`, by torch's own; a mask may also say yes or no, and without one each token
    sees what stands before it."""
    rows, heads, looking, size = query.shape
    shared = heads // keys.shape[1]
    if mask is not None and looking == 1:  # One product for the heads that look at the same keys.
        query = query.reshape(rows, keys.shape[1], shared, size)
    elif mask is not None and shared > 1:
        keys, values = (
            states[:, :, None].expand(-1, -1, shared, -1, -1).flatten(1, 2)
            for states in (keys, values)
        )
    found = functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        scale=scaling,
        is_causal=mask is None and looking > 1,
        enable_gqa=mask is None and shared > 1,
    )
    return found.reshape(rows, heads, looking, -1).transpose(1, 2).contiguous()


def by_onednn(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """As `attend`; passes without such a mask of their own are torch's."""
    if mask is None or not mask.is_floating_point():
        return by_torch(query, keys, values, mask, scaling)
    return attend(query, keys, values, mask, scaling)
