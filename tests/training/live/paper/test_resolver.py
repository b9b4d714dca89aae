"""Outcomes for decisions that lack one: which arms, what the bars tell, and once only."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import psycopg
import pytest
from shadow_advisor_client import AdvisorClient

from app.advising.serving import Models
from app.domain.errors import AbstainReason, ShadowLogUnavailable
from app.domain.exits import TRAIL, Barrier, Fixed, Freqtrade
from app.domain.record.decision import Abstention
from app.domain.record.outcome import Arm
from app.policy.scripted import ScriptedPolicy
from app.shadow_log.log import ShadowLog
from tests import builders as build
from tests.service.running import Running, running, settings_for, until, writing
from tests.training.support.candles import HOUR, START, table
from training.cli.paper import resolve_outcomes
from training.live.paper.books import follow
from training.live.paper.resolver import Resolved, resolve
from training.log import reading, symbols_without_outcome, without_outcome
from training.market.bars import Bars
from training.outcomes.labels import AGENT, judge, plan_orders, shares_of
from training.outcomes.orders import plan_order
from training.outcomes.simulate import COSTS

AT = datetime.fromtimestamp(START, UTC)
BARS = table((100, 101, 99, 100), (99, 100, 96, 97), *[(97, 98, 96, 97)] * 10)
"""An entry at 100; the second bar falls through a stop of 97."""


PLAN: dict[str, Any] = {
    "candidate__symbol": "BTCUSDT", "candidate__atr": 2.0, "plan__entry": 100.0,
    "plan__stop": 97.0,
    "plan__targets": [106.0, 108.0, 110.0], "plan__quantity": 5.0, "market__last_close": 100.0,
}  # fmt: skip
"""A long of 5 at 100, stop 97, targets 106 to 110, ATR 2."""


def plan(request_id: str, at: datetime = AT, **more: Any) -> Any:
    return build.decision_event(request_id, at=at, **(PLAN | more))


@pytest.fixture
async def service(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings, Models(ScriptedPolicy(["H"]))) as api, writing(settings):
        yield api


async def fill(url: str, *events: Any) -> None:
    log = ShadowLog.connect(url)
    await log.append(list(events))
    await log.aclose()


async def resolved(service: Running, *bars: Bars) -> Counter[Resolved]:
    """One run of the resolver, until its reports are in Postgres."""

    def go() -> Counter[Resolved]:
        with (
            AdvisorClient(service.url) as client,
            reading(str(service.settings.database_url)) as connection,
        ):
            known = {each.symbol: each for each in bars}
            fates = resolve(without_outcome(connection), known, client, lambda seconds: None)
            client.close(20)
            assert client.stats().dropped == {}
        return fates

    fates = await asyncio.to_thread(go)

    async def written() -> bool:
        return (await service.service.journal.backlog())[0] == 0

    await until(written)
    return fates


def outcomes(service: Running) -> dict[tuple[str, str, str | None], Any]:
    url = str(service.settings.database_url).replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT d.request_id, o.arm, o.model_version, o.outcome, o.source, o.r_multiple,"
            " o.net_pnl, o.record #> '{extra,traded}' FROM outcomes o JOIN decisions d USING"
            " (decision_id)"
        ).fetchall()
    assert len(found) == len({row[:3] for row in found}), "one outcome for each arm"
    return {row[:3]: row[3:] for row in found}


async def test_every_arm_without_an_outcome_gets_what_the_bars_tell(
    service: Running, database_url: str
) -> None:
    silent = Abstention(AbstainReason.DEADLINE)
    await fill(
        database_url,
        plan("traded", control=True),
        plan("vetoed", control=False, label="A"),
        plan("silent", control=True, label=silent, shadows=[("other", "C")]),
        plan("unknown control"),
    )
    assert (await resolved(service, BARS))[Resolved.REPORTED] == 6
    found = outcomes(service)
    stopped = ("sl", "simulated", pytest.approx(-1.0985005), pytest.approx(-16.4775075))
    # H: the whole risk at a stop 1.0 ATR away, 98, and no more than the agent's 5 units. Bought at
    # 100.05, sold at 97.951, fees 0.198001: -2.297001 a unit, of a risk of 2.
    tighter = ("sl", "simulated", pytest.approx(-1.1485005), pytest.approx(-11.485005))
    # C: a quarter of the risk, stop 1.5 ATR away, so again 97; quantity 5 / 4.
    quarter = (*stopped[:3], pytest.approx(-16.4775075 / 4))
    assert found == {
        ("traded", "agent", None): (*stopped, True),
        ("traded", "advice", "test-1"): (*tighter, False),
        ("vetoed", "agent", None): (*stopped, False),
        ("vetoed", "advice", "test-1"): ("not_traded", "simulated", 0.0, 0.0, False),
        ("silent", "agent", None): (*stopped, True),
        ("silent", "advice", "other"): (*quarter, False),
        ("unknown control", "advice", "test-1"): (*tighter, False),
    }


MOMENTS = {
    "on the stroke": (timedelta(hours=1), 1),
    "0.4 s into a bar": (timedelta(hours=1, seconds=0.4), 2),
    "a microsecond into a bar": (timedelta(hours=1, microseconds=1), 2),
    "within a bar": (timedelta(hours=1, minutes=30), 2),
    "a microsecond before the next": (timedelta(hours=2, microseconds=-1), 2),
    "on the stroke of the next": (timedelta(hours=2), 2),
}
"""Decisions after `AT`, and the hour at whose open each enters: never the one under way."""


async def test_a_decision_enters_at_one_bars_open_in_labels_paper_and_resolver(
    service: Running, database_url: str
) -> None:
    bars = table(*[(price, price + 1, price - 1, price) for price in range(100, 112)])
    decided = {
        name: build.scenario(as_of=AT + after, **PLAN) for name, (after, _) in MOMENTS.items()
    }
    events = [
        build.decision_event(name, about=scenario, control=True)
        for name, scenario in decided.items()
    ]
    await fill(database_url, *events)
    await resolved(service, bars)
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT d.request_id, o.exit_time, o.holding_seconds"
            " FROM outcomes o JOIN decisions d USING (decision_id) WHERE o.arm = 'agent'"
        ).fetchall()
    by_resolver = {name: int(ended.timestamp() - held) for name, ended, held in found}
    for name, (_, hour) in MOMENTS.items():
        scenario = decided[name]
        labelled = judge({"BTCUSDT": [bars]}, plan_orders([scenario]), shares_of([scenario]), COSTS)
        followed = follow(bars, plan_order(scenario))
        opened = START + hour * HOUR
        assert int(labelled.fates[AGENT].entered_at[0]) == opened, name
        assert followed.exited_at is not None
        assert (
            followed.exited_at - cast(float, (followed.outcome or {})["holding_seconds"]) == opened
        ), name
        assert by_resolver[name] == opened, name


async def test_a_second_run_finds_nothing_to_do(service: Running, database_url: str) -> None:
    await fill(database_url, plan("traded", control=True))
    assert (await resolved(service, BARS)).total() == 2
    before = outcomes(service)
    assert await resolved(service, BARS) == Counter()
    assert outcomes(service) == before


async def test_a_trade_that_the_bars_do_not_finish_is_resolved_when_they_do(
    service: Running, database_url: str
) -> None:
    await fill(database_url, plan("open", control=True, label="A"))
    assert await resolved(service, BARS.part(0, 1)) == Counter(
        {Resolved.OPEN: 1, Resolved.REJECTED: 1}
    )
    assert ("open", "agent", None) not in outcomes(service)
    assert await resolved(service, BARS) == Counter({Resolved.REPORTED: 1})
    assert outcomes(service)[("open", "agent", None)][0] == "sl"


async def test_what_cannot_be_resolved_is_counted_by_reason_and_never_made_up(
    service: Running, database_url: str
) -> None:
    await fill(
        database_url,
        plan("unfilled", control=True, label="A", at=AT - timedelta(hours=2)),
        plan("other symbol", control=True, label="A", candidate__symbol="ETHUSDT"),
        plan("stop above", control=True, label="A", plan__stop=103.0),
    )
    with reading(database_url) as connection:
        assert symbols_without_outcome(connection) == {
            "BTCUSDT": AT - timedelta(hours=2),
            "ETHUSDT": AT,
        }
    earlier = table(*[(100, 101, 99, 100)] * 40, skip=-30)
    kept = all_but_two_bars(earlier)
    gap = replace(
        earlier,
        **{name: v[kept] for name, v in vars(earlier).items() if isinstance(v, np.ndarray)},
    )
    fates = await resolved(service, gap)
    assert fates == Counter(
        {Resolved.REJECTED: 3, Resolved.UNFILLED: 1, Resolved.NO_BARS: 1, Resolved.NOT_SIMULATED: 1}
    )
    assert {key[1] for key in outcomes(service)} == {"advice"}


def all_but_two_bars(bars: Bars) -> Any:
    """All but the two bars after START - 2 h."""
    return (bars.closed_at <= START - 2 * HOUR) | (bars.closed_at > START)


async def test_the_command_loads_the_bars_that_are_needed_and_says_what_it_did(
    service: Running, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill(
        database_url,
        plan("traded", control=True),
        plan("no such bars", control=False, candidate__symbol="XRPUSDT"),
    )
    columns = {name: getattr(BARS, name) for name in ("open", "high", "low", "close", "volume")}
    closed = pl.Series("closed_at", BARS.closed_at * 1000).cast(pl.Datetime("ms", "UTC"))
    pl.DataFrame({"closed_at": closed, **columns}).write_parquet(tmp_path / "BTCUSDT_1h.parquet")
    await asyncio.to_thread(resolve_outcomes, str(tmp_path), database_url, service.url, "1h")
    said = capsys.readouterr().out
    assert "left out" in said
    assert "XRPUSDT" in said
    assert "reported 2 rejected 0" in " ".join(said.split())
    assert "no bars 2" in " ".join(said.split())


async def test_what_was_reported_and_what_was_skipped_for_an_outage_are_left_alone(
    service: Running, database_url: str
) -> None:
    await fill(
        database_url,
        plan("reported", control=True, label="A"),
        build.outcome_event("reported", build.outcome(r=0.5)),
        plan("outage", control=False),
        build.outcome_event("outage", build.outcome(exogenous_skip=True)),
    )
    assert await resolved(service, BARS) == Counter({Resolved.REJECTED: 1})
    assert outcomes(service)[("reported", "agent", None)][2] == 0.5


async def test_an_analyst_may_read_and_nobody_writes(database_url: str) -> None:
    plain = database_url.replace("+psycopg", "")
    with psycopg.connect(plain) as admin:
        admin.execute("DROP ROLE IF EXISTS alice")
        admin.execute("CREATE ROLE alice LOGIN PASSWORD 'secret'")
        admin.execute("GRANT advisor_reader TO alice")
    await fill(database_url, plan("traded", control=True))
    host = plain.split("@")[1]
    with reading(f"postgresql+psycopg://alice:secret@{host}") as connection:
        assert [one.arm for chunk in without_outcome(connection) for one in chunk] == [
            Arm.ADVICE,
            Arm.AGENT,
        ]
    with (
        pytest.raises(ShadowLogUnavailable, match="read-only transaction"),
        reading(database_url) as connection,
    ):
        connection.execute("CREATE TABLE x (y int)")
    with psycopg.connect(plain) as admin:
        admin.execute("DROP ROLE alice")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "cannot be read"),
        ("postgresql://nobody@127.0.0.1:9/none", "Postgres: .*check DATABASE_URL"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_clear_error(url: str, message: str) -> None:
    with pytest.raises(ShadowLogUnavailable, match=message), reading(url):
        pass


def test_a_database_without_the_schema_says_so(empty_database_url: str) -> None:
    with (
        pytest.raises(ShadowLogUnavailable, match="advisor migrate"),
        reading(empty_database_url) as connection,
    ):
        list(without_outcome(connection))


STRATEGY = {"kind": "freqtrade", "hours": 24.0, "minimal_roi": {"0": 0.01}}
RISING = table((100, 107, 99, 100), (99, 100, 96, 97), *[(97, 98, 96, 97)] * 10)
"""An entry at 100; the first bar passes the first target, the second opens below everything."""


async def test_every_arm_is_followed_by_the_exits_that_its_decision_declares(
    service: Running, database_url: str
) -> None:
    declared: dict[str, Any] = {
        "fixed": {"kind": "fixed", "hours": 24.0},
        "time": {"kind": "time", "hours": 1.0},
        "reported": {"kind": "reported"},
    }
    await fill(
        database_url,
        plan("before", control=True),
        *(plan(name, control=True, plan__exits=exits) for name, exits in declared.items()),
        plan("no atr", control=True, label="A", candidate__atr=None, plan__exits=STRATEGY),
    )
    assert await resolved(service, RISING) == Counter(
        {Resolved.REPORTED: 7, Resolved.REJECTED: 1, Resolved.NOT_SIMULATED: 2}
    )
    assert {key[:2]: row[0] for key, row in outcomes(service).items()} == {
        ("before", "agent"): "trailing_sl", ("before", "advice"): "trailing_sl",
        ("fixed", "agent"): "tp1", ("fixed", "advice"): "tp1",
        ("time", "agent"): "time_exit", ("time", "advice"): "time_exit",
        ("no atr", "agent"): "tp1", ("no atr", "advice"): "not_traded",
    }  # fmt: skip
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        said = connection.execute(
            "SELECT DISTINCT d.request_id, o.record #>> '{extra,exits}',"
            " o.record #>> '{extra,exits_hash}' FROM outcomes o JOIN decisions d USING"
            " (decision_id) WHERE o.outcome <> 'not_traded'"
        ).fetchall()
    assert {name: (kind, whose) for name, kind, whose in said} == {
        "before": ("trail", TRAIL.hash()),
        "fixed": ("fixed", Fixed(hours=24).hash()),
        "time": ("time", Barrier(hours=1).hash()),
        "no atr": ("freqtrade", Freqtrade(hours=24, minimal_roi=((0, 0.01),)).hash()),
    }
