"""What is asked, in which order, and what an answer means."""

from __future__ import annotations

import math

import pytest

from app.domain.errors import InvalidRecord
from app.domain.model.actions import LABELS
from app.domain.model.inquiry import (
    INSTRUCTIONS,
    Exchange,
    Inquiry,
    Template,
    full_size,
    listed,
    sampled,
)
from app.domain.model.manifest import Calibration
from app.domain.record.decision import LEAST, Reading, propose
from tests import builders as build

HASH = "sha256:" + "0" * 64


def test_options_stand_in_the_order_that_is_asked_for() -> None:
    inquiry = Inquiry(order=tuple(reversed(LABELS)))
    assert [option.label for option in inquiry.options] == list("JIHGFEDCBA")
    assert inquiry.options[-1].name == "reject"
    assert (
        inquiry.options[0].description == "approve with 100% of the agent's risk, stop 2.5 ATR away"
    )


def test_an_order_names_every_option_once() -> None:
    with pytest.raises(InvalidRecord, match="each of A, B, C"):
        Inquiry.from_json({"order": ["A", "B"]})
    with pytest.raises(InvalidRecord, match="each of A, J once"):
        Inquiry.from_json({"template": "trade", "order": ["A", "B"]})


def test_permuted_is_another_order_of_the_same_options_and_follows_from_the_seed() -> None:
    inquiry = Inquiry()
    orders = {inquiry.permuted(str(seed)).order for seed in range(50)}
    assert all(sorted(order) == list(LABELS) for order in orders)
    assert LABELS not in orders
    assert len(orders) > 40
    assert inquiry.permuted("7") == inquiry.permuted("7")
    pair = Inquiry(template=Template.TRADE, order=listed(Template.TRADE))
    assert {pair.permuted(str(seed)).order for seed in range(20)} == {("J", "A")}


@pytest.mark.parametrize(
    ("stop", "name"),
    [
        (1970.0, "approve_r1.00_s1.5"),
        (1980.0, "approve_r1.00_s1.0"),
        (1900.0, "approve_r1.00_s2.5"),
        (1961.0, "approve_r1.00_s1.5"),
        (1959.0, "approve_r1.00_s2.5"),
    ],
)
def test_to_trade_is_all_of_the_risk_at_the_stop_nearest_to_the_plans(
    stop: float, name: str
) -> None:
    scenario = build.scenario(plan__stop=stop)
    assert full_size(scenario).name == name
    trade = Inquiry(template=Template.TRADE, order=("A", "J"))
    assert trade.action_of("J", scenario).name == name
    assert trade.action_of("A", scenario).name == "reject"
    assert Inquiry().action_of("J", scenario).name == "approve_r1.00_s2.5"


def test_told_probabilities_times_the_mass_that_fell_on_options_make_a_reading() -> None:
    exchange = Exchange(question=HASH, order=LABELS, seconds=0.5, label_mass=0.5)
    reading = Reading.told({"A": 0.25, "H": 0.75}, exchange)
    assert reading.log_probabilities[0] == pytest.approx(math.log(0.125))
    assert reading.log_probabilities[7] == pytest.approx(math.log(0.375))
    assert reading.log_probabilities[1] == math.log(LEAST)
    assert reading.label_mass == pytest.approx(0.5)
    assert reading.exchange == exchange
    proposal = propose(reading, Calibration())
    assert proposal.label == "H"
    assert proposal.approve_probability == pytest.approx(0.75)


def test_where_no_mass_is_told_it_is_taken_as_one() -> None:
    exchange = Exchange(question=HASH, order=LABELS, seconds=0.5)
    assert Reading.told({"A": 0.2, "B": 0.8}, exchange).label_mass == pytest.approx(1.0)


def test_a_reading_of_our_own_is_written_as_before() -> None:
    assert set(build.reading().as_json()) == {"log_probabilities"}


def test_a_share_is_met_and_asks_nobody_twice() -> None:
    chosen = [sampled(0.2, number, "jev") for number in range(2000)]
    assert chosen == [sampled(0.2, number, "jev") for number in range(2000)]
    assert 340 < sum(chosen) < 460
    assert not any(sampled(0.0, number) for number in range(100))
    assert all(sampled(1.0, number) for number in range(100))


def test_it_is_asked_in_the_words_of_its_template_unless_others_are_given() -> None:
    trade = Inquiry(template=Template.TRADE, order=listed(Template.TRADE))
    assert trade.text == INSTRUCTIONS[Template.TRADE]
    assert Inquiry(instructions="Be brief.").text == "Be brief."
    assert [option.name for option in trade.options] == ["reject", "trade"]
    assert trade.options[1].description == "open the position as the agent plans it"


def test_where_no_atr_is_known_the_full_size_has_the_middle_stop() -> None:
    assert full_size(build.scenario(candidate__atr=None)).name == "approve_r1.00_s1.5"
