"""Keys and values that are computed once: those of the prompt's head, and behind it those of the
latest users' texts, the *trunks*. They are the base model's, whatever adapter reads on from them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from app.policy.in_process.whole.llama import KeysValues

TRUNKS = 8
"""User texts whose keys and values are kept, the latest: some 7 MB each for the small model and a
usual prompt."""
Trunk = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a user's tokens by layer, each (heads, tokens, head size)."""
User = tuple[int, ...]
Cache = Any
"""A model's own: `layers` with their `keys` and `values`, (rows, heads, tokens, size)."""


class Trunks:
    """What is kept of one model.

    Parameters
    ----------
    head : the cache after a pass of the head alone.
    tokens : how many the head has.
    """

    def __init__(self, head: Cache, tokens: int):
        self._head = head
        self._tokens = tokens
        self.possible = all(map(_keeps_all, head.layers))
        """Whether the layers keep the keys and values of every token (sliding windows do not)."""
        self._kept: OrderedDict[tuple[User, bool], Trunk] = OrderedDict()
        """By the user's tokens, and whether they were read roughly."""

    def of(self, user: User, rough: bool) -> Trunk | None:
        """What is kept of a text: never a rough reading unless it will do."""
        exact = self._kept.get((user, False))
        return self._kept.get((user, True)) if exact is None and rough else exact

    def keep(self, users: Sequence[User], cache: Cache, rough: bool) -> None:
        """Keep the latest: the users' part of each row of a cache."""
        for number, user in list(enumerate(users))[-TRUNKS:]:
            part = slice(self._tokens, self._tokens + len(user))
            self._kept[user, rough] = [
                (layer.keys[number, :, part].clone(), layer.values[number, :, part].clone())
                for layer in cache.layers
            ]
        while len(self._kept) > TRUNKS:
            self._kept.popitem(last=False)

    def forget(self, user: User) -> None:
        """Keep nothing of a text."""
        for rough in (False, True):
            self._kept.pop((user, rough), None)

    def head(self, rows: int) -> Cache:
        """The head's cache for `rows` prompts. Views where a layer replaces its tensors when it
        grows (it then never writes into ours), else a deep copy."""
        layers = self._head.layers
        if not all(map(_replaces, layers)):
            copied = copy.deepcopy(self._head)
            copied.batch_repeat_interleave(rows)
            return copied
        cache = copy.copy(self._head)
        cache.layers = [copy.copy(layer) for layer in layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache

    def behind_head(self, trunks: Sequence[Trunk]) -> Cache:
        """Head and trunks as one cache, a row for each, padded on the right with zeros."""
        cache = copy.copy(self._head)
        cache.layers = [copy.copy(layer) for layer in self._head.layers]
        begin = self._tokens
        width = max(trunk[0][0].shape[-2] for trunk in trunks)
        for number, layer in enumerate(cache.layers):
            sides = []
            for side, head in enumerate((layer.keys, layer.values)):
                whole = head.new_zeros(len(trunks), head.shape[1], begin + width, head.shape[3])
                whole[:, :, :begin] = head
                for row, trunk in enumerate(trunks):
                    states = trunk[number][side]
                    whole[row, :, begin : begin + states.shape[-2]] = states
                sides.append(whole)
            layer.keys, layer.values = sides
        return cache


def _keeps_all(layer: Any) -> bool:
    """Whether it keeps the keys and values of every token, and nothing else."""
    if type(layer) is KeysValues:
        return True
    from transformers.cache_utils import DynamicLayer  # What made the layer is there.

    return type(layer) is DynamicLayer


def _replaces(layer: Any) -> bool:
    """Whether it never writes into a tensor that it holds."""
    if _keeps_all(layer):
        return True
    from transformers.cache_utils import DynamicSlidingWindowLayer

    return type(layer) is DynamicSlidingWindowLayer
