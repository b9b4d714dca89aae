"""One unit of R, worked out by hand: a quarter of the agent's risk, from request to last view.

The plan: 0.01 BTC at 40,000 with the stop at 39,382, so that one R is 0.01 x 618 = 6.18 USDT.
`approve_r0.25_s1.0` risks a quarter of it, 1.545, on a stop one ATR (412) away: 0.00375 BTC, stop
at 39,588. A profit of 9.4554 is 6.12 times the order's own risk, and 1.53 R.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from shadow_advisor_client import AdvisorClient

from app.advising.serving import Models
from app.domain.record.outcome import Arm
from app.domain.scenario import Scenario
from app.policy.scripted import ScriptedPolicy
from app.settings import Clock
from tests.service.running import (
    Running,
    drained,
    request,
    running,
    settings_for,
    until,
    writing,
)
from tests.service.shadow_log.test_log import rows
from tests.training.support.candles import HOUR, START, table
from training.live.drift.look import Window
from training.live.paper.books import follow, outcome
from training.live.paper.resolver import Resolved, resolve
from training.log import judged_between, reading, without_outcome
from training.market.bars import Bars
from training.outcomes.orders import plan_order

VERSION = "scripted-1"
AS_OF = datetime.fromtimestamp(START + HOUR, UTC)


@pytest.fixture
async def service(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    async with running(settings, Models(ScriptedPolicy(["B"]))) as api:
        yield api


def at_its_time(document: dict[str, Any]) -> dict[str, Any]:
    """A request of the one time at which all of these are made."""
    for section, field in (("candidate", "ts"), ("market", "bar_closed_at")):
        document[section][field] = AS_OF.isoformat()
    return document


async def quarter(service: Running, request_id: str, **action: Any) -> dict[str, Any]:
    """The plain candidate, asked at one fixed time; the agent rejects it unless told otherwise."""
    document = at_its_time(request(request_id, agent_action={"decision": False} | action))
    advice: dict[str, Any] = (await service.advise(document)).json()
    assert (advice["action"], advice["stop"]) == ("approve_r0.25_s1.0", 39_588.0)
    assert advice["quantity"] == pytest.approx(0.00375)
    return advice | {"scenario": scenario_of(document)}


async def report(service: Running, advice: dict[str, Any], **ended: Any) -> None:
    path = f"/decisions/{advice['decision_id']}/outcome"
    reply = await service.client.put(path, json={"model_version": None} | ended)
    assert reply.is_success, reply.text


async def view(service: Running, name: str) -> list[dict[str, Any]]:
    await drained(service.settings)
    return rows(str(service.settings.database_url), f"SELECT * FROM {name}")


ADVICE: dict[str, Any] = {"arm": "advice", "model_version": VERSION, "outcome": "tp2"}
AGENT: dict[str, Any] = {"arm": "agent", "outcome": "tp2"}
TRADED = {"decision": True, "entry": 40_010.0, "stop": 39_382.0, "quantity": 0.005}
"""Half of the plan, filled 10 too high: own risk 0.005 x 628 = 3.14, which is 0.508 R."""


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        pytest.param({"net_pnl": 9.4554, "r_multiple": 6.12}, 1.53, id="both"),
        pytest.param({"net_pnl": 9.4554}, 1.53, id="money alone"),
        pytest.param({"r_multiple": 6.12}, 1.53, id="own risk alone"),
        pytest.param({"net_pnl": 9.4554, "r_multiple": 1.53}, 1.53, id="money wins"),
        pytest.param({"net_pnl": 0.0, "r_multiple": 6.12}, 0.0, id="money wins at zero"),
        pytest.param({"outcome": "not_traded", "r_multiple": 0.0}, 0.0, id="nothing"),
        pytest.param({"mae_r": -0.4}, None, id="not known"),
    ],
)
async def test_the_advices_profit_counts_in_r_of_the_agents_plan(
    service: Running, ended: dict[str, Any], expected: float | None
) -> None:
    await report(service, await quarter(service, "r-1"), **ADVICE | ended)
    (row,) = await view(service, "disagreements")
    found = tuple(
        row[name]
        for name in ("advice_r", "advice_earned_r", "agent_earned_r", "advice_minus_agent_r")
    )
    assert found == pytest.approx((expected, expected, 0.0, expected))
    right = {1.53: "advice", 0.0: "neither", None: None}
    assert row["was_right"] == right[expected]


@pytest.mark.parametrize(
    ("action", "ended", "expected"),
    [
        pytest.param(TRADED, {"net_pnl": 6.18, "r_multiple": 1.97}, 1.0, id="money"),
        pytest.param(
            TRADED, {"r_multiple": 2.0}, 2 * 3.14 / 6.18, id="own risk of what was filled"
        ),
        pytest.param(
            TRADED, {"r_multiple": 2.0, "source": "simulated"}, 2.0, id="its plan, followed"
        ),
        pytest.param({"decision": True}, {"r_multiple": 2.0}, 2.0, id="no fill told: the plan"),
        pytest.param({}, {"r_multiple": 2.0, "source": "simulated"}, 2.0, id="rejected: the plan"),
    ],
)
async def test_the_agents_profit_counts_in_r_of_its_plan_whatever_it_filled(
    service: Running, action: dict[str, Any], ended: dict[str, Any], expected: float
) -> None:
    await report(service, await quarter(service, "r-1", **action), **AGENT | ended)
    (row,) = await view(service, "shadow_comparison")
    assert row["agent_r"] == pytest.approx(expected)


async def test_a_vetos_value_is_in_r_of_the_plan_it_refused(service: Running) -> None:
    document = at_its_time(request("r-1", candidate__spread_bps=40.0, agent_action=TRADED))
    advice = (await service.advise(document)).json()
    await report(
        service, advice, **AGENT | {"net_pnl": -3.09, "r_multiple": -0.98, "outcome": "sl"}
    )
    (row,) = await view(service, "veto_value")
    assert (row["code"], row["r_saved"], row["pnl_saved"]) == ("SPREAD", pytest.approx(0.5), 3.09)


async def test_the_books_the_log_and_drift_tell_one_r_of_a_followed_order(service: Running) -> None:
    """The next bar opens at 40,000 and falls through 39,588. Bought at 40,020 and sold at
    39,568.206 (5 bp worse each way), fees of 0.1 % of both: -531.382206 a BTC, -1.9926832725 net,
    -0.3224406589 R, -1.2897626359 times its own risk."""
    net = -531.382206 * 0.00375
    advice = await quarter(service, "hand/BTCUSDT/20210101T0100")
    order = plan_order(Scenario.from_json(advice["scenario"]))
    assert order.plan_risk == pytest.approx(6.18)
    order = order._replace(stop=advice["stop"], quantity=advice["quantity"])
    quiet, fall = (40_000, 40_000, 40_000, 40_000), (40_000, 40_010, 39_500, 39_600)
    trade = follow(table(quiet, fall, *[quiet] * 7), order)
    assert (trade.net, trade.r) == pytest.approx((net, net / 6.18))
    ended = outcome(trade, Arm.ADVICE, VERSION, traded=True)
    assert ended is not None
    assert ended.r_multiple == pytest.approx(net / 1.545)
    await report(service, advice, **ended.as_json())

    (compared,) = await view(service, "shadow_comparison")
    assert (compared["advice_r"], compared["advice_pnl"]) == pytest.approx((net / 6.18, net))
    (book,) = await view(service, "paper_books")
    assert (book["r"], book["net_pnl"], book["equity"]) == pytest.approx(
        (net / 6.18, net, 10_000 + net)
    )
    assert book["return_on_own_risk"] == pytest.approx(net / 1.545)
    with reading(str(service.settings.database_url)) as connection:
        ((row,),) = judged_between(connection, VERSION, AS_OF.replace(hour=0), AS_OF)
    assert Window.of_rows([row]).numbers["reward"] == pytest.approx([net / 6.18])
    symbol = {
        "symbol": "BTCUSDT",
        "session": "Europe",
        "regime": "normal",
        "model_version": VERSION,
    }
    assert (
        service.metric("advisor_comparisons_total", agent="reject", advice="approve", **symbol) == 1
    )
    assert (
        service.metric(
            "advisor_advice_actions_total", action="approve_r0.25_s1.0", model_version=VERSION
        )
        == 1
    )


async def test_an_order_that_limits_cut_and_moved_has_one_r_wherever_it_is_told(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """`approve_r0.25_s2.5` asks for 1.545 / 1,030 = 0.0015 BTC with a stop at 38,970. Stops may be
    2 % away, orders 40 USDT big: 0.001 BTC, stop at 39,200. Bought at 40,020, sold at 39,180.4,
    fees of 79.2004: -918.8004 a BTC, -0.9188004 net, -0.1486732 R, -1.1485005 times its own risk of
    0.8. The agent's plan, stopped at 39,362.309: -737.073309 a BTC, -7.37073309 net, -1.1926752 R.
    """
    settings = settings_for(database_url, valkey_url, tmp_path, clock=Clock.REQUEST)
    settings = settings.model_copy(update={"limits": near_and_small(tmp_path)})
    document = at_its_time(request("hand/BTCUSDT/20210101T0100", agent_action={"decision": False}))
    quiet = (40_000.0,) * 4
    bars = table(quiet, (40_000, 40_010, 39_100, 39_150), *[quiet] * 7)
    net, agent_net = -918.8004 * 0.001, -737.073309 * 0.01

    async with running(settings, Models(ScriptedPolicy(["D"]))) as api, writing(settings):
        advice = (await api.advise(document)).json()
        assert advice["action"] == "approve_r0.25_s2.5"
        assert (advice["quantity"], advice["stop"]) == pytest.approx((0.001, 39_200.0))
        await recorded(api, "decisions", 1)
        counts = await asyncio.to_thread(resolve_with, api, bars)
        assert counts == {Resolved.REPORTED: 2}
        await recorded(api, "outcomes", 2)

        path = f"/decisions/{advice['decision_id']}"
        stored = (await api.client.get(path)).json()
        (answer,) = stored["decision"]["advices"]
        caps = {cap["limit"]: cap["before"] for cap in answer["review"]["caps"]}
        assert caps == pytest.approx({"stop_distance": 38_970, "exposure.max_notional": 0.0015})
        told = {each["arm"]: each for each in stored["outcomes"]}
        assert told["advice"]["net_pnl"] == pytest.approx(net)
        assert told["advice"]["r_multiple"] == pytest.approx(-1.1485005)
        (compared,) = rows(database_url, "SELECT * FROM shadow_comparison")
        assert (compared["advice_r"], compared["agent_r"]) == pytest.approx(
            (net / 6.18, agent_net / 6.18)
        )
        (opposed,) = rows(database_url, "SELECT * FROM disagreements")
        assert opposed["advice_minus_agent_r"] == pytest.approx(-0.1486732)

    order = plan_order(Scenario.from_json(scenario_of(document)))
    order = order._replace(stop=39_200.0, quantity=0.001)
    trade = follow(bars, order)
    assert (trade.net, trade.r) == pytest.approx((net, -0.1486732))


def near_and_small(folder: Path) -> Path:
    """The shipped limits, but stops at most 2 % away, and orders of 40 USDT."""
    limits = Path("limits.toml").read_text(encoding="utf-8")
    for shipped, ours in (("max_fraction = 0.15", "0.02"), ("max_notional = 5_000.0", "40.0")):
        assert shipped in limits
        limits = limits.replace(shipped, f"{shipped.split()[0]} = {ours}")
    path = folder / "limits.toml"
    path.write_text(limits)
    return path


def scenario_of(document: dict[str, Any]) -> dict[str, Any]:
    return {key: document[key] for key in Scenario.model_fields if key in document}


def resolve_with(api: Running, bars: Bars) -> Counter[Resolved]:
    """One run of the resolver over the log."""
    with (
        AdvisorClient(api.url) as client,
        reading(str(api.settings.database_url)) as connection,
    ):
        counts = resolve(
            without_outcome(connection), {bars.symbol: bars}, client, lambda seconds: None
        )
        client.close(20)
        assert client.stats().dropped == {}
    return counts


async def recorded(api: Running, name: str, count: int) -> None:
    """Wait until so many rows are in Postgres."""

    async def there() -> bool:
        found = await asyncio.to_thread(
            rows, str(api.settings.database_url), f"SELECT count(*) AS n FROM {name}"
        )
        return bool(found[0]["n"] == count)

    await until(there)
