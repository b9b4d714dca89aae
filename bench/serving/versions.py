"""What further versions over one base model cost, and further questions; compare ratios.

Batches of four prompts through `LabelReader`, in turns, so that other load on the machine meets all
alike: the base model alone (bare forward passes), one activated adapter, two, and both beside the
base; then, for comparison, two versions that share nothing. And one adapter that is asked the three
questions beside its action, by itself and where prompts are read with and without their text part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from app.domain.model.questions import QuestionName
from app.policy.calibration import random_prompts
from app.policy.in_process.adapter import Adapter, Delta
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import Ask, LabelReader
from app.settings import read_settings
from bench.history import record

BATCH, RANK = 4, 16
BASE, ONE = "base alone (bare forward passes)", "one adapter"
console = Console()


class Asked(NamedTuple):
    """A prompt: its ids after the head, and how many of the user's last ones are of the text
    part."""

    ids: tuple[int, ...]
    text: int


Rows = list[Asked]


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


def ways(base: LabelReader) -> dict[str, Callable[[Rows], object]]:
    """What is compared: each reads a batch of prompts, and remembers no other's."""
    adapter, other = random_adapter(base, 1), random_adapter(base, 2)

    def together(
        *adapters: Adapter | None, questions: tuple[QuestionName, ...] = (), text: bool = False
    ) -> Callable[[Rows], object]:
        reader = LabelReader(base.model, base.encoder)
        return lambda rows: reader.answer(
            [Ask(row.ids, adapters, row.text if text else 0, questions) for row in rows]
        )

    first, second = together(adapter), together(other)
    every = tuple(QuestionName)
    return {
        BASE: lambda rows: base.read([row.ids for row in rows]),
        ONE: together(adapter),
        "two adapters, one pass": together(adapter, other),
        "base and two adapters, one pass": together(None, adapter, other),
        "two adapters, a pass for each": lambda rows: (first(rows), second(rows)),
        "one adapter and three questions": together(adapter, questions=every),
        "one adapter, with and without text": together(adapter, text=True),
        "one adapter and three questions, with and without text": together(
            adapter, questions=every, text=True
        ),
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
    ratios: dict[str, list[float]] = {name: [] for name in compared}
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for number in range(batches + 1):
        rows = [
            Asked(reader.encoder.encode(prompt), reader.encoder.text_tokens(prompt))
            for prompt in random_prompts(BATCH, seed=number)
        ]
        spent = {}
        for name, read in compared.items():
            begin = perf_counter()
            read(rows)
            spent[name] = perf_counter() - begin
        for name in compared if number else ():  # The first round warms up.
            seconds[name].append(spent[name])
            ratios[name].append(spent[BASE] / spent[name])
    table = Table(title="medians by versions being served", title_justify="left")
    for heading in ("versions", "decisions/s", "of the base alone"):
        table.add_column(heading, justify="left" if heading == "versions" else "right")
    figures: dict[str, float] = {}
    for name in compared:
        rate, ratio = BATCH / median(seconds[name]), median(ratios[name])
        table.add_row(name, f"{rate:.2f}", f"{ratio:.1%}")
        figures |= {f"{name}: per_s": rate, f"{name}: of_base": ratio}
    console.print(table)
    record("versions", figures)


if __name__ == "__main__":
    typer.run(main)
