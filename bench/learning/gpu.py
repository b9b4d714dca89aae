"""What a GPU does with all of it: `python -m bench.learning.gpu`, one script of a few minutes.

First decisions by themselves: so many prompts at once, over the head's keys and values, for the
small model's shape and one of 1.7 billion weights, drawn at random. Then the base pass over many
prompts (tokens a second, memory, share of the chip's arithmetic that is used), and every algorithm
on as many of them as keys and values have room for. Scenarios are made up and rewards planted:
speed does not ask what is true; `python -m bench.learning.planted` asks whether it learns. Without
a GPU it runs on the CPU, with fewer prompts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from transformers import LlamaConfig, LlamaModel

from app.domain.model.prompt import lines_of, prompt_of
from app.policy.calibration import random_scenarios
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import LabelReader
from bench.asked import entry
from bench.history import record
from bench.learning.planted import ALGORITHMS, PROMPT_SEED, WARM_UP, planted_problem
from training.cli.options import meter
from training.config.learning import AdapterConfig, EncodeConfig
from training.config.section import at_home
from training.learning.model.shards import encode_batch, expanded
from training.learning.targets.problem import Problem

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12}
"""Of dense bf16 arithmetic a second, by a part of the chip's name; makers' data sheets."""
MOST_GIB = 48.0
"""Of keys and values on the disk."""
CHANGES = {"batch": 32, "min_entropy": 0.0, "max_majority": 1.0}
"""To every algorithm's settings: one that collapses is timed as well."""


SHAPES: dict[str, dict[str, int]] = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
"""SmolLM2's; vocabulary and the rest alike."""
VOCABULARY = 49_152
HEAD_TOKENS, OWN_TOKENS, LABELS_READ = 204, 128, 10
"""Of a prompt: what all share, and its own; and rows of the vocabulary that are read."""
AT_ONCE = (1, 32, 256)
ROUNDS = 8


class Served(NamedTuple):
    """Decisions of a shape, so many at once."""

    shape: str
    weights: str
    at_once: int
    p50_ms: float
    p99_ms: float
    used: float | None
    """Share of the chip's bf16 arithmetic."""

    @property
    def per_s(self) -> float:
        """Decisions a second, batches one after the other."""
        return 1000 * self.at_once / self.p50_ms


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
        peak = peak_of(device)
        return None if peak is None else self.flops / self.seconds / peak


def served(
    shape: str, dtype: torch.dtype, device: torch.device, name: str, at_once: tuple[int, ...]
) -> Iterator[Served]:
    """Latencies of whole decisions: the prompts' own tokens, over the head, to the labels' scores.
    The head of the vocabulary is ten rows in float32."""
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SHAPES[shape])
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model: Any = LlamaModel(config).eval()
        torch.set_default_dtype(torch.float32)
        rows = torch.randn(LABELS_READ, config.hidden_size)
    weights = sum(parameter.numel() for parameter in model.layers.parameters())
    source = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        head = torch.randint(VOCABULARY, (1, HEAD_TOKENS), generator=source).to(device)
        kept = model(input_ids=head, use_cache=True).past_key_values
        shared = torch.stack([torch.stack([one.keys[0], one.values[0]]) for one in kept.layers])
        for count in at_once:
            own = torch.randint(VOCABULARY, (count, OWN_TOKENS), generator=source)
            taken = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                states = model(
                    input_ids=own.to(device),
                    past_key_values=expanded(shared, count),
                    use_cache=True,
                ).last_hidden_state[:, -1]
                (states.float() @ rows.T).log_softmax(-1).cpu()
                taken.append(1000 * (time.perf_counter() - began))
            p50, p99 = (float(value) for value in np.percentile(taken[ROUNDS // 4 :], [50, 99]))
            flops = 2.0 * weights * OWN_TOKENS * count / (p50 / 1000)
            peak = peak_of(name)
            kind = str(dtype).removeprefix("torch.")
            yield Served(shape, kind, count, p50, p99, flops / peak if peak else None)


def peak_of(device: str) -> float | None:
    """The chip's dense bf16 arithmetic a second, where it is known."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device), None)


def decisions(device: torch.device, name: str) -> Iterator[str]:
    """Lines of Markdown; without a GPU the small shape, one at a time."""
    shapes: list[str] = list(SHAPES)
    at_once: tuple[int, ...] = AT_ONCE
    if device.type == "cpu":
        shapes, at_once = shapes[:1], at_once[:1]
    yield "| shape | weights | at once | p50, ms | p99, ms | decisions/s | of bf16 peak |"
    yield f"|{'---|' * 7}"
    for shape, dtype in product(shapes, (torch.float32, torch.bfloat16)):
        for done in served(shape, dtype, device, name, at_once):
            share = "" if done.used is None else f"{done.used:.1%}"
            yield (
                f"| {shape} | {done.weights} | {done.at_once} | {done.p50_ms:.1f} |"
                f" {done.p99_ms:.1f} | {done.per_s:,.0f} | {share} |"
            )


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
    prompts: Annotated[int | None, typer.Option(min=1, help="of the base pass")] = None,
    learn: Annotated[
        int | None, typer.Option(min=1, help="prompts that policies learn from")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="prompts at once")] = 64,
    models: Annotated[Path, typer.Option(callback=at_home, help="where the small model is")] = Path(
        "var/models"
    ),
) -> None:
    """Print a table."""
    device, name = device_of()
    for line in decisions(device, name):
        typer.echo(line)
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
        for algorithm, seconds, share in trained(given, reader, Path(made), CHANGES):
            typer.echo(f"{algorithm}: {seconds:.0f} s, {share:.2f} of the best")
            figures[f"{algorithm}: s"] = seconds
    if device.type == "cuda":
        figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        typer.echo(f"memory: {figures['memory_gib']:.1f} GiB")
    record("gpu", figures)


if __name__ == "__main__":
    entry(main)
