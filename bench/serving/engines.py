"""What each engine costs on this processor, and what it does to decisions; compare ratios.

Made-up prompts one by one through every engine, in turns. Seconds are CPU time of the reading
thread, so that a neighbour on the machine hardly counts; torch runs on one thread. With a version,
prompts are read as the service reads them: by its adapter, with and without their text part, and
with its questions. The floor of a prompt is what its linear layers would take if all multiplied as
fast as a large one, or as long as their weights take to come from memory, whichever is longer.
Then the service itself, asked by one client, against the bare read of the same prompts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from time import thread_time
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from app.domain.model.manifest import Calibration
from app.domain.model.prompt import render
from app.domain.model.questions import QuestionName
from app.domain.record.decision import Engine, Reading, cautious
from app.domain.scenario import Scenario
from app.policy.calibration import random_scenarios
from app.policy.encoding import PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.engines import read_roughly, reader_by
from app.policy.in_process.importer import import_smollm2
from app.policy.in_process.label_reader import Ask, LabelReader
from app.policy.in_process.numbers import known_of
from app.policy.in_process.packed import ROWS, PackedLinear
from app.policy.in_process.reading.layout import Branched, parted
from app.policy.in_process.whole.served import load_to_serve
from app.policy.options import BackendOptions
from app.policy.versions.store import load_manifest
from app.settings import read_settings
from app.shadow_log.schema.migrate import upgrade
from bench.history import machine, record
from bench.serving.load import load
from bench.serving.service import servers, serving, variables

SEED = 4711
WARM_UP = 2
FLOOR_TRIES = 40
TURN = 10
"""Requests, of which the first turn warms up: a process' CPU is told in hundredths of a second."""
console = Console()


class Engaged(NamedTuple):
    """An engine's reader, the adapter over its model, and what the version is asked beside the
    action."""

    reader: LabelReader
    adapter: Adapter | None
    questions: tuple[QuestionName, ...] = ()
    rough: bool = False

    def ask(self, scenario: Scenario) -> Ask:
        """What the service asks of a scenario's prompt."""
        encoder, prompt = self.reader.encoder, render(scenario)
        if self.adapter is not None:
            prompt = self.adapter.reads(prompt, scenario)
        text, numbers = encoder.text_tokens(prompt), known_of(scenario)
        ids = encoder.encode(prompt)
        return Ask(ids, (self.adapter,), text, self.questions, numbers, self.rough)

    def tokens(self, scenario: Scenario) -> int:
        """How many a pass reads behind the head."""
        encoder, ask = self.reader.encoder, self.ask(scenario)
        tails = ask.tails(len(encoder.tail))
        each = len(Branched.of(encoder, self.questions).ids)
        return len(ask.ids) - len(encoder.tail) + len(tails) * each

    def read(self, scenario: Scenario) -> Reading:
        """As the service reads a scenario's prompt."""
        encoder = self.reader.encoder
        [rows] = self.reader.answer([self.ask(scenario)])
        whole, *bare = (parted(row, encoder, self.questions) for row in rows)
        return Reading(
            log_probabilities=whole[0],
            without_text=bare[0][0] if bare else None,
            questions=whole[1],
            questions_without_text=bare[0][1] if bare else {},
        )


class Run(NamedTuple):
    """Of one engine: seconds and reading of every prompt."""

    seconds: list[float]
    readings: list[Reading]


def engaged(
    base: Path, version: Path | None, questions: tuple[QuestionName, ...]
) -> dict[Engine, Engaged]:
    """Every engine that works here."""
    encoder = PromptEncoder.from_directory(base)
    found = {}
    for engine in Engine:
        rough = engine is Engine.BFLOAT16
        options = BackendOptions(engine=Engine.ONEDNN if rough else engine)
        reader = reader_by(options, load_to_serve(base), encoder)
        adapter = Adapter.load(version, reader.model, encoder.tail) if version else None
        works = read_roughly(options, reader) if rough else reader.engine is engine
        if works:
            found[engine] = Engaged(reader, adapter, questions, rough)
    return found


def interleaved(engines: dict[Engine, Engaged], scenarios: Sequence[Scenario]) -> dict[Engine, Run]:
    """Each scenario by every engine in turn; the first ones warm up."""
    runs: dict[Engine, Run] = {engine: Run([], []) for engine in engines}
    for number, scenario in enumerate(scenarios):
        for engine, reads in engines.items():
            began = thread_time()
            reading = reads.read(scenario)
            seconds = thread_time() - began
            if number >= WARM_UP:
                runs[engine].seconds.append(seconds)
                runs[engine].readings.append(reading)
    return runs


def floors(reads: Engaged, scenarios: Sequence[Scenario]) -> list[float]:
    """Seconds that each prompt takes at least, by its linear layers alone."""
    trunk = reads.reader.model.base_model
    layers = [module for module in trunk.modules() if isinstance(module, nn.Linear)]
    sizes = [layer.in_features * layer.out_features for layer in layers]
    wide = max(layers, key=lambda layer: layer.in_features)
    plain = nn.Linear(wide.in_features, wide.out_features, bias=False)
    packed = reads.reader.engine is Engine.ONEDNN
    layer, states = PackedLinear(plain) if packed else plain, torch.ones(ROWS, wide.in_features)
    memory = torch.ones(sum(sizes))
    with torch.inference_mode():
        for_a_weight = least_seconds(lambda: layer(states)) / (ROWS * plain.weight.numel())
        fetched = least_seconds(memory.sum) / len(memory)
    return [
        sum(size * max(reads.tokens(scenario) * for_a_weight, fetched) for size in sizes)
        for scenario in scenarios
    ]


def least_seconds(work: Callable[[], object]) -> float:
    """Of this thread's CPU, of a few runs."""
    seconds = []
    for _ in range(FLOOR_TRIES):
        began = thread_time()
        work()
        seconds.append(thread_time() - began)
    return min(seconds)


def apart(run: Run, exact: Run) -> float:
    """The largest difference of any label's log-probability (nats)."""
    return max(
        abs(a - b)
        for found, expected in zip(run.readings, exact.readings, strict=True)
        for a, b in zip(found.log_probabilities, expected.log_probabilities, strict=True)
    )


def equal(run: Run, exact: Run, calibration: Calibration) -> float:
    """Share of prompts of which the same action is proposed."""
    pairs = zip(run.readings, exact.readings, strict=True)
    same = [cautious(a, calibration).label == cautious(b, calibration).label for a, b in pairs]
    return sum(same) / len(same)


def advised(
    model: Path, reads: Engaged, engine: Engine, scenarios: Sequence[Scenario]
) -> list[float]:
    """CPU of the service that answers `/advise` to one client over that of the bare read of the
    same prompts, in turns of `TURN`."""
    bodies = [
        json.dumps(scenario.as_json() | {"request_id": f"read-{number}"}).encode()
        for number, scenario in enumerate(scenarios)
    ]
    ratios = []
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        environment = variables(folder, postgres, valkey) | {
            "MODEL": str(model.absolute()),
            "ADVISOR_ENGINE": engine.value,
            "ADVISOR_THREADS": "1",
        }
        with serving(environment) as served:
            for first in range(0, len(scenarios), TURN):
                turn = slice(first, first + TURN)
                began = thread_time()
                for scenario in scenarios[turn]:
                    reads.read(scenario)
                bare = thread_time() - began
                before = served.cpu_s()
                asked = load(
                    served.url, served.token, 1, len(bodies[turn]), bodies[turn].__getitem__
                )
                asyncio.run(asked)
                if first:  # The first turn warms up.
                    ratios.append((served.cpu_s() - before) / bare)
    return ratios


def main(
    version: Annotated[
        Path | None, typer.Argument(help="An activated adapter over the bundled small model.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many are read by every engine.")] = 40,
) -> None:
    """Measure on this machine."""
    torch.set_num_threads(1)
    base = import_smollm2(read_settings().models_dir, console.print)
    calibration = load_manifest(version or base).calibration
    engines = engaged(base, version, calibration.asked)
    scenarios = random_scenarios(prompts + WARM_UP, SEED)
    runs = interleaved(engines, scenarios)
    exact = runs[Engine.TORCH]
    here = machine()
    table = Table(
        title=f"one prompt, one thread; {here['cpu']}, {' '.join(here['features'])}",
        title_justify="left",
    )
    headings = ("engine", "median ms", "quartiles", "of torch", "floor", "nats apart", "equal")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    figures: dict[str, float | str] = {}
    for engine, run in runs.items():
        ratio = median(a / b for a, b in zip(run.seconds, exact.seconds, strict=True))
        low, middle, high = (1e3 * cut for cut in quantiles(run.seconds, n=4))
        same = equal(run, exact, calibration)
        least = floors(engines[engine], scenarios[WARM_UP:])
        share = median(a / b for a, b in zip(least, run.seconds, strict=True))
        table.add_row(
            engine,
            f"{middle:.0f}",
            f"{low:.0f}-{high:.0f}",
            f"{ratio:.2f}",
            f"{share:.2f}",
            f"{apart(run, exact):.1g}",
            f"{same:.1%}",
        )
        figures |= {f"{engine}_ms": middle, f"{engine}_of_torch": ratio, f"{engine}_equal": same}
        figures[f"{engine}_floor_share"] = share
    console.print(table)
    fastest = min(runs.keys() - {Engine.BFLOAT16}, key=lambda engine: median(runs[engine].seconds))
    asked = random_scenarios(prompts + TURN, SEED + 1)
    ratios = advised(version or base, engines[fastest], fastest, asked)
    console.print(
        f"/advise over the bare read by {fastest}, CPU, one client: {median(ratios):.3f}"
        f" [{min(ratios):.3f}, {max(ratios):.3f}]"
    )
    record("engines", figures | {"advise_of_read": median(ratios)})


if __name__ == "__main__":
    typer.run(main)
