"""Linear layers whose weights lie as oneDNN reads them fastest.

torch multiplies float32 matrices with MKL on x86, which on other makers' processors does a fraction
of what they can; oneDNN, which torch brings along, asks the processor itself. The numbers are the
same but for the order in which they are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import thread_time
from typing import Any

import torch
from torch import nn

ROWS = 128
"""Tokens of a usual prompt, for which the weights are laid out; any number may come."""
HEAD_ROWS = 8
"""Ends that a usual reading asks the vocabulary's head for."""
LEAST_WEIGHTS = 1 << 16
"""Smaller layers take microseconds either way."""
TRIES = 5


class PackedLinear(nn.Linear):
    """A linear layer over packed weights; it keeps no others, so it can be neither trained nor
    saved."""

    def __init__(self, plain: nn.Linear, rows: int = ROWS) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), rows)
        self._bias = None if plain.bias is None else plain.bias.detach()
        self._rough: torch.Tensor | None = None
        self._switch = Switch()

    def roughen(self, switch: Switch) -> None:
        """Keep the weights in bfloat16 too, which multiply while `switch` is on."""
        self._rough = torch.ops.mkldnn._reorder_linear_weight(
            self._packed.to_dense().bfloat16(), ROWS
        )
        self._switch = switch

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input @ weight.T + bias."""
        if self._rough is None or not self._switch.on:
            return _product(input, self._packed, self._bias)
        found = _product(input.bfloat16(), self._rough, None).float()
        return found if self._bias is None else found + self._bias


class Switch:
    """Whether layers that were roughened multiply in bfloat16 now."""

    def __init__(self) -> None:
        self.on = False

    @contextmanager
    def roughly(self) -> Iterator[None]:
        """On, for a while."""
        self.on = True
        try:
            yield
        finally:
            self.on = False


def _product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


def has_onednn() -> bool:
    """Whether this torch brings oneDNN along."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


Plain = Mapping[str, nn.Linear]
"""Layers by name, as they were before they were packed."""


def pack(model: Any) -> Plain:
    """Replace the model's linear layers by packed ones; what they were is given back. Raises
    `RuntimeError` or `AttributeError` where this torch cannot."""
    head = model.get_output_embeddings()
    plain = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    with torch.inference_mode():
        packed = {
            name: PackedLinear(module, HEAD_ROWS if module is head else ROWS)
            for name, module in plain.items()
        }
    put(model, packed)
    return plain


def put(model: Any, layers: Mapping[str, nn.Module]) -> None:
    """Layers in their places."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def is_faster(plain: Plain) -> bool:
    """Whether this processor multiplies the largest of these layers but for the head, which sees a
    few rows, faster when it is packed. Time of this thread counts, so that a busy neighbour does
    not decide; some ten milliseconds."""
    inner = sorted(plain.values(), key=lambda layer: layer.out_features)
    if not inner:
        return False
    largest = max(inner[:-1] or inner, key=lambda layer: layer.weight.numel())
    if largest.weight.numel() < LEAST_WEIGHTS:
        return False
    states = torch.ones(ROWS, largest.in_features)
    with torch.inference_mode():
        return _least_seconds(PackedLinear(largest), states) < _least_seconds(largest, states)


def roughen(model: Any) -> Switch | None:
    """Give every packed layer but the head its weights in bfloat16 as well; None where they are no
    faster here. Raises what the library raises where it cannot."""
    head = model.get_output_embeddings()
    layers = [
        module
        for module in model.modules()
        if isinstance(module, PackedLinear) and module is not head
    ]
    switch = Switch()
    largest = max(layers, key=lambda layer: layer.in_features * layer.out_features, default=None)
    with torch.inference_mode():
        if largest is None or not _is_faster_roughly(largest, switch):
            return None
        for layer in layers:
            layer.roughen(switch)
    return switch


def _is_faster_roughly(layer: PackedLinear, switch: Switch) -> bool:
    """By a tenth at least, in time of this thread."""
    states = torch.ones(ROWS, layer.in_features)
    exact = _least_seconds(layer, states)
    layer.roughen(switch)
    with switch.roughly():
        return _least_seconds(layer, states) < 0.9 * exact


def _least_seconds(layer: nn.Module, states: torch.Tensor) -> float:
    seconds = []
    for _ in range(TRIES):
        began = thread_time()
        layer(states)
        seconds.append(thread_time() - began)
    return min(seconds)
