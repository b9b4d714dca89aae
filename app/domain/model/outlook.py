"""What a version foretells of the agent's plan: from its readings of the questions to chances, a
range and an expectation.

Everything that this takes is in the record of an advice, so that it replays: the readings, what
each label stands for, how it was calibrated, the payoffs, and the scenario.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from app.domain.fields import Hash, Record
from app.domain.model.questions import QuestionName
from app.domain.scenario import Scenario

Answered = Mapping[QuestionName, tuple[float, ...]]
"""Log-probability (nats) of each label of a question among all tokens."""


class QuestionCalibration(Record):
    """How a question's label log-probabilities become chances: softmax((log p - bias) /
    temperature) over its labels."""

    question: Hash = Field(description="of the declaration that the version was trained with")
    values: tuple[float, ...] = Field(min_length=2, description="what each label stands for")
    bias: tuple[float, ...] = Field(description="per label, nats")
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def one_bias_per_label(self) -> Self:
        """Bias and values are of the same labels."""
        if len(self.bias) != len(self.values):
            raise ValueError(f"{len(self.bias)} biases for {len(self.values)} labels")
        return self

    def chances(self, reading: tuple[float, ...]) -> tuple[float, ...]:
        """Probability of each label."""
        scores = [
            (value - bias) / self.temperature
            for value, bias in zip(reading, self.bias, strict=True)
        ]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = math.fsum(weights)
        return tuple(weight / total for weight in weights)

    def mean(self, reading: tuple[float, ...]) -> float:
        """Mean of the values: of a chance, the probability of yes."""
        return math.fsum(
            p * value for p, value in zip(self.chances(reading), self.values, strict=True)
        )

    def middle(self, reading: tuple[float, ...]) -> float:
        """Geometric mean of the values, for what is right-skewed: about the median."""
        return math.exp(
            math.fsum(
                p * math.log(value)
                for p, value in zip(self.chances(reading), self.values, strict=True)
            )
        )


class Payoffs(Record):
    """What plans earned on average before costs, by what became of them, and what trading costs. Of
    the outcomes that the version was trained on.

    What price decides is in ATR, what the stop decides in R: a plan with a nearer stop wins more of
    its R, and loses one R as any other.
    """

    won_atr: float
    stopped_r: float
    other_atr: float = Field(description="neither: sold at a loss by the trail or the time exit")
    cost: float = Field(ge=0, description="of both sides together, share of notional")
    spread_bps: float = Field(ge=0, description="the widest spread that this covers")

    def expected_r(self, win: float, stopped: float, scenario: Scenario) -> float | None:
        """Net R of the plan: the payoffs by their chances, less its costs; None of a plan without
        risk, and without an ATR.

        A plan wins, or is stopped, or neither; chances that are more than 1 together are scaled. A
        spread beyond the covered one is paid on top.
        """
        plan, candidate = scenario.plan, scenario.candidate
        distance = abs(plan.entry - plan.stop)
        if candidate.atr is None or not distance:
            return None
        r_of_atr = candidate.atr / distance
        other = max(1.0 - win - stopped, 0.0)
        gross = (
            (win * self.won_atr + other * self.other_atr) * r_of_atr + stopped * self.stopped_r
        ) / (win + stopped + other)
        beyond = max((candidate.spread_bps or 0.0) - self.spread_bps, 0.0) / 10_000
        return gross - (self.cost + beyond) * plan.entry / distance


class OutlookCalibration(Record):
    """How a version's readings of the questions become an outlook."""

    questions: dict[QuestionName, QuestionCalibration] = Field(min_length=1)
    payoffs: Payoffs | None = None


class Outlook(Record):
    """What a version foretells of the agent's plan. Null where the version does not say."""

    win_probability: float | None = Field(None, ge=0, le=1)
    stopped_probability: float | None = Field(None, ge=0, le=1)
    range_atr: float | None = Field(None, gt=0)
    expected_r: float | None = Field(None, description="after costs, R")


def outlook_of(
    whole: Answered, bare: Answered, calibration: OutlookCalibration, scenario: Scenario
) -> Outlook:
    """The outlook of two readings, with the prompt's text part and without it.

    News may inform, never decide: it may make a win less likely and a stop more so, nothing else.
    Of a range neither side is the careful one: it is read without.
    """
    asked = calibration.questions
    told: dict[str, float | None] = {}
    for name in asked.keys() & whole.keys() & bare.keys():
        question, both = asked[name], (whole[name], bare[name])
        if name is QuestionName.WIN:
            told["win_probability"] = min(map(question.mean, both))
        elif name is QuestionName.STOPPED:
            told["stopped_probability"] = max(map(question.mean, both))
        else:
            told["range_atr"] = question.middle(bare[name])
    return Outlook(**told, expected_r=_expected_r(told, calibration.payoffs, scenario))


def _expected_r(
    told: Mapping[str, float | None], payoffs: Payoffs | None, scenario: Scenario
) -> float | None:
    win, stopped = told.get("win_probability"), told.get("stopped_probability")
    if payoffs is None or win is None or stopped is None:
        return None
    return payoffs.expected_r(win, stopped, scenario)
