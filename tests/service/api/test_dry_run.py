"""A dry run tells what would become of a request, field by field and rule by rule, and leaves
nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.domain.candidate import Candidate
from tests.service.api.test_bad_input import require_problem
from tests.service.running import Running, drained, request, running, settings_for, until


@pytest.fixture
async def api(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(database_url, valkey_url, tmp_path)) as service:
        yield service


async def told(api: Running, document: Any) -> dict[str, Any]:
    reply = await api.client.post("/advise?dry_run=true", json=document)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {report["field"]: report["verdict"] for report in answer["fields"]}


def of(answer: dict[str, Any], field: str) -> dict[str, Any]:
    (report,) = (each for each in answer["fields"] if each["field"] == field)
    return dict(report)


async def test_every_field_is_told(api: Running) -> None:
    document = request(
        "r-1",
        candidate__fear_greed=34.0,
        candidate__pattern="flag\x07pole",
        candidate__rsy=56.2,
        candidate__social={"score": 0.2, "posts": None},
    )
    answer = await told(api, document)
    assert answer["acceptable"] is True
    said = verdicts(answer)
    assert (said["candidate.rsi"], said["plan.targets"]) == ("accepted", "accepted")
    assert said["candidate.ts"] == "accepted", "+00:00 and Z are the same"
    assert said["candidate.fear_greed"] == "accepted", "34.0 is 34"
    assert of(answer, "candidate.pattern") == {
        "field": "candidate.pattern",
        "verdict": "coerced",
        "sent": "'flag\\x07pole'",
        "taken": "'flag pole'",
        "why": None,
    }
    assert of(answer, "candidate.di_plus") == {
        "field": "candidate.di_plus",
        "verdict": "missing",
        "sent": None,
        "taken": None,
        "why": "history too short",
    }
    assert said["candidate.rsy"] == "unrecognised"
    assert (said["candidate.social.score"], said["candidate.social.posts"]) == (
        "accepted",
        "missing",
    )
    assert said["account.seconds_since_loss"] == "missing"
    assert {f"candidate.{name}" for name in Candidate.model_fields} - said.keys() == {
        # Optional, and what it means that they are not sent needs no telling.
        "candidate.auction_state",
        "candidate.macro_flags",
        "candidate.extra",
        "candidate.social",
    }


async def test_a_refused_field_is_told_beside_the_sound_ones_and_those_that_were_left_out(
    api: Running,
) -> None:
    document = request(
        "r-1", plan__stop="far", plan__targets=[41_000.0, -1.0], candidate__rsi="n/a"
    )
    del document["candidate"]["symbol"]
    answer = await told(api, document)
    assert (answer["acceptable"], answer["control_vetoes"], answer["missed_inputs"]) == (
        False,
        None,
        [],
    )
    said = verdicts(answer)
    assert {name for name, verdict in said.items() if verdict == "refused"} == {"plan.stop"}
    assert {name for name, verdict in said.items() if verdict == "left_out"} == {
        "plan.targets[1]",
        "candidate.rsi",
    }
    assert of(answer, "candidate.symbol")["why"] == "Field required"
    assert said["candidate.adx"] == "accepted"
    assert "plan.targets" not in said
    assert of(answer, "plan.stop")["sent"] == "'far'"


async def test_what_would_be_left_out_or_read_otherwise_is_told_as_the_answer_tells_it(
    api: Running,
) -> None:
    document = request("r-1", candidate__rsi=140.0, candidate__near_support=1)
    document["account"]["colour"] = "red"
    answer = await told(api, document)
    assert answer["acceptable"]
    said = verdicts(answer)
    assert {name for name, verdict in said.items() if verdict == "left_out"} == {
        "candidate.rsi",
        "account.colour",
    }
    assert of(answer, "candidate.near_support")["taken"] == "True"
    reply = (await api.advise(document)).json()
    for gone in reply["left_out"]:
        assert of(answer, gone["field"])["why"] == gone["why"]


async def test_a_sender_that_names_what_was_derived_is_told_of_fields_that_there_are(
    api: Running,
) -> None:
    document = request("r-1")
    document["account"]["derived"] = {"fields": ["AAA", "equity"], "age_s": 60.0}
    answer = await told(api, document)
    derived = {name for name, verdict in verdicts(answer).items() if verdict == "derived"}
    assert derived == {"account.equity", "account.derived"}
    reply = await api.advise(document)
    assert reply.status_code == 200


async def test_a_field_is_refused_in_the_same_words_as_without_a_dry_run(api: Running) -> None:
    document = request("r-1", plan__stop=-1.0, candidate__direction="sideways")
    problem = require_problem(await api.advise(document))
    answer = await told(api, document)
    told_refused = [
        {
            "field": report["field"],
            "message": report["why"],
            "got": report["sent"],
            "verdict": "refused",
        }
        for report in answer["fields"]
        if report["verdict"] == "refused"
    ]
    assert told_refused == problem["errors"]


async def test_rules_that_would_miss_an_input_are_named_with_what_they_do(api: Running) -> None:
    document = request("r-1", candidate__spread_bps=None, candidate__news_severity=None)
    document["account"] = {}
    answer = await told(api, document)
    missed = {each["code"]: (each["missing"], each["then"]) for each in answer["missed_inputs"]}
    assert missed["SPREAD"] == ("spread_bps", "refuse")
    assert missed["NEWS_WINDOW"] == ("news_severity", "refuse")
    assert missed["DAILY_LOSS"] == ("account.day_pnl_fraction", "refuse")
    vetoed = {veto["code"]: veto["missing"] for veto in answer["control_vetoes"]}
    assert vetoed == {code: missing for code, (missing, _) in missed.items()}


async def decided(api: Running, document: Any) -> dict[str, Any]:
    """The decision on a document, as it is stored."""
    reply = (await api.advise(document)).json()
    stored = (await api.client.get(f"/decisions/{reply['decision_id']}")).json()
    return dict(stored["decision"])


async def test_the_account_is_derived_as_a_decision_derives_it(api: Running) -> None:
    """Without reports it is missing in both, with them both refuse a second trade of the symbol."""

    async def whole() -> bool:
        return await api.service.journal.ledger_of("agent") is not None

    await until(whole)
    untold = request("r-1", account={"equity": 10_000.0})
    before = await told(api, untold)
    assert of(before, "account.positions")["verdict"] == "missing"
    assert before["control_vetoes"], "rules lack the account"
    first = await decided(api, untold)
    assert before["control_vetoes"] == first["control_review"]["vetoes"]
    path = f"/decisions/{first['decision_id']}/agent-action"
    assert (await api.client.put(path, json={"decision": True})).status_code == 202

    document = untold | {"request_id": "r-2"}
    after = await told(api, document)
    assert "DUPLICATE_SYMBOL" in {veto["code"] for veto in after["control_vetoes"]}
    second = await decided(api, document)
    assert after["control_vetoes"] == second["control_review"]["vetoes"]
    derived = {field for field, verdict in verdicts(after).items() if verdict == "derived"}
    names = second["scenario"]["account"]["derived"]["fields"]
    assert derived == {f"account.{name}" for name in (*names, "derived")}
    positions = of(after, "account.positions")
    assert positions["sent"] is None
    assert "BTCUSDT" in positions["taken"]
    assert "what this agent reported" in positions["why"]
    assert verdicts(after)["account.drawdown_fraction"] == "missing"


async def test_what_passes_when_missing_is_named_too(
    api: Running, tmp_path: Path, database_url: str, valkey_url: str
) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text('version = "w"\n[spread]\nwhen_missing = "pass"\n')
    settings = settings_for(database_url, valkey_url, tmp_path / "other").model_copy(
        update={"limits": limits}
    )
    async with running(settings) as lenient:
        answer = await told(lenient, request("r-1", candidate__spread_bps=None))
    assert answer["missed_inputs"] == [{"code": "SPREAD", "missing": "spread_bps", "then": "pass"}]
    assert answer["control_vetoes"] == []


async def test_nothing_is_recorded_counted_or_occupied(api: Running) -> None:
    document = request("r-1")
    before = api.metrics.registry.get_sample_value(
        "advisor_stage_seconds_count", {"stage": "total"}
    )
    await asyncio.gather(*(told(api, document) for _ in range(5)))
    assert await drained(api.settings) == 0
    assert api.metric("advisor_decisions_total", status="advised", model_version="scripted-1") == 0
    after = api.metrics.registry.get_sample_value("advisor_stage_seconds_count", {"stage": "total"})
    assert after == before
    assert api.service.door.under_way == 0
    other = await api.advise(request("r-1", candidate__rsi=12.0))
    assert (other.status_code, other.json()["repeated"]) == (200, False)


async def test_a_candidate_of_the_future_is_refused_as_it_would_be(api: Running) -> None:
    late = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    answer = await told(api, request("r-1", candidate__ts=late))
    assert answer["acceptable"] is False
    report = of(answer, "candidate.ts")
    assert (report["verdict"], "is in the future" in report["why"]) == ("refused", True)


async def test_a_list_is_told_item_by_item(api: Running) -> None:
    reply = await api.client.post(
        "/advise?dry_run=1", json=[request("r-1"), 7, request("r-2", plan__stop=None)]
    )
    assert [each["acceptable"] for each in reply.json()] == [True, False, False]


@pytest.mark.parametrize("said", ["yes", "", "true&dry_run=false"])
async def test_who_cannot_be_understood_is_refused_and_not_recorded(
    api: Running, said: str
) -> None:
    reply = await api.client.post(f"/advise?dry_run={said}", json=request("r-1"))
    assert require_problem(reply)["detail"] == "dry_run: it is neither true nor false"
    assert await drained(api.settings) == 0


async def test_dry_run_false_is_an_ordinary_request(api: Running) -> None:
    reply = await api.client.post("/advise?dry_run=false", json=request("r-1"))
    assert reply.json()["status"] == "advised"


async def test_what_is_no_json_is_refused_as_it_would_be(api: Running) -> None:
    dry = await api.client.post("/advise?dry_run=true", content=b"{")
    real = await api.client.post("/advise", content=b"{")
    assert require_problem(dry) == require_problem(real)


async def test_a_dry_run_is_not_turned_away_by_load(api: Running) -> None:
    ticket = api.service.door.enter(0.0, float("inf"))
    ticket.answered = True
    api.service.door.leave(ticket)  # Learnt: a request takes as long as this machine is up.
    ticket = api.service.door.enter(0.0, float("inf"))
    assert (await api.advise(request("r-1"))).status_code == 503
    assert (await told(api, request("r-1")))["acceptable"] is True
    api.service.door.leave(ticket)
