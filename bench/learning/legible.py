"""Which text shows the model its numbers best?

    python -m bench.learning.legible --config cpu --set ...

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
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer

from app.domain.model.prompt import Line, LineKind, lines_of
from bench.asked import entry
from bench.history import record
from bench.learning.curve import (
    CONFIGS,
    LAST_STATE,
    LINE_MEANS,
    NUMBERS,
    agreement,
    beyond_rejecting,
    problem,
    read,
    readers,
    shown_rank,
)
from training.arrays import Floats, Rows, Times
from training.cli.options import meter
from training.config.file import RebuildConfig, read_config
from training.learning.model.base import Base
from training.learning.model.base_pass import Encoded, build_encoded
from training.learning.targets.problem import Problem
from training.pipeline.rebuild import base_of
from training.scenarios.table import evenly
from training.stages.store import Artifact, Store
from training.stages.workshop import Workshop
from training.statistics.bootstrap import Estimate

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


class Legible(NamedTuple):
    """How well a text can be read."""

    name: str
    tokens: float | None
    """In the median; None of what is no text."""
    last: Estimate
    means: Estimate | None
    """Agreement with the teacher from the last state, and from means by line."""

    @property
    def line(self) -> str:
        """Of Markdown."""
        tokens = "" if self.tokens is None else f"{self.tokens:.0f}"
        means = "" if self.means is None else shown_rank(self.means)
        return f"| {self.name} | {tokens} | {shown_rank(self.last)} | {means} |"


def table(
    given: Problem, rows: Rows, as_of: Times, numbers: Floats, words: Encoded
) -> list[Legible]:
    """Today's text, the other one, and the numbers themselves; `rows` are those that were read
    again, in the order of `words`."""
    train, validate = np.intersect1d(given.train_rows, rows), given.validate_rows
    worth = beyond_rejecting(given.rewards[validate])

    def rank(inputs: Floats) -> Estimate:
        return agreement([read(inputs, given, train)], worth, as_of[validate])

    texts = [
        Legible(
            name,
            float(np.median(encoded.lengths[rows])),
            rank(np.asarray(encoded.last, np.float64)),
            rank(np.asarray(encoded.hidden, np.float64).reshape(len(encoded), -1)),
        )
        for name, encoded in (
            (TODAY, given.encoded),
            (AS_WORDS, _at(given.encoded, words, rows)),
        )
    ]
    return [*texts, Legible(NUMBERS, None, rank(numbers), None)]


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
        legible = table(given, rows, scenarios.as_of, known[NUMBERS], words)
    typer.echo(f"{len(train)} training prompts, {len(given.validate_rows)} to validate\n")
    typer.echo(f"| text | tokens | {LAST_STATE} | {LINE_MEANS} |\n|{'---|' * 4}")
    for text in legible:
        typer.echo(text.line)
        if text.tokens is not None and text.means is not None:
            ranks = {"last": text.last.value or 0.0, "means": text.means.value or 0.0}
            record("legible", {"text": text.name, "tokens": text.tokens, **ranks})


if __name__ == "__main__":
    entry(main)
