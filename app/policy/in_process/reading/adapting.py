"""Adapters at work: what each of them adds to the passes of one model, where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from app.policy.in_process.adapter import Adapter
from app.policy.in_process.numbers import Known

_EMBEDDINGS = "embeddings"
Rows = torch.Tensor | slice
"""Positions through all rows of a pass."""


class Place(NamedTuple):
    """Where an adapter works in a pass: positions counted through all rows, the first of them being
    token `begin` of what it works on, and the features of the scenario that is read there."""

    adapter: Adapter | None
    positions: torch.Tensor
    numbers: Known = ()
    begin: int = 0


class Adapting:
    """Hooks on a model that let adapters work on some places of a pass and leave the others alone.

    For one thread at a time. A hook knows what is active, not this object: a model that is closed
    would wait for the garbage collector.
    """

    def __init__(self, model: Any):
        self._model = model
        self._hooked: set[str] = set()
        self._active: list[tuple[Adapter, Rows]] = []
        self._shifts: list[tuple[torch.Tensor, torch.Tensor]] = []

    @contextmanager
    def at(self, places: Sequence[Place]) -> Iterator[None]:
        """Inference in which each adapter works on its places."""
        by_adapter: dict[Adapter, list[torch.Tensor]] = {}
        for place in places:
            if place.adapter is not None and len(place.positions):
                by_adapter.setdefault(place.adapter, []).append(place.positions)
        for adapter in by_adapter:
            for name in adapter.deltas.keys() - self._hooked:
                self._model.get_submodule(name).register_forward_hook(_terms(name, self._active))
                self._hooked.add(name)
        self._active.extend(
            (adapter, _rows_of(torch.cat(positions))) for adapter, positions in by_adapter.items()
        )
        self._shifts.extend(_shifts(places))
        if self._shifts and _EMBEDDINGS not in self._hooked:
            self._model.get_input_embeddings().register_forward_hook(_shifting(self._shifts))
            self._hooked.add(_EMBEDDINGS)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._active.clear()
            self._shifts.clear()


Hook = Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]


def _shifting(shifts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Hook:
    """What adds the active adapters' numbers to the embeddings, in place."""

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for positions, shift in shifts:
            output.view(-1, output.shape[-1]).index_add_(0, positions, shift)

    return add


def _rows_of(positions: torch.Tensor) -> Rows:
    """The same positions; as a slice where they follow each other, as those of one prompt do, which
    spares gathering and scattering."""
    first = int(positions[0])
    run = torch.arange(first, first + len(positions))
    return slice(first, first + len(positions)) if torch.equal(positions, run) else positions


def _terms(name: str, active: Sequence[tuple[Adapter, Rows]]) -> Hook:
    """What adds the active adapters' terms to the output of the linear layer `name`, in place."""

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for adapter, rows in active:
            delta = adapter.deltas.get(name)
            if delta is not None:
                term = inputs[0].flatten(0, -2)[rows] @ delta.down.T @ delta.up.T
                said = output.view(-1, output.shape[-1])
                if isinstance(rows, slice):
                    said[rows] += term
                else:
                    said.index_add_(0, rows, term)

    return add


def _shifts(places: Iterable[Place]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Positions, and what adapters that read numbers add to the embeddings there."""
    for place in places:
        numbers = None if place.adapter is None else place.adapter.numbers
        if numbers is None or not place.numbers:
            continue
        shift = numbers.of(place.numbers)[place.begin :][: len(place.positions)]
        yield place.positions[: len(shift)], shift
