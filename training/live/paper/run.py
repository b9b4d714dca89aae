"""Paper trading: the reference agent follows a market, asks the service through the client, and
keeps two books.

At each moment: settle what has ended, decide, ask for advice (the agent's decision goes with the
request, so that both are recorded in one step), and report outcomes once the market's clock has
passed them. The advice changes nothing: the agent trades its own decision.

The shadow log is the memory of a run. A replay that is taken up again asks everything again under
the same ids and gets the stored answers; a live run is rebuilt from what the log has of it. Reports
carry their content as their key, so those that are sent again count once.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shadow_advisor_client import AdvisorClient

from app.domain.canonical import decision_id
from app.domain.errors import AdvisorError
from app.domain.exits import Exits
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Arm, Outcome
from app.domain.scenario import Scenario
from training.agent.reference import Opportunity
from training.live.paper.books import Book, Trade, follow, never_filled, outcome
from training.live.paper.feed import Moment
from training.log import Recalled
from training.market.bars import Bars, MarketDataError
from training.outcomes.orders import Order, plan_order

RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")


class BadRunName(AdvisorError):
    """A run's name cannot be part of a request id."""


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
        return (
            self.answered
            and self.advice is not None
            and self.advice["approve"] != self.control.decision
        )

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


@dataclass
class _Awaited:
    """An order whose outcome is not reported yet. Without an order it is a rejection, which ends at
    once."""

    decision_id: str
    arm: Arm
    model_version: str | None
    traded: bool
    order: Order | None
    trade: Trade | None
    judged: int | None
    """Position in `Paper.judged`; None when it was recalled."""

    @property
    def ended_at(self) -> int | None:
        """When it ended; None while the bars do not tell."""
        return 0 if self.trade is None else self.trade.exited_at


class Paper:
    """One run. `run` names it: the same name goes on where it was left.

    Parameters
    ----------
    recalled : what the log has of this run, oldest first; books are rebuilt from it at the first
        moment of the feed.
    exits : that the agent declares; None: nothing, and its trades end by the trail.

    Raises
    ------
    BadRunName : it is empty, too long, or holds something else than letters, digits, `.`, `_` and
        `-`.
    """

    def __init__(
        self,
        client: AdvisorClient,
        run: str,
        deadline_s: float,
        recalled: Sequence[Recalled] = (),
        exits: Exits | None = None,
    ) -> None:
        if not RUN_NAME.fullmatch(run):
            raise BadRunName(f"run {run!r}: use 1 to 80 letters, digits, '.', '_' or '-'")
        self._client = client
        self._run = run
        self._deadline_s = deadline_s
        self._recalled = recalled
        self._exits = exits
        self._awaited: list[_Awaited] = []
        self.judged: list[Judged] = []
        self.agent_book = Book()
        self.advice_book = Book()
        self.unfilled = 0
        """Orders that an outage of the exchange kept from being filled; they have no outcome."""

    def trade(
        self, feed: Iterable[Moment], tell: Callable[[Judged], None] = lambda judged: None
    ) -> list[Judged]:
        """Follow a feed to its end; `tell` hears of each candidate. Outcomes that the bars tell are
        all reported."""
        for moment in feed:
            self._advance(moment)
            for at in moment.opportunities:
                self._judge(moment, at)
                tell(self.judged[-1])
        self.close()
        return self.judged

    def trade_until_stopped(
        self, feed: Iterable[Moment], tell: Callable[[Judged], None] = lambda judged: None
    ) -> list[Judged]:
        """As `trade`, until Ctrl-C or SIGTERM: then too, outcomes that are known are reported."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self.trade(feed, tell)
        except KeyboardInterrupt:
            self.close()
        finally:
            signal.signal(signal.SIGTERM, before)
        return self.judged

    def close(self) -> None:
        """Report every outcome that is known. `trade` does it at the end of its feed."""
        self._report(None)

    def _book(self, arm: Arm) -> Book:
        return self.agent_book if arm is Arm.AGENT else self.advice_book

    def _rebuild(self, bars: Mapping[str, Bars], now: int) -> None:
        """Books and open orders from the log's decisions of this run, oldest first."""
        for decision in self._recalled:
            self._settle(decision.scenario.second)
            plan = plan_order(decision.scenario)
            self._take_up(decision, Arm.AGENT, plan, decision.agent_trades, bars, now)
            if decision.approve is None:
                continue
            advised = None
            if decision.stop is not None:
                advised = plan._replace(stop=decision.stop, quantity=decision.quantity)
            traded = advised is not None and self.advice_book.flat
            self._take_up(decision, Arm.ADVICE, advised, traded, bars, now)
        self._recalled = ()

    def _take_up(
        self,
        decision: Recalled,
        arm: Arm,
        order: Order | None,
        traded: bool,
        bars: Mapping[str, Bars],
        now: int,
    ) -> None:
        """One arm of a decision: into its book when it was traded, among the awaited while it is
        not reported."""
        ended = decision.ended.get(arm)
        trade = None
        if order is not None and ended is not None:
            trade = _recorded(order, ended)
        elif order is not None:
            if order.symbol not in bars:
                raise MarketDataError(
                    f"run {self._run} has an open order in {order.symbol}: name it with --symbols"
                )
            trade = follow(bars[order.symbol], order)
            if never_filled(bars[order.symbol], trade, now):
                self.unfilled += 1
                return
        if traded and trade is not None:
            self._book(arm).take(trade)
        # `advisor-train resolve` does not know what the books held: where it reported first, say it
        # right.
        if ended is None or (order is not None and ended.extra.get("traded") is not traded):
            version = decision.model_version if arm is Arm.ADVICE else None
            self._awaited.append(
                _Awaited(decision.decision_id, arm, version, traded, order, trade, None)
            )

    def _advance(self, moment: Moment) -> None:
        """Follow what is open through the bars that are known now; report and settle what has
        ended."""
        bars = {chart.bars.symbol: chart.bars for chart in moment.agent.charts}
        self._rebuild(bars, moment.as_of)
        for awaited in list(self._awaited):
            order = awaited.order
            if order is not None and awaited.ended_at is None and order.symbol in bars:
                self._follow(awaited, order, bars[order.symbol], moment.as_of)
        self._report(moment.as_of)
        self._settle(moment.as_of)

    def _follow(self, awaited: _Awaited, order: Order, bars: Bars, now: int) -> None:
        trade = awaited.trade = follow(bars, order)
        book = self._book(awaited.arm)
        if never_filled(bars, trade, now):
            self.unfilled += 1
            self._awaited.remove(awaited)
            if awaited.traded:
                book.cancel(trade)
        elif trade.exited_at is not None:
            if awaited.traded:
                book.learn(trade)
            if awaited.judged is not None:
                before = self.judged[awaited.judged]
                self.judged[awaited.judged] = (
                    replace(before, agent_trade=trade)
                    if awaited.arm is Arm.AGENT
                    else replace(before, advice_trade=trade)
                )

    def _settle(self, now: int) -> None:
        for book in (self.agent_book, self.advice_book):
            book.settle(now)

    def _judge(self, moment: Moment, at: Opportunity) -> None:
        agent = moment.agent
        account = self.agent_book.account(at.as_of)
        scenario = agent.scenario(at, account).declaring(self._exits)
        control = agent.decide(scenario, agent.correlated(at, moment.opportunities))
        request_id = f"{self._run}/{scenario.candidate.symbol}/{scenario.as_of:%Y%m%dT%H%M}"
        request = {"request_id": request_id, "agent_action": control.as_json()}
        advice = self._client.advise(scenario.as_json() | request, self._deadline_s)
        latency_s = self._client.stats().last_latency_s if advice is not None else None
        bars, plan = agent.charts[at.chart].bars, plan_order(scenario)
        agent_trade, advised, advice_trade = follow(bars, plan), None, None
        if advice is not None and advice["approve"]:
            advised = plan._replace(stop=advice["stop"], quantity=advice["quantity"])
            advice_trade = follow(bars, advised)
        decision, number = str(decision_id(request_id)), len(self.judged)
        if control.decision:
            self.agent_book.take(agent_trade)
        self._awaited.append(
            _Awaited(decision, Arm.AGENT, None, control.decision, plan, agent_trade, number)
        )
        if advice is not None and advice["approve"] is not None:
            taken = advice_trade is not None and self.advice_book.flat
            if taken and advice_trade is not None:
                self.advice_book.take(advice_trade)
            version = advice["model_version"]
            self._awaited.append(
                _Awaited(decision, Arm.ADVICE, version, taken, advised, advice_trade, number)
            )
        self.judged.append(Judged(scenario, control, advice, latency_s, agent_trade, advice_trade))

    def _report(self, now: int | None) -> None:
        """Report outcomes that are known by `now`; all that the bars tell when it is None."""
        still = []
        for awaited in self._awaited:
            end = awaited.ended_at
            if end is None or (now is not None and end > now):
                still.append(awaited)
                continue
            ended = outcome(
                awaited.trade, awaited.arm, awaited.model_version, traded=awaited.traded
            )
            if ended is not None:
                self._client.report_outcome(awaited.decision_id, ended.as_json())
        self._awaited = still


def _recorded(order: Order, ended: Outcome) -> Trade:
    """The trade of an order with the outcome that was reported; one without a price or a time ended
    at once, at 0."""
    if ended.exit_time is None or ended.net_pnl is None:
        return Trade(order, order.as_of, 0.0, ended.as_json())
    return Trade(order, int(ended.exit_time.timestamp()), ended.net_pnl, ended.as_json())
