"""Paper trading: the reference agent meets a replayed market, asks the service through the client, and keeps two books.

For each candidate, in order of time: settle what has ended, ask for advice, decide, report the agent's action, and
report outcomes once the replay's clock has passed them. The advice changes nothing: the agent trades its own decision.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from app.client import AdvisorClient
from app.domain.agent_action import AgentAction, Arm, Outcome
from app.domain.scenario import Scenario
from training.books import Book, Trade, follow, outcome
from training.reference_agent import Agent, Opportunity


@dataclass(frozen=True)
class Judged:
    """One candidate with both answers and both outcomes."""

    scenario: Scenario
    control: AgentAction
    advice: dict[str, Any] | None
    """The reply of `/advise`; None when there was none in time."""
    latency_s: float | None
    agent_trade: Trade
    """What the agent's plan did, traded or not."""
    advice_trade: Trade | None
    """What the advised order did; None when the advice was not an approval."""

    @property
    def answered(self) -> bool:
        """Whether both sides said yes or no."""
        return self.advice is not None and self.advice["approve"] is not None

    @property
    def disagrees(self) -> bool:
        """Whether one approved and the other rejected."""
        return self.answered and self.advice is not None and self.advice["approve"] != self.control.decision

    @property
    def agent_r(self) -> float | None:
        """R that the agent earned: 0 when it rejected, None while the bars do not tell."""
        return _earned(self.agent_trade if self.control.decision else None)

    @property
    def advice_r(self) -> float | None:
        """R that the advice would have earned."""
        return _earned(self.advice_trade)


def _earned(trade: Trade | None) -> float | None:
    if trade is None:
        return 0.0
    return None if trade.exited_at is None else trade.r


class Paper:
    """One replay. `run` names it: the same name asks under the same ids, so that a replay can be taken up again."""

    def __init__(self, agent: Agent, client: AdvisorClient, run: str, deadline_s: float) -> None:
        self._agent = agent
        self._client = client
        self._run = run
        self._deadline_s = deadline_s
        self._due: list[tuple[int, int, str, Outcome]] = []
        self._order = itertools.count()
        self.agent_book = Book()
        self.advice_book = Book()

    def replay(self, chosen: Sequence[Opportunity], tell: Callable[[Judged], None]) -> list[Judged]:
        """Judge opportunities, oldest first; `tell` hears of each. Outcomes that the bars tell are all reported."""
        judged = []
        for each in self._judge_all(chosen):
            judged.append(each)
            tell(each)
        self._report_until(None)
        return judged

    def _judge_all(self, chosen: Sequence[Opportunity]) -> Iterator[Judged]:
        for now, together in groupby(chosen, key=lambda one: one.as_of):
            same_moment = list(together)
            self._report_until(now)
            for book in (self.agent_book, self.advice_book):
                book.settle(now)
            for at in same_moment:
                yield self._judge(at, self._agent.correlated(at, same_moment))

    def _judge(self, at: Opportunity, correlated: bool) -> Judged:
        scenario = self._agent.scenario(at, self.agent_book.account(at.as_of))
        request_id = f"{self._run}/{scenario.candidate.symbol}/{scenario.as_of:%Y%m%dT%H%M}"
        advice = self._client.advise(scenario.as_json() | {"request_id": request_id}, self._deadline_s)
        latency_s = self._client.stats().last_latency_s if advice is not None else None
        control = self._agent.decide(scenario, correlated)
        bars, plan = self._agent.charts[at.chart].bars, scenario.plan
        order = (bars, at.as_of, plan.entry)
        rest = (plan.targets, scenario.candidate.atr)
        agent_trade = follow(*order, plan.stop, *rest, plan.quantity)
        advice_trade = None
        if advice is not None and advice["approve"]:
            advice_trade = follow(*order, advice["stop"], *rest, advice["quantity"])
            if self.advice_book.flat:
                self.advice_book.take(advice_trade)
        if control.decision:
            self.agent_book.take(agent_trade)
        judged = Judged(scenario, control, advice, latency_s, agent_trade, advice_trade)
        if advice is not None:
            self._report(judged, advice)
        return judged

    def _report(self, judged: Judged, advice: dict[str, Any]) -> None:
        """Report the action now, outcomes when they are due."""
        known = advice["decision_id"]
        self._client.report_action(known, judged.control.model_dump())
        self._due_later(known, judged.agent_trade, Arm.AGENT, None, traded=judged.control.decision)
        if advice["approve"] is not None:
            version = advice["model_version"]
            self._due_later(known, judged.advice_trade, Arm.ADVICE, version, traded=judged.advice_trade is not None)

    def _due_later(self, known: str, trade: Trade | None, arm: Arm, version: str | None, *, traded: bool) -> None:
        ended = outcome(trade, arm, version, traded=traded)
        if ended is not None:
            when = trade.exited_at if trade is not None and trade.exited_at is not None else 0
            heapq.heappush(self._due, (when, next(self._order), known, ended))

    def _report_until(self, now: int | None) -> None:
        """Report outcomes that are known by `now`; all of them at the end."""
        while self._due and (now is None or self._due[0][0] <= now):
            _, _, known, ended = heapq.heappop(self._due)
            self._client.report_outcome(known, ended.model_dump())
