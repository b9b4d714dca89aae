"""Scenarios of the shadow log: those that were served, byte for byte; what is no verdict is left
out and counted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from app.domain.errors import ShadowLogUnavailable
from app.domain.exits import Fixed
from app.domain.record.control import AgentAction
from app.shadow_log.importing.imports import row_of
from app.shadow_log.importing.trade import ImportedTrade
from app.shadow_log.log import ShadowLog
from tests import builders as build
from training.config.data import HeldOutConfig, ScenariosConfig
from training.scenarios.recorded import RecordedLog, log_state, of_log, read_log
from training.scenarios.table import ScenarioError, ScenarioSet
from training.stages.workshop import Workshop

HOUR = 3600
LOG = ScenariosConfig(source="shadow_log", embargo_hours=0)


async def fill(url: str, *events: Any) -> None:
    log = ShadowLog.connect(url)
    await log.append(list(events))
    await log.aclose()


def hours(count: float) -> datetime:
    return build.AS_OF + timedelta(hours=count)


def scenario_set(folder: Path, url: str, **config: Any) -> tuple[ScenarioSet, dict[str, Any]]:
    settings = ScenariosConfig(**{"source": "shadow_log", "embargo_hours": 0} | config)
    log = RecordedLog.now(url, settings, HOUR)
    made = Workshop(folder).make(of_log, log=log, settings=settings, label_seconds=HOUR)
    return ScenarioSet.open(made), made.facts


async def test_scenarios_are_those_of_the_record(database_url: str, tmp_path: Path) -> None:
    decisions = [
        build.decision(f"r-{n}", at=hours(8 * n), control=n % 2 == 0, candidate__rsi=30.0 + n)
        for n in range(10)
    ]
    await fill(database_url, *(build.Event.of_decision(one) for one in decisions))
    made, facts = scenario_set(tmp_path, database_url)
    assert made.table["id"].to_list() == [one.scenario.hash() for one in decisions]
    assert made.table["decision_id"].to_list() == [str(one.decision_id) for one in decisions]
    assert made.scenarios() == [one.scenario for one in decisions]
    assert set(made.table["source"]) == {"shadow_log"}
    assert [control.decision for control in made.controls() if control] == [
        n % 2 == 0 for n in range(10)
    ]
    assert (facts["real"], facts["controls"], facts["control_approvals"]) == (10, 10, 5)
    assert (made.weight == 1).all()


async def test_the_newest_control_and_outcome_of_an_arm_count_and_are_kept_beside(
    database_url: str, tmp_path: Path
) -> None:
    await fill(
        database_url,
        build.decision_event("early", at=hours(0)),
        build.decision_event("late", at=hours(10), candidate__rsi=40.0),
        build.action_event("late", False, minutes=601),
        build.action_event("late", True, minutes=602),
        build.outcome_event("late", build.outcome(r=-1.0), minutes=700),
        build.outcome_event("late", build.outcome(r=0.5), minutes=800),
        build.outcome_event("late", build.outcome("advice", r=2.0), minutes=810),
    )
    made, _ = scenario_set(tmp_path, database_url)
    first, second = made.controls()
    assert first is None
    assert second is not None
    assert second.decision is True
    assert made.reported["row"].to_list() == [1, 1]
    kept = [json.loads(text) for text in made.reported["outcome"]]
    assert [(each["arm"], each["net_pnl"]) for each in kept] == [
        ("agent", 0.5 * build.PLAN_RISK),
        ("advice", 2.0 * build.PLAN_RISK),
    ]


async def test_skips_for_outages_and_the_held_out_period_are_left_out_and_counted(
    database_url: str, tmp_path: Path
) -> None:
    held_out = datetime(2022, 12, 31, 18, tzinfo=UTC)
    await fill(
        database_url,
        build.decision_event("before", at=held_out - timedelta(hours=2)),
        # Its label would reach one hour into the held-out period.
        build.decision_event("reaching", at=held_out),
        build.decision_event("within", at=datetime(2024, 6, 1, tzinfo=UTC)),
        build.decision_event("after", at=datetime(2025, 1, 1, tzinfo=UTC)),
        build.decision_event("outage", at=hours(1)),
        build.outcome_event("outage", build.outcome(exogenous_skip=True)),
        build.decision_event("judged", at=hours(20)),
        # A skip that was reported by mistake, and corrected, is none.
        build.outcome_event("judged", build.outcome(exogenous_skip=True), minutes=60),
        build.outcome_event("judged", build.outcome(r=1.0), minutes=90),
    )
    made, facts = scenario_set(tmp_path, database_url)
    assert facts["excluded"] == {"exogenous_skip": 1, "held_out": 2}
    assert len(made) == 3
    assert {one.as_of.year for one in made.scenarios()} == {2022, 2025, 2026}


async def test_who_holds_longer_reaches_the_held_out_period_earlier(
    database_url: str, tmp_path: Path
) -> None:
    held_out = datetime(2022, 12, 31, 18, tzinfo=UTC)
    day = {"kind": "time", "hours": 24.0}
    await fill(
        database_url,
        build.decision_event("six hours", at=held_out - timedelta(hours=2)),
        build.decision_event("a day", at=held_out - timedelta(hours=3), plan__exits=day),
        build.decision_event("early", at=held_out - timedelta(hours=30), plan__exits=day),
        build.decision_event("judged", at=hours(20)),
    )
    made, facts = scenario_set(tmp_path, database_url)
    assert facts["excluded"]["held_out"] == 1
    assert [one.exits.kind for one in made.scenarios()] == ["time", "trail", "trail"]
    made, facts = scenario_set(tmp_path / "declared", database_url, exits=Fixed(hours=24))
    assert facts["excluded"]["held_out"] == 2
    assert [one.exits.kind for one in made.scenarios()] == ["time", "fixed"]


async def test_a_repeated_scenario_counts_once_and_unreadable_ones_are_counted(
    database_url: str, tmp_path: Path
) -> None:
    await fill(
        database_url,
        *(build.decision_event(f"r-{n}", at=hours(8 * n)) for n in range(4)),
        build.decision_event("again", at=hours(8)),
        build.decision_event("other release", at=hours(9)),
    )
    with psycopg.connect(database_url.replace("+psycopg", "")) as admin:
        # An older release's record: the log is append-only.
        admin.execute("SET session_replication_role = replica")
        admin.execute(
            "UPDATE decisions SET scenario = '{\"v\": 0}' WHERE request_id = 'other release'"
        )
    made, facts = scenario_set(tmp_path, database_url)
    assert len(made) == 4
    assert facts["excluded"] == {"duplicate": 1, "unreadable": 1}


async def test_overlapping_decisions_of_a_symbol_share_their_weight(
    database_url: str, tmp_path: Path
) -> None:
    """Two labels of 7 h, one hour apart: six hours of each are shared. Another symbol is alone."""
    await fill(
        database_url,
        build.decision_event("one", at=hours(0)),
        build.decision_event("two", at=hours(1)),
        build.decision_event("other", at=hours(1), candidate__symbol="BTCUSDT"),
        build.decision_event("validates", at=hours(50), candidate__symbol="SOLUSDT"),
    )
    made, facts = scenario_set(tmp_path, database_url)
    assert dict(zip(made.symbols, made.weight, strict=True))["BTCUSDT"] == 1.0
    shared = made.weight[made.symbols == "ETHUSDT"]
    assert shared == pytest.approx([(1 + 6 / 2) / 7] * 2)
    assert facts["mean_uniqueness"] == pytest.approx((2 + 2 * 4 / 7) / 4, abs=1e-4)


async def test_readings_that_may_be_defaults_and_an_agent_that_never_approves_are_told(
    database_url: str, tmp_path: Path
) -> None:
    """Traps of the agent's records: 50 may be a default unless its age is known."""
    half = {"candidate__fear_greed": 50, "candidate__btc_dominance": 50.0}
    await fill(
        database_url,
        build.decision_event("default", at=hours(0), control=False, **half),
        build.decision_event(
            "read", at=hours(8), control=False, **half, candidate__fear_greed_age_s=60.0
        ),
        build.decision_event("validates", at=hours(50), control=False),
    )
    _, facts = scenario_set(tmp_path, database_url)
    assert facts["possible_defaults"] == {"fear_greed": 1, "btc_dominance": 2}
    assert (facts["controls"], facts["control_approvals"]) == (3, 0)


async def test_a_limit_draws_evenly_and_the_period_bounds(
    database_url: str, tmp_path: Path
) -> None:
    await fill(database_url, *(build.decision_event(f"r-{n}", at=hours(24 * n)) for n in range(9)))
    made, facts = scenario_set(tmp_path, database_url, limit=3)
    assert made.as_of.tolist() == [int(hours(24 * n).timestamp()) for n in (0, 4, 8)]
    assert facts["excluded"]["beyond_limit"] == 6
    some = LOG.model_copy(update={"since": hours(24).date(), "until": hours(72).date()})
    found, _ = read_log(database_url, some, HOUR)
    assert [one.scenario.as_of for one in found] == [hours(24), hours(48)]


async def test_the_state_of_the_log_changes_with_every_event(database_url: str) -> None:
    await fill(database_url, build.decision_event("r-1"))
    before = log_state(database_url, LOG, HOUR)
    assert log_state(database_url, LOG, HOUR) == before
    await fill(database_url, build.outcome_event("r-1", build.outcome(r=1.0)))
    assert log_state(database_url, LOG, HOUR) != before


async def test_a_role_that_may_only_read_suffices(database_url: str) -> None:
    await fill(database_url, build.decision_event("r-1"))
    plain = database_url.replace("+psycopg", "")
    with psycopg.connect(plain) as admin:
        admin.execute("DROP ROLE IF EXISTS rebuilder")
        admin.execute("CREATE ROLE rebuilder LOGIN PASSWORD 'secret' IN ROLE advisor_reader")
    found, _ = read_log(f"postgresql+psycopg://rebuilder:secret@{plain.split('@')[1]}", LOG, HOUR)
    assert len(found) == 1
    with psycopg.connect(plain) as admin:
        admin.execute("DROP ROLE rebuilder")


async def test_an_empty_log_is_one_line(database_url: str) -> None:
    with pytest.raises(ScenarioError, match=r"no decision to learn from \(0 in the period"):
        read_log(database_url, LOG, HOUR)
    await fill(
        database_url,
        build.decision_event("r-1"),
        build.outcome_event("r-1", build.outcome(exogenous_skip=True)),
    )
    with pytest.raises(ScenarioError, match="1 in the period, 1 skipped for outages"):
        read_log(database_url, LOG, HOUR)


def test_a_database_without_the_schema_and_no_database_are_one_line(
    empty_database_url: str,
) -> None:
    with pytest.raises(ShadowLogUnavailable, match="advisor migrate"):
        read_log(empty_database_url, LOG, HOUR)
    with pytest.raises(ShadowLogUnavailable, match="check DATABASE_URL"):
        read_log("postgresql://nobody@127.0.0.1:9/none", LOG, HOUR)


async def test_of_wanted_symbols_alone(database_url: str, tmp_path: Path) -> None:
    await fill(
        database_url,
        *(build.decision_event(f"eth-{n}", at=hours(8 * n)) for n in range(4)),
        *(
            build.decision_event(f"btc-{n}", at=hours(8 * n + 1), candidate__symbol="BTCUSDT")
            for n in range(3)
        ),
        build.decision_event("sol", at=hours(2), candidate__symbol="SOLUSDT"),
        build.decision_event("outage", at=hours(3), candidate__symbol="BTCUSDT"),
        build.outcome_event("outage", build.outcome(exogenous_skip=True)),
        build.decision_event(
            "held out", at=datetime(2024, 6, 1, tzinfo=UTC), candidate__symbol="BTCUSDT"
        ),
    )
    made, facts = scenario_set(tmp_path, database_url, symbols=("ETHUSDT", "SOLUSDT"))
    assert made.symbols.tolist() == ["ETHUSDT", "SOLUSDT", "ETHUSDT", "ETHUSDT", "ETHUSDT"]
    assert facts["excluded"] == {}, "what was skipped or held out of another symbol is not told"
    found, left_out = read_log(database_url, LOG.model_copy(update={"symbols": ("BTCUSDT",)}), HOUR)
    assert [one.scenario.as_of for one in found] == [hours(1), hours(9), hours(17)]
    assert left_out == {"exogenous_skip": 1, "held_out": 1}
    every, _ = read_log(database_url, LOG, HOUR)
    assert len(every) == 8


async def test_a_limit_counts_decisions_of_the_wanted_symbols(
    database_url: str, tmp_path: Path
) -> None:
    await fill(
        database_url,
        *(build.decision_event(f"eth-{n}", at=hours(24 * n)) for n in range(9)),
        *(
            build.decision_event(f"btc-{n}", at=hours(24 * n), candidate__symbol="BTCUSDT")
            for n in range(5)
        ),
    )
    made, facts = scenario_set(tmp_path, database_url, limit=3, symbols=("BTCUSDT",))
    assert made.as_of.tolist() == [int(hours(24 * n).timestamp()) for n in (0, 2, 4)]
    assert facts["excluded"]["beyond_limit"] == 2
    wanted = LOG.model_copy(update={"limit": 3, "symbols": ("BTCUSDT",)})
    assert log_state(database_url, wanted, HOUR)["decisions"] == 5


async def test_a_symbol_that_the_log_never_saw_is_one_line(database_url: str) -> None:
    await fill(database_url, build.decision_event("r-1"))
    with pytest.raises(
        ScenarioError, match=r"no decision to learn from \(0 in the period"
    ) as refused:
        read_log(database_url, LOG.model_copy(update={"symbols": ("BTCUSDT", "{}")}), HOUR)
    assert "\n" not in str(refused.value)


def imported_trade(at: datetime, *, complete: bool = True) -> dict[str, Any]:
    """A row as `advisor import` adds it."""
    scenario = build.decision("imported", at=at, candidate__rsi=33.0).scenario
    trade = ImportedTrade(
        import_id=uuid4(),
        symbol="BTCUSDT",
        direction="long",
        as_of=at,
        action=AgentAction(decision=True),
        outcome=build.outcome(r=0.5),
        scenario=scenario if complete else None,
        missing=() if complete else ("candidate.atr",),
    )
    return row_of("freqtrade", trade)


async def test_imported_trades_train_where_they_are_complete_and_only_when_asked_for(
    database_url: str,
) -> None:
    await fill(database_url, build.decision_event("asked", at=hours(4)))
    log = ShadowLog.connect(database_url)
    rows = [imported_trade(hours(1)), imported_trade(hours(2), complete=False)]
    rows.append(imported_trade(datetime(2024, 6, 1, tzinfo=UTC)))  # Held out.
    assert await log.add_once("imported_trade", rows) == 3
    assert await log.add_once("imported_trade", rows) == 0
    await log.aclose()

    before = log_state(database_url, LOG, HOUR)
    alone, _ = read_log(database_url, LOG, HOUR)
    assert [one.scenario.as_of for one in alone] == [hours(4)]
    both = LOG.model_copy(update={"imported": True})
    found, left_out = read_log(database_url, both, HOUR)
    assert [one.scenario.as_of for one in found] == [hours(1), hours(4)]
    assert found[0].control == AgentAction(decision=True)
    assert [one.net_pnl for one in found[0].reported] == [0.5 * build.PLAN_RISK]
    assert left_out == {"exogenous_skip": 0, "held_out": 0}
    assert before != log_state(database_url, both, HOUR)


@pytest.mark.parametrize(
    ("section", "named"),
    [(ScenariosConfig, "set source = 'shadow_log'"), (HeldOutConfig, "never judged on")],
)
def test_imported_trades_are_of_the_log_and_are_not_judged_on(
    section: type[ScenariosConfig], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        section(imported=True)
