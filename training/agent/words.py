"""Dialogues of the agent: prompt, its letter, the follow-up question, its words.

The reference agent's rules speak no prose, so its words are templated here, from what the rules
looked at and from nothing else: honest about the decision, poor as language. A production agent's
own reason is used where it gave one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.model.actions import ACTIONS, REJECT, Action
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.record.control import AgentAction
from app.domain.scenario import Scenario
from app.policy.encoding import PromptEncoder
from training.agent.reference import SkipReason

WORDS_CHARACTERS = 160
_REFUSALS: Mapping[str, str] = {
    SkipReason.DAY_LOSS: "The day's loss has reached the guard, so nothing new is opened.",
    SkipReason.STOP_LOSSES: "Too many stops in a row, so the agent cools down.",
    SkipReason.DRAWDOWN: "The account is too far below its peak to add risk.",
    SkipReason.MAX_TRADES: "A trade is already open.",
    SkipReason.CORRELATED: "A better-scored candidate of the same hour moves alike.",
    SkipReason.BITCOIN_TREND: "Bitcoin trends down against a long.",
    SkipReason.VOLATILITY: "Volatility is near the top of its range.",
    SkipReason.REWARD_RISK: "The nearest target is too close for the stop.",
}
"""What a rule says. The LLM's veto is told by the chart, and so are other agents' reasons."""
_MARKUP = re.compile(r"<\|[^|>]{0,64}\|?>|\|>|<\||</?s>|\[/?INST\]|[<>\[\]{}|`\\]")
_EMPTY = Prompt(PROMPT_VERSION, SYSTEM, "x")


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """What the agent did in every scenario: `labels` (N,) index of its action, and its words.

    `contrast` holds what its rules would say for approving and for rejecting, whatever it did; it
    may be left empty.
    """

    labels: NDArray[np.int64]
    words: tuple[str, ...]
    contrast: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, scenarios: Sequence[Scenario], actions: Sequence[AgentAction]) -> Demonstrations:
        """One per scenario, in the same order."""
        taken = [ACTIONS.index(agents_label(s, a)) for s, a in zip(scenarios, actions, strict=True)]
        said = tuple(words(s, a) for s, a in zip(scenarios, actions, strict=True))
        return cls(
            np.array(taken, np.int64), said, tuple((_for(s), _against(s)) for s in scenarios)
        )


class Dialogue(NamedTuple):
    """Token ids after the prompt's tail: letter, follow-up question, words (from `begins` on), end
    of turn."""

    ids: list[int]
    begins: int


def agents_label(scenario: Scenario, action: AgentAction) -> Action:
    """The agent's action in our space: its whole risk at the stop distance nearest to its plan's,
    or `reject`."""
    if not action.decision:
        return REJECT
    whole = [approval for approval in ACTIONS if approval.risk_fraction == 1.0]
    atr = scenario.candidate.atr
    if atr is None:  # Every distance then means the plan's stop.
        return whole[len(whole) // 2]
    distance = abs(scenario.plan.entry - scenario.plan.stop) / atr
    return min(whole, key=lambda approval: abs(approval.stop_atr - distance))


def words(scenario: Scenario, action: AgentAction) -> str:
    """One sentence on why the agent did what it did: its own, if it gave one, else from its
    rules."""
    if action.reason:
        own = _printable(action.reason)
        if own:
            return own
    if action.decision:
        return _for(scenario)
    return _REFUSALS.get(action.final_skip_reason or "") or _against(scenario)


def _printable(text: str) -> str:
    """A reason on one line, without markup, cut."""
    readable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(_MARKUP.sub(" ", readable).split())[:WORDS_CHARACTERS].rstrip()


def dialogue(encoder: PromptEncoder, label: int, said: str) -> Dialogue:
    """The ids that follow head, user's text and tail. The end of turn is the tail's first token, as
    the chat template (or, without one, the plain layout) has it."""
    size = len(encoder.encode(_EMPTY)) - len(encoder.tail)
    question = list(encoder.encode_explanation(_EMPTY, ACTIONS[label]))[size + len(encoder.tail) :]
    text = list(encoder.encode(_EMPTY._replace(user=said)))[: -len(encoder.tail)]
    return Dialogue([*question, *text, encoder.tail[0]], len(question))


def _for(scenario: Scenario) -> str:
    c = scenario.candidate
    if c.score is None or c.score_threshold is None:
        return f"Enough speaks for it: {_chart(scenario)}."
    return f"Score {c.score:.1f} clears {c.score_threshold:.1f}; {_chart(scenario)}."


def _against(scenario: Scenario) -> str:
    return f"Too little speaks for it: {_chart(scenario)}."


def _chart(scenario: Scenario) -> str:
    """The four readings of the chart that the stand-in for the agent's LLM votes with."""
    c = scenario.candidate
    lead = (c.di_plus or 0) > (c.di_minus or 0)
    return ", ".join(
        (
            "buyers lead" if lead else "sellers lead",
            "momentum is up" if (c.macd or 0) > 0 else "momentum is down",
            "rsi not known" if c.rsi is None else f"rsi {c.rsi:.0f}",
            "volume is above its mean" if (c.volume_ratio or 0) > 0 else "volume is below its mean",
        )
    )
