"""What other limits would have refused, approved and earned, of decisions that are on the record.

Two arms are judged again. The agent's own order, as if the rules had been obeyed: what they refuse
was never opened, so the account that later decisions see is another one (`Book`), in order of time.
And each version's advice, from its recorded reading, on the account that the agent reported.

R is net profit over the risk of the agent's plan.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from heapq import heappop, heappush
from typing import Any, NamedTuple

from app.domain.candidate import Candidate
from app.domain.intervals import Day, Mean, mean_of_days
from app.domain.record.comparison import regime
from app.domain.record.decision import Advice, Decision, review_control
from app.domain.rules.limits import Limits
from app.domain.rules.review import Review
from app.domain.scenario import Account

AGENT = "agent"
"""The arm of the agent's own orders; other arms have a version's name."""
FORGET = timedelta(hours=24)
"""After a loss, when nothing more is traded."""
MOST_CHANGED = 1_000
"""So many changed decisions are kept, the newest."""


class Grade(StrEnum):
    """How sure it is what other limits would have done to one decision."""

    SAME = "same"
    CERTAIN = "certain"
    ASSUMED = "assumed"
    UNDETERMINED = "undetermined"


class Past(NamedTuple):
    """One recorded decision, and what came of it.

    `agent_approves` is None where the agent never said. `agent_r`: R of the agent's plan, as traded
    or as simulated, None while unknown. `advice_r`: R of each version's advice. `closed_at` and
    `net_pnl` (quote currency): of the trade that the agent made.
    """

    decision: Decision
    agent_approves: bool | None
    agent_r: float | None
    advice_r: Mapping[str, float | None]
    closed_at: datetime | None
    net_pnl: float | None


class Verdict(NamedTuple):
    """What limits do to an order: veto codes, none approves; the quantity that caps leave, base
    units; whether the stop stays where it was."""

    approves: bool
    codes: tuple[str, ...]
    quantity: float
    same_stop: bool


class Judged(NamedTuple):
    """One arm of one decision, before and after. R is None where it cannot be known."""

    past: Past
    arm: str
    before: Verdict
    after: Verdict
    r_before: float | None
    r_after: float | None
    grade: Grade
    why: str


class _Trade(NamedTuple):
    """A trade of the agent's that ends: when, with what profit (0: nobody told), and whether the
    limits let it be made. In order of its end."""

    at: datetime
    net_pnl: float
    symbol: str
    taken: bool


class Book:
    """The agent's account, had it obeyed some limits.

    What the record reports stands, less the trades that these limits refused: their positions are
    closed, their profit of the day is taken back, losses in a row are counted over the trades that
    were left, and forgotten `forget` after the last one: a rule that stops trading would otherwise
    stop it for ever, where a person lets it go on. Drawdown stays as reported, and nothing is
    opened in the place of what was refused.
    """

    def __init__(self, forget: timedelta = FORGET) -> None:
        self._forget = forget
        self._refused = False
        self._ending: list[_Trade] = []
        self._never_opened: Counter[str | None] = Counter()
        self._taken_back: defaultdict[date, float] = defaultdict(float)
        self._in_a_row = 0
        self._lost_at: datetime | None = None

    def account(self, past: Past) -> Account:
        """The account that this decision would have seen; the reported one itself when nothing that
        was refused shows in it. Decisions come in order of time."""
        reported, now = past.decision.scenario.account, past.decision.scenario.as_of
        while self._ending and self._ending[0].at <= now:
            self._end(heappop(self._ending))
        if not self._refused:
            return reported
        changes = self._positions(reported) | self._losses(reported, now)
        changes |= self._day(reported, now)
        other = {name: value for name, value in changes.items() if value != getattr(reported, name)}
        return reported.model_copy(update=other) if other else reported

    def note(self, past: Past, approved: bool) -> None:
        """What the limits did to a trade that the agent made."""
        if not past.agent_approves:
            return
        scenario = past.decision.scenario
        symbol = scenario.candidate.symbol
        if not approved:
            self._refused = True
            self._never_opened[symbol] += 1
        if past.closed_at is not None:
            at = max(past.closed_at, scenario.as_of)
            heappush(self._ending, _Trade(at, past.net_pnl or 0.0, symbol, approved))

    def _end(self, trade: _Trade) -> None:
        if not trade.taken:
            self._never_opened[trade.symbol] -= 1
            self._taken_back[trade.at.astimezone(UTC).date()] += trade.net_pnl
        elif trade.net_pnl < 0:
            self._in_a_row, self._lost_at = self._in_a_row + 1, trade.at
        else:
            self._in_a_row = 0

    def _positions(self, reported: Account) -> dict[str, object]:
        if reported.positions is None:
            return {}
        gone: Counter[str | None] = Counter()
        left = []
        for position in reported.positions:
            if gone[position.symbol] < self._never_opened[position.symbol]:
                gone[position.symbol] += 1
            else:
                left.append(position)
        return {"positions": tuple(left)}

    def _losses(self, reported: Account, now: datetime) -> dict[str, object]:
        """Losses in a row, and seconds since the last one: as reported until a refused trade has
        closed; from then on over the trades that were taken."""
        if reported.consecutive_losses is None or not self._taken_back:
            return {}
        if self._lost_at is None or now - self._lost_at > self._forget:
            return {"consecutive_losses": 0, "seconds_since_loss": None}
        since = (now - self._lost_at).total_seconds()
        return {"consecutive_losses": self._in_a_row, "seconds_since_loss": since}

    def _day(self, reported: Account, now: datetime) -> dict[str, object]:
        if reported.day_pnl_fraction is None or not reported.equity:
            return {}
        taken_back = self._taken_back.get(now.astimezone(UTC).date(), 0.0)
        return {"day_pnl_fraction": reported.day_pnl_fraction - taken_back / reported.equity}


class Judge:
    """Both arms of each decision under the limits `before` and `after`. `before` is None for the
    limits that each decision was recorded with; `forget` is told in `Book`."""

    def __init__(
        self, after: Limits, before: Limits | None = None, forget: timedelta = FORGET
    ) -> None:
        self._after = after
        self._before = before
        self._books = Book(forget), Book(forget)

    def arms(self, past: Past) -> Iterator[Judged]:
        """The arms of the next decision in order of time: the agent, then each version."""
        stood = self._before or past.decision.limits
        yield _agent(past, (stood, self._after), self._books)
        yield from _advice(past, self._before, self._after)


def _agent(past: Past, limits: tuple[Limits, Limits], books: tuple[Book, Book]) -> Judged:
    accounts = [book.account(past) for book in books]
    first, second = (
        _verdict(past, _review(past, limit, account))
        for limit, account in zip(limits, accounts, strict=True)
    )
    for book, verdict in zip(books, (first, second), strict=True):
        book.note(past, verdict.approves)
    r_before, r_after = _agent_r(past, first), _agent_r(past, second)
    grade, why = Grade.SAME, ""
    if first != second:
        grade = Grade.CERTAIN
        if any(
            _alone(past, limit, account, verdict) != verdict
            for limit, account, verdict in zip(limits, accounts, (first, second), strict=True)
        ):
            grade, why = Grade.ASSUMED, "trades that were refused before are not in the account"
    if (r_before is None or r_after is None) and grade is not Grade.SAME:
        grade, why = Grade.UNDETERMINED, _unknown(past, first, second)
    return Judged(past, AGENT, first, second, r_before, r_after, grade, why)


def _advice(past: Past, before: Limits | None, after: Limits) -> Iterator[Judged]:
    decision = past.decision
    olds = decision.advices if before is None else _under(decision, before)
    news = _under(decision, after)
    for recorded, old, new in zip(decision.advices, olds, news, strict=True):
        if old.approve is None or new.approve is None:
            continue  # It abstained: limits have no say.
        before_it, after_it = _advised(old, recorded), _advised(new, recorded)
        told = past.advice_r.get(recorded.model_version)
        r_before = _advice_r(told, recorded.quantity, before_it)
        r_after = _advice_r(told, recorded.quantity, after_it)
        grade, why = Grade.SAME, ""
        if before_it != after_it:
            grade = Grade.CERTAIN
            if r_before is None or r_after is None:
                grade, why = Grade.UNDETERMINED, "no outcome of this order was ever simulated"
        version = recorded.model_version
        yield Judged(past, version, before_it, after_it, r_before, r_after, grade, why)


def _advised(advice: Advice, recorded: Advice) -> Verdict:
    vetoes = advice.review.vetoes if advice.review else ()
    return Verdict(
        bool(advice.approve),
        tuple(veto.code.value for veto in vetoes),
        advice.quantity or 0.0,
        advice.stop == recorded.stop,
    )


def _under(decision: Decision, limits: Limits) -> tuple[Advice, ...]:
    """Every version's advice from its recorded reading, judged by these limits."""
    other = decision.model_copy(update={"limits": limits})
    return tuple(other.replayed_advice(advice) for advice in decision.advices)


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
    return Verdict(
        not review.vetoes,
        tuple(veto.code.value for veto in review.vetoes),
        plan.quantity if review.quantity is None else review.quantity,
        review.stop in (None, plan.stop),
    )


def _agent_r(past: Past, verdict: Verdict) -> float | None:
    """R of the agent's arm: 0 where it rejects, or the rules refuse."""
    if past.agent_approves is None:
        return None
    if not past.agent_approves or not verdict.approves:
        return 0.0
    if past.agent_r is None or not verdict.same_stop:
        return None
    return past.agent_r * verdict.quantity / past.decision.scenario.plan.quantity


def _advice_r(told: float | None, quantity: float | None, verdict: Verdict) -> float | None:
    """R of the advice: as recorded, in proportion to its quantity; another stop is another
    trade."""
    if not verdict.approves:
        return 0.0
    if told is None or not quantity or not verdict.same_stop:
        return None
    return told * verdict.quantity / quantity


def _unknown(past: Past, *verdicts: Verdict) -> str:
    if past.agent_approves is None:
        return "the agent never said what it did"
    if past.agent_r is None:
        return "no outcome of the agent's plan is known"
    moved = [verdict for verdict in verdicts if verdict.approves and not verdict.same_stop]
    return "a capped stop is another trade" if moved else ""


@dataclass
class CodeTally:
    """What one veto code does to the agent's orders. R saved is minus the R of the agent's plan,
    over those whose outcome is known, as in the view `veto_value`."""

    refused_before: int = 0
    refused_after: int = 0
    r_saved_before: float = 0.0
    r_saved_after: float = 0.0


@dataclass
class ArmTally:
    """What other limits do to one arm. R counts where it is known both before and after."""

    decisions: int = 0
    approved_before: int = 0
    approved_after: int = 0
    grades: Counter[Grade] = field(default_factory=Counter)
    judged: int = 0
    r_before: float = 0.0
    r_after: float = 0.0
    days: dict[date, Day] = field(default_factory=dict)

    @property
    def gain(self) -> Mean | None:
        """R a decision, after less before, with its interval over days."""
        return mean_of_days(self.days.values())

    def as_json(self) -> dict[str, Any]:
        """The sums as a document."""
        return {
            "decisions": self.decisions,
            "approved": {"before": self.approved_before, "after": self.approved_after},
            "r": {"before": self.r_before, "after": self.r_after, "judged": self.judged},
            "gain_r_a_decision": None if self.gain is None else self.gain._asdict(),
            "grades": {grade.value: self.grades[grade] for grade in Grade},
        }

    def add(self, judged: Judged) -> None:
        """Count one decision."""
        self.decisions += 1
        approves = _trades(judged, judged.before), _trades(judged, judged.after)
        self.approved_before += approves[0]
        self.approved_after += approves[1]
        self.grades[judged.grade] += 1
        if judged.r_before is None or judged.r_after is None:
            return
        self.judged += 1
        self.r_before += judged.r_before
        self.r_after += judged.r_after
        day = judged.past.decision.scenario.as_of.astimezone(UTC).date()
        values, total = self.days.get(day, Day(0, 0.0))
        self.days[day] = Day(values + 1, total + judged.r_after - judged.r_before)


class By(StrEnum):
    """What decisions are grouped by."""

    SYMBOL = "symbol"
    SETUP = "setup"
    SESSION = "session"
    REGIME = "regime"

    def of(self, candidate: Candidate) -> str:
        """The group of a candidate."""
        if self is By.REGIME:
            return regime(candidate).value
        return str(getattr(candidate, {"setup": "setup_type"}.get(self.value, self.value)))


@dataclass
class Tally:
    """Sums over everything that was judged, by arm and again by group within it, and the decisions
    that change, the newest last."""

    by: By = By.SYMBOL
    arms: dict[str, ArmTally] = field(default_factory=dict)
    groups: dict[str, dict[str, ArmTally]] = field(default_factory=dict)
    codes: dict[str, CodeTally] = field(default_factory=dict)
    changed: deque[Judged] = field(default_factory=lambda: deque(maxlen=MOST_CHANGED), repr=False)

    def add(self, judged: Judged) -> None:
        """Count one arm of one decision."""
        self.arms.setdefault(judged.arm, ArmTally()).add(judged)
        group = self.by.of(judged.past.decision.scenario.candidate)
        self.groups.setdefault(judged.arm, {}).setdefault(group, ArmTally()).add(judged)
        if judged.grade is not Grade.SAME:
            self.changed.append(judged)
        if judged.arm != AGENT:
            return
        saved = -(judged.past.agent_r or 0.0)
        for code in judged.before.codes:
            tally = self.codes.setdefault(code, CodeTally())
            tally.refused_before += 1
            tally.r_saved_before += saved
        for code in judged.after.codes:
            tally = self.codes.setdefault(code, CodeTally())
            tally.refused_after += 1
            tally.r_saved_after += saved

    def as_json(self) -> dict[str, Any]:
        """Everything as a document."""
        return {
            "arms": {name: arm.as_json() for name, arm in self.arms.items()},
            "by": self.by.value,
            "groups": {
                name: {group: own.as_json() for group, own in sorted(groups.items())}
                for name, groups in self.groups.items()
            },
            "vetoes": {code: asdict(tally) for code, tally in sorted(self.codes.items())},
            "changed": [_as_json(judged) for judged in self.changed],
        }


def _trades(judged: Judged, verdict: Verdict) -> bool:
    """Whether the arm trades: the agent when it wants to and the rules let it."""
    return verdict.approves and (judged.arm != AGENT or bool(judged.past.agent_approves))


def _as_json(judged: Judged) -> dict[str, Any]:
    decision = judged.past.decision
    return {
        "decision_id": str(decision.decision_id),
        "as_of": decision.scenario.as_of.isoformat(),
        "symbol": decision.scenario.candidate.symbol,
        "arm": judged.arm,
        "before": judged.before._asdict(),
        "after": judged.after._asdict(),
        "r_before": judged.r_before,
        "r_after": judged.r_after,
        "grade": judged.grade.value,
        "why": judged.why,
    }
