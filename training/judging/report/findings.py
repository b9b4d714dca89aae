"""What an evaluation found, as the sections of its report are given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from training.config.data import MarketConfig, OutcomesConfig
from training.config.judging import EvaluateConfig, GateConfig
from training.judging.contest.arena import Arena, Played
from training.judging.contest.contest import Contest, Trained
from training.judging.gate.foretelling import Foretelling
from training.judging.gate.verdict import Check, Foretold, Verdict
from training.judging.report.document import Cell
from training.outcomes.labels import Labels
from training.scenarios.history import History
from training.scenarios.table import ScenarioSet
from training.statistics.bootstrap import Estimate


@dataclass(frozen=True)
class Terms:
    """The settings that a contest is judged by, and that its report speaks of.

    algorithm : of the policy. outcomes : costs to judge by.
    """

    algorithm: str
    market: MarketConfig
    outcomes: OutcomesConfig
    evaluate: EvaluateConfig
    gate: GateConfig


class Everything(NamedTuple):
    """Every candidate of the period, whatever bounds the prompts: what each arm that needs no
    language model did, by its name, and how many candidates it was fitted on."""

    arena: Arena
    played: Mapping[str, Played]
    fitted_on: int


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report tells.

    verdict, veto : as a trader, and as a veto on the agent. foretold : readings and what came.
    own : what the version foretells itself; None when it answers no question. teacher : what the
        teacher does, which the gate then judges in its place.
    cpu_seconds : what making each policy took, every stage, by arm's name.
    look : how many versions have looked at the period.
    market : the bars that judged. labels : of the held-out scenarios.
    decision_s : median time that serving takes for one decision, as measured by the parity check.
    everything : beyond the scenarios whose prompts were read; None where nobody looked.
    """

    model_version: str
    contest: Contest
    verdict: Verdict
    veto: Verdict
    foretold: Mapping[str, Foretold]
    own: Foretelling | None
    teacher: Foretelling
    checks: tuple[Check, ...]
    cpu_seconds: Mapping[str, float]
    look: int
    terms: Terms
    made_at: datetime
    held_out: ScenarioSet
    market: History
    labels: Labels
    trained: Trained
    decision_s: float
    everything: Everything | None = None


def cell(estimate: Estimate, digits: int = 3) -> Cell:
    """An estimate as a cell, with its reason when there is none."""
    return Cell(
        estimate.value,
        estimate.low,
        estimate.high,
        estimate.n,
        digits,
        estimate.reason or "not defined",
    )


def maybe(value: float | None, reason: str = "") -> Cell:
    """A number as a cell, or in its place the reason or a dash."""
    return Cell(value) if value is not None else Cell(reason or "-")
