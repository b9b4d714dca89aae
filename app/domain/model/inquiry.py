"""The inquiry: what a decision model elsewhere is asked about a brief, and what came of asking.

It is one choice among named options, each of which is an action. In which order the options stand
is part of it: models lean towards places in a list, and that is measured by asking again in
another order.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from app.domain.canonical import digest
from app.domain.fields import Hash, Record, ShortText, Text
from app.domain.model.actions import ACTIONS, BY_LABEL, LABELS, REJECT, STOP_ATRS, Action
from app.domain.scenario import Scenario

_FULL_SIZE = {
    action.stop_atr: action for action in ACTIONS if action.approve and action.risk_fraction == 1
}


class Template(StrEnum):
    """What is asked: for one of the ten actions, or whether to trade the plan at all."""

    ACTION = "action"
    TRADE = "trade"


INSTRUCTIONS = {
    Template.ACTION: "A trading agent wants to open this spot crypto position. Judge it by the"
    " profit that it will make after costs: reject it, or approve it with a share of the agent's"
    " risk and a stop distance.",
    Template.TRADE: "A trading agent wants to open this spot crypto position with its stop and"
    " targets. Will it make money after costs? Trade it, or reject it.",
}
TRADE = "trade"


class Option(NamedTuple):
    """One answer that can be given. `label` is of the action that it stands for."""

    name: str
    description: str
    label: str


class Inquiry(Record):
    """What is asked about every scenario. `order` are the labels of the options, as they are
    listed: ten of an action, two (reject and any approving one) of a trade."""

    template: Template = Template.ACTION
    instructions: Text | None = Field(None, description="instead of the template's own")
    order: tuple[str, ...] = LABELS
    masked: bool = False

    @model_validator(mode="after")
    def every_option_once(self) -> Self:
        """The order names each option of the template once."""
        wanted = sorted(listed(self.template))
        if sorted(self.order) != wanted:
            raise ValueError(f"order must name each of {', '.join(wanted)} once")
        return self

    @property
    def text(self) -> str:
        """What the model is told to do."""
        return self.instructions or INSTRUCTIONS[self.template]

    @property
    def options(self) -> tuple[Option, ...]:
        """The options as they are listed."""
        return tuple(_option(self.template, label) for label in self.order)

    def permuted(self, seed: str) -> Inquiry:
        """The same question with its options in another order, which follows from `seed`."""
        order = tuple(sorted(self.order, key=lambda label: digest(f"{seed} {label}".encode())))
        return self.model_copy(update={"order": order if order != self.order else order[::-1]})

    def action_of(self, label: str, scenario: Scenario) -> Action:
        """The action that an option means in a scenario."""
        if self.template is Template.TRADE and label != REJECT.label:
            return full_size(scenario)
        return BY_LABEL[label]


def listed(template: Template) -> tuple[str, ...]:
    """Labels of a template's options, in their first order."""
    return LABELS if template is Template.ACTION else (REJECT.label, LABELS[-1])


def full_size(scenario: Scenario) -> Action:
    """The action that comes nearest to the agent's own plan: all of its risk, and the stop distance
    nearest to its own. Where no ATR is known, every distance means the plan's stop."""
    plan, atr = scenario.plan, scenario.candidate.atr
    if atr is None:
        return _FULL_SIZE[STOP_ATRS[len(STOP_ATRS) // 2]]
    distance = abs(plan.entry - plan.stop) / atr
    return _FULL_SIZE[min(STOP_ATRS, key=lambda stop: abs(stop - distance))]


def sampled(share: float, *parts: object) -> bool:
    """Whether something is among a share of its kind, by the hash of its names: the same answer
    every time."""
    number = int(digest(" ".join(map(str, parts)).encode()).removeprefix("sha256:")[:8], 16)
    return number < share * 2**32


class Exchange(Record):
    """One question to a decision model elsewhere, and what is known of its answer beside the
    probabilities."""

    question: Hash = Field(description="of the body that was sent: model, brief and question")
    order: tuple[ShortText, ...] = Field(max_length=len(LABELS), description="as options stood")
    seconds: float = Field(ge=0, description="from asking to the whole answer")
    model: ShortText | None = Field(None, description="as the server names what answered")
    label_mass: float | None = Field(
        None, ge=0, le=1, description="probability that fell on the options at all; null: not told"
    )
    input_tokens: int | None = Field(None, ge=0, le=2**53)
    output_tokens: int | None = Field(None, ge=0, le=2**53)
    cost: float | None = Field(None, ge=0, description="US dollars, told or by price; or unknown")


def _option(template: Template, label: str) -> Option:
    action = BY_LABEL[label]
    if not action.approve:
        return Option(action.name, "do not open the position", label)
    if template is Template.TRADE:
        return Option(TRADE, "open the position as the agent plans it", label)
    return Option(action.name, f"approve with {_share(action)}", label)


def _share(action: Action) -> str:
    return f"{action.risk_fraction:.0%} of the agent's risk, stop {action.stop_atr:g} ATR away"
