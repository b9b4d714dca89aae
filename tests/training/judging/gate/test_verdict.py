"""Every reason for a refusal by itself, bad input, and a report that cannot be changed
unnoticed."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.judging.gate_power import PASSED
from training.arrays import DAY_S
from training.config.judging import GateConfig, Kind
from training.judging.contest.performance import max_drawdown
from training.judging.gate.sealed import overridden, require_promotable, require_unchanged, sign_off
from training.judging.gate.verdict import (
    STOPPED,
    WIN,
    Check,
    CheckName,
    Evidence,
    Foretold,
    GateError,
    Mode,
    Refusal,
    RefusalCode,
    Verdict,
    judge,
)
from training.statistics.anytime import lower_bound, period_means
from training.statistics.bootstrap import mean_intervals

CONFIG = GateConfig(draws=300)
AT = datetime(2025, 1, 2, tzinfo=UTC)
COUNT, DAYS = 3000, 750


def good(**changes: Any) -> Evidence:
    """Evidence of a version that beats everything; outcomes in R, four scenarios a day."""
    source = np.random.default_rng(0)
    r = np.where(source.random(COUNT) < 0.55, -1.1, source.uniform(-0.5, 3.0, COUNT))
    # It knows two outcomes out of three.
    traded = np.where(source.random(COUNT) < 2 / 3, r > 0, source.random(COUNT) < 0.4)
    agent, heuristic = (source.random(COUNT) < rate for rate in (0.5, 0.4))
    dealt = np.stack([source.permutation(traded) for _ in range(10)])

    def returns(answers: np.ndarray) -> np.ndarray:
        return 0.005 * (answers * r).reshape(*answers.shape[:-1], DAYS, 4).sum(-1)

    whole: dict[str, Any] = {
        "model_version": "advisor-7",
        "as_of": np.repeat(np.arange(DAYS), 4) * DAY_S,
        "trained_until": -2 * DAY_S,
        "policy": traded * r,
        "agent": agent * r,
        "random_veto": traded.mean() * r,
        "heuristics": {"score threshold": heuristic * r},
        "traded": traded,
        "agent_traded": agent,
        "policy_returns": returns(traded),
        "agent_returns": returns(agent),
        "random_veto_returns": returns(dealt),
        "heuristic_returns": {"score threshold": returns(heuristic)},
        "steps_per_year": 365.25,
        "trial_sharpes": (0.4, 0.02, -0.01),
        "trials": 1,
        "looks": 1,
        "foretold": {
            WIN: Foretold(
                np.where(traded, (r > 0)[traded].mean(), (r > 0)[~traded].mean()),
                (r > 0).astype(float),
            )
        },
        "checks": PASSED,
    }
    return Evidence(**{**whole, **changes})


def codes(verdict: Verdict) -> list[RefusalCode]:
    return [each.code for each in verdict.refusals]


def only(verdict: Verdict) -> Refusal:
    (refusal,) = verdict.refusals
    assert not verdict.promote
    return refusal


@pytest.mark.parametrize("mode", Mode)
def test_a_version_that_beats_everything_passes(mode: Mode) -> None:
    verdict = judge(good(), CONFIG, mode)
    assert verdict.refusals == ()
    assert verdict.promote
    assert list(verdict.differences) == ["agent", "score threshold", "random veto", "not trading"]
    base = good()
    rows = slice(0, COUNT if mode is Mode.FIXED else COUNT - 4)
    expected = base.policy[rows].mean() - base.agent[rows].mean()
    assert verdict.differences["agent"].value == pytest.approx(expected)
    low = verdict.differences["agent"].low
    assert low is not None
    assert 0 < low < expected
    assert verdict.numbers["scenarios"] == COUNT
    assert verdict.numbers["days"] == DAYS


def test_the_live_bound_is_more_careful_than_the_bound_for_one_look() -> None:
    fixed, live = (judge(good(), CONFIG, mode).differences for mode in Mode)
    for name, found in live.items():
        low, careless = found.low, fixed[name].low
        assert low is not None
        assert careless is not None
        assert low < careless


def test_bounds_have_the_confidence_that_is_asked_for() -> None:
    base = good()
    columns = np.stack([base.policy - other for other in base.rivals.values()], axis=1)
    fixed = mean_intervals(columns, as_of=base.as_of, level=0.8, draws=300)[0]
    asked = CONFIG.model_copy(update={"confidence": 0.9})
    found = judge(base, asked, Mode.FIXED).differences["agent"]
    assert (found.low, found.high) == (fixed.low, fixed.high)
    live = lower_bound(period_means(columns[:, 0], base.as_of)[:-1], 6.0, 0.1)
    assert judge(base, asked, Mode.LIVE).differences["agent"].low == live


def test_live_a_day_that_may_not_be_over_does_not_count() -> None:
    base = good()
    changed = base.policy.copy()
    changed[-4:] = 3.0
    first, second = (
        judge(replace(base, policy=each), CONFIG, Mode.LIVE) for each in (base.policy, changed)
    )
    assert first.differences == second.differences
    assert first.differences["agent"].n == DAYS - 1
    fixed = judge(replace(base, policy=changed), CONFIG, Mode.FIXED).differences["agent"].value
    assert fixed != first.differences["agent"].value


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    ("rival", "code"),
    [
        ("agent", RefusalCode.NOT_BETTER_THAN_AGENT),
        ("heuristic", RefusalCode.NOT_BETTER_THAN_HEURISTIC),
        ("random veto", RefusalCode.NOT_BETTER_THAN_RANDOM_VETO),
    ],
)
def test_whoever_is_not_beaten_is_a_reason_by_itself(
    mode: Mode, rival: str, code: RefusalCode
) -> None:
    base = good()
    noise = np.random.default_rng(1).normal(0, 0.3, COUNT)
    as_good = np.clip(base.policy + noise - noise.mean(), -3, 3)
    changes: dict[str, Any] = {
        "agent": {"agent": as_good},
        "heuristic": {
            "heuristics": {**base.heuristics, "gradient boosting": as_good},
            "heuristic_returns": {
                **base.heuristic_returns,
                "gradient boosting": base.agent_returns,
            },
        },
        "random veto": {"random_veto": as_good},
    }[rival]
    refusal = only(judge(replace(base, **changes), CONFIG, mode))
    assert refusal.code is code
    assert refusal.about == {"heuristic": "gradient boosting"}.get(rival, rival)
    assert refusal.limit == 0.0
    assert refusal.observed is not None
    assert refusal.observed <= 0


def test_too_little_evidence_is_refused_with_what_was_seen_and_what_is_needed() -> None:
    asked = CONFIG.model_copy(update={"min_scenarios": 3001, "min_trades": 3000, "min_days": 751})
    found = judge(good(), asked, Mode.FIXED)
    assert codes(found) == [
        RefusalCode.TOO_FEW_SCENARIOS,
        RefusalCode.TOO_FEW_TRADES,
        RefusalCode.TOO_FEW_DAYS,
    ]
    assert (found.refusals[0].observed, found.refusals[0].limit) == (3000.0, 3001.0)


def test_a_sharpe_ratio_must_be_higher_than_each_rivals_and_no_luck() -> None:
    base = good()
    better = base.policy_returns + 1e-6
    refusal = only(
        judge(replace(base, heuristic_returns={"score threshold": better}), CONFIG, Mode.FIXED)
    )
    assert (refusal.code, refusal.about) == (RefusalCode.SHARPE_NOT_HIGHER, "score threshold")
    assert refusal.observed is not None
    assert refusal.limit is not None
    assert refusal.observed < refusal.limit
    vetoes = np.stack([better, better, base.agent_returns])
    refusal = only(judge(replace(base, random_veto_returns=vetoes), CONFIG, Mode.FIXED))
    assert (refusal.code, refusal.about) == (RefusalCode.SHARPE_NOT_HIGHER, "random veto")
    none_drawn = np.empty((0, DAYS))
    refusal = only(judge(replace(base, random_veto_returns=none_drawn), CONFIG, Mode.FIXED))
    assert (refusal.code, refusal.limit) == (RefusalCode.SHARPE_NOT_HIGHER, None)
    many = tuple(np.random.default_rng(0).normal(0, 0.5, 50))
    refusal = only(judge(replace(base, trial_sharpes=many), CONFIG, Mode.FIXED))
    assert refusal.code is RefusalCode.SHARPE_NOT_CONFIDENT
    assert refusal.limit == 0.95


def test_just_enough_is_enough() -> None:
    base = good()
    found = judge(base, CONFIG, Mode.FIXED)
    asked = CONFIG.model_copy(
        update={
            "min_scenarios": COUNT,
            "min_trades": int(base.traded.sum()),
            "min_days": DAYS,
            "deflated_sharpe": found.numbers["deflated_sharpe"],
            "max_calibration_error": found.numbers["calibration error of win"],
        }
    )
    assert judge(base, asked, Mode.FIXED).refusals == ()
    assert judge(replace(base, trained_until=-DAY_S), CONFIG, Mode.FIXED).promote
    bounded = CONFIG.model_copy(update={"bound_r": float(np.abs(base.policy).max())})
    assert RefusalCode.OUT_OF_BOUNDS not in codes(judge(base, bounded, Mode.LIVE))


def test_as_good_as_a_rival_is_not_better() -> None:
    base = good()
    even = judge(replace(base, agent_returns=base.policy_returns), CONFIG, Mode.FIXED)
    assert only(even).code is RefusalCode.SHARPE_NOT_HIGHER
    assert only(even).about == "agent"
    same = judge(replace(base, agent=base.policy), CONFIG, Mode.FIXED)
    assert (only(same).code, only(same).observed) == (RefusalCode.NOT_BETTER_THAN_AGENT, None)
    assert only(same).detail == "constant values have no interval"


def test_why_a_sharpe_ratio_is_undefined_is_said() -> None:
    still = replace(good(), policy_returns=np.zeros(DAYS))
    (undefined,) = (
        refusal
        for refusal in judge(still, CONFIG, Mode.FIXED).refusals
        if refusal.code is RefusalCode.SHARPE_UNDEFINED
    )
    assert (undefined.observed, undefined.detail) == (None, "constant returns have no Sharpe ratio")
    # One of four stands out, so skew 2 / sqrt(3); at a ratio of sqrt(3) the variance of a Sharpe
    # ratio (Mertens 2002), 1 - skew x ratio + (kurtosis - 1) / 4 x ratio squared, is 1 - 2 + 1 = 0.
    lonely = np.array([1.0, 0.0, 0.0, 0.0]) - 0.25
    skew = (lonely**3).mean() / (lonely**2).mean() ** 1.5
    returns = (lonely + 2 / skew * lonely.std(ddof=1)) * 0.001
    skewed = replace(
        good(),
        policy_returns=returns,
        agent_returns=np.zeros(4),
        random_veto_returns=np.zeros((3, 4)),
        heuristic_returns={"score threshold": np.zeros(4)},
    )
    refusal = only(judge(skewed, CONFIG, Mode.FIXED))
    assert refusal.code is RefusalCode.SHARPE_UNDEFINED
    assert refusal.observed == pytest.approx(math.sqrt(3 * 365.25))
    assert refusal.detail == "returns too skewed for the Sharpe ratio's standard error"


def test_days_are_counted_not_moments() -> None:
    base = good()
    spread = base.as_of + np.tile(np.arange(4) * 6 * 3600, DAYS)
    assert judge(replace(base, as_of=spread), CONFIG, Mode.FIXED).numbers["days"] == DAYS


def test_a_rival_that_took_no_risk_has_a_sharpe_ratio_of_nothing() -> None:
    still = np.zeros(DAYS)
    verdict = judge(
        replace(good(), heuristic_returns={"score threshold": still}), CONFIG, Mode.FIXED
    )
    assert verdict.promote
    assert verdict.numbers["sharpe of score threshold"] == 0.0
    undealt = replace(good(), random_veto_returns=np.zeros((3, DAYS)))
    assert judge(undealt, CONFIG, Mode.FIXED).numbers["sharpe of random veto"] == 0.0


def test_a_deeper_drawdown_than_the_agents_is_a_reason() -> None:
    base = good()
    own = max_drawdown(base.policy_returns)
    still = np.zeros(DAYS)
    still[5] = -0.9 * own
    refusal = only(judge(replace(base, agent_returns=still), CONFIG, Mode.FIXED))
    assert refusal.code is RefusalCode.DRAWDOWN_WORSE
    assert (refusal.observed, refusal.limit) == pytest.approx((own, 0.9 * own))
    still[5] = -1.1 * own
    assert judge(replace(base, agent_returns=still), CONFIG, Mode.FIXED).promote


def test_dishonest_readings_are_a_reason_each() -> None:
    base = good()
    honest = base.foretold[WIN]
    off = Foretold(np.clip(honest.probability + 0.15, 0, 1), honest.came)
    shifted = only(judge(replace(base, foretold={WIN: off}), CONFIG, Mode.FIXED))
    assert (shifted.code, shifted.about) == (RefusalCode.CALIBRATION_POOR, "win")
    assert shifted.observed == pytest.approx(0.15, abs=0.01)
    both = {WIN: honest, STOPPED: Foretold(honest.probability, 1 - honest.came)}
    stopped = only(judge(replace(base, foretold=both), CONFIG, Mode.FIXED))
    assert (stopped.code, stopped.about) == (RefusalCode.CALIBRATION_POOR, "stopped")
    nothing = replace(base, foretold={WIN: Foretold(np.empty(0), np.empty(0))})
    assert only(judge(nothing, CONFIG, Mode.FIXED)).detail == "no rows"


def test_a_version_that_does_not_foretell_winning_is_refused() -> None:
    silent = only(judge(good(foretold={}), CONFIG, Mode.FIXED))
    assert (silent.code, silent.about) == (RefusalCode.CALIBRATION_MISSING, "win")


def test_a_trader_must_earn_more_than_nothing() -> None:
    """It beats an agent and rivals that lose, by losing less."""
    base = good()
    lost = 1.2 * base.policy.mean()
    poorer: dict[str, Any] = {
        name: getattr(base, name) - lost for name in ("policy", "agent", "random_veto")
    }
    poorer["heuristics"] = {name: each - lost for name, each in base.heuristics.items()}
    refusal = only(judge(replace(base, **poorer), CONFIG, Mode.FIXED))
    assert (refusal.code, refusal.about) == (
        RefusalCode.NOT_BETTER_THAN_NOT_TRADING,
        "not trading",
    )


def vetoing(**changes: Any) -> Evidence:
    """The same version as a veto: the agent's trades where both approve; the agent loses."""
    base = good()
    kept = base.traded & base.agent_traded
    rate = kept.sum() / base.agent_traded.sum()
    r = np.where(base.agent_traded, base.agent, 0.0) - 1.1 * base.agent_traded
    whole: dict[str, Any] = {
        "kind": Kind.VETO,
        "policy": np.where(kept, r, 0.0),
        "agent": r,
        "random_veto": rate * r,
        "traded": kept,
        "policy_returns": 0.005 * np.where(kept, r, 0.0).reshape(DAYS, 4).sum(1),
        "agent_returns": 0.005 * r.reshape(DAYS, 4).sum(1),
        "random_veto_returns": np.empty((0, DAYS)),
        "heuristics": {},
        "heuristic_returns": {},
    }
    return replace(base, **{**whole, **changes})


@pytest.mark.parametrize("mode", Mode)
def test_a_veto_that_saves_more_than_chance_passes_though_it_earns_nothing(mode: Mode) -> None:
    evidence = vetoing()
    assert evidence.policy.mean() < 0.02
    verdict = judge(evidence, CONFIG, mode)
    assert verdict.refusals == ()
    assert verdict.kind is Kind.VETO
    assert list(verdict.differences) == ["agent", "random veto"]
    assert verdict.as_json()["kind"] == "veto"


def test_a_veto_must_beat_chance_and_may_not_add_trades() -> None:
    base = vetoing()
    lucky = np.random.default_rng(3).permutation(COUNT) < 0.4 * COUNT
    r = base.agent
    kept = lucky & base.agent_traded
    chance = replace(
        base,
        policy=np.where(kept, r, 0.0),
        random_veto=kept.sum() / base.agent_traded.sum() * r,
        traded=kept,
    )
    found = judge(chance, CONFIG, Mode.FIXED)
    assert only(found).code is RefusalCode.NOT_BETTER_THAN_RANDOM_VETO
    low = found.differences["agent"].low
    assert low is not None
    assert low > 0, "any refusal saves R of a losing agent"
    more = base.traded.copy()
    more[np.flatnonzero(~base.agent_traded)[:7]] = True
    verdict = judge(replace(base, traded=more), CONFIG, Mode.FIXED)
    refusal = only(verdict)
    assert refusal.code is RefusalCode.APPROVES_MORE_THAN_AGENT
    assert (refusal.observed, refusal.limit) == (7.0, 0.0)
    assert verdict.numbers["vetoes"] == (base.agent_traded & ~more).sum()


def test_few_vetoes_prove_nothing_and_many_looks_widen_a_vetos_bounds() -> None:
    base = vetoing()
    count = int((base.agent_traded & ~base.traded).sum())
    asked = CONFIG.model_copy(update={"min_trades": count + 1})
    assert codes(judge(base, asked, Mode.FIXED)) == [RefusalCode.TOO_FEW_VETOES]
    columns = np.stack([base.policy - other for other in base.rivals.values()], axis=1)
    level = 1 - 2 * 0.025 / 8
    expected = mean_intervals(columns, as_of=base.as_of, level=level, draws=3200)[0]
    found = judge(replace(base, looks=8), CONFIG, Mode.FIXED).differences["agent"]
    assert (found.low, found.high) == (expected.low, expected.high), "ten draws lie beyond it"


def test_more_looks_cost_a_veto_more_however_many_there_were() -> None:
    base = vetoing()
    lows = [
        judge(replace(base, looks=looks), CONFIG, Mode.FIXED).differences["agent"].low or 0.0
        for looks in (1, 5, 20, 100)
    ]
    steps = -np.diff(lows)
    assert (steps > 0.05 * (lows[0] - lows[-1])).all(), lows


def test_configurations_whose_ratio_nobody_wrote_down_count_as_tried() -> None:
    weak = np.random.default_rng(4).normal(0.0004, 0.01, DAYS)
    base = good(trial_sharpes=(0.05,), policy_returns=weak)
    alone = judge(base, CONFIG, Mode.FIXED).numbers["deflated_sharpe"]
    many = judge(replace(base, trials=1000), CONFIG, Mode.FIXED).numbers["deflated_sharpe"]
    assert alone is not None
    assert many is not None
    assert many < alone


def test_a_check_that_failed_or_was_not_made_is_a_reason() -> None:
    failed = Check(CheckName.PARITY, False, "report 12: 3 of 200 differ")
    found = judge(good(checks=(failed,)), CONFIG, Mode.FIXED)
    assert codes(found) == [RefusalCode.CHECK_FAILED, RefusalCode.CHECK_MISSING]
    assert [each.about for each in found.refusals] == ["parity", "injection"]
    assert found.refusals[0].detail == "report 12: 3 of 200 differ"
    both = (*PASSED, failed)
    assert only(judge(good(checks=both), CONFIG, Mode.FIXED)).code is RefusalCode.CHECK_FAILED


def test_scenarios_that_training_has_seen_are_refused() -> None:
    overlapping = only(judge(good(trained_until=10 * DAY_S), CONFIG, Mode.FIXED))
    assert overlapping.code is RefusalCode.SPLIT_OVERLAPS
    assert overlapping.limit == 11 * DAY_S
    assert overlapping.detail.startswith("44 scenarios")
    later = good(trained_until=0, as_of=np.arange(COUNT) * DAY_S // 4 + 7)
    assert only(judge(later, CONFIG, Mode.FIXED)).observed == 7.0
    embargoed = only(judge(good(trained_until=-DAY_S // 2), CONFIG, Mode.FIXED))
    assert embargoed.code is RefusalCode.SPLIT_OVERLAPS


@pytest.mark.parametrize("mode", Mode)
def test_what_is_no_number_is_refused_and_nothing_is_computed_from_it(mode: Mode) -> None:
    base = good()
    agent = base.agent.copy()
    agent[[3, 9]] = math.nan
    found = judge(replace(base, agent=agent), CONFIG, mode)
    assert only(found).code is RefusalCode.NOT_FINITE
    assert (only(found).about, only(found).observed, only(found).limit) == ("agent", 2.0, 0.0)
    assert found.differences == {}
    returns = base.policy_returns.copy()
    returns[0] = math.inf
    assert (
        only(judge(replace(base, policy_returns=returns), CONFIG, mode)).about == "policy returns"
    )
    assert (
        only(judge(replace(base, trial_sharpes=(math.nan,)), CONFIG, mode)).about
        == "trial Sharpe ratios"
    )


def test_live_returns_beyond_the_bound_and_unordered_scenarios_are_refused() -> None:
    base = good()
    wild = base.policy.copy()
    wild[0] = 3.5
    refusal = only(judge(replace(base, policy=wild), CONFIG, Mode.LIVE))
    assert (refusal.code, refusal.observed, refusal.limit) == (RefusalCode.OUT_OF_BOUNDS, 3.5, 3.0)
    assert judge(replace(base, policy=wild), CONFIG, Mode.FIXED).promote
    assert (
        only(judge(replace(base, as_of=base.as_of[::-1]), CONFIG, Mode.FIXED)).code
        is RefusalCode.NOT_IN_ORDER
    )
    swapped = base.as_of.copy()
    swapped[:2] += [1, 0]
    assert codes(judge(replace(base, as_of=swapped), CONFIG, Mode.FIXED)) == [
        RefusalCode.NOT_IN_ORDER
    ]
    narrow = CONFIG.model_copy(update={"bound_r": 0.5})
    small = {name: getattr(base, name) / 10 for name in ("policy", "agent", "random_veto")}
    tenth: dict[str, Any] = small | {"heuristics": {"score threshold": base.agent / 10}}
    found = codes(judge(replace(base, **tenth), narrow, Mode.LIVE))
    assert RefusalCode.OUT_OF_BOUNDS not in found


@pytest.mark.parametrize("mode", Mode)
def test_a_policy_that_never_trades_is_refused_with_reasons_and_without_nan(mode: Mode) -> None:
    base = good()
    still = replace(
        base,
        policy=np.zeros(COUNT),
        traded=np.zeros(COUNT, dtype=bool),
        random_veto=np.zeros(COUNT),
        policy_returns=np.zeros(DAYS),
        random_veto_returns=np.zeros((10, DAYS)),
    )
    verdict = judge(still, CONFIG, mode)
    assert {
        RefusalCode.TOO_FEW_TRADES,
        RefusalCode.NOT_BETTER_THAN_RANDOM_VETO,
        RefusalCode.SHARPE_UNDEFINED,
    } <= set(codes(verdict))
    require_unchanged(sign_off(verdict, still, CONFIG, by="owner", at=AT))
    for number in verdict.numbers.values():
        assert number is None or math.isfinite(number)


@pytest.mark.parametrize("mode", Mode)
def test_no_scenarios_at_all_are_refused_not_crashed_on(mode: Mode) -> None:
    base = good()
    nothing: dict[str, Any] = {
        name: np.empty(0) for name in ("policy", "agent", "random_veto", "policy_returns")
    }
    empty = replace(
        base,
        **nothing,
        as_of=np.empty(0, dtype=np.int64),
        traded=np.empty(0, dtype=bool),
        agent_traded=np.empty(0, dtype=bool),
        foretold={WIN: Foretold(np.empty(0), np.empty(0))},
        agent_returns=np.empty(0),
        random_veto_returns=np.empty((3, 0)),
        heuristics={"score threshold": np.empty(0)},
        heuristic_returns={"score threshold": np.empty(0)},
    )
    found = codes(judge(empty, CONFIG, mode))
    assert RefusalCode.TOO_FEW_SCENARIOS in found
    assert list(judge(empty, CONFIG, mode).differences) == list(base.rivals)
    assert RefusalCode.NOT_BETTER_THAN_AGENT in found
    assert RefusalCode.SHARPE_UNDEFINED in found


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": np.zeros(5)},
        {"agent_returns": np.zeros(5)},
        {"random_veto_returns": np.zeros(DAYS)},
        {"heuristics": {}, "heuristic_returns": {}},
        {"heuristics": {"agent": np.zeros(COUNT)}, "heuristic_returns": {"agent": np.zeros(DAYS)}},
        {"heuristic_returns": {"other": np.zeros(DAYS)}},
        {"agent_traded": np.zeros(5, dtype=bool)},
        {"trial_sharpes": ()},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_evidence_that_does_not_fit_together_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(GateError):
        good(**changes)


def test_a_report_is_sealed_and_moves_the_alias_only_when_it_passes() -> None:
    evidence = good()
    report = sign_off(
        judge(evidence, CONFIG, Mode.FIXED), evidence, CONFIG, by="model owner", at=AT
    )
    assert report["signed_by"] == "model owner"
    assert report["evidence"] == good().hash() != good(trained_until=-3 * DAY_S).hash()
    require_promotable(report, "advisor-7")
    with pytest.raises(GateError, match="about advisor-7, not advisor-8"):
        require_promotable(report, "advisor-8")
    changed = {
        **report,
        "verdict": {**report["verdict"], "promote": True, "model_version": "advisor-8"},
    }
    with pytest.raises(GateError, match="was changed"):
        require_promotable(changed, "advisor-8")
    with pytest.raises(GateError, match="was changed"):
        require_promotable(
            {key: value for key, value in report.items() if key != "hash"}, "advisor-7"
        )


def test_an_override_is_explicit_named_and_sealed() -> None:
    evidence = good(checks=())
    report = sign_off(
        judge(evidence, CONFIG, Mode.FIXED), evidence, CONFIG, by="model owner", at=AT
    )
    with pytest.raises(GateError, match="did not pass the gate: check_missing"):
        require_promotable(report, "advisor-7")
    with pytest.raises(GateError, match="a name and a reason"):
        overridden(report, by=" ", why="demo", at=AT)
    forced = overridden(report, by="A. Person", why="demo on a test account", at=AT)
    require_promotable(forced, "advisor-7")
    assert forced["override"] == {
        "by": "A. Person", "why": "demo on a test account", "at": AT.isoformat(),
        "of": report["hash"],
    }  # fmt: skip
    with pytest.raises(GateError, match="was changed"):
        require_promotable({**report, "override": {"by": "nobody"}}, "advisor-7")


def test_the_same_evidence_gives_the_same_verdict() -> None:
    first, second = (judge(good(), CONFIG, Mode.FIXED).as_json() for _ in range(2))
    assert first == second


def test_evidence_and_verdict_cannot_be_changed_and_evidence_is_known_by_its_hash() -> None:
    verdict = judge(good(checks=()), CONFIG, Mode.FIXED)
    for made, field in (
        (good(), "policy"),
        (PASSED[0], "passed"),
        (verdict, "refusals"),
        (verdict.refusals[0], "code"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(made, field, None)
    assert good() != good()
    assert good().hash() == good().hash()


def test_every_refusal_code_is_explained() -> None:
    page = (Path(__file__).parents[4] / "docs" / "gate.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    assert explained == [code.value for code in RefusalCode]
