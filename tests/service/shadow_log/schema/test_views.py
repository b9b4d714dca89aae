"""The views say what was worked out by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from app.domain.canonical import decision_id
from app.domain.errors import AbstainReason
from app.domain.model.manifest import Calibration
from app.domain.record.decision import Abstention, Role, Version, conclude
from app.domain.record.event import Event
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify
from tests import builders as build
from tests.service.shadow_log.test_log import rows


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[ShadowLog]:
    opened = ShadowLog.connect(database_url)
    yield opened
    await opened.aclose()


def one(url: str, query: str) -> dict[str, Any]:
    (row,) = rows(url, query)
    return row


def days(counts: Sequence[tuple[bool, str, int]], at: datetime) -> list[Event]:
    """Decisions by (agent trades, label, how many)."""
    return [
        build.decision_event(
            f"{at:%d}-{agent}-{label}-{n}", label=label, control=agent, at=at + timedelta(minutes=n)
        )
        for agent, label, count in counts
        for n in range(count)
    ]


async def test_a_comparison_joins_control_advice_vetoes_and_both_outcomes(
    log: ShadowLog, database_url: str
) -> None:
    await log.append(
        [
            build.decision_event(
                "r-1", control=True, shadows=[("other", "A")], candidate__spread_bps=40.0
            ),
            build.action_event(
                "r-1", build.agent_action(False, final_skip_reason="spread"), minutes=1
            ),
            build.action_event("r-1", build.agent_action(True, llm_confidence=0.7), minutes=2),
            build.outcome_event("r-1", build.outcome(r=-1.0), minutes=10),
            build.outcome_event("r-1", build.outcome(r=-0.9, source="simulated"), minutes=11),
            build.outcome_event("r-1", build.outcome("advice", r=0.0), minutes=12),
            build.outcome_event(
                "r-1", build.outcome("advice", r=0.4, model_version="other"), minutes=12
            ),
        ]
    )
    found = rows(database_url, "SELECT * FROM shadow_comparison ORDER BY role")
    assert [row["model_version"] for row in found] == ["test-1", "other"]
    primary, shadow = found
    expected = {
        "request_id": "r-1", "symbol": "ETHUSDT", "session": "Europe", "regime": "normal",
        "state": "ACTIVE",
        "agent_approve": True, "llm_confidence": 0.7, "final_skip_reason": None,
        "control_veto_codes": ["SPREAD"],
        "status": "vetoed", "label": "H", "advice_approve": False, "advice_action": "reject",
        "advice_quantity": 0.0,
        "veto_codes": ["SPREAD"], "agree": False, "agent_outcome": "sl",
        "agent_outcome_source": "simulated",
        "agent_r": -0.9, "agent_pnl": -6.75, "advice_outcome": "not_traded", "advice_r": 0.0,
    }  # fmt: skip
    assert {name: primary[name] for name in expected} == expected
    assert (shadow["status"], shadow["veto_codes"], shadow["advice_r"]) == ("advised", [], 0.4)


async def test_agreement_is_unknown_without_a_control_or_an_opinion(
    log: ShadowLog, database_url: str
) -> None:
    await log.append(
        [
            build.decision_event("no control"),
            build.decision_event(
                "no opinion", control=True, label=Abstention(AbstainReason.DEADLINE)
            ),
            build.decision_event("both", control=True),
        ]
    )
    found = rows(database_url, "SELECT request_id, agree FROM shadow_comparison ORDER BY 1")
    assert [tuple(row.values()) for row in found] == [
        ("both", True),
        ("no control", None),
        ("no opinion", None),
    ]
    assert one(database_url, "SELECT decisions FROM agreement_daily") == {"decisions": 1}


async def test_skips_for_an_outage_are_no_outcome(log: ShadowLog, database_url: str) -> None:
    skipped = build.outcome(r=0.0, exogenous_skip=True)
    await log.append(
        [
            build.decision_event("skipped", control=True),
            build.outcome_event("skipped", build.outcome(r=1.0), minutes=1),
            build.outcome_event("skipped", skipped, minutes=2),
            build.decision_event("corrected", control=True),
            build.outcome_event("corrected", skipped, minutes=1),
            build.outcome_event("corrected", build.outcome(r=1.0), minutes=2),
        ]
    )
    found = rows(
        database_url, "SELECT request_id, agent_outcome, agent_r FROM shadow_comparison ORDER BY 1"
    )
    assert [tuple(row.values()) for row in found] == [
        ("corrected", "tp2", 1.0),
        ("skipped", None, None),
    ]


async def test_the_newest_report_of_an_arm_and_version_counts(
    log: ShadowLog, database_url: str
) -> None:
    """The agent is one arm, whatever version a report names; of two at one time, one counts."""
    await log.append(
        [
            build.decision_event("r-1"),
            build.action_event("r-1", False, minutes=1),
            build.action_event("r-1", True, minutes=2),
            build.action_event("r-1", build.agent_action(False, reason="late"), minutes=2),
            build.outcome_event("r-1", build.outcome(r=-1.0), minutes=3),
            build.outcome_event("r-1", build.outcome(r=-0.5, model_version="other"), minutes=4),
            build.outcome_event("r-1", build.outcome("advice", r=1.0), minutes=5),
            build.outcome_event("r-1", build.outcome("advice", r=2.0), minutes=4),
            build.outcome_event("r-1", build.outcome("advice", r=3.0, model_version="other")),
        ]
    )
    outcomes = rows(
        database_url,
        "SELECT arm, model_version, net_pnl FROM latest_outcomes ORDER BY arm DESC, model_version",
    )
    assert [tuple(row.values()) for row in outcomes] == [
        ("agent", "other", -0.5 * build.PLAN_RISK),
        ("advice", "other", 3.0 * build.PLAN_RISK),
        ("advice", "test-1", 1.0 * build.PLAN_RISK),
    ]
    newest = rows(
        database_url,
        "SELECT event_key FROM agent_actions ORDER BY recorded_at DESC, event_key DESC LIMIT 1",
    )
    assert rows(database_url, "SELECT event_key FROM latest_actions") == newest


async def test_the_report_that_came_last_counts_whatever_clocks_and_writers_did(
    log: ShadowLog, database_url: str
) -> None:
    """A correction from a clock that is behind, written before what it corrects by a faster
    writer; and one of a report from an earlier release, which has no number."""
    await log.append(
        [
            build.decision_event("r-1", control=build.agent_action(True)),
            build.action_event("r-1", True, minutes=-3, arrival=3),
            build.outcome_event("r-1", build.outcome(r=-1.0), minutes=9),
            build.outcome_event("r-1", build.outcome(r=2.0), minutes=3, arrival=1),
        ]
    )
    await log.append([build.action_event("r-1", False, minutes=7, arrival=2)])
    await log.append([build.action_event("r-1", True, minutes=8, arrival=1)])
    [action] = rows(database_url, "SELECT decision, event_key FROM latest_actions")
    assert action["event_key"] == build.action_event("r-1", True, arrival=3).key
    assert rows(database_url, "SELECT net_pnl FROM latest_outcomes") == [
        {"net_pnl": 2.0 * build.PLAN_RISK}
    ]
    document = await log.get(decision_id("r-1"))
    assert document is not None
    told = [action.get("arrival") for action in document["agent_actions"]]
    assert told == [None, 1, 2, 3], "the control that came along is the oldest"
    assert (await verify(log.engine)).findings == []


async def test_agreement_and_kappa_by_hand(log: ShadowLog, database_url: str) -> None:
    monday, tuesday = datetime(2026, 11, 23, 1, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)
    # Cohen's own layout: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no of 50.
    # p_o = 35/50, p_e = (25*30 + 25*20) / 2500 = 0.5, kappa = 0.2 / 0.5 = 0.4.
    await log.append(
        days([(True, "H", 20), (True, "A", 5), (False, "H", 10), (False, "A", 15)], monday)
    )
    # All approve: agreement by chance is certain, kappa is undefined.
    await log.append(days([(True, "H", 3)], tuesday))
    found = rows(database_url, "SELECT * FROM agreement_daily ORDER BY day")
    assert found == [
        {
            "day": date(2026, 11, 23), "model_version": "test-1", "decisions": 50, "agreements": 35,
            "agent_approvals": 25, "advice_approvals": 30, "agreement": 0.7, "kappa": 0.4,
        },
        {
            "day": date(2026, 11, 24), "model_version": "test-1", "decisions": 3, "agreements": 3,
            "agent_approvals": 3, "advice_approvals": 3, "agreement": 1.0, "kappa": None,
        },
    ]  # fmt: skip


async def test_perfect_and_inverse_agreement_have_kappa_one_and_minus_one(
    log: ShadowLog, database_url: str
) -> None:
    first, second = datetime(2026, 11, 23, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)
    await log.append(days([(True, "H", 4), (False, "A", 4)], first))
    await log.append(days([(True, "A", 4), (False, "H", 4)], second))
    found = rows(database_url, "SELECT agreement, kappa FROM agreement_daily ORDER BY day")
    assert found == [{"agreement": 1.0, "kappa": 1.0}, {"agreement": 0.0, "kappa": -1.0}]


async def test_each_version_agrees_for_itself(log: ShadowLog, database_url: str) -> None:
    await log.append([build.decision_event("r-1", control=True, shadows=[("other", "A")])])
    found = rows(database_url, "SELECT model_version, agreements FROM agreement_daily ORDER BY 1")
    assert found == [
        {"model_version": "other", "agreements": 0},
        {"model_version": "test-1", "agreements": 1},
    ]


async def test_in_a_disagreement_who_rejects_earns_nothing(
    log: ShadowLog, database_url: str
) -> None:
    would_have = {"source": "simulated", "outcome": "tp2"}
    await log.append(
        [
            build.decision_event("agent lost", control=True, label="A"),
            build.outcome_event("agent lost", build.outcome(r=-1.0)),
            build.decision_event("agent won", control=True, label="A"),
            build.outcome_event("agent won", build.outcome(r=2.0)),
            build.decision_event("advice won", control=False, label="H"),
            build.outcome_event("advice won", build.outcome(r=1.1, **would_have)),
            build.outcome_event("advice won", build.outcome("advice", r=0.8)),
            build.decision_event("open", control=False, label="H"),
            build.decision_event("agreed", control=True, label="H"),
        ]
    )
    found = rows(
        database_url,
        "SELECT request_id, agent_earned_r, advice_earned_r, advice_minus_agent_r, was_right "
        "FROM disagreements ORDER BY 1",
    )
    assert [tuple(row.values()) for row in found] == [
        ("advice won", 0.0, 0.8, 0.8, "advice"),
        ("agent lost", -1.0, 0.0, 1.0, "advice"),
        ("agent won", 2.0, 0.0, -2.0, "agent"),
        ("open", 0.0, None, None, None),
    ]


async def test_the_value_of_a_veto_is_minus_what_the_agents_trade_made(
    log: ShadowLog, database_url: str
) -> None:
    wide, shaky = {"candidate__spread_bps": 50.0}, {"candidate__volatility_pct": 0.99}
    events = [
        build.decision_event("a", control=True, **wide),
        build.outcome_event("a", build.outcome(r=-1.0)),
        build.decision_event("b", control=True, **wide, **shaky),
        build.outcome_event("b", build.outcome(r=-0.5)),
        build.decision_event("c", control=False, **wide),
        build.outcome_event("c", build.outcome(r=2.0, source="simulated")),
        build.decision_event("not traded", control=False, **wide),
        build.outcome_event("not traded", build.outcome(r=0.0)),
        build.decision_event("unknown", control=True, **wide),
        build.decision_event("clean", control=True),
        build.outcome_event("clean", build.outcome(r=3.0)),
    ]
    await log.append(events)
    found = {row["code"]: row for row in rows(database_url, "SELECT * FROM veto_value")}
    assert found["SPREAD"] == {
        "code": "SPREAD", "refused": 5, "with_outcome": 3, "r_saved": -0.5,
        "mean_r_saved": pytest.approx(-0.5 / 3),
        "pnl_saved": -3.75, "losers_avoided": 2, "winners_missed": 1, "r_saved_alone": -1.0,
    }  # fmt: skip
    spike = found["VOLATILITY_SPIKE"]
    assert (spike["refused"], spike["r_saved"], spike["r_saved_alone"]) == (1, 0.5, None)


async def test_views_say_what_they_mean(database_url: str) -> None:
    found = rows(
        database_url,
        "SELECT relname, obj_description(oid) AS said FROM pg_class "
        "WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace",
    )
    said = {row["relname"]: row["said"] for row in found}
    assert said.keys() == {
        "all_advices",
        "advice_source",
        "chance_source",
        "pair_source",
        "comparison_source",
        "event_links",
        "flips",
        "foretold",
        "imported",
        "latest_actions",
        "latest_outcomes",
        "limits_history",
        "shadow_comparison",
        "whole_decisions",
        "disagreements",
        "agreement_daily",
        "veto_source",
        "veto_value",
        "paper_books",
    }
    assert "minus the R of the agent's arm" in said["veto_value"]
    assert all(said.values())


async def test_late_advice_stands_in_every_view_beside_that_of_the_record(
    log: ShadowLog, database_url: str
) -> None:
    decided = build.decision("r-1", label="A", control=True)
    await log.append(
        [
            build.decision_event("r-1", label="A", control=True),
            build.late_advice_event(decided, "H", label_mass=0.7),
            build.outcome_event("r-1", build.outcome(r=-1.0)),
        ]
    )
    found = rows(
        database_url,
        "SELECT model_version, role, advice_approve, agree, label_mass FROM shadow_comparison"
        " ORDER BY 1",
    )
    assert found == [
        {
            "model_version": "elsewhere-1",
            "role": "shadow",
            "advice_approve": True,
            "agree": True,
            "label_mass": 0.7,
        },
        {
            "model_version": "test-1",
            "role": "primary",
            "advice_approve": False,
            "agree": False,
            "label_mass": pytest.approx(1.0),
        },
    ]
    daily = rows(database_url, "SELECT model_version, agreements FROM agreement_daily ORDER BY 1")
    assert [row["agreements"] for row in daily] == [1, 0]
    asked = rows(database_url, "SELECT late, seconds, cost FROM all_advices ORDER BY late")
    assert asked == [
        {"late": False, "seconds": None, "cost": None},
        {"late": True, "seconds": 0.5, "cost": 0.001},
    ]


async def test_flips_are_counted_by_version_and_kind(log: ShadowLog, database_url: str) -> None:
    pairs = [("r-1", "H", "A"), ("r-2", "H", "H"), ("r-3", "A", "A"), ("r-4", "A", "B")]
    for name, first, again in pairs:
        decided = build.decision(name)
        await log.append(
            [build.decision_event(name), build.repetition_event(decided, first, again)]
        )
    [flips] = rows(database_url, "SELECT * FROM flips")
    assert (flips["asked_again"], flips["flipped"], flips["flip_rate"]) == (4, 2, 0.5)
    # Two of four differ, each by 0.91 - 0.01 on two labels: half of that sum is 0.9.
    assert flips["mean_distance"] == pytest.approx(0.45)


def foretelling(request_id: str, win: float, **scenario: Any) -> Event:
    """A decision whose version says so of winning, and 0.3 of the stop."""
    calibration = Calibration(outlook=build.outlook_calibration())
    reading = build.answering(
        build.reading("H"),
        win=(1 - win, win),
        stopped=(0.7, 0.3),
        range=(0.0001, 0.0001, 0.9996, 0.0001, 0.0001),
    )
    decision = build.decision(request_id, control=True, **scenario)
    advice = conclude(
        decision.scenario,
        reading,
        Version(build.MODEL, decision.primary.manifest_hash, calibration, Role.PRIMARY),
        decision.limits,
        state=decision.state,
        now=decision.evaluated_at,
    )
    return Event.of_decision(decision.model_copy(update={"advices": (advice,)}))


async def test_what_was_foretold_stands_beside_what_came_and_is_verified(
    log: ShadowLog, database_url: str
) -> None:
    await log.append(
        [
            foretelling("r-1", 0.6),
            build.outcome_event("r-1", build.outcome(r=-1.0), minutes=10),
            foretelling("r-2", 0.4),
            build.decision_event("r-3", control=True),
        ]
    )
    found = rows(database_url, "SELECT * FROM foretold ORDER BY win_probability")
    assert [row["decision_id"] for row in found] == [decision_id("r-2"), decision_id("r-1")]
    assert [row["won"] for row in found] == [None, False]
    row = found[1]
    assert row["win_probability"] == pytest.approx(0.6)
    assert row["stopped_probability"] == pytest.approx(0.3)
    assert row["range_atr"] == pytest.approx(2.4, rel=0.01)
    # The plain scenario's stop is 1.5 ATR away, and its spread is covered.
    assert row["expected_r"] == pytest.approx(0.6 * 1.5 / 1.5 - 0.3)
    assert row["agent_r"] == pytest.approx(-1.0)
    assert (await verify(log.engine)).findings == []
    unasked = "SELECT count(*) FROM advices WHERE win_probability IS NULL"
    assert one(database_url, unasked) == {"count": 1}
