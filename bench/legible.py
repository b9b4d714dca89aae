"""Which text shows the model its numbers best? `python -m bench.legible --config cpu --set ...`

The same scenarios as the prompt has them today and with every number as a word for its fifth among
the training prompts ("rsi very high"). Readers are ridge regressions of what the teacher expects, a
target without noise, on what the frozen base makes of either text: its last state, and the means of
its states by line. They are fitted on some training prompts and judged by rank on the validation
prompts. A token more costs time wherever the model is served, so tokens stand beside. Nothing of
the held-out period is read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from app.domain.prompt import Line, LineKind, lines_of
from bench.curve import CONFIGS, LAST_STATE, LINE_MEANS, NUMBERS, problem, read, readers
from bench.history import record
from training.arrays import Floats, Rows
from training.cli.options import meter
from training.config.file import RebuildConfig, read_config
from training.learning.algorithms.problem import Problem
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded, build_encoded
from training.pipeline.rebuild import base_of
from training.scenarios.table import evenly
from training.stages.store import Artifact, Store
from training.stages.workshop import Workshop

WORDS = ("very low", "low", "middle", "high", "very high")
NUMBER = re.compile(r"\b([a-z]+) (-?\d+(?:\.\d+)?)\b")
TODAY, AS_WORDS = "numbers as today", "fifths as words"
Text = Sequence[Line]


def edges_of(texts: Sequence[Text]) -> dict[str, Floats]:
    """(4,) where the fifths of each number begin, by its name in the prompt."""
    found: dict[str, list[float]] = {}
    for text in texts:
        for line in text:
            if line.kind is not LineKind.NEWS:
                for name, number in NUMBER.findall(line.text):
                    found.setdefault(name, []).append(float(number))
    shares = np.linspace(0, 1, len(WORDS) + 1)[1:-1]
    return {name: np.quantile(numbers, shares) for name, numbers in found.items()}


def in_words(text: Text, edges: Mapping[str, Floats]) -> list[Line]:
    """Every number that was seen before as the word for its fifth; news stay as they are."""

    def word(match: re.Match[str]) -> str:
        name, number = match.groups()
        if name not in edges:
            return match.group()
        place = int(np.searchsorted(edges[name], float(number), side="right"))
        return f"{name} {WORDS[place]}"

    return [
        line if line.kind is LineKind.NEWS else Line(line.kind, NUMBER.sub(word, line.text))
        for line in text
    ]


def reread(
    texts: Sequence[Text], base: Base, config: RebuildConfig, folder: Path, name: str
) -> Encoded:
    """A base pass over other texts of the same scenarios, in a folder of its own."""

    def build(target: Path) -> dict[str, object]:
        with meter(name) as progress:
            return build_encoded(
                target, texts, base.reader, base.path, config.encode, folder / "cache", progress
            )

    made: Artifact = Store(folder / "artifacts").build("encode", {"texts": name}, build)
    return Encoded.open(made)


def table(
    given: Problem, rows: Rows, numbers: Floats, words: Encoded
) -> list[tuple[str, float, float, float]]:
    """Name, tokens in the median, and rank agreement by last state and by line means; `rows` are
    those that were read again, in the order of `words`."""
    train = np.intersect1d(given.train_rows, rows)
    lines = []
    for name, encoded in ((TODAY, given.encoded), (AS_WORDS, _at(given.encoded, words, rows))):
        own = replace(given, encoded=encoded)
        known = {
            LAST_STATE: np.asarray(encoded.last, np.float64),
            LINE_MEANS: np.asarray(encoded.hidden, np.float64).reshape(len(encoded), -1),
        }
        last, means = (read(known[reader], own, train) for reader in (LAST_STATE, LINE_MEANS))
        lines.append((name, float(np.median(encoded.lengths[rows])), last, means))
    return [*lines, (NUMBERS, 0.0, read(numbers, given, train), np.nan)]


def _at(encoded: Encoded, words: Encoded, rows: Rows) -> Encoded:
    """The small arrays of some rows in their places among all; keys and values nobody asks for."""
    last, hidden, lengths = encoded.last.copy(), encoded.hidden.copy(), encoded.lengths.copy()
    last[rows], hidden[rows], lengths[rows] = words.last, words.hidden, words.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return replace(encoded, last=last, hidden=hidden, offsets=offsets, _open={})


def main(
    prompts: Annotated[int, typer.Option(min=20, help="training prompts to read again")] = 400,
    config: Annotated[str, typer.Option(help="of training/config")] = "cpu",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
) -> None:
    """Print the table."""
    settings = read_config(CONFIGS / f"{config}.toml", overrides or ())
    torch.set_num_threads(settings.threads)
    base = base_of(settings, Workshop(settings.artifacts, typer.echo, meter))
    given, scenarios = problem(settings, Workshop(settings.artifacts, typer.echo, meter), base)
    train = given.train_rows[evenly(len(given.train_rows), prompts)]
    rows = np.union1d(train, given.validate_rows)
    texts = [lines_of(scenario) for scenario in scenarios.scenarios()]
    edges = edges_of([texts[row] for row in train])
    with tempfile.TemporaryDirectory() as folder:
        other = [in_words(texts[row], edges) for row in rows]
        words = reread(other, base, settings, Path(folder), AS_WORDS)
        known = readers(given, scenarios)
        found = table(given, rows, known[NUMBERS], words)
    typer.echo(f"| text | tokens | {LAST_STATE} | {LINE_MEANS} |\n|{'---|' * 4}")
    for name, tokens, last, means in found:
        shown = ("" if np.isnan(means) else f"{means:.2f}", f"{tokens:.0f}" if tokens else "")
        typer.echo(f"| {name} | {shown[1]} | {last:.2f} | {shown[0]} |")
        if tokens:
            record("legible", {"text": name, "tokens": tokens, "last": last, "means": means})


if __name__ == "__main__":
    typer.run(main)
