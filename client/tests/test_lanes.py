"""What a lane gives out next, by hand."""

from __future__ import annotations

import math

from shadow_advisor_client.lanes import ADVISE, Breaker, Lane, Message


def message(decision: str, name: str = "", waited_for: bool = False) -> Message:
    return Message("POST", ADVISE, name.encode(), 0.0, decision, waited_for=waited_for)


def lane(*messages: Message, failures: int = 2) -> Lane:
    made = Lane(places=10, workers=4, breaker_failures=failures)
    for each in messages:
        made.add(each)
    return made


def nothing(decision_id: str) -> bool:
    return False


def test_decisions_come_in_order_and_one_at_a_time() -> None:
    a, b = message("a"), message("b")
    both = lane(a, b)
    assert both.take(0.0, nothing) is a
    assert both.take(0.0, nothing) == math.inf, "one that nobody waits for is under way"
    both.done(a)
    assert both.take(0.0, nothing) is b
    both.done(b)
    assert len(both) == 0


def test_what_somebody_waits_for_comes_first_and_beside_others() -> None:
    a, b, asked, also = message("a"), message("b"), message("c", "", True), message("d", "", True)
    four = lane(a, b, asked, also)
    assert [four.take(0.0, nothing) for _ in range(3)] == [asked, also, a]
    four.give_up(asked)
    four.done(a)
    assert four.take(0.0, nothing) == math.inf, "nobody waits for the one under way any longer"
    four.done(asked)
    assert four.take(0.0, nothing) is b


def test_an_earlier_message_on_the_same_decision_goes_first_even_when_the_later_is_waited_for() -> (
    None
):
    early, other, late = message("a", "early"), message("b"), message("a", "late", True)
    three = lane(early, other, late)
    assert three.take(0.0, nothing) is early
    assert three.take(0.0, nothing) == math.inf
    three.done(early)
    assert three.take(0.0, nothing) is late


def test_a_failure_holds_its_own_decision_alone() -> None:
    first, second, other = message("a", "1"), message("a", "2"), message("b")
    three = lane(first, second, other)
    assert three.take(0.0, nothing) is first
    three.again(first, not_before=7.0)
    assert three.take(1.0, nothing) is other
    three.done(other)
    assert three.take(1.0, nothing) == 6.0
    assert three.take(7.0, nothing) is first
    three.done(first)
    assert three.take(7.0, nothing) is second


def test_what_is_held_by_another_lane_waits_and_nothing_else_does() -> None:
    a, b = message("a"), message("b")
    both = lane(a, b)
    assert both.take(0.0, "a".__eq__) is b
    both.done(b)
    assert both.take(0.0, "a".__eq__) == math.inf
    assert both.take(0.0, nothing) is a


def test_the_breaker_opens_after_failures_in_a_row_and_lets_one_try() -> None:
    a, b, asked = message("a"), message("b"), message("c", "", True)
    three = lane(a, b)
    for now, state in ((0.0, Breaker.CLOSED), (1.0, Breaker.OPEN)):
        assert three.take(now, nothing) is a
        three.again(a, not_before=now)
        three.failed(now, pause_s=5.0)
        assert three.breaker(now) is state
    assert three.take(2.0, nothing) == 4.0
    assert three.breaker(6.0) is Breaker.HALF_OPEN
    assert three.take(6.0, nothing) is a
    three.add(asked)
    assert three.take(6.0, nothing) == math.inf, "one tries"
    three.reached()
    three.done(a)
    assert three.breaker(6.0) is Breaker.CLOSED
    assert three.take(6.0, nothing) is asked


def test_places_are_counted_over_all_and_some_are_left_for_what_somebody_waits_for() -> None:
    full = lane(*(message(str(number)) for number in range(10)))
    assert full.is_full(message("x"))
    assert not full.is_full(message("x", "", True))
    full.take(0.0, nothing)
    assert full.is_full(message("x")), "what is under way has a place"
    assert len(full.clear()) == 9
    assert len(full) == 1
