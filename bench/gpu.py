"""What a GPU does with all of it: `python -m bench.gpu`, one script of a few minutes.

Base pass over many prompts (tokens a second, memory, share of the chip's arithmetic that is used),
then every algorithm on as many of them as keys and values have room for. Prompts are of made-up
scenarios and rewards are planted, since speed does not ask what is true; `python -m bench.planted`
asks whether it learns. Without a GPU it runs on the CPU, with fewer prompts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from app.domain.prompt import lines_of, prompt_of
from app.policy.calibration import random_scenarios
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import LabelReader
from bench.history import record
from bench.planted import ALGORITHMS, PROMPT_SEED, WARM_UP, planted_problem
from training.cli.options import meter
from training.config.learning import AdapterConfig, EncodeConfig
from training.learning.algorithms.problem import Problem
from training.learning.model.base_pass import encode_batch

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12}
"""Of dense bf16 arithmetic a second, by a part of the chip's name; makers' data sheets."""
MOST_GIB = 48.0
"""Of keys and values on the disk."""


class Passed(NamedTuple):
    """A base pass."""

    prompts: int
    tokens: int
    """Head, users' texts and tails that were computed; the head once."""
    seconds: float
    flops: float
    """Two a weight and token, attention left out."""

    @property
    def tokens_per_s(self) -> float:
        """Computed, not counting the head again."""
        return self.tokens / self.seconds

    def used(self, device: str) -> float | None:
        """Share of the chip's peak (MFU); None where that is not known."""
        peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)
        return None if peak is None else self.flops / self.seconds / peak


def device_of() -> tuple[torch.device, str]:
    """The GPU and its name, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.cuda.get_device_name()
    return torch.device("cpu"), "cpu"


def base_pass(reader: LabelReader, count: int, batch: int) -> Passed:
    """Over so many prompts, sorted by length; what comes out is dropped."""
    ids = [
        list(reader.encoder.encode(prompt_of(lines_of(one))))
        for one in random_scenarios(count, PROMPT_SEED)
    ]
    tail = len(reader.encoder.tail)
    users = sorted((one[:-tail] for one in ids), key=len)
    began = time.perf_counter()
    with meter("base pass") as progress:
        for begin in range(0, count, batch):
            part = users[begin : begin + batch]
            masks = [torch.ones(1, len(user) + tail) for user in part]
            for _ in encode_batch(reader, part, masks):
                pass
            progress(min(begin + batch, count), count)
    seconds = time.perf_counter() - began
    tokens = len(reader.encoder.head) + sum(len(user) + tail for user in users)
    weights = sum(parameter.numel() for parameter in reader.model.parameters())
    return Passed(count, tokens, seconds, 2.0 * weights * tokens)


def trained(
    given: Problem, reader: LabelReader, folder: Path, changes: Mapping[str, Any]
) -> Iterator[tuple[str, float, float]]:
    """Name, seconds and share of the best reward on validation prompts, of every algorithm;
    `changes` to their settings."""
    for name, (train, config) in ALGORITHMS.items():
        settings = type(config).model_validate(config.model_dump() | dict(changes))
        warm = None if name == WARM_UP else folder / WARM_UP
        own = replace(given, warm_up=warm)
        began = time.perf_counter()
        with meter(name) as progress:
            done = train(own, settings, AdapterConfig(), reader, folder / name, progress)
        metrics = done.metrics
        yield name, time.perf_counter() - began, metrics["greedy"] / metrics["oracle"]


def main(
    prompts: Annotated[int | None, typer.Option(help="of the base pass")] = None,
    learn: Annotated[int | None, typer.Option(help="prompts that policies learn from")] = None,
    batch: Annotated[int, typer.Option(help="prompts at once")] = 64,
    models: Annotated[Path, typer.Option(help="where the small model is")] = Path("var/models"),
) -> None:
    """Print a table."""
    device, name = device_of()
    many, some = (26_000, 4000) if device.type == "cuda" else (64, 40)
    many, some = prompts or many, learn or some
    base = import_smollm2(models, typer.echo)
    reader = LabelReader.load(base)
    reader.model.to(device)
    torch.set_float32_matmul_precision("high")
    passed = base_pass(reader, many, batch)
    used = passed.used(name)
    typer.echo(f"{name}: {passed.prompts:,} prompts, {passed.tokens:,} tokens")
    typer.echo(f"base pass: {passed.seconds:.0f} s, {passed.tokens_per_s:,.0f} tokens/s")
    typer.echo(f"share of the chip's bf16 peak: {'not known' if used is None else f'{used:.1%}'}")
    figures: dict[str, float | str] = {"device": name, "tokens_per_s": passed.tokens_per_s}
    with tempfile.TemporaryDirectory() as made:
        settings = EncodeConfig(batch=batch, shard=512, most_gib=MOST_GIB)
        given, _ = planted_problem(Path(made), base, reader, some, 0, settings=settings)
        for algorithm, seconds, share in trained(given, reader, Path(made), {"batch": 32}):
            typer.echo(f"{algorithm}: {seconds:.0f} s, {share:.2f} of the best")
            figures[f"{algorithm}: s"] = seconds
    if device.type == "cuda":
        figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        typer.echo(f"memory: {figures['memory_gib']:.1f} GiB")
    record("gpu", figures)


if __name__ == "__main__":
    typer.run(main)
