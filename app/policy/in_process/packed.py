"""Linear layers whose weights lie as oneDNN reads them fastest.

torch multiplies float32 matrices with MKL on x86, which on other makers' processors does a fraction
of what they can; oneDNN, which torch brings along, asks the processor itself. The numbers are the
same but for the order in which they are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import thread_time
from typing import Any

import torch
from torch import nn

ROWS = 128
"""Tokens of a usual prompt, for which the weights are laid out; any number may come."""
HEAD_ROWS = 8
"""Ends that a usual reading asks the vocabulary's head for."""
BESIDE = 2
"""Threads that lay weights out while the model is tried as it was."""
LEAST_WEIGHTS = 1 << 16
"""Smaller layers take microseconds either way."""
TRIES = 5
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What layers beside each other are called that read the same states; where they do not, each
multiplies for itself, and what is said is the same."""


class Product:
    """The packed weights of a linear layer, or of several that read the same states, one behind the
    other: one product then says what each of them says, and is remembered until the last has had
    its part.

    Parameters
    ----------
    layers : all with a bias, or none.
    rows : of states, for which the weights are laid out; any number may come.
    """

    def __init__(self, layers: Sequence[nn.Linear], rows: int) -> None:
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(whole, rows)
        self._bias = torch.cat(biases) if biases else None
        self._rough: torch.Tensor | None = None
        self._switch = Switch()
        self._size = len(whole)
        self._states: Any = None
        self._found: Any = None
        self._given = 0

    def roughen(self, switch: Switch) -> None:
        """Keep the weights in bfloat16 too, which multiply while `switch` is on."""
        self._rough = torch.ops.mkldnn._reorder_linear_weight(
            self._packed.to_dense().bfloat16(), ROWS
        )
        self._switch = switch

    def part(self, states: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """Outputs `begin` to `end` of states @ weight.T + bias, in memory that is the caller's."""
        if self._states is not states or begin < self._given:  # Adapters write into what is given.
            self._found = self._of(states)
        found: torch.Tensor = self._found
        self._states, self._found, self._given = states, found, end
        if end == self._size:
            self._states = self._found = None
        return found[..., begin:end]

    def _of(self, states: torch.Tensor) -> torch.Tensor:
        if self._rough is None or not self._switch.on:
            return _product(states, self._packed, self._bias)
        found = _product(states.bfloat16(), self._rough, None).float()
        return found if self._bias is None else found + self._bias


class PackedLinear(nn.Linear):
    """A linear layer over packed weights, its own or part of a product that it shares; it keeps no
    others, so it can be neither trained nor saved."""

    def __init__(
        self,
        plain: nn.Linear,
        rows: int = ROWS,
        product: Product | None = None,
        begin: int = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.product = Product([plain], rows) if product is None else product
        self._begin, self._end = begin, begin + plain.out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input @ weight.T + bias."""
        return self.product.part(input, self._begin, self._end)


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
    with packing(model) as plain:
        return plain


@contextmanager
def packing(model: Any) -> Iterator[Plain]:
    """As `pack`, once the block ends: until then the model is what it was, and threads lay its
    weights out."""
    head = model.get_output_embeddings()
    plain = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    groups = [[plain[name] for name in names] for names in _together(plain)]

    @torch.inference_mode()
    def product(layers: Sequence[nn.Linear]) -> Product:
        return Product(layers, HEAD_ROWS if layers[0] is head else ROWS)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(BESIDE, "pack", torch.set_num_threads, (threads,)) as beside:
        coming = beside.map(product, groups)
        yield plain
        products = list(coming)
    put(model, _placed(plain, products))


def _placed(plain: Plain, products: Sequence[Product]) -> dict[str, nn.Module]:
    placed: dict[str, nn.Module] = {}
    for names, product in zip(_together(plain), products, strict=True):
        begin = 0
        for name in names:
            layer = placed[name] = PackedLinear(plain[name], product=product, begin=begin)
            begin += layer.out_features
    return placed


def _together(plain: Plain) -> Iterator[Sequence[str]]:
    """Every layer's name, those that share a product beside each other."""
    taken: set[str] = set()
    for name in plain:
        if name in taken:
            continue
        last = name.rpartition(".")[2]
        for group in TOGETHER:
            names = [name.removesuffix(last) + each for each in group]
            if last in group and all(each in plain for each in names):
                kinds = {(plain[each].in_features, plain[each].bias is None) for each in names}
                if len(kinds) == 1:
                    taken.update(names)
                    yield names
                    break
        else:
            yield [name]


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
        for product in {layer.product for layer in layers}:
            product.roughen(switch)
    return switch


def _is_faster_roughly(layer: PackedLinear, switch: Switch) -> bool:
    """By a tenth at least, in time of this thread."""
    states = torch.ones(ROWS, layer.in_features)
    exact = _least_seconds(layer, states)
    layer.product.roughen(switch)
    with switch.roughly():
        return _least_seconds(layer, states) < 0.9 * exact


def _least_seconds(layer: nn.Module, states: torch.Tensor) -> float:
    seconds = []
    for _ in range(TRIES):
        began = thread_time()
        layer(states)
        seconds.append(thread_time() - began)
    return min(seconds)
