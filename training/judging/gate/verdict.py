"""The gate: does a version deserve promotion? Every reason against it is given; missing evidence is
one.

A version is promoted as a trader when all of this holds on scenarios that nothing was trained on:

- the lower confidence bound of its mean R less the other's, paired by scenario, is above 0 against
  the agent, against every heuristic (so against the best one, without choosing it afterwards),
  against the random veto, and against not trading;
- its Sharpe ratio is higher than that of each of them, and the deflated Sharpe ratio's confidence
  is high enough, given everything that was ever tried on these days;
- its deepest drawdown is not deeper than the agent's;
- what it foretells of plans is calibrated (that they make money, at least), and there are enough
  scenarios, trades and days;
- the parity and injection checks passed.

It is promoted as a veto, which only refuses the agent's trades, when the bounds against the agent
and against refusals dealt at random hold, divided by the number of looks, with the last three.

Since all bounds must hold, the chance of promoting what is no better than any one rival is at most
that of one bound (an intersection-union test: Berger 1982); nothing is to be corrected for there
being several.

Two modes. FIXED: evidence gathered once, bounds by the stationary bootstrap over days. LIVE:
evidence grows and the gate is asked again and again, bounds valid at any time
(`training.statistics.anytime`) on means of days. `bench.judging.gate_power` measures how often
either is wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.canonical import content_hash
from app.domain.errors import AdvisorError
from app.domain.text import counted
from training.arrays import DAY_S, Floats, Rows
from training.config.judging import GateConfig, Kind
from training.judging.contest.performance import max_drawdown, sharpe
from training.statistics.anytime import lower_bound, period_means
from training.statistics.bootstrap import Estimate, mean_intervals, none
from training.statistics.calibration import expected_calibration_error
from training.statistics.selection import deflated_sharpe

AGENT, RANDOM_VETO, NOT_TRADING = "agent", "random veto", "not trading"
WIN, STOPPED, RANGE = "win", "stopped", "range"
"""What a version foretells of the agent's plan: it makes money after costs; its stop is hit; the
market ranges less than the median that was said."""
BEYOND = 10
"""Bootstrap draws that a bound needs beyond it, however small its error: else many looks cost no
more than some."""
REQUIRED_READINGS = (WIN,)


class GateError(AdvisorError):
    """Evidence does not fit together, or a report was changed or refuses."""


class Mode(StrEnum):
    """How often the question is asked."""

    FIXED = "fixed"
    LIVE = "live"


class RefusalCode(StrEnum):
    """Why a version is not promoted; docs/gate.md explains each."""

    NOT_FINITE = "not_finite"
    OUT_OF_BOUNDS = "out_of_bounds"
    NOT_IN_ORDER = "not_in_order"
    SPLIT_OVERLAPS = "split_overlaps"
    TOO_FEW_SCENARIOS = "too_few_scenarios"
    TOO_FEW_TRADES = "too_few_trades"
    TOO_FEW_VETOES = "too_few_vetoes"
    TOO_FEW_DAYS = "too_few_days"
    APPROVES_MORE_THAN_AGENT = "approves_more_than_agent"
    NOT_BETTER_THAN_AGENT = "not_better_than_agent"
    NOT_BETTER_THAN_HEURISTIC = "not_better_than_heuristic"
    NOT_BETTER_THAN_RANDOM_VETO = "not_better_than_random_veto"
    NOT_BETTER_THAN_NOT_TRADING = "not_better_than_not_trading"
    SHARPE_UNDEFINED = "sharpe_undefined"
    SHARPE_NOT_HIGHER = "sharpe_not_higher"
    SHARPE_NOT_CONFIDENT = "sharpe_not_confident"
    DRAWDOWN_WORSE = "drawdown_worse"
    CALIBRATION_MISSING = "calibration_missing"
    CALIBRATION_POOR = "calibration_poor"
    CHECK_MISSING = "check_missing"
    CHECK_FAILED = "check_failed"


class CheckName(StrEnum):
    """What must have been checked elsewhere."""

    PARITY = "parity"
    """Training and serving give the same probabilities and advice."""
    INJECTION = "injection"
    """Text in a prompt does not loosen vetoes or move decisions."""


@dataclass(frozen=True)
class Check:
    """The result of a check, and where its evidence is."""

    name: CheckName
    passed: bool
    evidence: str


@dataclass(frozen=True)
class Refusal:
    """One reason: what was observed, and what it must be. `about` names the arm or check."""

    code: RefusalCode
    about: str
    observed: float | None
    limit: float | None
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Foretold:
    """One reading of the M scenarios with a known fate: (M,) probability, 0-1, and whether it came
    so, 0 or 1."""

    probability: Floats
    came: Floats

    def __post_init__(self) -> None:
        if self.probability.shape != self.came.shape:
            raise GateError("what was foretold and what came must pair")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict rests on: N scenarios in order of time, none trained on; T steps of equity on
    one clock.

    as_of : (N,) seconds since 1970 UTC. trained_until : latest instant that a training label looked
        at.
    policy, agent, random_veto, heuristics : (N,) R of the agent's plan earned in each scenario,
        after costs; rejecting earns 0. The policy's after vetoes; the random veto's averaged over
        many draws, and live at the rate that the policy had until then. Live, no scenario follows
        one whose outcome is still open.
    traded : (N,) whether the policy traded.
    *_returns : (T,) simple returns of equity; the random veto's (draws, T).
    steps_per_year : of the equity's clock.
    trial_sharpes : Sharpe ratios per step of every configuration that was tried on such evidence,
        this one included, as far as they are known. trials : how many were tried.
    looks : versions that were judged on this period, this one included.
    foretold : readings by name, `win` among them.
    kind : of a veto, the policy's orders are the agent's where both approve, the random veto deals
        refusals to the agent's trades at the same rate, and there are no heuristics.
    """

    model_version: str
    as_of: Rows
    trained_until: int
    policy: Floats
    agent: Floats
    random_veto: Floats
    heuristics: Mapping[str, Floats]
    traded: NDArray[np.bool_]
    agent_traded: NDArray[np.bool_]
    policy_returns: Floats
    agent_returns: Floats
    random_veto_returns: Floats
    heuristic_returns: Mapping[str, Floats]
    steps_per_year: float
    trial_sharpes: tuple[float, ...]
    foretold: Mapping[str, Foretold]
    checks: tuple[Check, ...]
    trials: int
    looks: int
    embargo_s: float = DAY_S
    kind: Kind = Kind.TRADER

    def __post_init__(self) -> None:
        count, steps = len(self.as_of), len(self.policy_returns)
        rows = (
            self.policy,
            self.agent,
            self.random_veto,
            self.traded,
            self.agent_traded,
            *self.heuristics.values(),
        )
        curves = (self.agent_returns, *self.heuristic_returns.values())
        if any(each.shape != (count,) for each in rows) or any(
            each.shape != (steps,) for each in curves
        ):
            raise GateError(
                f"arms differ in length: {count} scenarios and {steps} steps of equity are the"
                " policy's"
            )
        if self.random_veto_returns.ndim != 2 or self.random_veto_returns.shape[1] != steps:
            raise GateError(
                f"random_veto_returns {self.random_veto_returns.shape} must be (draws, {steps})"
            )
        if set(self.heuristics) != set(self.heuristic_returns):
            raise GateError("heuristics and their equity must be the same ones")
        if {AGENT, RANDOM_VETO, NOT_TRADING} & set(self.heuristics):
            raise GateError(f"{AGENT}, {RANDOM_VETO} and {NOT_TRADING} are no heuristics' names")
        if self.kind is Kind.TRADER and not (self.heuristics and self.trial_sharpes):
            raise GateError(
                "a trader needs at least one heuristic, and trial_sharpes with its own among them"
            )

    @property
    def rivals(self) -> dict[str, Floats]:
        """R of everything that must be beaten."""
        if self.kind is Kind.VETO:
            return {AGENT: self.agent, RANDOM_VETO: self.random_veto}
        return {
            AGENT: self.agent,
            **self.heuristics,
            RANDOM_VETO: self.random_veto,
            NOT_TRADING: np.zeros_like(self.policy),
        }

    def hash(self) -> str:
        """Content hash of every number."""
        plain = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "foretold":
                value = {
                    name: [_digest(each.probability), _digest(each.came)]
                    for name, each in value.items()
                }
            elif isinstance(value, Mapping):
                value = {name: _digest(each) for name, each in value.items()}
            elif isinstance(value, np.ndarray):
                value = _digest(value)
            elif field.name == "checks":
                value = [asdict(check) for check in value]
            plain[field.name] = value
        return content_hash(plain)


@dataclass(frozen=True)
class Verdict:
    """The answer and everything it rests on.

    differences : mean R of the policy less each rival's, with the lower bound; in LIVE mode of
        daily means.
    """

    model_version: str
    kind: Kind
    mode: Mode
    refusals: tuple[Refusal, ...]
    differences: Mapping[str, Estimate]
    numbers: Mapping[str, float | None]

    @property
    def promote(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.refusals

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "model_version": self.model_version,
            "kind": self.kind.value,
            "mode": self.mode.value,
            "promote": self.promote,
            "refusals": [asdict(each) for each in self.refusals],
            "differences": {name: each._asdict() for name, each in self.differences.items()},
            "numbers": dict(self.numbers),
        }


def judge(evidence: Evidence, config: GateConfig, mode: Mode) -> Verdict:
    """Weigh the evidence. What is not finite, out of bounds or out of order is refused before
    anything is computed."""
    unsound = tuple(_unsound(evidence, config, mode))
    numbers: dict[str, float | None] = {
        "scenarios": float(len(evidence.as_of)),
        "trades": float(evidence.traded.sum()),
        "vetoes": float((evidence.agent_traded & ~evidence.traded).sum()),
        "days": float(len(np.unique(evidence.as_of // DAY_S))),
    }
    if unsound:
        return Verdict(evidence.model_version, evidence.kind, mode, unsound, {}, numbers)
    differences = _differences(evidence, config, mode)
    of_kind = _sharpe if evidence.kind is Kind.TRADER else _more_than_agent
    refusals = [
        *_split(evidence),
        *_sample(evidence, numbers, config),
        *_not_better(differences),
        *of_kind(evidence, config, numbers),
        *_drawdown(evidence, numbers),
        *_calibration(evidence, config, numbers),
        *_checks(evidence),
    ]
    return Verdict(
        evidence.model_version, evidence.kind, mode, tuple(refusals), differences, numbers
    )


def _unsound(evidence: Evidence, config: GateConfig, mode: Mode) -> Iterator[Refusal]:
    numbers = {"policy": evidence.policy, **evidence.rivals}
    series = {
        **numbers,
        "policy returns": evidence.policy_returns,
        "agent returns": evidence.agent_returns,
        "random veto returns": evidence.random_veto_returns,
        **{f"{name} returns": each for name, each in evidence.heuristic_returns.items()},
        **{f"chance of {name}": each.probability for name, each in evidence.foretold.items()},
        **{f"came {name}": each.came for name, each in evidence.foretold.items()},
        "trial Sharpe ratios": np.array(evidence.trial_sharpes),
    }
    for name, values in series.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            yield Refusal(
                RefusalCode.NOT_FINITE,
                name,
                float(bad),
                0.0,
                f"{bad} of {values.size} values are no numbers",
            )
    if (np.diff(evidence.as_of) < 0).any():
        yield Refusal(
            RefusalCode.NOT_IN_ORDER, "as_of", None, None, "scenarios must be in order of time"
        )
    if mode is Mode.LIVE:
        for name, values in numbers.items():
            most = float(np.nanmax(np.abs(values), initial=0.0))
            if most > config.bound_r:
                detail = "the anytime-valid bound needs clipped rewards"
                yield Refusal(RefusalCode.OUT_OF_BOUNDS, name, most, config.bound_r, detail)


def _split(evidence: Evidence) -> Iterator[Refusal]:
    """The first scenario must lie an embargo behind everything that training looked at."""
    earliest = evidence.trained_until + evidence.embargo_s
    early = int((evidence.as_of < earliest).sum())
    if early:
        first = float(evidence.as_of[0])
        yield Refusal(
            RefusalCode.SPLIT_OVERLAPS,
            "as_of",
            first,
            earliest,
            f"{early} scenarios lie within or too near",
        )


def _sample(
    evidence: Evidence, numbers: Mapping[str, float | None], config: GateConfig
) -> Iterator[Refusal]:
    """Of a veto it is its vetoes that are judged, not the trades that it lets through."""
    deeds = (RefusalCode.TOO_FEW_TRADES, "trades", config.min_trades)
    if evidence.kind is Kind.VETO:
        deeds = (RefusalCode.TOO_FEW_VETOES, "vetoes", config.min_trades)
    for code, name, least in (
        (RefusalCode.TOO_FEW_SCENARIOS, "scenarios", config.min_scenarios),
        deeds,
        (RefusalCode.TOO_FEW_DAYS, "days", config.min_days),
    ):
        counted = numbers[name]
        if counted is None or counted < least:
            yield Refusal(code, name, counted, float(least))


def _differences(evidence: Evidence, config: GateConfig, mode: Mode) -> dict[str, Estimate]:
    """Paired, with lower bounds. A trader's luck in many looks is reckoned with by its deflated
    Sharpe ratio; a veto has none, so its bounds are (Bonferroni)."""
    rivals = evidence.rivals
    looks = evidence.looks if evidence.kind is Kind.VETO else 1
    error = (1 - config.confidence) / looks
    columns = np.stack([evidence.policy - rival for rival in rivals.values()], axis=1)
    if mode is Mode.FIXED:
        intervals = mean_intervals(
            columns,
            as_of=evidence.as_of,
            level=1 - 2 * error,
            draws=max(config.draws, math.ceil(BEYOND / error)),
            seed=config.seed,
        )
        return dict(zip(rivals, intervals, strict=True))
    bounds = {}
    for name, column in zip(rivals, columns.T, strict=True):
        # The last period may not be over: a bet is settled only when everything it was laid on is
        # known.
        means = period_means(column, evidence.as_of, config.block_days)[:-1]
        if not len(means):
            bounds[name] = none("no day is over")
            continue
        low = lower_bound(means, 2 * config.bound_r, error)
        bounds[name] = Estimate(float(means.mean()), low, None, len(means))
    return bounds


def _not_better(differences: Mapping[str, Estimate]) -> Iterator[Refusal]:
    codes = {
        AGENT: RefusalCode.NOT_BETTER_THAN_AGENT,
        RANDOM_VETO: RefusalCode.NOT_BETTER_THAN_RANDOM_VETO,
        NOT_TRADING: RefusalCode.NOT_BETTER_THAN_NOT_TRADING,
    }
    for name, found in differences.items():
        if found.low is None or not found.low > 0:
            code = codes.get(name, RefusalCode.NOT_BETTER_THAN_HEURISTIC)
            detail = found.reason if found.low is None else f"mean difference {found.value:.4f} R"
            yield Refusal(code, name, found.low, 0.0, detail)


def _sharpe(
    evidence: Evidence, config: GateConfig, numbers: dict[str, float | None]
) -> Iterator[Refusal]:
    """Higher than each rival's, and no luck. A rival without a Sharpe ratio has taken no risk: it
    counts as 0."""
    own = numbers["sharpe"] = sharpe(evidence.policy_returns, evidence.steps_per_year)
    deflated = deflated_sharpe(evidence.policy_returns, evidence.trial_sharpes, evidence.trials)
    numbers["deflated_sharpe"] = deflated.confidence
    if own is None or deflated.confidence is None:
        detail = deflated.reason or "too few returns"
        yield Refusal(RefusalCode.SHARPE_UNDEFINED, "policy", own, None, detail)
        return
    rivals = {AGENT: evidence.agent_returns, **evidence.heuristic_returns}
    theirs = {
        name: sharpe(returns, evidence.steps_per_year) or 0.0 for name, returns in rivals.items()
    }
    draws = [
        sharpe(returns, evidence.steps_per_year) or 0.0 for returns in evidence.random_veto_returns
    ]
    theirs[RANDOM_VETO] = float(np.median(draws)) if draws else math.inf
    for name, value in theirs.items():
        if math.isfinite(value):
            numbers[f"sharpe of {name}"] = value
        if not own > value:
            yield Refusal(
                RefusalCode.SHARPE_NOT_HIGHER, name, own, value if math.isfinite(value) else None
            )
    if deflated.confidence < config.deflated_sharpe:
        tried = max(evidence.trials, len(evidence.trial_sharpes))
        detail = f"{counted(tried, 'configuration')} tried"
        yield Refusal(
            RefusalCode.SHARPE_NOT_CONFIDENT,
            "policy",
            deflated.confidence,
            config.deflated_sharpe,
            detail,
        )


def _more_than_agent(
    evidence: Evidence, config: GateConfig, numbers: dict[str, float | None]
) -> Iterator[Refusal]:
    """A veto trades nothing that the agent would not."""
    more = int((evidence.traded & ~evidence.agent_traded).sum())
    if more:
        yield Refusal(RefusalCode.APPROVES_MORE_THAN_AGENT, AGENT, float(more), 0.0)


def _drawdown(evidence: Evidence, numbers: dict[str, float | None]) -> Iterator[Refusal]:
    own, agents = max_drawdown(evidence.policy_returns), max_drawdown(evidence.agent_returns)
    numbers["max_drawdown"], numbers["max_drawdown of agent"] = own, agents
    if own > agents:
        yield Refusal(RefusalCode.DRAWDOWN_WORSE, AGENT, own, agents)


def _calibration(
    evidence: Evidence, config: GateConfig, numbers: dict[str, float | None]
) -> Iterator[Refusal]:
    """Of what is foretold: an approval probability is a share of utilities and foretells
    nothing."""
    limit = config.max_calibration_error
    for name in REQUIRED_READINGS:
        if name not in evidence.foretold:
            yield Refusal(RefusalCode.CALIBRATION_MISSING, name, None, limit, "nobody foretold it")
    for name, reading in evidence.foretold.items():
        error = expected_calibration_error(reading.probability, reading.came, draws=0)
        numbers[f"calibration error of {name}"] = error.value
        if error.value is None or error.value > limit:
            yield Refusal(RefusalCode.CALIBRATION_POOR, name, error.value, limit, error.reason)


def _checks(evidence: Evidence) -> Iterator[Refusal]:
    for name in CheckName:
        results = [check for check in evidence.checks if check.name is name]
        if not results:
            yield Refusal(RefusalCode.CHECK_MISSING, name.value, None, None, "no result was given")
        for check in results:
            if not check.passed:
                yield Refusal(RefusalCode.CHECK_FAILED, name.value, None, None, check.evidence)


def _digest(values: NDArray[Any]) -> str:
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
