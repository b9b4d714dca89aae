"""Recorded decisions judged again: under other limits, by another version's readings, at other
costs.

Three kinds of arms. The agent's own order, as if the rules had been obeyed: what they refuse was
never opened, so the account that later decisions see is another one (`Book`), in order of time.
Each version's advice, from its recorded reading, on the account that the agent reported. And where
another version is asked for, what answered: the primary's advice before, that version's after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from app.domain.record.decision import Advice, Decision, conclude, review_control
from app.domain.rules.limits import Limits
from app.domain.rules.review import Review
from app.domain.scenario import Account
from app.domain.what_if.book import FORGET, Book
from app.domain.what_if.costs import Costs, Repriced, repriced
from app.domain.what_if.past import (
    ADVICE,
    AGENT,
    UNREAD,
    Grade,
    Judged,
    Past,
    Said,
    Traded,
    Verdict,
)

OBEYED = "trades that were refused before are not in the account"
EARNED = "trades before were refused, or earned otherwise, in the account"
READ_NOW = "read now: that it would have answered in time is assumed"
NO_OUTCOME = "no outcome of this order was ever simulated"
CAPPED = "a capped stop is another trade"
UNTOLD = Traded(None, None, None, None, None, None)


class Judge:
    """The arms of each decision before and after.

    Parameters
    ----------
    after : limits; None leaves those of `before`.
    before : limits; None for those that each decision was recorded with.
    forget : as of `Book`.
    version : whose readings are asked for in the place of the primary's; None asks for no other.
    costs : of both arms after; None leaves what each trade paid.
    """

    def __init__(
        self,
        after: Limits | None = None,
        before: Limits | None = None,
        forget: timedelta = FORGET,
        *,
        version: str | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._after = after or before
        self._before = before
        self.version = version
        self.costs = costs
        self._books = Book(forget), Book(forget)

    def as_json(self) -> dict[str, Any]:
        """What is otherwise, beside limits."""
        fee, slippage = (None, None) if self.costs is None else self.costs
        return {"version": self.version, "fee": fee, "slippage": slippage}

    def arms(self, past: Past) -> Iterator[Judged]:
        """The arms of the next decision in order of time: the agent, then each version, then the
        advice where another version is asked for."""
        yield self._agent(past)
        decision = past.decision
        both = {
            each.model_version: (
                _under(decision, each, self._before),
                _under(decision, each, self._after),
            )
            for each in decision.advices
        }
        for recorded in decision.advices:
            yield from self._advice(past, recorded, *both[recorded.model_version])
        if self.version is not None:
            yield self._answered(past, self.version, both)

    def _agent(self, past: Past) -> Judged:
        stood = self._before or past.decision.limits
        limits = stood, self._after or stood
        accounts = [book.account(past) for book in self._books]
        first, second = (
            _verdict(past, _review(past, limit, account))
            for limit, account in zip(limits, accounts, strict=True)
        )
        other = self._repriced(past, AGENT)
        earned = past.net_pnl, past.net_pnl if other is None else other.net
        for book, verdict, net_pnl in zip(self._books, (first, second), earned, strict=True):
            own = None if net_pnl is None else net_pnl * _part(past, verdict)
            book.note(past, verdict.approves, own)
        plan_r = past.agent_r, _r(past, past.agent_r, other)
        r_before, r_after = _agent_r(past, first, plan_r[0]), _agent_r(past, second, plan_r[1])
        grade, why = Grade.SAME, ""
        if first != second:
            grade = Grade.CERTAIN
            if any(
                _alone(past, limit, account, verdict) != verdict
                for limit, account, verdict in zip(limits, accounts, (first, second), strict=True)
            ):
                grade, why = Grade.ASSUMED, OBEYED if self.costs is None else EARNED
        elif self._changes(r_before, r_after):
            grade = Grade.CERTAIN
        if (r_before is None or r_after is None) and grade is not Grade.SAME:
            grade, why = Grade.UNDETERMINED, _unknown(past, other, first, second)
        return Judged(past, AGENT, first, second, r_before, r_after, grade, why, plan_r)

    def _advice(self, past: Past, recorded: Advice, old: Advice, new: Advice) -> Iterator[Judged]:
        if old.approve is None or new.approve is None:
            return  # It abstained: limits have no say.
        before, after = _advised(old), _advised(new)
        version = recorded.model_version
        told, other = past.advice_r.get(version), self._repriced(past, version)
        r_before = _share(told, before, recorded)
        r_after = _share(_r(past, told, other), after, recorded)
        grade, why = Grade.SAME, ""
        if before != after or self._changes(r_before, r_after):
            grade = Grade.CERTAIN
            if r_before is None or r_after is None:
                why = other.why if other is not None and r_before is not None else ""
                grade, why = Grade.UNDETERMINED, why or NO_OUTCOME
        yield Judged(past, version, before, after, r_before, r_after, grade, why)

    def _answered(
        self, past: Past, version: str, both: Mapping[str, tuple[Advice, Advice]]
    ) -> Judged:
        """What the primary advised, and what another version says. `both`: every version's advice
        in the decision's own record, before and after."""
        first = past.decision.primary.model_version
        primary, _ = both[first]
        before = UNREAD if primary.approve is None else _advised(primary)
        r_before = self._order_r(past, before, first, repriced=False)
        new, read_now = self._said(past, version, both)
        if isinstance(new, str) or new.approve is None or primary.approve is None:
            why = new if isinstance(new, str) else f"{version} abstained"
            after = UNREAD
            if not isinstance(new, str) and new.approve is not None:
                after, why = _advised(new), "the primary abstained"
            return Judged(past, ADVICE, before, after, r_before, None, Grade.UNDETERMINED, why)
        after = _advised(new)
        r_after = self._order_r(past, after, version, repriced=True)
        grade, why = Grade.SAME, ""
        if before != after or self._changes(r_before, r_after):
            grade = Grade.CERTAIN
        if read_now:
            grade, why = Grade.ASSUMED, READ_NOW
        if grade is not Grade.SAME and (r_before is None or r_after is None):
            grade, why = Grade.UNDETERMINED, NO_OUTCOME
        return Judged(past, ADVICE, before, after, r_before, r_after, grade, why)

    def _said(
        self, past: Past, version: str, both: Mapping[str, tuple[Advice, Advice]]
    ) -> tuple[Advice | str, bool]:
        """A version's advice after, or why that is not known; and whether it was read now."""
        if version in both:
            return both[version][1], False
        other, decision = past.other, past.decision
        if not isinstance(other, Said):
            return other or f"{version} did not read it", False
        advice = conclude(
            decision.scenario,
            other.reading,
            other.version,
            self._after or decision.limits,
            state=decision.state,
            now=decision.evaluated_at,
        )
        return advice, other.advice is None

    def _changes(self, r_before: float | None, r_after: float | None) -> bool:
        """Whether R is another, or cannot be known at other costs."""
        return r_before != r_after or (r_after is None and self.costs is not None)

    def _order_r(
        self, past: Past, verdict: Verdict, version: str, *, repriced: bool
    ) -> float | None:
        """R of a version's order on this decision, from its own end, or from that of any with the
        same stop: they end alike, and earn in proportion to their quantity."""
        if not verdict.approves:
            return 0.0
        ends = {version: past.advice_r.get(version), **past.advice_r, AGENT: past.agent_r}
        for arm, told in ends.items():
            trade = past.trades.get(arm, UNTOLD)
            if told is None or not trade.quantity or not trade.bought:
                continue
            if trade.stop != verdict.stop:
                continue
            r = _r(past, told, self._repriced(past, arm)) if repriced else told
            if r is not None:
                return r * verdict.quantity / trade.quantity
        return None

    def _repriced(self, past: Past, arm: str) -> Repriced | None:
        """The trade of an arm at the other costs; None where there are none."""
        if self.costs is None:
            return None
        scenario = past.decision.scenario
        side = 1 if scenario.plan.entry > scenario.plan.stop else -1
        return repriced(past.trades.get(arm, UNTOLD), side, scenario.exits, self.costs)


def _under(decision: Decision, advice: Advice, limits: Limits | None) -> Advice:
    """A version's advice from its recorded reading, judged by these limits; None: as recorded."""
    if limits is None:
        return advice
    return decision.model_copy(update={"limits": limits}).replayed_advice(advice)


def _advised(advice: Advice) -> Verdict:
    vetoes = advice.review.vetoes if advice.review else ()
    codes = tuple(veto.code.value for veto in vetoes)
    return Verdict(bool(advice.approve), codes, advice.quantity or 0.0, advice.stop)


def _review(past: Past, limits: Limits, account: Account) -> Review:
    decision = past.decision
    scenario = decision.scenario
    if account is not scenario.account:
        scenario = scenario.model_copy(update={"account": account})
    return review_control(scenario, limits, decision.state, decision.evaluated_at)


def _alone(past: Past, limits: Limits, account: Account, verdict: Verdict) -> Verdict:
    """What limits do to the order on the account that the agent reported; `verdict` is what they do
    on `account`."""
    reported = past.decision.scenario.account
    return verdict if account is reported else _verdict(past, _review(past, limits, reported))


def _verdict(past: Past, review: Review) -> Verdict:
    plan = past.decision.scenario.plan
    codes = tuple(veto.code.value for veto in review.vetoes)
    quantity = plan.quantity if review.quantity is None else review.quantity
    return Verdict(not codes, codes, quantity, plan.stop if review.stop is None else review.stop)


def _r(past: Past, told: float | None, other: Repriced | None) -> float | None:
    """R of a trade at other costs, where R of it is known."""
    if told is None or other is None:
        return told
    return None if other.net is None else other.net / past.decision.scenario.plan.risk


def _agent_r(past: Past, verdict: Verdict, plan_r: float | None) -> float | None:
    """R of the agent's arm: 0 where it rejects, or the rules refuse."""
    if past.agent_approves is None:
        return None
    if not past.agent_approves or not verdict.approves:
        return 0.0
    plan = past.decision.scenario.plan
    if plan_r is None or verdict.stop != plan.stop:
        return None
    return plan_r * _part(past, verdict)


def _part(past: Past, verdict: Verdict) -> float:
    """The part of the agent's trade that limits leave. What they cap is what it would have traded,
    which may be less than its plan already."""
    plan = past.decision.scenario.plan
    if verdict.quantity >= plan.quantity:
        return 1.0
    return min(1.0, verdict.quantity / (past.agent_quantity or plan.quantity))


def _share(told: float | None, verdict: Verdict, recorded: Advice) -> float | None:
    """R of an advice: as recorded, in proportion to its quantity; another stop is another trade."""
    if not verdict.approves:
        return 0.0
    if told is None or not recorded.quantity or verdict.stop != recorded.stop:
        return None
    return told * verdict.quantity / recorded.quantity


def _unknown(past: Past, other: Repriced | None, *verdicts: Verdict) -> str:
    if past.agent_approves is None:
        return "the agent never said what it did"
    if past.agent_r is None:
        return "no outcome of the agent's plan is known"
    plan = past.decision.scenario.plan
    if any(verdict.approves and verdict.stop != plan.stop for verdict in verdicts):
        return CAPPED
    return "" if other is None else other.why
