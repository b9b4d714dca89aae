"""Where an alias goes back to."""

from __future__ import annotations

from app.domain.model.aliases import rollback_reason, rollback_target


def history(*moves: str) -> list[dict[str, str]]:
    """`B` moves to B; `<A` goes back to A."""
    return [
        {
            "model_version": move.lstrip("<"),
            "reason": rollback_reason("x", "slow") if move.startswith("<") else "passed",
        }
        for move in moves
    ]


def test_two_rollbacks_in_a_row_go_two_versions_back() -> None:
    assert rollback_target(history("A", "B", "C")) == "B"
    assert rollback_target(history("A", "B", "C", "<B")) == "A"
    assert rollback_target(history("A", "B", "C", "<B", "<A")) is None


def test_what_was_chosen_again_by_hand_goes_back_to_what_stood_between() -> None:
    assert rollback_target(history("A", "B", "A")) == "B"


def test_what_was_rolled_back_from_is_never_restored() -> None:
    assert rollback_target(history("A", "bad", "<A", "C")) == "A"


def test_the_same_version_twice_is_one_stand_and_a_first_one_has_nothing_before() -> None:
    assert rollback_target(history("A", "A")) is None
    assert rollback_target(history("A", "B", "B")) == "A"
    assert rollback_target([]) is None


def test_a_rollback_to_what_never_stood_is_a_move_like_any_other() -> None:
    assert rollback_target(history("A", "<Z")) == "A"


def test_the_reason_names_the_version_and_keeps_what_was_said() -> None:
    assert rollback_reason("v2", "") == "rollback from v2"
    assert rollback_reason("v2", "slow") == "rollback from v2: slow"
