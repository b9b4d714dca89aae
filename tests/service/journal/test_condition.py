"""Whether the queue server keeps what it confirms, from its own words alone."""

from __future__ import annotations

from typing import Any

import pytest

from app.journal.condition import condition

KEEPS: dict[str, Any] = {
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_rewrite_in_progress": 0,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "used_memory": 900,
    "evicted_keys": 0,
}
ALWAYS = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
FULL_DISK = "its last write to the append-only file failed: free its disk"
ANEW = "the append-only file is being written anew, wait until it is"


def test_a_server_that_writes_and_keeps_everything_is_durable() -> None:
    assert condition(KEEPS, ALWAYS, was_durable=None) == (True, (), 0.0, 0)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"aof_enabled": 0}, "appendonly is no: set it to yes"),
        ({"aof_last_write_status": "err"}, FULL_DISK),
        (
            {"maxmemory_policy": "volatile-ttl"},
            "maxmemory-policy is volatile-ttl: set it to noeviction",
        ),
    ],
)
def test_each_word_of_forgetting_is_a_fault_with_what_to_do(
    said: dict[str, Any], fault: str
) -> None:
    seen = condition(KEEPS | said, ALWAYS, was_durable=True)
    assert (seen.durable, seen.faults) == (False, (fault,))
    # Where the settings are withheld, what is told counts all the same.
    assert condition(KEEPS | said, None, was_durable=True).durable is False


def test_without_a_word_on_settings_nothing_is_promised() -> None:
    assert condition(KEEPS, None, was_durable=True).durable is None


def test_a_file_that_is_begun_holds_nothing_yet_and_one_that_is_rewritten_does() -> None:
    for word in ("aof_rewrite_in_progress", "aof_rewrite_scheduled"):
        begun = condition(KEEPS | {word: 1}, ALWAYS, was_durable=None)
        assert (begun.durable, begun.faults) == (False, (ANEW,))
        assert condition(KEEPS | {word: 1}, ALWAYS, was_durable=True).durable is True


def test_memory_is_short_from_nine_tenths_on_and_durable_all_the_same() -> None:
    just = condition(KEEPS | {"maxmemory": 1000, "evicted_keys": 3}, ALWAYS, was_durable=True)
    assert just == (True, (), 0.9, 3)
    short = condition(KEEPS | {"maxmemory": 999}, ALWAYS, was_durable=True)
    assert short.durable is True
    assert short.faults == ("90% of maxmemory is used: let the writer catch up, or give it more",)
