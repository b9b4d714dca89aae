"""A few rounds of faults, and whether the judge would notice a lost, doubled or altered answer.
Many rounds: `make chaos`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.domain.canonical import decision_id
from tests.chaos import rounds as rounds_module
from tests.chaos.faults import FAULTS
from tests.chaos.judge import judge
from tests.chaos.load import Load
from tests.chaos.rounds import Round, rounds, summary
from tests.chaos.stack import Stack, living
from tests.conftest import open_directory


@pytest.fixture
def home() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


async def test_a_killed_replica_a_killed_postgres_and_an_emptied_valkey(home: Path) -> None:
    names = ["replica killed", "Postgres killed", "Valkey emptied"]
    done = [each async for each in rounds(3, 1, names, keep=home)]
    assert sorted(each.name for each in done) == sorted(names)
    assert [each.violations for each in done] == [[], [], []], summary(done)
    [emptied] = [each for each in done if each.name == "Valkey emptied"]
    assert emptied.lost > 0, "nothing was in the queue: the round proved nothing"
    assert emptied.lost <= emptied.missing


async def test_the_judge_notices_what_is_lost_doubled_or_altered(home: Path) -> None:
    async with living(home) as stack:
        load = Load([replica.url for replica in stack.replicas], seed=1)
        load.begin()
        await load.go_on(60)
        await load.finish()
        await load.aclose()
        await stack.quiet()
        fair = await judge(stack, load)
        assert (fair.lost, fair.missing, fair.violations) == (0, 0, [])
        assert fair.answered == load.fresh > 20
        gone, altered = [
            decision_id(key) for key, told in load.told.items() if told.fresh and not told.actions
        ][:2]
        unwatched = "SET session_replication_role = replica"  # As only a superuser can.
        stack.sql(f"{unwatched}; DELETE FROM decisions WHERE decision_id = '{gone}'")
        stack.sql(
            f'{unwatched}; UPDATE advices SET record = record || \'{{"model_version": "other"}}\''
            f" WHERE decision_id = '{altered}'"
        )
        unfair = await judge(stack, load)
        assert (unfair.lost, unfair.missing, unfair.uncounted) == (2, 0, 2)


async def test_a_life_that_does_not_begin_is_told_and_others_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def crowded() -> None:
        raise TimeoutError

    @asynccontextmanager
    async def living_too_late(home: Path) -> AsyncIterator[Stack]:
        await crowded()
        yield  # type: ignore[misc]

    monkeypatch.setattr(rounds_module, "living", living_too_late)
    done = [each async for each in rounds(2, 1, ["replica killed"])]
    assert [each.number for each in done] == [1, 2]
    assert all("its life did not begin: TimeoutError" in each.violations[0] for each in done)


def test_the_summary_adds_up_and_tells_the_worst() -> None:
    [emptied] = [fault for fault in FAULTS if fault.name == "Valkey emptied"]
    rounds_ = [
        Round(1, [emptied], recovery_s=2.0, answered=10, lost=3, missing=3),
        Round(2, [emptied], recovery_s=4.0, answered=20, violations=["no"]),
    ]
    table = summary(rounds_)
    assert (
        "Valkey emptied                    2        30        0     3        3         1" in table
    )
    assert "2 rounds: 30 events answered as recorded, 3 of them lost with Valkey's data" in table
    assert "1 rounds violated; start p95 0.0 s, recovery p95" in table
    assert "3.0 s   4.0 s" in table


def test_every_fault_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) == 28
