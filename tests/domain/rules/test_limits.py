"""A limits file: strict, all of its faults at once; maintenance windows by the clock."""

from __future__ import annotations

import os
from datetime import UTC, datetime, time
from pathlib import Path

import pytest

from app.domain.errors import LimitsError
from app.domain.record.decision import review_control
from app.domain.rules.case import TradingState
from app.domain.rules.limits import (
    Limits,
    RuleLimits,
    TradingHours,
    changes,
    parse_limits,
    read_limits,
)
from app.domain.scenario import Scenario
from tests.domain.scenarios import scenario

PLAIN = 'version = "plain"\n'
DAY = (time(9), time(10, 30))
NIGHT = (time(23, 30), time(0, 15))
UPGRADE = (datetime(2026, 11, 23, 12, tzinfo=UTC), datetime(2026, 11, 24, 12, tzinfo=UTC))
CLOSED = TradingHours(daily_maintenance=(DAY, NIGHT), maintenance=(UPGRADE,))


@pytest.mark.parametrize(
    ("day", "clock", "window"),
    [
        (20, time(8, 59, 59), None),
        (20, time(9), "09:00:00-10:30:00"),
        (20, time(10, 29, 59), "09:00:00-10:30:00"),
        (20, time(10, 30), None),
        (20, time(23, 29, 59), None),
        (20, time(23, 30), "23:30:00-00:15:00"),
        (20, time(0, 14, 59), "23:30:00-00:15:00"),
        (20, time(0, 15), None),
        (23, time(11, 59, 59), None),
        (23, time(12), "2026-11-23T12:00:00+00:00/2026-11-24T12:00:00+00:00"),
        (24, time(11, 59, 59), "2026-11-23T12:00:00+00:00/2026-11-24T12:00:00+00:00"),
        (24, time(12), None),
    ],
)
def test_a_window_begins_with_its_first_moment_and_ends_before_its_last(
    day: int, clock: time, window: str | None
) -> None:
    assert CLOSED.closed_by(datetime.combine(datetime(2026, 11, day), clock, UTC)) == window


@pytest.mark.parametrize(
    "table", ["min_atr = 2.0\nmax_atr = 1.0", "min_fraction = 0.2\nmax_fraction = 0.1"]
)
def test_a_minimum_above_its_maximum_is_refused(table: str) -> None:
    with pytest.raises(LimitsError, match=r"stop_distance: .*a minimum is above its maximum"):
        parse_limits(f'version = "t"\n[stop_distance]\n{table}', "here")
    equal = "[stop_distance]\nmin_atr = 1.0\nmax_atr = 1.0\nmin_fraction = 0.1\nmax_fraction = 0.1"
    assert parse_limits(f'version = "t"\n{equal}', "here").stop_distance.max_atr == 1


def test_every_fault_of_a_file_is_told_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    with pytest.raises(LimitsError, match=r"limits\.toml: cannot be read: No such file"):
        read_limits(file)
    file.write_bytes(b"\xff")
    with pytest.raises(LimitsError, match=r"limits\.toml: cannot be read: .*utf-8"):
        read_limits(file)
    file.write_text("version = ")
    with pytest.raises(LimitsError, match=r"limits\.toml: not valid TOML"):
        read_limits(file)
    file.write_text("[spread]\nmax_bps = 0\n[drawdown]\nmax_fraction = 2\nswitch = false\n")
    with pytest.raises(LimitsError) as refused:
        read_limits(file)
    for field in ("version:", "spread.max_bps:", "drawdown.max_fraction:", "drawdown.switch:"):
        assert field in str(refused.value)


@pytest.mark.parametrize(
    "line", ["deep.deeper = {}", "windows = [[1, {}]]", "max_bps = {}", "max_bps = -{}"]
)
def test_an_integer_that_readers_of_json_do_not_keep_is_refused_wherever_it_stands(
    line: str,
) -> None:
    text = f'version = "t"\n[spread]\n{line}\n'
    with pytest.raises(LimitsError, match=r"here: an integer of 54 bits is beyond 2\^53"):
        parse_limits(text.format(2**53 + 1), "here")


PROFILES = sorted((Path(__file__).parents[3] / "limits").glob("*.toml"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_says_why_whatever_passes_does(profile: Path) -> None:
    limits = read_limits(profile)
    tables = [table for _, table in limits if isinstance(table, RuleLimits)]
    passing = [table for table in tables if table.when_missing != "refuse"]
    assert passing
    assert all(table.because for table in passing)
    assert limits.tolerance == 1e-6
    assert limits.cost is not None


SPOT = read_limits(Path(__file__).parents[3] / "limits" / "spot-ai-agent.toml")


def candidate_of_the_spot_agent(number: int) -> Scenario:
    """As its loop sends it: no account, no calendar, an ATR of one-minute bars, stop and targets
    1.5 and 3, 4, 5 ATR away, and every other one without spread, volatility or BTC trend."""
    price, atr = 100.0 * (number + 1), (0.003 + 0.0004 * number) * 100.0 * (number + 1)
    blind = number % 2 == 0
    return scenario(
        candidate__symbol=f"COIN{number}USDT",
        candidate__atr=atr,
        candidate__volatility_pct=None if blind else 0.5,
        candidate__btc_trend=None if blind else "flat",
        candidate__spread_bps=None if blind else 3.0,
        candidate__news_severity=None if blind else 0,
        candidate__time_to_news_minutes=None if blind else "clear",
        candidate__macro_news_safe=None if blind else True,
        candidate__open_positions=0,
        candidate__max_trades=1,
        plan__entry=price,
        plan__stop=price - 1.5 * atr,
        plan__targets=[price + distance * atr for distance in (3, 4, 5)],
        plan__quantity=450.0 / price,
        account__equity=None,
        account__day_pnl_fraction=None,
        account__drawdown_fraction=None,
        account__consecutive_losses=None,
        account__positions=None,
        market__last_close=price,
        market__bar_seconds=60,
        market__volume_24h=None,
    )


@pytest.mark.parametrize("number", range(18))
def test_candidates_of_the_spot_agent_pass_its_profile_and_not_the_general_limits(
    number: int,
) -> None:
    s = candidate_of_the_spot_agent(number)
    plain = review_control(s, Limits(version="test"), TradingState.ACTIVE, s.as_of)
    assert len(plain.vetoes) >= 9
    assert review_control(s, SPOT, TradingState.ACTIVE, s.as_of).vetoes == ()


def test_the_spot_profile_refuses_for_what_is_known() -> None:
    quiet = candidate_of_the_spot_agent(1).as_json()
    quiet["candidate"]["atr"] = 0.1  # A stop 0.075 % away: 0.3 % of costs are four times the risk.
    quiet["plan"] |= {"stop": 200.0 - 0.15, "targets": [200.3]}
    wide = candidate_of_the_spot_agent(1).as_json()
    wide["candidate"]["spread_bps"] = 12.0
    held = candidate_of_the_spot_agent(1).as_json()
    held["candidate"]["open_positions"] = 1
    soon = candidate_of_the_spot_agent(1).as_json()
    soon["candidate"]["time_to_news_minutes"] = 12.0
    unreadable = candidate_of_the_spot_agent(0).as_json()
    gone = {"field": "candidate.spread_bps", "value": "'?'", "why": "no number", "fault": "type"}
    unreadable["left_out"] = [gone]
    cases = {
        "COST_OVER_RISK": quiet,
        "SPREAD": wide,
        "OPEN_POSITIONS": held,
        "NEWS_WINDOW": soon,
    }
    for code, document in cases.items():
        s = Scenario.from_json(document)
        verdict = review_control(s, SPOT, TradingState.ACTIVE, s.as_of)
        assert [veto.code for veto in verdict.vetoes] == [code]
    s = Scenario.from_json(unreadable)
    [veto] = review_control(s, SPOT, TradingState.ACTIVE, s.as_of).vetoes
    assert (veto.code, veto.missing) == ("SPREAD", "spread_bps")


def test_limits_are_compared_one_by_one_by_their_names_in_the_file() -> None:
    before = parse_limits('version = "a"\n[spread]\nmax_bps = 10\n', "before.toml")
    after = parse_limits(
        'version = "b"\ntolerance = 1e-6\n[spread]\nmax_bps = 12\n'
        '[direction]\nallowed = ["long"]\n',
        "after.toml",
    )
    found = {change.name: (change.before, change.after) for change in changes(before, after)}
    assert found == {
        "version": ("a", "b"),
        "tolerance": (None, 1e-6),
        "spread.max_bps": (10.0, 12.0),
        "direction.when_missing": (None, "refuse"),
        "direction.allowed": (None, ["long"]),
    }
    assert changes(before, before) == []


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_a_path_that_is_no_limits_file_is_refused_and_not_read_without_end(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "limits.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        path.write_text(PLAIN + "#" * (1 << 20))
    with pytest.raises(LimitsError, match=r"cannot be read: it is (no ordinary file|larger)"):
        read_limits(path)
