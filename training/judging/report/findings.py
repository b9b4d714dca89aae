"""What an evaluation found, as the sections of its report are given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from training.config.data import MarketConfig, OutcomesConfig
from training.config.judging import EvaluateConfig, GateConfig
from training.judging.contest.arena import Arena, Played
from training.judging.contest.contest import Contest, Trained
from training.judging.gate.foretelling import Told
from training.judging.gate.verdict import Evidence, Mode, Verdict
from training.judging.report.document import Cell
from training.outcomes.labels import Labelled
from training.scenarios.history import History
from training.statistics.bootstrap import Estimate


@dataclass(frozen=True)
class Terms:
    """The settings that a contest is judged by, and that its report speaks of.

    algorithm : of the policy. outcomes : costs to judge by. embargo_s : between what was learnt
    from and what judges.
    """

    algorithm: str
    market: MarketConfig
    outcomes: OutcomesConfig
    evaluate: EvaluateConfig
    gate: GateConfig
    embargo_s: float

    @property
    def mode(self) -> Mode:
        """The log grows, and the question is asked again and again."""
        return Mode.LIVE if self.evaluate.held_out.source == "shadow_log" else Mode.FIXED


class Making(NamedTuple):
    """What making a policy took, every stage, and the measures of each step of its learning."""

    cpu_seconds: float
    steps: Sequence[Mapping[str, float]] = ()


class Everything(NamedTuple):
    """Every candidate of the period, whatever bounds the prompts: what each arm that needs no
    language model did, by its name, and how many candidates it was fitted on."""

    arena: Arena
    played: Mapping[str, Played]
    fitted_on: int


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report tells.

    evidence, verdict : as a trader. vetoing, veto : the same version as a veto on the agent.
    making : of each policy, by arm's name; of none where a published version is judged.
    collapsed : why a rival's policy takes no part, by the name of its arm.
    look : how many versions have looked at the period.
    market : the bars that judged.
    decision_s : median time that serving takes for one decision, as measured by the parity check.
    everything : beyond the scenarios whose prompts were read; None where nobody looked.
    """

    contest: Contest
    evidence: Evidence
    verdict: Verdict
    vetoing: Evidence
    veto: Verdict
    told: Told
    terms: Terms
    made_at: datetime
    held_out: Labelled
    market: History
    trained: Trained
    making: Mapping[str, Making] = field(default_factory=dict)
    collapsed: Mapping[str, str] = field(default_factory=dict)
    look: int = 0
    decision_s: float = 0.0
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
