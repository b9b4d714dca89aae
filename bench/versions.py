"""`python -m bench.versions`: what further versions over one base model cost, in one run; compare ratios.

Batches of four prompts through `LabelReader`, in turns, so that other load on the machine meets all alike:
the base model alone (bare forward passes), one activated adapter, two, and both beside the base; then, for comparison,
two versions without sharing: a whole pass for each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from app.policy.adapter import Adapter, Delta
from app.policy.calibration import random_prompts
from app.policy.importer import import_smollm2
from app.policy.label_reader import Ask, LabelReader
from app.settings import read_settings

BATCH, RANK = 4, 16
console = Console()
Rows = list[tuple[int, ...]]


def random_adapter(reader: LabelReader, seed: int) -> Adapter:
    """An activated adapter with random terms on q, k, v and o of every layer."""
    source = torch.Generator().manual_seed(seed)
    deltas = {
        name: Delta(
            torch.randn(RANK, module.in_features, generator=source) / 30,
            torch.randn(module.out_features, RANK, generator=source) / 30,
        )
        for name, module in reader.model.named_modules()
        if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))
    }
    return Adapter(deltas, activated=True)


def ways(reader: LabelReader) -> dict[str, Callable[[Rows], object]]:
    """What is compared: each reads a batch of prompts."""
    one, two = random_adapter(reader, 1), random_adapter(reader, 2)

    def separately(rows: Rows) -> None:
        for adapter in (one, two):
            reader._whole_pass([(ids, adapter) for ids in rows])

    return {
        "base alone (bare forward passes)": reader.read,
        "one adapter": lambda rows: reader.answer([Ask(ids, (one,)) for ids in rows]),
        "two adapters, shared trunk": lambda rows: reader.answer([Ask(ids, (one, two)) for ids in rows]),
        "base and two adapters, shared trunk": lambda rows: reader.answer([Ask(ids, (None, one, two)) for ids in rows]),
        "two adapters, a whole pass for each": separately,
    }


def main(
    batches: Annotated[int, typer.Option(help="Batches of four prompts for each way.")] = 8,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
) -> None:
    """Measure on this machine, with the bundled small model."""
    torch.set_num_threads(threads)
    directory: Path = import_smollm2(read_settings().models_dir, console.print, threads=threads)
    reader = LabelReader.load(directory)
    compared = ways(reader)
    seconds = dict.fromkeys(compared, 0.0)
    for number in range(batches + 1):
        for turn, (name, read) in enumerate(compared.items()):
            prompts = random_prompts(BATCH, seed=100 * number + turn)  # Always new ones: nothing is kept from before.
            rows = [reader.encoder.encode(prompt) for prompt in prompts]
            begin = perf_counter()
            read(rows)
            seconds[name] += perf_counter() - begin if number else 0.0  # The first round warms up.
    table = Table(title="decisions per second by versions", title_justify="left")
    for heading in ("versions", "decisions/s", "of the base alone"):
        table.add_column(heading, justify="left" if heading == "versions" else "right")
    base = next(iter(seconds.values()))
    for name, spent in seconds.items():
        table.add_row(name, f"{BATCH * batches / spent:.2f}", f"{base / spent:.1%}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
