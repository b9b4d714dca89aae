"""What the newest month was worth, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.domain.intervals import Mean
from app.processes.metrics import Metrics
from app.shadow_log.log import ShadowLog
from app.shadow_log.reading import worth
from app.shadow_log.reading.explore import Explorer
from app.shadow_log.reading.worth import newest_worth
from app.telemetry import Apart, Earned, Foretold, Saved, Worth
from tests import builders as build


async def test_worth_is_what_both_arms_earned_what_refusals_saved_and_whether_chances_came_true(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three decisions of the newest month and an older one. The agent trades all; advice approves
    `H` and rejects `A`. R of 7.5 quote units."""
    log = ShadowLog.connect(database_url)
    assert await newest_worth(log.engine) == Worth()
    wide = {"candidate__symbol": "BTCUSDT", "candidate__spread_bps": 40.0}
    await log.append(
        [
            build.decision_event("old", control=True, at=build.AS_OF - timedelta(days=31)),
            build.outcome_event("old", build.outcome(r=9.0)),
            build.decision_event("won", control=True),
            build.outcome_event("won", build.outcome(r=2.0)),
            build.outcome_event("won", build.outcome("advice", r=1.0)),
            build.decision_event("lost", label="A", control=True),
            build.outcome_event("lost", build.outcome(r=-1.0)),
            build.decision_event("refused", control=True, **wide),
            build.outcome_event("refused", build.outcome(r=-0.5)),
            build.decision_event("unknown", control=True, at=build.AS_OF),
        ]
    )
    found = await newest_worth(log.engine)
    assert sorted(found.earned) == [
        # The refusal of the advice's own order rejects: it earned 0 where the agent lost 0.5 R.
        Earned(build.MODEL, "BTCUSDT", 1, -0.5, 0.0, -3.75, 0.0),
        Earned(build.MODEL, "ETHUSDT", 2, 1.0, 1.0, 7.5, 7.5),
    ]
    # (1 - 2 + 0 + 1 + 0 + 0.5) / 3, and one day is too few for an interval.
    [(version, more)] = found.apart
    assert (version, *more[1:]) == (build.MODEL, None, None)
    assert more.value == pytest.approx(0.5 / 3)
    assert found.saved == [Saved("SPREAD", "BTCUSDT", 1, 0.5)]
    # Twice 0.91 that it approves (won, and lost 0.5), once 0.09 and more (lost).
    assert [row[:4] for row in sorted(found.foretold)] == [
        (build.MODEL, "approve", "0-20 %", 1),
        (build.MODEL, "approve", "80-100 %", 2),
    ]
    assert sorted(found.foretold)[1].won == 0.5
    monkeypatch.setattr(worth, "MOST_SYMBOLS", 1)
    assert {earned.symbol for earned in (await newest_worth(log.engine)).earned} == {
        "ETHUSDT",
        "other",
    }
    await log.aclose()


async def test_a_decision_that_says_it_is_of_the_calendars_end_hides_no_month(
    database_url: str,
) -> None:
    log = ShadowLog.connect(database_url)
    end = datetime.max.replace(tzinfo=UTC)
    await log.append([build.decision_event("end", control=True, at=end)])
    assert (await newest_worth(log.engine)).earned == [], "and no error"
    await log.append([build.decision_event("won", control=True)])
    assert len((await newest_worth(log.engine)).earned) == 1
    stored = await Explorer(log.engine).span()
    assert stored == (build.AS_OF, build.AS_OF)
    await log.aclose()


def test_a_version_that_is_no_longer_among_the_newest_leaves_no_series() -> None:
    metrics = Metrics()
    metrics.worth_seen(
        Worth(
            [Earned("v1", "BTCUSDT", 3, 1.0, 2.0, 10.0, 20.0)],
            [Apart("v1", Mean(0.1, None, None))],
            [Saved("SPREAD", "BTCUSDT", 4, 1.5)],
            [Foretold("v1", "win", "40-60 %", 5, 0.5, 0.4)],
        )
    )
    value = metrics.registry.get_sample_value
    of = {"model_version": "v1", "symbol": "BTCUSDT"}
    assert value("advisor_record_r", of | {"arm": "advice"}) == 2.0
    assert value("advisor_record_pnl", of | {"arm": "agent"}) == 10.0
    assert value("advisor_record_difference_r", {"model_version": "v1", "edge": "value"}) == 0.1
    assert value("advisor_record_difference_r", {"model_version": "v1", "edge": "low"}) is None
    band = {"model_version": "v1", "what": "win", "band": "40-60 %"}
    assert value("advisor_record_won_ratio", band) == 0.4
    metrics.worth_seen(Worth())
    assert value("advisor_record_r", of | {"arm": "advice"}) is None
    assert value("advisor_record_won_ratio", band) is None
