"""What is stored is less than what was written, and comes back to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from app.domain.candidate import Candidate
from app.domain.canonical import canonical_json, decision_id
from app.domain.errors import AbstainReason, InvalidRecord
from app.domain.record.control import AgentAction
from app.domain.record.decision import Abstention, Decision
from app.domain.record.event import Event
from app.domain.record.outcome import Outcome
from app.domain.rules.case import TradingState
from app.shadow_log.lean import (
    LATER,
    REPORTED,
    Form,
    forms_of_report,
    lean,
    whole_advice,
    whole_record,
    with_defaults,
    without_defaults,
)
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.rows import advice_rows, assemble, decision_row
from app.shadow_log.schema import tables
from app.shadow_log.schema.migrate import downgrade, upgrade
from tests import builders as build
from tests.service.running import drained, request, running, settings_for
from tests.service.shadow_log.test_log import rows

TRADED = build.agent_action(llm_confidence=0.5)
SILENT = Abstention(AbstainReason.DEADLINE)
PATTERN = {"posterior_mean": 0.6, "variance": 0.01, "trades": 12, "alpha": 8.0, "beta": 6.0}
ODD: list[dict[str, Any]] = [
    {},
    {"candidate__time_to_news_minutes": "clear", "candidate__max_trades": None},
    {"candidate__pattern_memory": PATTERN | {"trades": 2**40}},
    {"candidate__pattern_memory": PATTERN, "candidate__hurst": -0.0},
    {"candidate__social": {"posts": 3}, "candidate__volume_profile": {"lvns": [1.0, 2.5]}},
    {"market__surroundings": {"volatility_1h": 5e-324, "return_6h": -1.5}},
    {"market__surroundings": {}, "market__bar_closed_at": "2026-11-23T08:00:00.500Z"},
    {"account__consecutive_losses": 2**40, "account__positions": None, "market__volume_24h": 1e22},
    {"candidate__ts": "2026-11-23T10:00:00.25Z", "candidate__news_summary": 'say "0.5" \\ '},
]
"""What has a column and does not fit into it, and what fits although it is rare."""
NULLABLE = sorted(n for n, f in Candidate.model_fields.items() if f.default is None)


@given(
    unknown=st.sets(st.sampled_from(NULLABLE)),
    extra=st.dictionaries(st.text(max_size=5), st.none() | st.integers(0, 9), max_size=3),
    says=st.sampled_from(["A", "H", "J", SILENT]),
    quantity=st.sampled_from([0.25, 3.0, 1e6]),
    state=st.sampled_from(TradingState),
    odd=st.sampled_from(ODD),
)
def test_a_decision_comes_back_to_the_bytes_that_were_hashed(
    unknown: set[str],
    extra: dict[str, Any],
    says: str | Abstention,
    quantity: float,
    state: TradingState,
    odd: dict[str, Any],
) -> None:
    """Whatever a candidate leaves open, a model says, and rules make of it; nulls within its own
    extra keys are its own."""
    told: dict[str, Any] = {f"candidate__{name}": None for name in unknown}
    told |= odd | {"candidate__extra": extra, "plan__quantity": quantity}
    shadows = [("other", "A"), ("third", "B")]
    made = build.decision(label=says, control=True, shadows=shadows, state=state, **told)
    document = orjson.loads(Event.of_decision(made).payload)
    apart = lean(document)
    row = decision_row(made, apart, b"")
    again = assemble(row, advice_rows(made, apart), apart.shared)
    assert canonical_json(again.as_json()) == canonical_json(document)
    left = apart.scenario.get("candidate", {})
    assert not any(value is None for value in left.values())
    assert left.keys() <= {"extra", *(name.partition("__")[2] for name in odd)}


async def test_the_view_shows_scenarios_as_they_were_made(database_url: str) -> None:
    """Also of rows of a release that left them whole, and after a downgrade."""
    made = [build.decision(f"r-{n}", **odd) for n, odd in enumerate(ODD)]
    log = ShadowLog.connect(database_url)
    await log.append([Event.of_decision(each) for each in made])
    await log.aclose()
    expected = [lean(each.as_json(), form=Form.SAID).scenario for each in made]
    query = "SELECT scenario FROM {} ORDER BY length(request_id), request_id"
    shown = rows(database_url, query.format("whole_decisions"))
    assert [row["scenario"] for row in shown] == expected
    assert rows(database_url, query.format("decisions")) != shown
    downgrade(database_url, "0025")
    assert rows(database_url, query.format("decisions")) == shown
    upgrade(database_url)
    assert rows(database_url, query.format("whole_decisions")) == shown
    assert (await verify_log(database_url)).findings == []


def test_what_is_stored_is_half_of_what_was_written() -> None:
    apart = lean(build.decision().as_json())
    stored = sum(len(orjson.dumps(part)) for part in (apart.scenario, apart.record, *apart.advices))
    assert stored < 0.55 * len(orjson.dumps(build.decision().as_json()))
    assert {"limits", "prompt", "decision_id"}.isdisjoint(apart.record)
    assert sorted(map(type, apart.shared.values()), key=str) == [dict, dict, str]


def test_limits_under_a_hash_that_is_not_theirs_are_shared_with_nobody() -> None:
    document = build.decision().as_json() | {"limits_hash": "sha256:" + "1" * 64}
    apart = lean(document)
    assert apart.shared == {}
    assert apart.record["limits"] == document["limits"]
    assert whole_record({"record": apart.record, "prompt_head": None}, {}) == apart.record
    assert (
        whole_advice({"record": apart.advices[0], "calibration": None}, {})
        == document["advices"][0]
    )


def test_a_part_that_is_not_there_is_named() -> None:
    made = build.decision()
    apart = lean(made.as_json())
    row = decision_row(made, apart, b"")
    with pytest.raises(InvalidRecord, match=f"missing: {made.limits_hash}"):
        assemble(
            row,
            advice_rows(made, apart),
            {k: v for k, v in apart.shared.items() if isinstance(v, str)},
        )


@pytest.mark.parametrize(
    "report", [build.agent_action(llm_confidence=0.5), build.outcome(r=1.0), build.outcome()]
)
def test_a_report_is_shown_with_what_is_not_stored_of_it(report: AgentAction | Outcome) -> None:
    document = report.as_json()
    stored = without_defaults(type(report), document)
    assert len(stored) < len(document)
    assert with_defaults(type(report), stored) == document


async def test_decisions_share_their_limits_and_are_whole_again_after_a_downgrade(
    database_url: str,
) -> None:
    log = ShadowLog.connect(database_url)
    made = [build.decision(f"r-{n}", control=True, shadows=[("other", "A")]) for n in range(3)]
    await log.append([Event.of_decision(each) for each in made])
    assert rows(database_url, "SELECT count(*) AS n FROM shared_parts") == [{"n": 3}]
    assert await log.decision(made[1].decision_id) == made[1]
    document = await log.get(decision_id("r-2"))
    assert document is not None
    assert document["decision"] == made[2].as_json()
    await log.aclose()
    downgrade(database_url, "0016")
    [stored] = rows(database_url, "SELECT record, scenario FROM decisions WHERE request_id = 'r-1'")
    advices = rows(
        database_url,
        "SELECT a.record FROM advices a JOIN decisions d USING (decision_id)"
        " WHERE request_id = 'r-1' ORDER BY ordinal",
    )
    whole = {**stored["record"], "scenario": stored["scenario"]}
    whole["advices"] = [advice["record"] for advice in advices]
    assert Decision.from_json(whole) == made[1], "as a release of before reads it"
    upgrade(database_url)
    report = await verify_log(database_url)
    assert (report.decisions, report.findings) == (3, [])


@pytest.mark.parametrize("form", [form for form in Form if form is not Form.LEAN])
async def test_a_row_of_a_release_that_left_more_standing_holds(
    database_url: str, form: Form
) -> None:
    log = ShadowLog.connect(database_url)
    made = build.decision("r-1", control=True).model_copy(update={"stage_seconds": {}})
    told = build.action_event("r-1", TRADED), build.outcome_event("r-1", build.outcome(r=1.0))
    await log.append([Event.of_decision(made), *told])
    shown = await log.get(made.decision_id)
    [stored] = rows(database_url, "SELECT record, scenario FROM decisions")
    assert not {"stage_seconds", "targets"} & {*stored["record"], *stored["record"]["control"]}
    assert stored["scenario"] == {"account": {"positions": []}}
    before = lean(made.as_json(), form=form)
    if form is Form.FULL:
        assert before.record["control"] == made.as_json()["control"]
        assert before.scenario["candidate"]["extra"] == before.record["stage_seconds"] == {}
    if form < Form.SAID:
        assert {"proposal", "reading", "review"} <= before.advices[0].keys()
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE decisions SET record = %s, scenario = %s, "
            + ", ".join(f"{name} = %s" for name in before.columns),
            [Jsonb(before.record), Jsonb(before.scenario), *before.columns.values()],
        )
        read = "" if form >= Form.SAID else ", log_probabilities = NULL, probabilities = NULL"
        connection.execute(
            f"UPDATE advices SET record = %s, calibration = NULL{read}", [Jsonb(before.advices[0])]
        )
        for table, event in zip((tables.agent_actions, tables.outcomes), told, strict=True):
            said = event.document()["action" if table is tables.agent_actions else "outcome"]
            record = Jsonb(forms_of_report(table, said)[max(3 - form, 1)])
            later = ", ".join(f"{name} = NULL" for name in LATER[table.name])
            connection.execute(
                f"UPDATE {table.name} SET record = %s, {later} WHERE event_key = %s",
                [record, event.key],
            )
    assert await log.decision(made.decision_id) == made
    assert await log.get(made.decision_id) == shown
    await log.aclose()
    report = await verify_log(database_url)
    assert (report.decisions, report.reports, report.findings) == (1, 2, [])


async def test_what_columns_say_stands_in_the_json_again_after_a_downgrade(
    database_url: str,
) -> None:
    log = ShadowLog.connect(database_url)
    shadows: list[tuple[str, str | Abstention]] = [
        ("rejects", "A"),
        ("silent", SILENT),
        ("vetoed", "J"),
    ]
    made = build.decision("r-1", control=True, shadows=shadows)
    told = build.action_event("r-1", TRADED), build.outcome_event("r-1", build.outcome(r=1.0))
    await log.append([Event.of_decision(made), *told])
    await log.aclose()
    newest = "SELECT record FROM latest_outcomes", "SELECT record FROM latest_actions"
    shown = [rows(database_url, query) for query in newest]
    assert shown[0][0]["record"]["r_multiple"] == 1.0
    downgrade(database_url, "0023")
    document = made.as_json()
    before = lean(document, form=Form.EMPTIED)
    advices = rows(database_url, "SELECT record FROM advices ORDER BY ordinal")
    [decision] = rows(database_url, "SELECT record, scenario FROM decisions")
    assert [advice["record"] for advice in advices] == before.advices
    assert decision == {"record": before.record, "scenario": before.scenario}
    for table, event, name in (
        (tables.agent_actions, told[0], "action"),
        (tables.outcomes, told[1], "outcome"),
    ):
        query = f"SELECT record FROM {table.name} WHERE event_key = '{event.key}'"
        [row] = rows(database_url, query)
        shape = REPORTED[table.name]
        assert shape.from_json(row["record"]) == shape.from_json(event.document()[name])
    assert [rows(database_url, query) for query in newest] == shown
    upgrade(database_url)
    assert (await verify_log(database_url)).findings == []
    assert [rows(database_url, query) for query in newest] == shown


async def test_numbers_come_back_as_records_read_them(database_url: str) -> None:
    """JSONB gives 2.164036440412353e16 back as an integer, which is another number."""
    log = ShadowLog.connect(database_url)
    odd = {"whole": 3.0, "small": 5e-324, "list": [1e15, {"deep": 0.1}]}
    made = build.decision("r-1", candidate__extra=odd, market__volume_24h=2.164036440412353e16)
    await log.append([Event.of_decision(made)])
    await log.aclose()
    assert (await verify_log(database_url)).findings == []


async def test_a_lost_part_is_the_records_fault_and_not_that_of_whoever_asks(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """A superuser deletes limits. Reports are taken all the same; what judges next is whole."""
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as api:
        kept = (await api.advise(request("r-1"))).json()["decision_id"]
        await drained(settings)
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM shared_parts WHERE jsonb_typeof(content) = 'object'")
    async with running(settings) as api:
        read = await api.client.get(f"/decisions/{kept}")
        assert (read.status_code, read.json()["title"]) == (500, "A stored record cannot be read")
        assert f"decision {kept} cannot be read" in read.json()["detail"]
        page = await api.client.get(f"/ui/decisions/{kept}")
        assert (page.status_code, "advisor verify" in page.text) == (500, True)
        action = {"decision": False}
        told = await api.client.put(f"/decisions/{kept}/agent-action", json=action)
        assert told.status_code == 202
        assert (await api.advise(request("r-2"))).status_code == 200
        await drained(settings)
    assert (await verify_log(database_url)).findings == [], "the next decision brought them again"


async def test_only_adding_is_possible(database_url: str) -> None:
    log = ShadowLog.connect(database_url)
    await log.append([build.decision_event("r-1")])
    await log.aclose()
    with (
        psycopg.connect(database_url.replace("+psycopg", "")) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="append-only"),
    ):
        connection.execute("UPDATE shared_parts SET content = '{}'")
