"""What a certificate of rough readings is worth on prompts that did not make it: how many decisions
are those of exact readings, how many are read again, what it costs (`advisor-train certify` first).

Candidates of the bundled bars that the certificate has not seen, with texts and terms or without,
are read roughly and exactly in turns, and decided on as the service decides: shipped limits, a
rough reading counts where no exact one could say otherwise, else the exact one does. Seconds are
CPU time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from time import process_time
from typing import Annotated, NamedTuple

import typer
from rich.console import Console

from app.domain.canonical import decision_id
from app.domain.errors import ModelFileError
from app.domain.record.decision import (
    Advice,
    Decision,
    Reading,
    Role,
    Version,
    conclude,
    prepare,
    review_control,
)
from app.domain.record.settled import settled
from app.domain.rules.case import TradingState
from app.domain.rules.limits import Limits, read_limits
from app.domain.scenario import Scenario
from app.policy.in_process.cascade import difference
from app.policy.in_process.loading import InProcess
from app.policy.in_process.policy import TransformersPolicy
from app.policy.options import BackendOptions
from bench.history import machine, record
from bench.serving.beside.scenarios import bundled
from training.cli.certify import spread

ROOT = Path(__file__).parents[2]
WARM_UP = 5
console = Console()


class Read(NamedTuple):
    """Of one scenario: both readings, and the CPU that each took (s)."""

    scenario: Scenario
    rough: Reading
    exact: Reading
    rough_s: float
    exact_s: float


class Worth(NamedTuple):
    """Of many: share of decisions that are those of exact readings; share that was read again; of
    rough readings by themselves, share of equal advices; the largest difference (nats); CPU over
    that of exact readings."""

    equal: float
    read_again: float
    rough_equal: float
    largest: float
    ratio: float


def candidate(scenario: Scenario) -> tuple[str, datetime]:
    """What a scenario and its variants have in common."""
    return scenario.candidate.symbol, scenario.candidate.ts


def read(policy: TransformersPolicy, scenario: Scenario) -> Read:
    """Roughly, then exactly: an exact trunk that is kept would serve both."""
    prompt = prepare(scenario)

    def timed(rough: bool) -> tuple[Reading, float]:
        began = process_time()
        reading = policy.batcher.read_now(policy.ask(prompt, scenario, rough))
        return reading, process_time() - began

    (rough, rough_s), (exact, exact_s) = timed(True), timed(False)
    return Read(scenario, rough, exact, rough_s, exact_s)


def decided(scenario: Scenario, reading: Reading, version: Version, limits: Limits) -> Decision:
    """As the service decides, at the scenario's own time."""
    prompt, now, state = prepare(scenario), scenario.as_of, TradingState.ACTIVE
    return Decision.model_construct(
        decision_id=decision_id(scenario.hash()),
        request_id=scenario.hash(),
        request_hash=scenario.hash(),
        received_at=now,
        evaluated_at=now,
        state=state,
        scenario=scenario,
        prompt=prompt,
        prompt_hash=prompt.hash,
        limits=limits,
        limits_hash=limits.hash(),
        control_review=review_control(scenario, limits, state, now),
        advices=(conclude(scenario, reading, version, limits, state=state, now=now),),
    )


def worth(reads: Sequence[Read], version: Version, limits: Limits, within: float) -> Worth:
    """Of readings under a certificate that allows rough ones to be off by `within` (nats)."""
    equal = again = rough_equal = 0
    seconds = 0.0
    for each in reads:
        rough = each.rough.model_copy(update={"within": within})
        first = decided(each.scenario, rough, version, limits)
        exact = decided(each.scenario, each.exact, version, limits)
        stands = settled(first, first.primary)
        answered = first if stands else exact
        equal += told(answered.primary) == told(exact.primary)
        rough_equal += told(first.primary) == told(exact.primary)
        again += not stands
        seconds += each.rough_s + (0.0 if stands else each.exact_s)
    count = len(reads)
    return Worth(
        equal / count,
        again / count,
        rough_equal / count,
        max(difference(each.rough, each.exact) for each in reads),
        seconds / sum(each.exact_s for each in reads),
    )


def told(advice: Advice) -> tuple[object, ...]:
    """All of an advice that anybody acts on."""
    codes = () if advice.review is None else tuple(veto.code for veto in advice.review.vetoes)
    return (advice.status, advice.action, codes, advice.quantity, advice.stop, advice.text_effect)


def main(
    version: Annotated[Path, typer.Argument(help="folder of a version with a certificate")],
    certificates: Annotated[Path, typer.Option(help="folder of certificates")],
    models: Annotated[Path, typer.Option(help="folder of folders, where its base model lies")],
    prompts: Annotated[int, typer.Option(help="at most so many")] = 1000,
    certified: Annotated[int, typer.Option(help="--prompts of the certificate")] = 2200,
) -> None:
    """Measure on this machine."""
    every = bundled()
    seen = {candidate(scenario) for scenario in spread(every, certified)}
    others = spread([each for each in every if candidate(each) not in seen], prompts)
    roots = (version.parent, models)
    policy = InProcess(BackendOptions(roots=roots, certificates=(certificates,))).load(version)
    if policy.cascade is None:
        raise ModelFileError(f"no certificate in {certificates} is of {version} and this processor")
    manifest = policy.manifest
    answering = Version(manifest.model_version, manifest.hash(), manifest.calibration, Role.PRIMARY)
    for scenario in others[:WARM_UP]:
        read(policy, scenario)
    reads = [read(policy, scenario) for scenario in others]
    within = policy.cascade.certificate.within
    found = worth(reads, answering, read_limits(ROOT / "limits.toml"), within)
    console.print(
        f"{len(reads)} prompts that made no certificate: {found.equal:.2%} of decisions are those"
        f" of exact readings; {found.read_again:.2%} were read again, without which"
        f" {found.rough_equal:.2%} are; {found.largest:.2g} nats off at most, {within:.2g} allowed;"
        f" {found.ratio:.2f} of the CPU; load {machine()['load']}"
    )
    record("cascade", found._asdict() | {"prompts": len(reads), "within": within})


if __name__ == "__main__":
    typer.run(main)
