"""Another version in the place of the primary, and other costs of both arms, worked out by hand.

The plain plan buys 0.25 at 2,000 with its stop at 1,970 and risks 7.5. An advice of half the risk
(F) buys 0.125 with the same stop, one of a quarter (C) 0.0625; the others have stops of their own.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from app.domain.errors import AbstainReason
from app.domain.record.decision import Abstention, Role
from app.domain.rules.limits import Limits
from app.domain.what_if.costs import Costs
from app.domain.what_if.judge import READ_NOW, Judge
from app.domain.what_if.past import ADVICE, AGENT, UNREAD, Grade, Judged, Past, Said, Traded
from app.domain.what_if.tally import Tally
from tests.builders import AS_OF, LIMITS, MODEL, decision, reading, version

OTHER = "other-1"
HOUR = timedelta(hours=1)
TRADE = Traded(0.25, 1970.0, 7.5, 2036.0, 1.0, 0.5)
"""36 gained on 0.25 are 9, less 1.5 of costs: exactly 1 R."""


def past(
    label: str = "I",
    others: str | None = "A",
    *,
    at: datetime = AS_OF,
    trade: Traded = TRADE,
    approves: bool = True,
    **overrides: Any,
) -> Past:
    """The agent trades its plan as `trade` tells; the primary says `label`, and nobody followed
    it; the other version, in shadow, says `others`."""
    shadows = [] if others is None else [(OTHER, others)]
    made = decision(f"{at:%d%H}", at=at, label=label, shadows=shadows, limits=LIMITS, **overrides)
    net = trade.net_pnl or 0.0
    trades = {AGENT: trade}
    return Past(made, approves, net / 7.5, {}, at + HOUR / 2, net, trades)


def answered(it: Past, judge: Judge | None = None) -> Judged:
    """The arm of what answered."""
    return list((judge or Judge(version=OTHER)).arms(it))[-1]


@pytest.mark.parametrize(
    ("label", "others", "before", "after"),
    [("I", "A", 1.0, 0.0), ("A", "I", 0.0, 1.0), ("I", "F", 1.0, 0.5), ("C", "F", 0.25, 0.5)],
)
def test_orders_with_the_stop_of_the_plan_earn_their_share_of_it(
    label: str, others: str, before: float, after: float
) -> None:
    judged = answered(past(label, others))
    assert (judged.arm, judged.grade) == (ADVICE, Grade.CERTAIN)
    assert (judged.r_before, judged.r_after) == (before, after)


def test_a_version_that_says_the_same_changes_nothing() -> None:
    judged = answered(past("I", "I"))
    assert (judged.grade, judged.r_before, judged.r_after) == (Grade.SAME, 1.0, 1.0)


def test_its_own_end_counts_before_that_of_others() -> None:
    own = Traded(0.125, 1970.0, 3.0, 2036.0, 0.5, 0.25)
    it = past("I", "F")
    it = it._replace(advice_r={OTHER: 0.4}, trades={**it.trades, OTHER: own})
    assert answered(it).r_after == 0.4


def test_another_stop_is_another_trade() -> None:
    judged = answered(past("I", "J"))
    assert (judged.grade, judged.r_after) == (Grade.UNDETERMINED, None)
    assert judged.why == "no outcome of this order was ever simulated"


def test_what_it_proposes_goes_through_the_rules_that_are_tried() -> None:
    spike = LIMITS.volatility_spike.model_copy(update={"max_percentile": 0.7})
    tight = LIMITS.model_copy(update={"volatility_spike": spike})
    it = past("A", "I", candidate__volatility_pct=0.8)
    assert answered(it).r_after == 1.0
    judged = answered(it, Judge(tight, version=OTHER))
    assert (judged.after.codes, judged.r_after) == (("VOLATILITY_SPIKE",), 0.0)


def test_a_reading_that_is_made_now_is_an_assumption() -> None:
    now = Said(version(OTHER, Role.SHADOW), reading("A"))
    judged = answered(past("I", None)._replace(other=now))
    assert (judged.r_after, judged.grade, judged.why) == (0.0, Grade.ASSUMED, READ_NOW)


@pytest.mark.parametrize(
    ("label", "others", "why"),
    [
        ("I", None, "other-1 did not read it"),
        ("I", Abstention(AbstainReason.DEADLINE), "other-1 abstained"),
        (Abstention(AbstainReason.DEADLINE), "I", "the primary abstained"),
    ],
)
def test_what_was_not_said_is_not_determinable_and_counts_nowhere(
    label: Any, others: Any, why: str
) -> None:
    judged = answered(past(label, others))
    assert (judged.grade, judged.r_after, judged.why) == (Grade.UNDETERMINED, None, why)
    assert UNREAD in (judged.before, judged.after)
    tally = Tally()
    tally.add(judged)
    arm = tally.arms[ADVICE]
    assert (arm.decisions, arm.approved_before, arm.approved_after, arm.judged) == (1, 0, 0, 0)
    assert arm.as_json()["why"] == {why: 1}
    assert not tally.changed


def test_nobody_asks_for_the_advice_where_no_other_version_is_asked_for() -> None:
    assert [judged.arm for judged in Judge(LIMITS).arms(past())] == [AGENT, MODEL, OTHER]


def test_both_arms_pay_the_other_costs() -> None:
    """Without costs 36 x 0.25 = 9 are 1.2 R. The primary follows a quarter of it."""
    quarter = Traded(0.0625, 1970.0, 1.875, 2036.0, 0.25, 0.125)
    it = past("C", "A")
    it = it._replace(advice_r={MODEL: 0.25, OTHER: 0.0}, trades={**it.trades, MODEL: quarter})
    judge = Judge(version=OTHER, costs=Costs(0.0, 0.0))
    agent, primary, other, advice = judge.arms(it)
    assert [each.grade for each in (agent, primary, other, advice)] == [
        Grade.CERTAIN, Grade.CERTAIN, Grade.SAME, Grade.CERTAIN,
    ]  # fmt: skip
    assert (agent.r_before, agent.r_after) == (1.0, pytest.approx(1.2))
    assert (primary.r_before, primary.r_after) == (0.25, pytest.approx(0.3))
    assert (advice.r_before, advice.r_after) == (0.25, 0.0)
    assert agent.plan_r == (1.0, pytest.approx(1.2))


def test_costs_of_a_trade_that_told_too_little_are_not_determinable() -> None:
    it = past(trade=TRADE._replace(fees=None))
    agent = next(Judge(costs=Costs(fee=0.002)).arms(it))
    assert (agent.r_before, agent.r_after, agent.grade) == (1.0, None, Grade.UNDETERMINED)
    assert agent.why == "not told of its trade: fees"
    rejected = next(Judge(costs=Costs(fee=0.002)).arms(it._replace(agent_approves=False)))
    assert (rejected.r_after, rejected.grade) == (0.0, Grade.SAME)


def two_losses_at_most() -> Limits:
    rule = LIMITS.consecutive_losses.model_copy(update={"max_count": 2, "cool_down_after": 99})
    return LIMITS.model_copy(update={"consecutive_losses": rule})


def test_an_end_that_told_too_little_of_its_costs_leaves_the_order_to_another_with_its_stop() -> (
    None
):
    """Without costs the agent's trade is 9 over the plan's risk of 7.5."""
    silent = Traded(0.25, 1970.0, 6.75, None, None, None)
    it = past("A", "I")
    it = it._replace(advice_r={OTHER: 0.9}, trades={**it.trades, OTHER: silent})
    judge = Judge(version=OTHER, costs=Costs(0.0, 0.0))
    assert answered(it, judge).r_after == pytest.approx(1.2)


def test_what_is_otherwise_is_said() -> None:
    judge = Judge(version=OTHER, costs=Costs(0.0, None))
    assert judge.as_json() == {"version": OTHER, "fee": 0.0, "slippage": None}
    assert Judge(LIMITS).as_json() == {"version": None, "fee": None, "slippage": None}


def test_a_fee_that_turns_gains_into_losses_stops_the_agent_in_its_account() -> None:
    """Two trades gain 9 each before costs; at 1 % on each side, 10.09 of fees, both lose: the third
    comes after two losses in a row, and two make the rule refuse."""
    limits = two_losses_at_most()
    told: dict[str, Any] = {"account__consecutive_losses": 0}
    first, second, third = (past("A", at=AS_OF + HOUR * i, **told) for i in range(3))
    judge = Judge(limits, limits, costs=Costs(fee=0.01))
    for it in (first, second):
        agent = next(judge.arms(it))
        assert agent.r_after == pytest.approx(
            (9.0 - 0.5 - 0.01 * (4036.0 - 0.018) * 0.25) / 7.5, 1e-4
        )
    refused = next(judge.arms(third))
    assert (refused.before.codes, refused.after.codes) == ((), ("CONSECUTIVE_LOSSES",))
    assert refused.grade is Grade.ASSUMED
    assert (refused.r_before, refused.r_after) == (1.0, 0.0)


def test_the_day_of_the_account_pays_the_other_costs() -> None:
    """Fees of 1 % are 9.1 more: of an equity of 1,000, 0.91 % of the day."""
    loss = LIMITS.daily_loss.model_copy(update={"max_fraction": 0.005})
    tight = LIMITS.model_copy(update={"daily_loss": loss})
    judge = Judge(tight, tight, costs=Costs(fee=0.01))
    told: dict[str, Any] = {"account__equity": 1000.0, "account__day_pnl_fraction": 0.0}
    next(judge.arms(past("A", **told)))
    later = next(judge.arms(past("A", at=AS_OF + HOUR, **told)))
    assert (later.before.codes, later.after.codes) == ((), ("DAILY_LOSS",))
