"""Limits: which judge, what others would do, and letting others judge."""

from __future__ import annotations

from math import nan
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from app.advising.service import Service
from app.advising.trials import RECORDED, Against, Asking, Otherwise
from app.api.access import allowed
from app.api.explorer import asked, charts
from app.api.explorer.look import page
from app.api.explorer.route import PageRoute
from app.domain.principal import Role
from app.domain.rules.limits import changes, parse_limits
from app.domain.what_if.costs import MOST_COST
from app.shadow_log.limits_history import LimitsHistory, Proposal, Report
from app.shadow_log.reading.what_if import Asked
from app.shadow_log.rows import Row

MOST_FORM_BYTES = 131_072
MOST_SHOWN = 100
LONGEST_REASON = 200
REPORT = "report"
"""Names a report, in an address and in the form that adopts by it."""
MOST_READ = 1_000
"""Decisions that a trial lets a version read anew: some two minutes beside a service."""
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/limits", dependencies=asked.NOTHING)
async def limits(request: Request) -> Response:
    allowed(request, Role.READER)
    service, history = _parts(request)
    return page(
        request,
        "limits",
        in_force=service.controls.by_profile(),
        overruled=service.controls.overruled(),
        proposals=await history.proposals(MOST_SHOWN),
        adoptions=await history.adoptions(most=MOST_SHOWN),
        versions=await service.shadow_log.models(),
    )


@router.post("/ui/limits")
async def propose(request: Request) -> Response:
    """Keep a proposal, and try it on the record."""
    caller = allowed(request, Role.OPERATOR)
    service, history = _parts(request)
    fields = await asked.form(request, MOST_FORM_BYTES)
    otherwise = _otherwise(fields)
    profile = fields.get("profile", "")
    if profile not in service.controls.by_profile():
        raise HTTPException(422, f"there is no limits file of {profile!r}")
    since, until = asked.between(fields.get("since"), fields.get("until"))
    proposal = await history.propose(
        profile,
        fields.get("toml", ""),
        note=fields.get("note", "")[:LONGEST_REASON],
        by=caller.name,
        since=since,
        until=until,
    )
    _begin(service, proposal, fields.get("against", ""), otherwise)
    return RedirectResponse(f"/ui/limits/{proposal.id}", 303)


@router.get("/ui/limits/{id}", dependencies=[Depends(asked.words(REPORT))])
async def proposal(id: int, request: Request) -> Response:
    """A proposal with its newest report, or with the one that the address names."""
    allowed(request, Role.READER)
    service, history = _parts(request)
    proposed = await _proposal(history, id)
    judging = service.controls.by_profile().get(proposed.profile)
    report = await _report(history, id, request.query_params.get(REPORT, ""))
    document: dict[str, Any] | None = None if report is None else orjson.loads(report.report)
    turned, still = _by_verdict(document["changed"] if document else [])
    tried = service.trials.of(id)
    return page(
        request,
        "proposal",
        proposal=proposed,
        judging=judging,
        changes=changes(judging.limits, parse_limits(proposed.toml, "the proposal"))
        if judging
        else [],
        report=report,
        document=document,
        of_old=REPORT in request.query_params,
        turned=turned,
        still=still,
        recorded=RECORDED,
        gains=charts.gains(document["arms"]) if document else {},
        trial=tried,
        versions=await service.shadow_log.models(),
        refresh_s=2 if tried is not None and tried.failed is None else None,
    )


def _by_verdict(changed: list[Row]) -> tuple[list[Row], list[Row]]:
    """Decisions that one of both limits approves, and those that both refuse, by other rules."""
    approved = [row["before"]["approves"] or row["after"]["approves"] for row in changed]
    rows = list(zip(changed, approved, strict=True))
    return [row for row, by_one in rows if by_one], [row for row, by_one in rows if not by_one]


@router.post("/ui/limits/{id}/trial")
async def try_again(id: int, request: Request) -> Response:
    allowed(request, Role.OPERATOR)
    service, history = _parts(request)
    fields = await asked.form(request)
    otherwise = _otherwise(fields)
    _begin(service, await _proposal(history, id), fields.get("against", ""), otherwise)
    return RedirectResponse(f"/ui/limits/{id}", 303)


@router.post("/ui/limits/{id}/adopt")
async def adopt(id: int, request: Request) -> Response:
    """Let a proposal judge, in the place of what its page was shown beside."""
    caller = allowed(request, Role.OPERATOR)
    service, history = _parts(request)
    fields = await asked.form(request)
    asked.require_sure(fields)
    proposed = await _proposal(history, id)
    await service.controls.adopt(
        proposed.toml,
        profile=proposed.profile,
        seen=fields.get("seen", ""),
        reason=_reason(fields),
        by=caller.name,
        proposal=proposed,
        report=await _report(history, id, fields[REPORT]) if fields.get(REPORT) else None,
    )
    return RedirectResponse("/ui/limits", 303)


@router.post("/ui/limits/back")
async def roll_back(request: Request) -> Response:
    caller = allowed(request, Role.OPERATOR)
    service, _ = _parts(request)
    fields = await asked.form(request)
    asked.require_sure(fields)
    await service.controls.roll_back(
        profile=fields.get("profile", ""),
        seen=fields.get("seen", ""),
        reason=_reason(fields),
        by=caller.name,
    )
    return RedirectResponse("/ui/limits", 303)


def _parts(request: Request) -> tuple[Service, LimitsHistory]:
    service: Service = request.app.state.service
    return service, LimitsHistory(service.shadow_log)


async def _proposal(history: LimitsHistory, id: int) -> Proposal:
    proposed = await history.proposal(id) if 0 < id < 2**63 else None
    if proposed is None:
        raise HTTPException(404, f"there is no proposal {id}")
    return proposed


async def _report(history: LimitsHistory, id: int, named: str) -> Report | None:
    """The report that is named, or else the newest. Raises 404."""
    if not named:
        return await history.report(id)
    known = named.isdecimal() and len(named) < 19
    report = await history.report(id, int(named)) if known else None
    if report is None:
        raise HTTPException(404, f"there is no report {named[:20]!r} on proposal {id}")
    return report


def _otherwise(fields: dict[str, str]) -> Otherwise:
    """What is tried beside limits. Raises 422."""
    version = fields.get("version") or None
    read = _number(fields, "read", MOST_READ) or 0.0
    if read and version is None:
        raise HTTPException(422, "say which version reads the decisions that it has not read")
    fee, slippage = (_number(fields, name, MOST_COST) for name in ("fee", "slippage"))
    return Otherwise(version, int(read), fee, slippage)


def _number(fields: dict[str, str], name: str, most: float) -> float | None:
    """A number from 0 on; None where the field is empty. Raises 422."""
    written = fields.get(name, "")
    if not written:
        return None
    try:
        number = float(written)
    except ValueError:
        number = nan
    if not 0 <= number <= most:
        raise HTTPException(422, f"{name}: {written[:20]!r} is no number from 0 to {most:g}")
    return number


def _begin(service: Service, proposal: Proposal, against: str, otherwise: Otherwise) -> None:
    """Try a proposal on the decisions that its profile judges."""
    judging = service.controls.by_profile()
    in_force = judging.get(proposal.profile)
    beside = Against()
    if against != RECORDED and in_force is not None:
        beside = Against(in_force.toml, in_force.hash)
    own = tuple(name for name in judging if name)
    asked_for = Asked(
        proposal.since, proposal.until, proposal.profile or None, () if proposal.profile else own
    )
    service.trials.begin(Asking(proposal, beside, asked_for, otherwise))


def _reason(fields: dict[str, str]) -> str:
    reason = fields.get("reason", "")
    if not 0 < len(reason) <= LONGEST_REASON:
        raise HTTPException(
            422, f"say why, in at most {LONGEST_REASON} characters; nothing was changed"
        )
    return reason
