"""What other limits would have done, worked out by hand. The plain plan risks 7.5 (0.25 x 30)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from app.domain.errors import AbstainReason
from app.domain.record.decision import Abstention
from app.domain.rules.limits import Limits
from app.domain.what_if.book import Book
from app.domain.what_if.judge import Judge
from app.domain.what_if.past import AGENT, Grade, Judged, Past
from app.domain.what_if.tally import By, Tally
from tests.builders import AS_OF, LIMITS, MODEL, decision

HOUR = timedelta(hours=1)
LOOSE = LIMITS.model_copy(
    update={
        "consecutive_losses": LIMITS.consecutive_losses.model_copy(
            update={"max_count": 2, "cool_down_after": 99}
        )
    }
)


def with_spike(limit: float, limits: Limits = LIMITS) -> Limits:
    """Limits that refuse from another volatility percentile on."""
    spike = limits.volatility_spike.model_copy(update={"max_percentile": limit})
    return limits.model_copy(update={"volatility_spike": spike})


def past(
    name: str = "p",
    *,
    at: datetime = AS_OF,
    r: float | None = 1.0,
    approves: bool | None = True,
    advice_r: float | None = None,
    label: str | Abstention = "H",
    **overrides: Any,
) -> Past:
    """A decision whose trade ended half an hour later."""
    made = decision(name, at=at, label=label, limits=LIMITS, **overrides)
    return Past(made, approves, r, {MODEL: advice_r}, at + HOUR / 2, None if r is None else 7.5 * r)


def agent(judge: Judge, it: Past) -> Judged:
    return next(judge.arms(it))


def test_the_recorded_limits_change_nothing() -> None:
    judged = list(Judge(LIMITS).arms(past(r=0.5, advice_r=0.25)))
    assert [one.arm for one in judged] == [AGENT, MODEL]
    assert [one.grade for one in judged] == [Grade.SAME, Grade.SAME]
    assert (judged[0].r_before, judged[0].r_after) == (0.5, 0.5)
    assert (judged[1].r_before, judged[1].r_after) == (0.25, 0.25)


def test_a_stateless_rule_refuses_for_certain_and_saves_what_was_lost() -> None:
    it = past(r=-1.2, advice_r=-0.6, candidate__volatility_pct=0.8)
    own, advice = Judge(with_spike(0.7)).arms(it)
    for judged, before in ((own, -1.2), (advice, -0.6)):
        assert judged.after.codes == ("VOLATILITY_SPIKE",)
        assert judged.grade is Grade.CERTAIN
        assert (judged.r_before, judged.r_after) == (before, 0.0)


def test_an_agent_that_rejected_earns_nothing_either_way() -> None:
    it = past(r=-1.2, approves=False, candidate__volatility_pct=0.8)
    judged = agent(Judge(with_spike(0.7)), it)
    assert (judged.r_before, judged.r_after) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("r", "approves", "why"), [(None, True, "no outcome"), (1.0, None, "never said")]
)
def test_what_is_not_known_is_said_and_not_counted(
    r: float | None, approves: bool | None, why: str
) -> None:
    it = past(r=r, approves=approves, candidate__volatility_pct=0.8)
    judged = agent(Judge(with_spike(0.7)), it)
    assert judged.grade is Grade.UNDETERMINED
    assert why in judged.why
    tally = Tally()
    tally.add(judged)
    assert tally.arms[AGENT].judged == 0
    assert tally.as_json()["arms"][AGENT]["gain_r_a_decision"] is None


def test_a_cap_takes_its_share_of_the_profit() -> None:
    """0.25 x 2,000 is a notional of 500; a limit of 200 leaves 0.1 of it: two fifths."""
    exposure = LIMITS.exposure.model_copy(update={"max_notional": 200.0})
    judged = agent(Judge(LIMITS.model_copy(update={"exposure": exposure})), past(r=2.0))
    assert judged.after.approves
    assert judged.after.quantity == pytest.approx(0.1)
    assert judged.r_after == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("traded", "earns"), [(None, 0.8), (0.25, 0.8), (0.125, 1.6), (0.05, 2.0), (0.5, 0.4)]
)
def test_a_cap_is_of_what_the_agent_would_have_traded(traded: float | None, earns: float) -> None:
    """0.1 are left of a plan of 0.25, of which the agent traded a part, or more; 2 R were earned by
    what it traded."""
    exposure = LIMITS.exposure.model_copy(update={"max_notional": 200.0})
    limits = LIMITS.model_copy(update={"exposure": exposure})
    judged = agent(Judge(limits), past(r=2.0)._replace(agent_quantity=traded))
    assert judged.r_before == 2.0
    assert judged.r_after == pytest.approx(earns)


def test_a_vetoed_advice_that_would_be_let_through_was_never_simulated() -> None:
    """Recorded under tight limits, so refused; the wider ones approve it, with no outcome known."""
    made = decision("v", candidate__volatility_pct=0.8, limits=with_spike(0.7))
    it = Past(made, True, 1.0, {MODEL: 0.0}, None, None)
    _, advice = Judge(LIMITS).arms(it)
    assert (advice.before.approves, advice.after.approves) == (False, True)
    assert advice.grade is Grade.UNDETERMINED
    assert advice.r_after is None


def test_an_abstention_is_no_matter_of_limits() -> None:
    it = past(label=Abstention(AbstainReason.DEADLINE))
    assert [judged.arm for judged in Judge(LIMITS).arms(it)] == [AGENT]


def losses(*, spike_on_first: bool) -> list[Past]:
    """Two losses an hour apart, then a candidate that the agent reports two losses in a row at."""
    calm: dict[str, Any] = {"candidate__volatility_pct": 0.5}
    wild: dict[str, Any] = {"candidate__volatility_pct": 0.8}
    told: dict[str, Any] = {"account__consecutive_losses": 2, "account__seconds_since_loss": 1800.0}
    return [
        past("a", r=-1.0, **(wild if spike_on_first else calm)),
        past("b", at=AS_OF + HOUR, r=-1.0, **calm),
        past("c", at=AS_OF + 2 * HOUR, r=0.7, **calm, **told),
    ]


def test_losses_in_a_row_are_counted_over_the_trades_that_were_left() -> None:
    """At most one loss in a row: as recorded the third is refused after two; had the first been
    refused, one loss came before it, and the third is traded: an assumption, and named."""
    judge = Judge(with_spike(0.7, LOOSE), LOOSE)
    first, second, third = (agent(judge, it) for it in losses(spike_on_first=True))
    assert first.after.codes == ("VOLATILITY_SPIKE",)
    assert second.grade is Grade.SAME
    assert third.before.codes == ("CONSECUTIVE_LOSSES",)
    assert third.after.codes == ()
    assert third.grade is Grade.ASSUMED
    assert third.why
    assert (third.r_before, third.r_after) == (0.0, 0.7)


def test_a_stop_of_trading_is_forgotten_after_a_day() -> None:
    judge = Judge(LOOSE, LOOSE)
    later = past(
        "d", at=AS_OF + 40 * HOUR, r=0.5, account__consecutive_losses=3,
        account__seconds_since_loss=60.0,
    )  # fmt: skip
    refused = [agent(judge, it) for it in losses(spike_on_first=False)][-1]
    assert refused.before.codes == ("CONSECUTIVE_LOSSES",)
    assert agent(judge, later).before.codes == ()
    strict = Judge(LOOSE, LOOSE, timedelta(days=30))
    for it in losses(spike_on_first=False):
        agent(strict, it)
    assert agent(strict, later).before.codes == ("CONSECUTIVE_LOSSES",)


def test_a_position_that_was_never_opened_leaves_room() -> None:
    """One position at most: the second candidate finds the first one's, unless that was refused."""
    count = LIMITS.open_positions.model_copy(update={"max_count": 1})
    tight = LIMITS.model_copy(update={"open_positions": count})
    first = past("a", r=1.0, candidate__volatility_pct=0.8)._replace(closed_at=AS_OF + 9 * HOUR)
    symbol = first.decision.scenario.candidate.symbol
    held = [{"symbol": symbol, "quantity": 0.001, "entry": 2000.0, "stop": 1970.0}]
    second = past("b", at=AS_OF + HOUR, candidate__volatility_pct=0.5, account__positions=held)
    judge = Judge(with_spike(0.7, tight), tight)
    assert agent(judge, first).after.codes == ("VOLATILITY_SPIKE",)
    judged = agent(judge, second)
    assert judged.before.codes == ("OPEN_POSITIONS", "DUPLICATE_SYMBOL")
    assert judged.after.codes == ()
    assert judged.grade is Grade.ASSUMED


def test_profit_of_the_day_is_taken_back_with_the_trade() -> None:
    """-7.5 of an equity of 1,000 is -0.75 % of the day, and nothing once the trade is refused."""
    loss = LIMITS.daily_loss.model_copy(update={"max_fraction": 0.005})
    tight = LIMITS.model_copy(update={"daily_loss": loss})
    first = past("a", r=-1.0, candidate__volatility_pct=0.8)
    second = past("b", at=AS_OF + HOUR, account__equity=1000.0, account__day_pnl_fraction=-0.0075)
    judge = Judge(with_spike(0.7, tight), tight)
    agent(judge, first)
    judged = agent(judge, second)
    assert "DAILY_LOSS" in judged.before.codes
    assert "DAILY_LOSS" not in judged.after.codes


def test_a_capped_trade_counts_in_the_account_with_what_it_would_have_earned() -> None:
    """-7.5 is -0.75 % of the day; of the two fifths that a cap leaves, -0.3 %."""
    loss = LIMITS.daily_loss.model_copy(update={"max_fraction": 0.005})
    tight = LIMITS.model_copy(update={"daily_loss": loss})
    exposure = LIMITS.exposure.model_copy(update={"max_notional": 200.0})
    judge = Judge(tight.model_copy(update={"exposure": exposure}), tight)
    first = agent(judge, past("a", r=-1.0))
    assert first.r_after == pytest.approx(-0.4)
    second = past("b", at=AS_OF + HOUR, account__equity=1000.0, account__day_pnl_fraction=-0.0075)
    judged = agent(judge, second)
    assert "DAILY_LOSS" in judged.before.codes
    assert "DAILY_LOSS" not in judged.after.codes
    assert judged.grade is Grade.ASSUMED


def test_the_tally_sums_by_arm_and_code() -> None:
    tally = Tally()
    judge = Judge(with_spike(0.7))
    for i, r in enumerate((-1.0, 0.4, None)):
        it = past(f"t{i}", at=AS_OF + i * HOUR, r=r, candidate__volatility_pct=0.8)
        tally.add(agent(judge, it))
    arm = tally.arms[AGENT]
    assert (arm.decisions, arm.approved_before, arm.approved_after) == (3, 3, 0)
    assert (arm.r_before, arm.r_after, arm.judged) == (pytest.approx(-0.6), 0.0, 2)
    assert tally.codes["VOLATILITY_SPIKE"].refused_after == 3
    assert tally.codes["VOLATILITY_SPIKE"].r_saved_after == pytest.approx(0.6)
    document = tally.as_json()
    assert document["arms"][AGENT]["grades"] == {
        "same": 0, "certain": 2, "assumed": 0, "undetermined": 1,
    }  # fmt: skip
    assert len(document["changed"]) == 3


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (By.SYMBOL, {"BTCUSDT": 2, "ETHUSDT": 1}),
        (By.SETUP, {"trend": 3}),
        (By.SESSION, {"Europe": 3}),
        (By.REGIME, {"volatile": 3}),
    ],
)
def test_the_tally_sums_by_group_as_well(by: By, groups: dict[str, int]) -> None:
    tally, judge = Tally(by), Judge(with_spike(0.7))
    for i, symbol in enumerate(("BTCUSDT", "ETHUSDT", "BTCUSDT")):
        it = past(
            f"t{i}",
            at=AS_OF + i * HOUR,
            r=-1.0,
            candidate__volatility_pct=0.8,
            candidate__symbol=symbol,
        )
        tally.add(agent(judge, it))
    of_agent = tally.groups[AGENT]
    assert {name: each.decisions for name, each in of_agent.items()} == groups
    assert sum(each.r_before for each in of_agent.values()) == tally.arms[AGENT].r_before == -3.0
    document = tally.as_json()
    assert document["by"] == by.value
    assert document["groups"][AGENT].keys() == groups.keys()


def test_the_tally_counts_what_a_code_saved_before_and_reckons_nothing_of_it_to_advice() -> None:
    tally = Tally()
    for judged in Judge(LIMITS, with_spike(0.7)).arms(past(r=-1.0, candidate__volatility_pct=0.8)):
        tally.add(judged)
    code = tally.codes["VOLATILITY_SPIKE"]
    assert (code.refused_before, code.r_saved_before, code.refused_after) == (1, 1.0, 0)
    assert set(tally.arms) == {AGENT, MODEL}
    changed = len(tally.changed)
    tally.add(agent(Judge(LIMITS), past("same")))
    assert (len(tally.changed), tally.arms[AGENT].decisions) == (changed, 2)


def test_what_was_not_reported_of_the_account_stays_unknown() -> None:
    book = Book()
    book.note(past("a", r=-1.0), approved=False, net_pnl=None)
    unknown = past(
        "b",
        at=AS_OF + HOUR,
        account__positions=None,
        account__consecutive_losses=None,
        account__day_pnl_fraction=None,
    )
    assert book.account(unknown) == unknown.decision.scenario.account


def test_positions_of_other_symbols_stay_and_a_win_ends_the_losses_in_a_row() -> None:
    book = Book()
    book.note(past("a", r=-1.0), approved=False, net_pnl=None)
    book.note(past("b", at=AS_OF + HOUR, r=-1.0), approved=True, net_pnl=None)
    book.note(past("c", at=AS_OF + 2 * HOUR, r=1.0), approved=True, net_pnl=None)
    held = [{"symbol": "XRPUSDT", "quantity": 1.0, "entry": 1.0, "stop": 0.9}]
    now = past("d", at=AS_OF + 3 * HOUR, account__positions=held, account__consecutive_losses=2)
    account = book.account(now)
    assert [position.symbol for position in account.positions or ()] == ["XRPUSDT"]
    # The last loss ended an hour and a half before: b began at 1:00 and took half an hour.
    assert (account.consecutive_losses, account.seconds_since_loss) == (0, 5400.0)


def test_what_a_trade_with_a_capped_stop_would_have_earned_is_not_known() -> None:
    near_stop = past().decision.scenario.plan.stop
    near = LIMITS.stop_distance.model_copy(update={"max_atr": 1.0, "on_excess": "cap"})
    judged = agent(Judge(LIMITS.model_copy(update={"stop_distance": near})), past(r=1.0))
    assert judged.after.approves
    assert judged.after.stop != near_stop
    assert (judged.r_after, judged.why) == (None, "a capped stop is another trade")
