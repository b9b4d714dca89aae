"""A real Prometheus scrapes the live service and writer: every rule evaluates, every panel shows
numbers."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from app.advising.serving import Models
from app.api.tokens import TokenFile
from app.domain.canonical import decision_id
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.principal import Role
from app.local.servers import free_port
from app.local.up import Child
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy
from tests.deploy.monitoring import Query, marked, queries, resolved, rules
from tests.deploy.prometheus_tool import Tools
from tests.deploy.scraper import Scraper, empty_panels, scraping
from tests.service.running import Running, request, running, settings_for, until

NEEDS_A_REAL_MODEL = {"Prompts per forward pass", "Probability mass on labels"}
"""The scripted policy has neither batches nor a label mass: these show a series without a
number."""

# Cohen's textbook table in small: 4 times both approve, once only the agent, twice only the advice,
# thrice neither. Observed agreement 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa 0.4. "H"
# approves, "A" rejects.
CASES = [
    *[(True, "H", "BTCUSDT", "US", 0.2)] * 2,
    *[(True, "H", "ETHUSDT", "Asia", 0.6)] * 2,
    (True, "A", "BTCUSDT", "Europe", 0.8),
    *[(False, "H", "ETHUSDT", "Europe", 0.6)] * 2,
    *[(False, "A", "BTCUSDT", "Asia", 0.2)] * 3,
]
ABSTENTION = PolicyAbstained(AbstainReason.OVERLOADED)


class Live:
    """The service, its writer and the Prometheus that scrapes both."""

    def __init__(self, service: Running, writer: Child, prometheus: Scraper) -> None:
        self.service = service
        self.writer = writer
        self.prometheus = prometheus


@pytest.fixture
async def live(
    tools: Tools, database_url: str, valkey_url: str, tmp_path: Path
) -> AsyncIterator[Live]:
    port = free_port()
    tokens = TokenFile(tmp_path / "tokens.json")
    token = tokens.create("prometheus", [Role.METRICS])
    settings = settings_for(database_url, valkey_url, tmp_path / "home").model_copy(
        update={"tokens": tokens.path}
    )
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey_url,
        "ADVISOR_WRITER_METRICS_PORT": str(port),
        "ADVISOR_TOKENS": str(tokens.path),
    }
    second = SCRIPTED_MANIFEST.model_copy(update={"model_version": "scripted-2"})
    script = [label for _, label, *_ in CASES]
    models = Models(
        ScriptedPolicy([*script, ABSTENTION, "H"]), (ScriptedPolicy(["H", "A"], manifest=second),)
    )
    writer = Child("writer", "writer", {**os.environ, **environment})
    try:
        async with running(settings, models) as service:
            api_port = service.client.base_url.port
            assert api_port is not None
            async with scraping(
                tools, tmp_path, {"advisor-api": api_port, "advisor-writer": port}, token
            ) as prometheus:
                await until(prometheus.reaches("sum(advisor_decisions_total)", 0))
                yield Live(service, writer, prometheus)
    finally:
        writer.stop()


async def trade(service: Running, round_number: int) -> None:
    """The ten cases, an abstention and a veto; half of the agent's actions come with the request,
    half later."""
    for number, (agent, _, symbol, session, percentile) in enumerate(CASES):
        name = f"r-{round_number}-{number}"
        document = request(
            name,
            candidate__symbol=symbol,
            candidate__session=session,
            candidate__volatility_pct=percentile,
        )
        action = {"decision": agent}
        if number % 2:
            document["agent_action"] = action
        assert (await service.advise(document)).status_code == 200
        if not number % 2:
            reply = await service.client.put(
                f"/decisions/{decision_id(name)}/agent-action", json=action
            )
            assert reply.status_code == 202
    abstained = (await service.advise(request(f"r-{round_number}-abstained"))).json()
    assert abstained["status"] == "abstained"
    vetoed = (
        await service.advise(request(f"r-{round_number}-vetoed", candidate__spread_bps=25.0))
    ).json()
    assert (vetoed["status"], [veto["code"] for veto in vetoed["control_vetoes"]]) == (
        "vetoed",
        ["SPREAD"],
    )


async def tell_outcomes(service: Running, round_number: int) -> None:
    """What the agent's plans earned: the first lost, the second won; the vetoed one lost."""
    for name, net_pnl in (("0", -20.0), ("1", 35.0), ("vetoed", -10.0)):
        decision = decision_id(f"r-{round_number}-{name}")
        outcome = {"arm": "agent", "outcome": "sl" if net_pnl < 0 else "tp1", "net_pnl": net_pnl}
        reply = await service.client.put(f"/decisions/{decision}/outcome", json=outcome)
        assert reply.status_code == 202, reply.text
        advice = outcome | {"arm": "advice", "model_version": "scripted-1"}
        reply = await service.client.put(f"/decisions/{decision}/outcome", json=advice)
        assert reply.status_code == 202, reply.text


async def test_every_panel_shows_numbers_and_every_rule_evaluates(live: Live) -> None:
    await trade(live.service, 1)
    mine = '{model_version="scripted-1"}'
    # The first comparisons of every series were never seen at zero, and count all the same.
    for window in ("1h", "24h"):
        await until(
            live.prometheus.reaches(f"model_version:advisor_comparisons:increase{window}{mine}", 10)
        )
        await until(
            live.prometheus.reaches(f"model_version:advisor_agreement:ratio{window}{mine}", 0.7)
        )
        await until(
            live.prometheus.reaches(f"model_version:advisor_agreement:kappa{window}{mine}", 0.4)
        )
    await until(live.prometheus.reaches("sum(advisor_writer_rows_total{table='decisions'})", 12))
    await trade(live.service, 2)
    await until(live.prometheus.reaches("sum(advisor_writer_rows_total{table='decisions'})", 24))
    await tell_outcomes(live.service, 2)
    await until(live.prometheus.reaches("max(advisor_journal_backlog)", 0))
    variables = {
        "model_version": [".*", "scripted-1", "(scripted-1|scripted-2)"],
        "symbol": [".*", "BTCUSDT"],
        "instance": [".*"],
        "window": ["1h", "24h"],
        "__rate_interval": ["10s"],
        "__range": ["1h"],
    }
    asked = [each for query in queries() for each in resolved(query, variables)]
    assert len(asked) > len(queries())
    assert await empty_panels(live.prometheus, asked, NEEDS_A_REAL_MODEL) == {}
    marks = [Query(note["name"], note["expr"], instant=False) for note in marked()]
    quiet = {note["name"] for note in marked() if note["name"] == "Halts"}
    assert set(await empty_panels(live.prometheus, marks)) == quiet, "nothing was halted yet"
    await require_healthy_rules(live.prometheus)
    vetoes = "sum by (code) (advisor_vetoes_total{arm='control'} > 0)"
    assert await live.prometheus.value(vetoes) == 2, "one for each round, and no other code"


async def require_healthy_rules(prometheus: Scraper) -> None:
    """Every shipped rule evaluates without an error, gives what it must, and no alert fires."""
    loaded = [
        rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]
    ]
    assert len(loaded) == len(rules())
    for rule in loaded:
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
        assert rule.get("state") != "firing", f"{rule['name']} fires at a service in good health"
        query = Query(rule["name"], rule["query"], instant=True)
        if "state" in rule:
            await until(partial(_silent, prometheus, query))
        else:
            values = await prometheus.run(query)
            assert any(map(math.isfinite, values)), rule["name"]


async def _silent(prometheus: Scraper, query: Query) -> bool:
    """Whether an alert has no reason; a scrape that a busy machine missed is one for a moment."""
    return not await prometheus.run(query)


async def test_a_writer_that_dies_and_a_halt_become_pending_alerts(live: Live) -> None:
    live.writer.stop()
    change = {"state": "HALTED", "reason": "test", "changed_by": "tests"}
    assert (await live.service.client.put("/state", json=change)).status_code == 200

    async def pending() -> bool:
        groups = (await live.prometheus.get("rules"))["groups"]
        states = {rule["name"]: rule.get("state") for group in groups for rule in group["rules"]}
        found = {name for name, state in states.items() if state == "pending"}
        return found == {"AdvisorWriterDown", "AdvisorNotActive"}

    await until(pending)
