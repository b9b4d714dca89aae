"""One decision: what was asked, said, ruled and done, what the market did then, and whether it
still is what it was."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from app.advising.rereading import Reread, reread
from app.api.access import allowed
from app.api.budget import Buckets
from app.api.explorer import asked, charts, story
from app.api.explorer.look import page
from app.api.explorer.route import PageRoute, parts
from app.domain.principal import Role
from app.domain.record.decision import Decision
from app.shadow_log.bar_files import Candles, candles

ALIKE = 8
REREADS_PER_S, REREADS_AT_ONCE = 0.2, 3.0
"""A second reading takes a model from those who wait for advice."""
REREAD_S = 30.0
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/ui/decisions/{id}", dependencies=asked.NOTHING)
async def decision(id: UUID, request: Request) -> Response:
    allowed(request, Role.READER)
    return await _shown(request, await _stored(request, id), None)


@router.post("/ui/decisions/{id}/replay")
async def replay(id: UUID, request: Request) -> Response:
    """The same page, with what the versions say when they read the prompt again."""
    caller = allowed(request, Role.OPERATOR)
    await asked.form(request)
    buckets: Buckets = request.app.state.rereads
    wait_s = buckets.wait(caller.name, monotonic())
    if wait_s:
        raise HTTPException(429, f"models are read again a few times a minute; wait {wait_s:.0f} s")
    stored = await _stored(request, id)
    service, _ = parts(request)
    deadline = monotonic() + REREAD_S
    ticket = service.door.enter(monotonic(), deadline)
    try:
        with service.serving.using() as models:
            readings = await reread(models, stored, deadline)
    finally:
        service.door.leave(ticket)
    return await _shown(request, stored, readings)


async def _stored(request: Request, id: UUID) -> Decision:
    service, _ = parts(request)
    stored = await service.shadow_log.decision(id)
    if stored is None:
        raise HTTPException(
            404,
            f"no decision {id} is in the record. One that was answered a moment ago arrives within"
            " seconds; one whose month was dropped is gone",
        )
    return stored


async def _shown(request: Request, stored: Decision, rereads: Sequence[Reread] | None) -> Response:
    service, explorer = parts(request)
    document = await service.records.document(stored.decision_id)
    id, as_of = stored.decision_id, stored.scenario.as_of
    exits = story.exits(document)
    numbers = story.nearness(stored)
    readings = {
        advice.model_version: advice.proposal.probabilities
        for advice in stored.advices
        if advice.proposal is not None
    }
    bars = await _bars(request, stored, exits)
    return page(
        request,
        "decision",
        decision=stored,
        document=document,
        versions=await explorer.comparison(id, as_of),
        rules=story.rules(stored),
        margins=story.margins_of(stored),
        timeline=story.timeline(stored, document),
        replays=stored.replayed() == stored,
        rereads=rereads,
        links=await explorer.links(id),
        alike=await explorer.alike(id, as_of, numbers, ALIKE),
        alike_in=sorted(numbers),
        probabilities=charts.probabilities(story.ACTION_NAMES, readings),
        levels=story.prices(stored),
        exits=exits,
        bars=bars,
        candles=charts.candles(bars.bars, as_of, story.prices(stored), exits),
    )


async def _bars(request: Request, stored: Decision, exits: Sequence[charts.Exit]) -> Candles:
    as_of = stored.scenario.as_of
    ended: datetime = max([as_of, *(exit.when for exit in exits)])
    folder: Any = request.app.state.bars
    symbol = stored.scenario.candidate.symbol
    return await asyncio.to_thread(candles, folder, symbol, as_of, ended)
