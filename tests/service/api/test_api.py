"""The API over real HTTP, on a real Postgres and Valkey, with the scripted policy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.advising.serving import Models
from app.domain.canonical import decision_id
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.manifest import Calibration, ModelManifest
from app.domain.rules.vetoes import VetoCode
from app.journal.keys import EVENTS
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy
from app.schemas import AdviseResponse
from app.shadow_log.log import ShadowLog
from tests import builders as build
from tests.service.journal.journal_events import client
from tests.service.running import Running, drained, request, running, settings_for, until, writing


def named(model_version: str) -> ModelManifest:
    return SCRIPTED_MANIFEST.model_copy(update={"model_version": model_version})


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


async def test_an_approval_is_answered_with_size_stop_and_the_vetoes_of_both_arms(
    api: Running,
) -> None:
    reply = await api.advise(request("r-1"))
    assert reply.status_code == 200
    advice = AdviseResponse.model_validate(reply.json())
    assert advice.decision_id == str(decision_id("r-1"))
    assert (advice.status, advice.approve, advice.action) == ("advised", True, "approve_r1.00_s1.0")
    assert advice.stop == 40_000 - 412
    assert advice.quantity == 0.01, (
        "1 ATR is nearer than the agent's stop: never more than its quantity"
    )
    assert (advice.vetoes, advice.control_vetoes) == ([], [])
    assert advice.binding is False
    assert (advice.recorded, advice.repeated) == ("stream", False)


async def test_a_refused_trade_is_vetoed_with_evidence(api: Running) -> None:
    reply = (
        await api.advise(request("r-1", candidate__spread_bps=25.0, candidate__btc_trend="down"))
    ).json()
    assert (reply["status"], reply["approve"], reply["action"]) == ("vetoed", False, "reject")
    assert [veto["code"] for veto in reply["vetoes"]] == ["BTC_TREND_CONFLICT", "SPREAD"]
    assert reply["vetoes"][1] == {
        "code": "SPREAD",
        "observed": 25.0,
        "limit": 10.0,
        "missing": None,
    }
    assert reply["control_vetoes"] == reply["vetoes"]
    assert api.metric("advisor_vetoes_total", code="SPREAD", arm="advice") == 1
    assert api.metric("advisor_vetoes_total", code="SPREAD", arm="control") == 1


async def test_a_repeat_returns_the_stored_decision_from_the_stream_and_from_postgres(
    api: Running,
) -> None:
    document = request("r-1")
    first = (await api.advise(document)).json()
    again = (await api.advise(document)).json()
    assert again == first | {"repeated": True, "recorded": "shadow_log"}
    assert await drained(api.settings) == 1
    assert (await api.advise(document)).json() == again
    assert api.metric("advisor_decisions_total", status="advised", model_version="scripted-1") == 1


async def test_the_same_id_with_other_content_is_a_conflict(api: Running) -> None:
    await api.advise(request("r-1"))
    reply = await api.advise(request("r-1", candidate__rsi=12.0))
    assert reply.status_code == 409
    assert reply.headers["content-type"] == "application/problem+json"
    assert "was used before with other content" in reply.json()["detail"]


async def test_duplicates_in_flight_give_one_decision(api: Running) -> None:
    document = request("r-1")
    replies = await asyncio.gather(*(api.advise(document) for _ in range(16)))
    assert {reply.status_code for reply in replies} == {200}
    assert sum(not reply.json()["repeated"] for reply in replies) == 1
    assert await drained(api.settings) == 1


async def test_the_idempotency_key_header_is_the_request_id(api: Running) -> None:
    document = request("unused")
    del document["request_id"]
    reply = await api.advise(document, **{"Idempotency-Key": "k-1"})
    assert reply.json()["decision_id"] == str(decision_id("k-1"))
    clash = await api.advise(request("r-2"), **{"Idempotency-Key": "k-2"})
    assert clash.status_code == 422
    assert "differs from the header" in clash.json()["detail"]


async def test_a_list_is_answered_item_by_item(api: Running) -> None:
    await api.advise(request("r-1"))
    reply = await api.advise([request("r-1", candidate__rsi=1.0), request("r-2"), request("r-3")])
    assert reply.status_code == 200
    first, second, third = reply.json()
    assert first["problem"]["status"] == 409
    assert second["decision"]["request_id"] == "r-2"
    assert third["decision"]["status"] == "advised"


async def test_an_asynchronous_request_is_durable_at_once_and_decided_later(
    api: Running, valkey_url: str
) -> None:
    document = request("r-1")
    reply = await api.advise(document, Prefer="respond-async")
    assert reply.status_code == 202
    with client(valkey_url) as connection:
        entries: Any = connection.xrange(EVENTS)
    assert [fields[b"key"].decode() for _, fields in entries if b"fate" in fields] == [
        str(decision_id("r-1"))
    ], "it has its number before anybody is told"
    location = reply.json()["location"]
    assert location == f"/decisions/{decision_id('r-1')}"

    async def decided() -> bool:
        return (await api.client.get(location)).status_code == 200

    await until(decided)
    stored = (await api.client.get(location)).json()["decision"]
    assert stored["request_id"] == "r-1"
    assert stored["advices"][0]["status"] == "advised"
    assert (await api.advise(document, Prefer="respond-async")).status_code == 202
    assert (
        await api.advise(request("r-1", candidate__rsi=1.0), Prefer="respond-async")
    ).status_code == 409


async def test_action_and_outcome_reported_later_are_joined_in_the_comparison(api: Running) -> None:
    known = (await api.advise(request("r-1"))).json()["decision_id"]
    action = {"decision": False, "final_skip_reason": "llm_veto", "llm_confidence": 0.4}
    reply = await api.client.put(f"/decisions/{known}/agent-action", json=action)
    assert reply.status_code == 202
    assert reply.json()["repeated"] is False
    again = await api.client.put(f"/decisions/{known}/agent-action", json=action)
    assert again.json()["repeated"] is True
    assert await drained(api.settings) == 2
    for outcome in (
        {"arm": "agent", "outcome": "not_traded", "r_multiple": 0.0, "source": "simulated"},
        {
            "arm": "advice",
            "model_version": "scripted-1",
            "outcome": "sl",
            "r_multiple": -1.1,
            "source": "simulated",
        },
    ):
        assert (
            await api.client.put(f"/decisions/{known}/outcome", json=outcome)
        ).status_code == 202
    assert await drained(api.settings) == 2
    document = (await api.client.get(f"/decisions/{known}")).json()
    assert document["stored"] is True
    assert document["agent_actions"][0]["final_skip_reason"] == "llm_veto"
    assert [outcome["r_multiple"] for outcome in document["outcomes"]] == [0.0, -1.1]
    labels = {
        "symbol": "BTCUSDT",
        "session": "Europe",
        "regime": "normal",
        "model_version": "scripted-1",
        "agent": "reject",
        "advice": "approve",
    }
    assert api.metric("advisor_comparisons_total", **labels) == 1
    assert api.metric("advisor_agreement_ratio", model_version="scripted-1") == 0


@pytest.mark.parametrize("part", ["agent-action", "outcome"])
async def test_a_report_on_an_unknown_decision_is_404(api: Running, part: str) -> None:
    body = {"decision": True} if part == "agent-action" else {"arm": "agent", "outcome": "sl"}
    reply = await api.client.put(f"/decisions/{uuid4()}/{part}", json=body)
    assert reply.status_code == 404
    assert (await api.client.get(f"/decisions/{uuid4()}")).status_code == 404


BAD: list[tuple[bytes, int, str]] = [
    (b"", 422, "EOF"),
    (b"not json", 422, "JSON"),
    (b"\xff\xfe{}", 422, "JSON"),
    (b"[]", 422, "at least 1"),
    (b"[" * 5000, 422, "JSON"),
    (b'"text"', 422, "object"),
    (b"{}", 422, "candidate"),
    (b'{"candidate": {"rsi": NaN}}', 422, "candidate.symbol"),
    (b'{"candidate": {"news_summary": "\\ud800"}}', 422, "JSON"),
    (b" " * 1_100_000, 413, "larger than"),
]


@pytest.mark.parametrize(
    ("body", "status", "says"), BAD, ids=[str(index) for index in range(len(BAD))]
)
async def test_a_bad_body_is_a_problem_document(
    api: Running, body: bytes, status: int, says: str
) -> None:
    reply = await api.client.post("/advise", content=body)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert problem["status"] == status
    assert says in str(problem)
    assert await drained(api.settings) == 0


async def test_every_violation_is_named_at_once_by_the_senders_own_path(api: Running) -> None:
    document = request(
        "r-1", candidate__rsi=140, candidate__symbol="b c", plan__quantity=0, unexpected=1
    )
    problem = (await api.advise([document])).json()
    fields = {error["field"] for error in problem["errors"]}
    assert fields == {
        "[0].candidate.rsi",
        "[0].candidate.symbol",
        "[0].plan.quantity",
        "[0].unexpected",
    }


async def test_a_time_in_the_future_is_refused_with_both_clocks(api: Running) -> None:
    late = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
    problem = (await api.advise(request("r-1", candidate__ts=late))).json()
    assert problem["status"] == 422
    assert problem["detail"].startswith("candidate.ts: ")
    assert "check the time zone and the clock" in problem["detail"]


async def test_an_old_snapshot_is_vetoed_and_recorded(api: Running) -> None:
    old = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    reply = (await api.advise(request("r-1", candidate__ts=old, market__bar_closed_at=old))).json()
    assert [veto["code"] for veto in reply["vetoes"]] == ["STALE_SNAPSHOT"]


async def test_keys_outside_the_schema_are_kept_and_listed(api: Running) -> None:
    reply = (await api.advise(request("r-1", candidate__my_signal=0.5))).json()
    assert reply["unrecognised_fields"] == ["my_signal"]
    stored = (await api.client.get(f"/decisions/{reply['decision_id']}")).json()
    assert stored["decision"]["scenario"]["candidate"]["extra"] == {"my_signal": 0.5}


async def test_too_many_candidates_are_refused(api: Running) -> None:
    reply = await api.advise([request(f"r-{i}") for i in range(33)])
    assert reply.status_code == 422
    assert "at most 32" in reply.json()["detail"]


async def test_an_outcome_whose_end_lies_before_its_decision_counts_without_that_time(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """A local time without its offset: the loss is on the record, and told by who did not make the
    decision too."""
    known = (await api.advise(request("r-1"))).json()["decision_id"]
    early = (datetime.now(UTC) - timedelta(hours=5)).isoformat()
    body = {"arm": "agent", "outcome": "sl", "exit_time": early}
    async with running(settings_for(database_url, valkey_url, tmp_path / "other")) as second:
        for loss in (-50.0, -51.0):  # While it is in the stream, and when it is in Postgres.
            where = f"/decisions/{known}/outcome"
            reply = await second.client.put(where, json=body | {"net_pnl": loss})
            assert reply.status_code == 202
            [gone] = reply.json()["left_out"]
            assert (gone["field"], "is before the decision" in gone["why"]) == ("exit_time", True)
            await drained(api.settings)
        stored = (await api.client.get(f"/decisions/{known}")).json()["outcomes"]
    assert [(told["net_pnl"], told["exit_time"]) for told in stored] == [(-50, None), (-51, None)]
    assert second.metric("advisor_fields_left_out_total", part="outcome", fault="time") == 2


async def test_halted_where_the_model_rejects_the_agents_order_alone_is_refused(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """As docs/connect.md says: no rule has an advice to refuse."""
    rejecting = Models(ScriptedPolicy(["A"]))
    async with running(settings_for(database_url, valkey_url, tmp_path), rejecting) as api:
        body = {"state": "HALTED", "reason": "drill", "changed_by": "ops"}
        await api.client.put("/state", json=body)
        reply = (await api.advise(request("r-1"))).json()
    assert (reply["status"], reply["approve"], reply["vetoes"]) == ("advised", False, [])
    assert [veto["code"] for veto in reply["control_vetoes"]] == [VetoCode.STATE_HALTED.value]


async def test_halting_takes_effect_at_once_is_recorded_and_survives_a_restart(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    body = {"state": "HALTED", "reason": "drill", "changed_by": "ops"}
    assert (await api.client.put("/state", json=body)).json()["state"] == "HALTED"
    reply = (await api.advise(request("r-1"))).json()
    assert [veto["code"] for veto in reply["vetoes"]] == [VetoCode.STATE_HALTED.value]
    assert api.metric("advisor_state", state="HALTED") == 1
    await drained(api.settings)
    log = ShadowLog.connect(database_url)
    change = await log.latest_state()
    await log.aclose()
    assert change is not None
    assert (change.state.value, change.reason) == ("HALTED", "ops: drill")
    assert change.changed_by == "agent", "the name of the token"
    async with running(settings_for(database_url, valkey_url, tmp_path / "other")) as second:
        assert (await second.client.get("/state")).json()["state"] == "HALTED"


async def test_another_replica_follows_a_change_of_state(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with running(settings_for(database_url, valkey_url, tmp_path / "other")) as second:
        await api.client.put(
            "/state", json={"state": "REDUCING", "reason": "drill", "changed_by": "ops"}
        )

        async def followed() -> bool:
            return bool((await second.client.get("/state")).json()["state"] == "REDUCING")

        await until(followed)
        assert second.metric("advisor_state", state="REDUCING") == 1


async def test_the_admin_token_guards_the_state(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(
        database_url, valkey_url, tmp_path, admin_token="correct horse", open=None
    )
    body = {"state": "HALTED", "reason": "drill", "changed_by": "ops"}
    async with running(settings) as api:
        assert (await api.client.put("/state", json=body)).status_code == 401
        wrong = await api.client.put("/state", json=body, headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        good = await api.client.put(
            "/state", json=body, headers={"Authorization": "Bearer correct horse"}
        )
        assert good.status_code == 200


async def test_a_bad_state_is_a_problem_document(api: Running) -> None:
    reply = await api.client.put(
        "/state", json={"state": "PAUSED", "reason": "x", "changed_by": "y"}
    )
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert "state" in reply.json()["detail"]


async def test_every_version_in_shadow_gives_one_advice_row(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    models = Models(
        ScriptedPolicy(["A"]),
        (
            ScriptedPolicy(["H"], manifest=named("second")),
            ScriptedPolicy([PolicyAbstained(AbstainReason.OVERLOADED)], manifest=named("third")),
        ),
    )
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings, models) as api:
        reply = (await api.advise(request("r-1"))).json()
        assert [a["status"] for a in reply["advices"]] == ["advised", "advised", "abstained"]
        assert reply["approve"] is False, "the primary's advice is the reply"
        await drained(settings)
        log = ShadowLog.connect(database_url)
        counts = await log.counts()
        stored = await log.decision(decision_id("r-1"))
        await log.aclose()
    assert (counts["decisions"], counts["advices"]) == (1, 3)
    assert stored is not None
    assert [a.model_version for a in stored.advices] == ["scripted-1", "second", "third"]


async def test_what_a_version_foretells_is_answered_and_null_where_it_does_not_say(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    calibration = Calibration(outlook=build.outlook_calibration())
    asked = SCRIPTED_MANIFEST.model_copy(update={"calibration": calibration})
    said = build.answering(
        build.reading("A"),
        win=(0.6, 0.4),
        stopped=(0.7, 0.3),
        range=(0.001, 0.001, 0.996, 0.001, 0.001),
    )
    models = Models(
        ScriptedPolicy([said], manifest=asked), (ScriptedPolicy(["H"], manifest=named("older")),)
    )
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings, models) as api:
        body = request("r-1")
        reply, again = (await api.advise(body)).json(), (await api.advise(body)).json()
    # The example's stop is 618 of an ATR of 412 away: 1.5 ATR are one R.
    expected = {
        "win_probability": pytest.approx(0.4),
        "stopped_probability": pytest.approx(0.3),
        "range_atr": pytest.approx(2.4, rel=0.01),
        "expected_r": pytest.approx(0.4 - 0.3),
    }
    AdviseResponse.model_validate(reply)
    for told in (reply, again, reply["advices"][0]):
        assert {name: told[name] for name in expected} == expected
    assert [reply["advices"][1][name] for name in expected] == [None] * 4


async def test_readiness_tells_the_truth_and_models_are_registered(api: Running) -> None:
    ready = (await api.client.get("/readyz")).json()
    assert ready["status"] == "ready"
    assert (ready["postgres"], ready["valkey"], ready["valkey_durable"]) == ("up", "up", True)
    assert (await api.client.get("/healthz")).json() == {"status": "ok"}

    async def registered() -> bool:
        models = (await api.client.get("/models")).json()
        return [m["model_version"] for m in models["registry"]["models"]] == ["scripted-1"]

    await until(registered)


async def test_metrics_are_exposed_with_zero_visible(api: Running) -> None:
    text = (await api.client.get("/metrics")).text
    assert 'advisor_vetoes_total{arm="advice",code="DRAWDOWN"} 0.0' in text
    assert 'advisor_losses_total{cause="spool_full"} 0.0' in text
    assert "advisor_journal_backlog 0.0" in text
    await api.advise(request("r-1"))
    text = (await api.client.get("/metrics")).text
    assert "advisor_journal_backlog 1.0" in text
    assert 'advisor_requests_total{code="200",route="/advise"} 1.0' in text


async def test_the_traceparent_is_recorded(api: Running) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    known = (await api.advise(request("r-1"), traceparent=trace)).json()["decision_id"]
    stored = (await api.client.get(f"/decisions/{known}")).json()
    assert stored["decision"]["traceparent"] == trace


async def test_a_rationale_comes_after_the_decision_and_does_not_change_it(api: Running) -> None:
    plain = (await api.advise(request("r-1"))).json()
    document: dict[str, Any] = request("r-2")
    document["rationale"] = True
    explained = (await api.advise(document)).json()
    assert explained["rationale"]
    assert explained["probabilities"] == plain["probabilities"]
    async with writing(api.settings):
        log = ShadowLog.connect(str(api.settings.database_url))

        async def stored() -> bool:
            return (await log.counts())["rationales"] == 1

        await until(stored)
        await log.aclose()


async def test_openapi_describes_bodies_with_examples(api: Running) -> None:
    schema = (await api.client.get("/openapi.json")).json()
    body = schema["paths"]["/advise"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert "$ref" in str(body)
    assert (
        schema["components"]["schemas"]["AdviseRequest"]["examples"][0]["candidate"]["symbol"]
        == "BTCUSDT"
    )
    assert "problem" in str(schema["paths"]["/advise"]["post"]["responses"]["409"])
    page = (await api.client.get("/docs")).text
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(named) == 3
    for path in named:
        assert path.startswith("/"), "nothing comes from the internet"
        assert (await api.client.get(path)).status_code == 200
