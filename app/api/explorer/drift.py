"""Is the market, or a version in it, still what it was? What the newest look at drift says, on a
page."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from app.api.access import allowed
from app.api.explorer import asked, charts
from app.api.explorer.look import page
from app.api.explorer.looks import Kept, looks_in
from app.api.explorer.route import PageRoute, parts
from app.domain.principal import Role

MOST_DRAWN = 16
"""Numbers on the chart, the farthest; the table has all."""
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/drift", dependencies=[Depends(asked.words("version"))])
async def drift(request: Request) -> Response:
    allowed(request, Role.READER)
    service, _ = parts(request)
    looks = await asyncio.to_thread(looks_in, request.app.state.looks)
    version = request.query_params.get("version", "")
    shown = [kept for kept in looks.kept if version in ("", kept.look.model_version)]
    if version and not shown:
        raise HTTPException(404, f"nobody looked at a version {version[:100]!r}")
    return page(
        request,
        "drift",
        kept=shown[0] if shown else None,
        versions=[kept.look.model_version for kept in looks.kept],
        unreadable=looks.unreadable,
        folder=request.app.state.looks,
        chart=_farthest(shown[0]) if shown else {},
        age_s=(service.now() - shown[0].look.looked_at).total_seconds() if shown else 0.0,
    )


def _farthest(kept: Kept) -> charts.Chart:
    """The numbers whose distributions moved farthest, beside what is watched for."""
    limits = kept.limits
    moved = [
        charts.Moved(shift.name, shift.psi, shift.p_value < limits.alpha)
        for shift in (*kept.look.distributions, *kept.look.features)
    ]
    moved.sort(key=lambda each: -each.psi)
    return charts.shifts(moved[:MOST_DRAWN], limits.psi_watch, limits.psi_refresh)
