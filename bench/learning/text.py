"""How often headlines turn decisions of a version, by family and by order of the options.

Ten hostile and ten neutral headlines on each of forty real scenarios (the gate's corpus), against
the same scenarios without news; then again with the options of the prompt listed in other orders,
letters keeping their meaning. Prints Markdown: the table of docs/security.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from tokenizers import Tokenizer

from app.domain.errors import ModelFileError
from app.domain.model.manifest import Calibration
from app.domain.model.prompt import SYSTEM, Prompt
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario
from app.policy.encoding import PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.numbers import known_of
from app.policy.in_process.whole.weights import load_model
from app.policy.versions.store import base_of, load_manifest
from bench.asked import SINCE, UNTIL, Since, Until, entry, period_of
from bench.history import machine, record
from training.cli.options import meter
from training.config.data import HeldOutConfig, MarketConfig
from training.config.section import at_home
from training.judging.gate.texts import SCENARIOS, Attempt, Turned, attempts_on, judged, table
from training.scenarios.history import find_scenarios, load_history
from training.scenarios.table import evenly

BATCH = 8
COLUMNS = (
    "family",
    "sort",
    "tried",
    "left a text",
    "model: to approve",
    "model: to reject",
    "advice: to approve",
    "advice: to reject",
)
ORDER_COLUMNS = (
    "order of the options",
    "approves without news",
    "model, hostile",
    "model, neutral",
    "advice, hostile",
    "advice, neutral",
)
Version = Annotated[Path, typer.Argument(help="a version's directory, an activated adapter's")]
Models = Annotated[list[Path] | None, typer.Option(help="where its base lies; several: repeat")]
Market = Annotated[Path | None, typer.Option(help="folder of bars; none: those that are bundled")]
Orders = Annotated[int, typer.Option(min=1, help="of the options; the first is the trained one")]


class Loaded(NamedTuple):
    """A version, its base model's directory and both in memory."""

    base: Path
    reader: LabelReader
    adapter: Adapter
    calibration: Calibration


def loaded(version: Path, roots: Sequence[Path]) -> Loaded:
    """A version over its base. Raises what loading raises, and `ModelFileError` for a whole
    model."""
    manifest = load_manifest(version)
    manifest.require_compatible()
    found = base_of(manifest, roots)
    if found is None:
        raise ModelFileError(f"{version} is a whole model: this bench reads adapters")
    base, _ = found
    reader = LabelReader(load_model(base), PromptEncoder.from_directory(base))
    adapter = Adapter.load(version, reader.model, reader.encoder.tail)
    return Loaded(base, reader, adapter, manifest.calibration)


def scenarios_of(market: Path | None, period: HeldOutConfig) -> list[Scenario]:
    """Candidates spread over the period; without a market over the bundled bars' last half year."""
    if market is not None:
        source = MarketConfig(source="directory", directory=market)
    else:
        source = MarketConfig()
        period = HeldOutConfig(since=date(2019, 4, 1), until=date(2019, 10, 1))
    candidates, _ = find_scenarios(load_history(source, None), period)
    return [candidates[place].scenario for place in evenly(len(candidates), SCENARIOS)]


def ordered(version: Loaded, order: int) -> LabelReader:
    """The model with the options listed in another order in its head: 0 as trained, 1 reversed,
    others shuffled."""
    if order == 0:
        return version.reader
    first, *options = SYSTEM.split("\n")
    if order == 1:
        options.reverse()
    else:
        random.Random(order).shuffle(options)
    encoder = PromptEncoder.from_directory(version.base)
    tokenizer = Tokenizer.from_file(str(version.base / "tokenizer.json"))
    head = tokenizer.decode(list(encoder.head), skip_special_tokens=False)
    if head.count(SYSTEM) != 1:
        raise ModelFileError(f"{version.base}: the options are not found in its template")
    other = head.replace(SYSTEM, "\n".join([first, *options]))
    encoder.head = tuple(tokenizer.encode(other, add_special_tokens=False).ids)
    return LabelReader(version.reader.model, encoder)


def readings_of(
    reader: LabelReader,
    adapter: Adapter,
    attempts: Sequence[Attempt],
    scenarios: Sequence[Scenario],
    name: str,
) -> list[Reading]:
    """One for each attempt on these scenarios. What a scenario's prompts have in common is read
    once, as if it were the head: the texts alone differ."""
    read: dict[Prompt, Reading] = {}
    grouped = groupby(sorted(attempts, key=_number), key=_number)
    with meter(name) as progress:
        for number, its in grouped:
            scenario = scenarios[number]
            prompts = list(dict.fromkeys(attempt.prompt for attempt in its))
            calm = adapter.reads(prompts[0]._replace(user=prompts[0].before), scenario)
            before = reader.encoder.encode(calm)[: -len(reader.encoder.tail)]
            encoder = copy(reader.encoder)
            encoder.head = (*reader.encoder.head, *before)
            shared = LabelReader(reader.model, encoder)
            for begin in range(0, len(prompts), BATCH):
                part = prompts[begin : begin + BATCH]
                same = [scenario] * len(part)
                found = read_batch(shared, adapter, part, same, len(before))
                read.update(zip(part, found, strict=True))
            progress(number + 1, SCENARIOS)
    return [read[attempt.prompt] for attempt in attempts]


def _number(attempt: Attempt) -> int:
    return attempt.number


def read_batch(
    reader: LabelReader,
    adapter: Adapter,
    prompts: Sequence[Prompt],
    scenarios: Sequence[Scenario],
    before: int = 0,
) -> list[Reading]:
    """As the service reads prompts, each of its scenario; the first `before` of the users' tokens
    are in the reader's head already."""
    asks = []
    for prompt, scenario in zip(prompts, scenarios, strict=True):
        read, encoder = adapter.reads(prompt, scenario), reader.encoder
        text, numbers = encoder.text_tokens(read), known_of(scenario)
        asks.append(Ask(encoder.encode(read)[before:], (adapter,), text, (), numbers))
    return [
        Reading(log_probabilities=whole, without_text=bare[0] if bare else None)
        for whole, *bare in reader.answer(asks)
    ]


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = "|".join(["---"] * len(columns))
    return "\n".join(
        [f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]
    )


def main(
    version: Version,
    models: Models = None,
    market: Market = None,
    orders: Orders = 3,
    since: Since = SINCE,
    until: Until = UNTIL,
) -> None:
    """Read, print, and keep the figures."""
    period = period_of(since, until)
    model = loaded(version, models or [at_home(Path("var/models")), Path("models")])
    scenarios = scenarios_of(market, period)
    attempts = attempts_on(scenarios)
    features = " ".join(machine()["features"])
    print(f"{version.name} on {machine()['cpu']} ({features}), torch float32.\n")
    by_order: dict[str, Turned] = {}
    orderings = ["as trained", "reversed", *(f"shuffled {n}" for n in range(1, orders))][:orders]
    for order, name in enumerate(orderings):
        readings = readings_of(ordered(model, order), model.adapter, attempts, scenarios, name)
        turned = Turned.of(attempts, readings, model.calibration)
        if not by_order:
            print(markdown(COLUMNS, table(turned)), end="\n\n")
            print(markdown(ORDER_COLUMNS, []))
        by_order[name] = turned
        hostile, neutral = table(turned)[-2:]
        share = f"{turned.before.mean():.0%}"
        print(f"| {name} | {share} | {hostile[4]} | {neutral[4]} | {hostile[6]} | {neutral[6]} |")
    trained = by_order[orderings[0]]
    check = judged(trained)
    print(f"\nThe gate's check {'passes' if check.passed else 'fails'}: {check.evidence}.")
    record(
        "text",
        {
            "hostile_turned": trained.rate(hostile=True),
            "neutral_turned": trained.rate(hostile=False),
            "passed": str(check.passed),
        },
    )


if __name__ == "__main__":
    entry(main)
