"""Decision models elsewhere, in shadow of a running service: asked after the reply, over real HTTP,
on the record, and never in the way."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from app.domain.errors import DeciderError
from app.domain.model.actions import LABELS
from app.domain.record.decision import Decision
from app.main import deciders
from app.shadow_log.proof.findings import Fault
from app.shadow_log.proof.verify import verify_log
from bench.serving.stand_in import StandIn, standing_in
from tests.service.running import ROOT, Running, drained, request, running, settings_for, until

KEY = "sk-never-shown-1234567890"
VLLM_URL = os.environ.get("REAL_VLLM_URL", "")
SYSTEMONE_URL = os.environ.get("REAL_SYSTEMONE_URL", "")


def rows(url: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        return connection.execute(query).fetchall()


def table(name: str, url: str, **more: Any) -> str:
    fields = {"protocol": "systemone", "url": url, "model": "m"} | more
    return "\n".join(
        [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in fields.items())]
    )


@asynccontextmanager
async def panel(
    database_url: str, valkey_url: str, tmp_path: Path, *tables: str
) -> AsyncIterator[Running]:
    """A service with these tables."""
    path = tmp_path / "deciders.toml"
    path.write_text("\n\n".join(tables))
    settings = settings_for(database_url, valkey_url, tmp_path / "home", deciders=path)
    async with running(settings) as served:
        yield served


async def asked(served: Running, *names: str, **changes: Any) -> list[dict[str, Any]]:
    """Decisions made, everything that the panel does about them done."""
    answers = [(await served.advise(request(name, **changes))).json() for name in names]
    await served.service.panel.settle()
    return answers


async def require_answered_once(served: Running) -> None:
    health = served.service.panel.health()
    assert set(health.values()) == {"answered"}
    assert (await served.client.get("/readyz")).json()["panel"] == health
    for version in health:
        labels = {"model_version": version, "outcome": "answered"}
        assert served.metric("advisor_panel_questions_total", **labels) == 1


def require_told_costs(gpt: dict[str, Any], jev: dict[str, Any], small: dict[str, Any]) -> None:
    assert (gpt["label_mass"], jev["label_mass"]) == (None, pytest.approx(0.8))
    assert jev["cost"] == pytest.approx(300 * 0.5e-6)
    assert gpt["cost"] == pytest.approx(0.0004)
    assert small["cost"] is None
    assert all(row["seconds"] > 0 for row in (gpt, jev, small))


async def test_three_models_elsewhere_are_one_row_each_beside_the_reply(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JEV_KEY", KEY)
    model = StandIn(mass=0.8)
    async with standing_in(model) as url:
        tables = (
            table("jev", url, key="JEV_KEY", price_in=0.5),
            table("gpt", url, protocol="decisions", masked=True),
            table("small", url, protocol="chat", question="trade"),
        )
        async with panel(database_url, valkey_url, tmp_path, *tables) as served:
            [answer] = await asked(served, "r-1")
            assert [advice["model_version"] for advice in answer["advices"]] == ["scripted-1"]
            await served.service.panel.keep_up()
            await require_answered_once(served)
            await drained(served.settings)
            document = (await served.client.get(f"/decisions/{answer['decision_id']}")).json()
    advices = rows(database_url, "SELECT * FROM all_advices ORDER BY late, model_version")
    names = [row["model_version"].rpartition("-")[0] for row in advices]
    assert names == ["scripted", "gpt", "jev", "small"]
    assert [row["late"] for row in advices] == [False, True, True, True]
    assert all(row["status"] in ("advised", "vetoed") for row in advices)
    require_told_costs(*advices[1:])
    assert len(document["late_advices"]) == 3
    registered = rows(database_url, "SELECT model_version, manifest_hash FROM model_versions")
    known = {row["model_version"]: row["manifest_hash"] for row in registered}
    assert all(known[row["model_version"]] == row["manifest_hash"] for row in advices[1:])
    compared = rows(database_url, "SELECT model_version, role FROM shadow_comparison")
    assert len(compared) == 4
    report = await verify_log(database_url)
    assert report.findings == []
    assert "3 advices follow from what models elsewhere told" in report.told_summary()
    everything = rows(database_url, "SELECT record::text FROM late_advices")
    assert KEY not in str(everything) + str(registered) + json.dumps(document)


async def test_late_advice_follows_from_its_reading_under_the_decisions_own_rules(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with (
        standing_in(StandIn(lean=20.0)) as url,
        panel(database_url, valkey_url, tmp_path, table("yes", url, order="reversed")) as served,
    ):
        [fine, wide] = [
            *await asked(served, "fine"),
            *await asked(served, "wide", candidate__spread_bps=500.0),
        ]
        await drained(served.settings)
    found = {row["decision_id"]: row for row in rows(database_url, "SELECT * FROM late_advices")}
    assert found[UUID(fine["decision_id"])]["label"] == "J"
    refused = found[UUID(wide["decision_id"])]
    assert (refused["label"], refused["status"], refused["approve"]) == ("J", "vetoed", False)
    assert refused["veto_codes"] == [veto["code"] for veto in wide["vetoes"]]


async def test_a_reply_never_waits_for_models_elsewhere_and_their_silence_is_a_row(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    gone = table("gone", "http://127.0.0.1:9")
    async with (
        standing_in(StandIn(seconds=3600.0)) as url,
        panel(
            database_url,
            valkey_url,
            tmp_path,
            table("slow", url, timeout_s=0.3, at_once=1, waiting=1),
            gone,
        ) as served,
    ):
        # At once: nobody is asked, and so no time runs, while one of them waits for its reply.
        answers = await asyncio.gather(*(served.advise(request(f"r-{n}")) for n in range(4)))
        [version] = [name for name in served.service.panel.health() if name.startswith("slow")]

        def count(outcome: str) -> float:
            return served.metric(
                "advisor_panel_questions_total", model_version=version, outcome=outcome
            )

        assert all(answer.json()["status"] == "advised" for answer in answers)
        assert count("busy") == 2
        assert count("deadline") == 0, "nobody waited for it"
        await served.service.panel.settle()
        assert count("deadline") == 2
        assert "deadline: " in served.service.panel.health()[version]
        assert (
            served.metric("advisor_decisions_total", status="abstained", model_version=version) == 2
        )
        await drained(served.settings)
    found = rows(
        database_url,
        "SELECT abstain_reason, count(*) AS n FROM late_advices GROUP BY 1 ORDER BY 1",
    )
    assert found == [
        {"abstain_reason": "backend_unavailable", "n": 4},
        {"abstain_reason": "deadline", "n": 2},
    ]
    assert (await verify_log(database_url)).findings == []


async def test_nobody_is_asked_while_a_reply_is_waited_for(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    model = StandIn()
    async with (
        standing_in(model) as url,
        panel(database_url, valkey_url, tmp_path, table("jev", url)) as served,
    ):
        door = served.service.door
        waiting = door.enter(arrived=monotonic(), deadline=monotonic() + 60)
        await served.advise(request("r-1"))
        await served.advise(request("r-2"))
        assert model.asked == [], "another reply is waited for"
        door.leave(waiting)
        await served.service.panel.settle()
        assert len(model.asked) == 2


async def test_nothing_is_recorded_while_a_reply_is_waited_for(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    model = StandIn()
    async with (
        standing_in(model) as url,
        panel(database_url, valkey_url, tmp_path, table("jev", url)) as served,
    ):
        [version] = served.service.panel.health()
        door = served.service.door

        def counted(name: str, **labels: str) -> float:
            return served.metric(name, model_version=version, **labels)

        async def answered() -> bool:
            return counted("advisor_panel_questions_total", outcome="answered") == 1

        held = door.enter(arrived=monotonic(), deadline=monotonic() + 60)
        await served.advise(request("r-1"))
        # Somebody else waits again as soon as the question is on its way.
        door.leave(held)
        while not model.asked:
            await asyncio.sleep(0)
        held = door.enter(arrived=monotonic(), deadline=monotonic() + 60)
        await until(answered)
        statuses = ("advised", "vetoed", "abstained")
        told = sum(counted("advisor_decisions_total", status=status) for status in statuses)
        door.leave(held)
        await served.service.panel.settle()
        assert told == 0, "another reply was waited for"
        assert sum(counted("advisor_decisions_total", status=s) for s in statuses) == 1


async def test_a_budget_and_a_share_bound_what_is_asked(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    model = StandIn()
    async with standing_in(model) as url:
        tables = (table("poor", url, per_day=3), table("rare", url, model="rare", share=0.25))
        async with panel(database_url, valkey_url, tmp_path, *tables) as served:
            for number in range(40):
                await asked(served, f"r-{number}")
            health = served.service.panel.health()
            await drained(served.settings)
    by_model = [body["model"] for _, _, body in model.asked]
    assert by_model.count("m") == 3
    assert 3 <= by_model.count("rare") <= 20
    assert [why.split(":")[0] for name, why in health.items() if name.startswith("poor")] == [
        "over_budget"
    ]
    late = rows(database_url, "SELECT count(*) AS n FROM late_advices")[0]["n"]
    assert late == len(model.asked)


async def test_a_share_is_asked_again_and_flips_are_metrics_and_rows_but_no_advice(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    model = StandIn(lean=30.0)
    async with standing_in(model) as url:
        fickle = table("fickle", url, permuted_share=1.0, repeated_share=1.0)
        async with panel(database_url, valkey_url, tmp_path, fickle) as served:
            await asked(served, "r-1", "r-2", "r-3")
            [version] = served.service.panel.health()
            assert len(model.asked) == 9
            for kind, flipped in (("order", "yes"), ("same", "no")):
                assert (
                    served.metric(
                        "advisor_panel_repetitions_total",
                        model_version=version,
                        kind=kind,
                        flipped=flipped,
                    )
                    == 3
                )
            await drained(served.settings)
    flips = rows(database_url, "SELECT * FROM flips ORDER BY kind")
    assert [(row["kind"], row["asked_again"], row["flip_rate"]) for row in flips] == [
        ("order", 3, 1),
        ("same", 3, 0),
    ]
    assert flips[0]["mean_distance"] == pytest.approx(1.0, abs=1e-6)
    assert flips[1]["mean_distance"] == 0
    assert rows(database_url, "SELECT count(*) AS n FROM all_advices WHERE late")[0]["n"] == 3
    again = rows(database_url, "SELECT record FROM repetitions WHERE kind = 'order'")
    orders = [tuple(row["record"]["again"]["exchange"]["order"]) for row in again]
    assert all(order[0] != LABELS[0] or order != LABELS for order in orders)
    assert (await verify_log(database_url)).findings == []


async def test_verify_finds_late_advice_that_was_tampered_with(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with standing_in(StandIn()) as url:
        jev = table("jev", url, permuted_share=1.0)
        async with panel(database_url, valkey_url, tmp_path, jev) as served:
            await asked(served, "r-1")
            await drained(served.settings)
    [late] = rows(database_url, "SELECT action FROM late_advices")
    other = "reject" if late["action"] != "reject" else "approve_r1.00_s1.5"
    changes = {
        "UPDATE late_advices SET approve = NOT approve": Fault.COLUMNS,
        "UPDATE late_advices SET seconds = 0": Fault.COLUMNS,
        f"UPDATE late_advices SET record = jsonb_set(record, '{{action}}', '\"{other}\"'),"
        f" action = '{other}'": Fault.REPLAY,
        "UPDATE late_advices SET record = jsonb_set(record, '{reading,exchange,cost}', '1'),"
        " cost = 1": Fault.OTHER_THAN_LINKED,
        "UPDATE repetitions SET flipped = NOT flipped": Fault.COLUMNS,
        "DELETE FROM late_advices": Fault.LINK_WITHOUT_ROW,
        "DELETE FROM repetitions": Fault.LINK_WITHOUT_ROW,
    }
    for statement, fault in changes.items():
        with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("CREATE TABLE kept_a AS TABLE late_advices")
            connection.execute("CREATE TABLE kept_r AS TABLE repetitions")
            assert connection.execute(statement).rowcount == 1
        report = await verify_log(database_url)
        assert fault in report.counts, statement
        with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("DELETE FROM late_advices")
            connection.execute("DELETE FROM repetitions")
            connection.execute("INSERT INTO late_advices TABLE kept_a")
            connection.execute("INSERT INTO repetitions TABLE kept_r")
            connection.execute("DROP TABLE kept_a, kept_r")
    assert (await verify_log(database_url)).findings == []


async def test_the_tables_of_the_documentation_are_three_versions_that_answer(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "decision_models.md").read_text()
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    for name in re.findall(r'^key = "(\w+)"', text, re.MULTILINE):
        monkeypatch.setenv(name, KEY)
    async with standing_in(StandIn()) as url:
        here = re.sub(r'^url = "[^"]+"', f'url = "{url}"', text, flags=re.MULTILINE)
        everybody = re.sub(r"^share = [\d.]+", "share = 1.0", here, flags=re.MULTILINE)
        async with panel(database_url, valkey_url, tmp_path, everybody) as served:
            await asked(served, "r-1")
            assert set(served.service.panel.health().values()) == {"answered"}
            await drained(served.settings)
    late = rows(database_url, "SELECT model_version, label FROM late_advices ORDER BY 1")
    assert [row["model_version"].split("-")[0] for row in late] == ["gpt", "jev", "local"]


async def test_a_repeat_of_a_request_asks_nobody_again(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    model = StandIn()
    async with (
        standing_in(model) as url,
        panel(database_url, valkey_url, tmp_path, table("jev", url)) as served,
    ):
        document = request("r-1")
        for _ in range(3):
            await served.advise(document)
        await served.service.panel.settle()
        assert len(model.asked) == 1


async def test_a_version_gives_one_advice_on_a_decision_however_often_it_is_asked(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with (
        standing_in(StandIn()) as url,
        panel(database_url, valkey_url, tmp_path, table("jev", url)) as served,
    ):
        decision = await _decision(served)
        served.service.panel.offer(decision)
        await served.service.panel.settle()
        [version] = served.service.panel.health()
        counted = [
            served.metric("advisor_decisions_total", status=status, model_version=version)
            for status in ("advised", "vetoed", "abstained")
        ]
        assert sum(counted) == 1
        await drained(served.settings)
    assert rows(database_url, "SELECT count(*) AS n FROM late_advices") == [{"n": 1}]
    assert (await verify_log(database_url)).findings == []


async def _decision(served: Running) -> Decision:
    answer = (await served.advise(request("r-1"))).json()
    await served.service.panel.settle()
    return await served.service.records.decision(UUID(answer["decision_id"]))


def test_a_start_without_the_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deciders.toml"
    path.write_text(table("jev", "https://api.example.com", key="NOT_SET_ANYWHERE"))
    settings = settings_for("postgresql://x", "redis://x", tmp_path, deciders=path)
    with pytest.raises(DeciderError, match="NOT_SET_ANYWHERE"):
        deciders(settings)


@pytest.mark.vllm
@pytest.mark.skipif(not SYSTEMONE_URL, reason="REAL_SYSTEMONE_URL is not set: make test-vllm")
@pytest.mark.timeout(900)
async def test_a_real_vllm_stands_in_shadow_by_every_protocol_that_it_speaks(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """System One of one model, chat of another; Decisions it does not speak, and that is a row that
    says so."""
    real: dict[str, Any] = {"model": "advisor", "timeout_s": 60.0}
    tables = (
        table("one", SYSTEMONE_URL, permuted_share=1.0, repeated_share=1.0, **real),
        table("chat", VLLM_URL, protocol="chat", question="trade", **real),
        table("none", VLLM_URL, protocol="decisions", **real),
    )
    async with panel(database_url, valkey_url, tmp_path, *tables) as served:
        await asked(served, "r-1", "r-2")
        await served.service.panel.keep_up()
        await drained(served.settings)
    late = rows(database_url, "SELECT * FROM late_advices ORDER BY model_version")
    chat, none, one = late[:2], late[2:4], late[4:]
    assert len(one) == 2
    for row in (*chat, *one):
        assert row["status"] in ("advised", "vetoed"), row["record"]["abstain_detail"]
        exchange = row["record"]["reading"]["exchange"]
        assert 0 < row["label_mass"] <= 1
        assert exchange["model"] == "advisor"
        assert exchange["input_tokens"] > 100
        assert row["seconds"] > 0
    for row in none:
        detail = "HTTP 404: there is no such path or model"
        assert (row["status"], row["record"]["abstain_detail"]) == ("abstained", detail)
    again = rows(database_url, "SELECT * FROM flips ORDER BY kind")
    assert [(row["kind"], row["asked_again"]) for row in again] == [("order", 2), ("same", 2)]
    assert again[1]["mean_distance"] < 0.01, "the same question has the same answer"
    assert (await verify_log(database_url)).findings == []
