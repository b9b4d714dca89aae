"""What the record means for the one who reads it: what a version is worth, what needs attention,
what happened to a decision and when."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from app.api.explorer.charts import Chart, Exit, matrix
from app.api.explorer.look import lapse, moment
from app.api.explorer.looks import Kept
from app.domain.intervals import (
    Day,
    Mean,
    Share,
    kappa,
    mean_of_days,
    running_means,
    wilson,
)
from app.domain.model.actions import ACTIONS
from app.domain.record.decision import AdviceStatus, Decision, Role, control_case
from app.domain.rules.case import TradingState, order_for, side_of
from app.domain.rules.margins import Margin, margins
from app.shadow_log.schema import tables

Row = dict[str, Any]
ACTION_NAMES = tuple(
    f"{action.risk_fraction:g} of risk, {action.stop_atr:g} ATR" if action.approve else "reject"
    for action in ACTIONS
)
"""Actions as an axis names them, in the order of their labels."""
STATUSES = tuple(status.value for status in AdviceStatus)
STATES = tuple(state.value for state in TradingState)
PRIMARY = Role.PRIMARY.value
SUMMED = tuple(tables.summed(tables.advice_days))
"""What days are summed up of."""
OFTEN = 0.05
"""A larger share of abstentions needs attention."""
NEAR = ("score", "rsi", "adx", "atr", "volatility_pct", "hurst")
"""Numbers of a candidate in which decisions are called alike."""


class Worth(NamedTuple):
    """What a span of time says of a version. `advice_less_agent` is R a decision."""

    version: str
    role: str
    days: list[Row]
    decisions: int
    abstained: int
    compared: int
    agreement: Share | None
    kappa: float | None
    agent_approves: Share | None
    advice_approves: Share | None
    judged: int
    agent_r: float
    advice_r: float
    advice_less_agent: Mean | None


class Notice(NamedTuple):
    """Something that needs attention, and where to look."""

    what: str
    where: str


class Step(NamedTuple):
    """Something that happened to a decision; seconds since it was asked for, None of its candidate,
    whose time is the market's."""

    when: datetime
    what: str
    detail: str
    after_s: float | None


class Rule(NamedTuple):
    """What a rule refused: the agent's own order, or the advice of a version."""

    code: str
    of: str
    observed: object
    limit: object
    missing: str | None


class Judged(NamedTuple):
    """A limit, as an order met or missed it."""

    of: str
    margin: Margin


def by_day(rows: Iterable[Row]) -> list[Row]:
    """Rows of several versions or roles as one a day, which is of the primary if any of them is."""
    held: defaultdict[date, list[Row]] = defaultdict(list)
    for row in rows:
        held[row["day"]].append(row)
    return [
        {"day": day, "role": min(row["role"] for row in held[day])}
        | {name: sum(row[name] for row in held[day]) for name in SUMMED}
        for day in sorted(held)
    ]


def worths(rows: Iterable[Row]) -> list[Worth]:
    """Every version: those that are primary at their end first, the newest of them first of all."""
    found = defaultdict(list)
    for row in rows:
        found[row["model_version"]].append(row)
    told = [worth(version, by_day(its)) for version, its in sorted(found.items())]
    told.sort(key=lambda each: each.days[-1]["day"], reverse=True)
    return sorted(told, key=lambda each: each.role != PRIMARY)


def worth(version: str, days: list[Row]) -> Worth:
    """Sums over days of one version, with intervals."""
    compared = _sum(days, "compared")
    agreements = _sum(days, "agreements")
    agent, advice = _sum(days, "agent_approvals"), _sum(days, "advice_approvals")
    apart = [Day(row["judged"], row["advice_r"] - row["agent_r"]) for row in days]
    return Worth(
        version=version,
        role=days[-1]["role"],
        days=days,
        decisions=_sum(days, "decisions"),
        abstained=_sum(days, "abstained"),
        compared=compared,
        agreement=wilson(agreements, compared),
        kappa=kappa(compared, agreements, agent, advice),
        agent_approves=wilson(agent, compared),
        advice_approves=wilson(advice, compared),
        judged=_sum(days, "judged"),
        agent_r=sum(row["agent_r"] for row in days),
        advice_r=sum(row["advice_r"] for row in days),
        advice_less_agent=mean_of_days(apart),
    )


def running_difference(days: Iterable[Row]) -> list[Mean | None]:
    """R a decision, advice less agent, over all days up to each."""
    return running_means(Day(row["judged"], row["advice_r"] - row["agent_r"]) for row in days)


def weeks(days: Iterable[Row]) -> tuple[list[str], dict[str, list[float | None]]]:
    """By week, named after its Monday: shares of decisions that agree, that each arm approves, and
    that the version abstained from."""
    names = ("compared", "agreements", "agent_approvals", "advice_approvals", "decisions")
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in days:
        monday = row["day"] - timedelta(days=row["day"].weekday())
        sums[str(monday)].update({name: row[name] for name in (*names, "abstained")})
    told = sorted(sums)

    def of(part: str, whole: str) -> list[float | None]:
        return [sums[w][part] / sums[w][whole] if sums[w][whole] else None for w in told]

    return told, {
        "agreement": of("agreements", "compared"),
        "agent approves": of("agent_approvals", "compared"),
        "advice approves": of("advice_approvals", "compared"),
        "abstains": of("abstained", "decisions"),
    }


def share(day: Row) -> float | None:
    """Agreement of one day."""
    return day["agreements"] / day["compared"] if day["compared"] else None


def attention(readiness: Mapping[str, Any], versions: Sequence[Worth]) -> list[Notice]:
    """What somebody should look at, the gravest first."""
    notices = []
    if readiness["state"] != TradingState.ACTIVE:
        notices.append(Notice(f"the trading state is {readiness['state']}", "/ui/state"))
    if readiness["status"] != "ready":
        notices.append(Notice(f"the service is {readiness['status']}", "/readyz"))
    if isinstance(readiness["tasks"], Mapping):
        notices += [Notice(f"{task}: {why}", "/readyz") for task, why in readiness["tasks"].items()]
    for name, why in readiness["models_refused"].items():
        notices.append(Notice(f"{name} is not served: {why}", "/ui/models"))
    for fault in readiness["valkey_faults"]:
        notices.append(Notice(f"queue server: {fault}", "/readyz"))
    for version in versions:
        if version.decisions and version.abstained > OFTEN * version.decisions:
            notices.append(
                Notice(
                    f"{version.version} abstained in {version.abstained} of {version.decisions}"
                    " decisions",
                    f"/ui/decisions?version={version.version}&status=abstained",
                )
            )
    return notices


def drifting(looks: Iterable[Kept]) -> list[Notice]:
    """Versions whose newest look asks for a new one."""
    return [
        Notice(
            f"{kept.look.model_version} drifts: refresh, since {moment(kept.verdict_since)}",
            f"/ui/drift?version={quote(kept.look.model_version)}",
        )
        for kept in looks
        if kept.look.verdict == "refresh"
    ]


def rules(decision: Decision) -> list[Rule]:
    """What the rules refused, of the agent's order first, then of each version's advice."""
    reviews = [("agent", decision.control_review)]
    reviews += [
        (advice.model_version, advice.review) for advice in decision.advices if advice.review
    ]
    return [
        Rule(veto.code.value, of, veto.observed, veto.limit, veto.missing)
        for of, review in reviews
        for veto in review.vetoes
    ]


def margins_of(decision: Decision) -> list[Judged]:
    """Every limit that the agent's order and each approving version's came near, or beyond."""
    scenario, limits = decision.scenario, decision.limits
    cases = [("agent", control_case(scenario, limits, decision.state, decision.evaluated_at))]
    for advice in decision.advices:
        if advice.proposal is not None and advice.proposal.action.approve:
            order = order_for(advice.proposal.action, scenario, side_of(scenario, limits))
            probability = advice.proposal.approve_probability
            case = cases[0][1]._replace(
                order=order, approve_probability=probability, outlook=advice.outlook
            )
            cases.append((advice.model_version, case))
    return [Judged(of, margin) for of, case in cases for margin in margins(case, limits)]


def exits(document: Mapping[str, Any]) -> list[Exit]:
    """The newest end of each arm's trade, by time. What was not traded has none."""
    newest = {}
    for outcome in document.get("outcomes", []):
        arm = outcome["arm"]
        newest[arm if arm == "agent" else outcome.get("model_version") or arm] = outcome
    return sorted(
        (
            Exit(
                arm,
                datetime.fromisoformat(told["exit_time"]),
                told.get("exit_price"),
                told["outcome"],
            )
            for arm, told in newest.items()
            if told.get("exit_time") is not None
        ),
        key=lambda exit: exit.when,
    )


def timeline(decision: Decision, document: Mapping[str, Any]) -> list[Step]:
    """The candidate at its market's time, which in a replay lies years before everything else; then
    request, advice, actions, outcomes, in order of time."""
    began, as_of = decision.received_at, decision.scenario.as_of
    age = lapse((as_of - began).total_seconds())
    candidate = Step(
        as_of,
        "candidate",
        f"{decision.scenario.candidate.symbol} at its bar, {age} from the request",
        None,
    )
    took = sum(decision.stage_seconds.values())
    told = [
        (began, "request", f"request id {decision.request_id}"),
        (
            began + timedelta(seconds=took),
            "advice",
            f"{decision.primary.status.value}, after {1000 * took:.0f} ms",
        ),
    ]
    for action in document.get("agent_actions", []):
        verdict = "approve" if action.get("decision") else "reject"
        why = action.get("final_skip_reason")
        told.append((_time(action), "agent", f"{verdict}, {why}" if why else verdict))
    for outcome in document.get("outcomes", []):
        arm = outcome.get("model_version") or outcome.get("arm")
        told.append((_time(outcome), "outcome", f"{arm}: {outcome.get('outcome')}"))
    for rationale in document.get("rationales", []):
        told.append((_time(rationale), "rationale", str(rationale.get("text", ""))[:200]))
    steps = [
        Step(when, what, detail, (when - began).total_seconds())
        for when, what, detail in sorted(told, key=lambda step: step[0])
    ]
    return [candidate, *steps]


def nearness(decision: Decision) -> dict[str, float]:
    """The candidate's numbers that others are compared with."""
    candidate = decision.scenario.candidate
    numbers = {name: getattr(candidate, name) for name in NEAR}
    return {name: float(value) for name, value in numbers.items() if value is not None}


def prices(decision: Decision) -> dict[str, dict[str, float]]:
    """Entry, stop and targets of the agent's plan, and of each advice that approves."""
    plan = decision.scenario.plan
    targets = {f"target {i}": price for i, price in enumerate(plan.targets, 1)}
    shown = {"agent": {"entry": plan.entry, "stop": plan.stop, **targets}}
    for advice in decision.advices:
        if advice.approve and advice.stop is not None:
            shown[advice.model_version] = {"entry": plan.entry, "stop": advice.stop, **targets}
    return shown


def lineage(registered: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Registered versions, the newest first, each with what it was made from."""
    rows = []
    for model in registered:
        manifest = model["manifest"]
        base = manifest.get("base")
        rows.append(
            {
                "version": model["model_version"],
                "hash": model["manifest_hash"],
                "registered_at": model["registered_at"],
                "created_at": manifest.get("created_at"),
                "base": base["model_version"] if base else manifest.get("base_model"),
                "prompt": manifest.get("prompt_version"),
                "left_out": manifest.get("provenance", {}).get("left_out", []),
                "provenance": manifest.get("provenance", {}),
                "calibration": manifest.get("calibration", {}),
            }
        )
    return rows[::-1]


def agreement_matrix(pairs: Iterable[Row]) -> Chart:
    """Agreement between versions, drawn."""
    shares: dict[tuple[str, str], float] = {}
    for pair in pairs:
        value = pair["agreements"] / pair["decisions"]
        shares[pair["one"], pair["other"]] = shares[pair["other"], pair["one"]] = value
    versions = sorted({name for names in shares for name in names})
    return matrix(versions, shares)


def _sum(days: Iterable[Row], name: str) -> int:
    return sum(int(row[name]) for row in days)


def _time(report: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(report["recorded_at"])
