"""Pages for people who watch: what the record says, one decision, what is served."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException

from app.api.access import allowed
from app.api.explorer import asked, charts, story
from app.api.explorer.look import page
from app.api.explorer.looks import looks_in
from app.api.explorer.route import STATIC, PageRoute, parts
from app.domain.errors import ShadowLogUnavailable
from app.domain.intervals import running
from app.domain.model.aliases import NOTHING, rollback_target
from app.domain.model.manifest import PRIMARY_ALIAS
from app.domain.principal import Role
from app.shadow_log.reading.explore import LOOKED_AT, LOOKED_THROUGH, Filters, Page
from app.shadow_log.rows import Row

PAGE_SIZE = 50
EXPORT_SIZE, MOST_EXPORTED = 500, 50_000
KINDS = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".txt": "text/plain",
    ".svg": "image/svg+xml",
}
COLUMNS = (
    "decision_id",
    "request_id",
    "as_of",
    "symbol",
    "setup_type",
    "regime",
    "score",
    "state",
    "model_version",
    "role",
    "status",
    "abstain_reason",
    "label",
    "approve_probability",
    "win_probability",
    "stopped_probability",
    "range_atr",
    "expected_r",
    "advice_approve",
    "advice_action",
    "advice_quantity",
    "advice_stop",
    "veto_codes",
    "agent_approve",
    "final_skip_reason",
    "control_veto_codes",
    "agree",
    "agent_outcome",
    "agent_earned_r",
    "advice_outcome",
    "advice_earned_r",
)
"""What an export holds, in this order."""
OF_TIME = [Depends(asked.words(*asked.OF_TIME))]
OF_DECISIONS = [Depends(asked.words(*asked.OF_DECISIONS))]
OF_EXPORT = [Depends(asked.words(*asked.OF_EXPORT))]
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
async def begin() -> Response:
    return RedirectResponse("/ui", 307)


@router.get("/ui/static/{name}")
async def static(name: str) -> Response:
    path = STATIC / name
    if path.parent != STATIC or path.suffix not in KINDS or not path.is_file():
        raise HTTPException(404, f"there is no file {name!r}")
    return FileResponse(path, media_type=KINDS[path.suffix])


@router.get("/ui", dependencies=OF_TIME)
async def overview(request: Request) -> Response:
    allowed(request, Role.READER)
    service, explorer = parts(request)
    readiness = await service.readiness()
    stored = await explorer.span()
    if stored is None:
        return page(request, "empty", attention=story.attention(readiness, []))
    span = asked.span(request, stored)
    looks = await asyncio.to_thread(looks_in, request.app.state.looks)
    days = await explorer.days(span.since, span.until)
    vetoes = await explorer.vetoes(span.since, span.until)
    versions = story.worths(days)
    main = story.by_day(row for row in days if row["role"] == story.PRIMARY)
    labels = [str(row["day"]) for row in main]
    return page(
        request,
        "overview",
        attention=story.attention(readiness, versions) + story.drifting(looks.kept),
        readiness=readiness,
        stored=stored,
        span=span,
        spans=asked.SPANS,
        versions=versions,
        vetoes=vetoes,
        books=charts.running_r(
            labels,
            running([row["agent_r"] for row in main]),
            running([row["advice_r"] for row in main]),
        ),
        difference=charts.difference(labels, story.running_difference(main)),
        agreement=charts.agreement(labels, [story.share(row) for row in main]),
        saved=charts.saved([row["code"] for row in vetoes], [row["r_saved"] for row in vetoes]),
    )


@router.get("/ui/decisions", dependencies=OF_DECISIONS)
async def decisions(request: Request) -> Response:
    allowed(request, Role.READER)
    _, explorer = parts(request)
    filters = asked.filters(request)
    if (known := _as_id(filters.words)) is not None:
        return RedirectResponse(f"/ui/decisions/{known}", 303)
    named = await explorer.asked_as(filters.words) if filters.words else []
    if len(named) == 1:
        return RedirectResponse(f"/ui/decisions/{named[0]['decision_id']}", 303)
    found = await explorer.page(filters, asked.after(request), PAGE_SIZE)
    following = found.following
    return page(
        request,
        "decisions",
        filters=filters,
        choices=await explorer.choices(),
        statuses=story.STATUSES,
        rows=found.rows,
        following=following
        and asked.address(request, "/ui/decisions", after=asked.place_text(following)),
        newest=asked.address(request, "/ui/decisions", after=None),
        begins_later="after" in request.query_params,
        export=asked.address(request, "/ui/decisions.csv", after=None),
        as_lines=asked.address(request, "/ui/decisions.jsonl", after=None),
        most=MOST_EXPORTED,
        looked_through=_looked_through(filters, found),
    )


def _looked_through(filters: Filters, found: Page) -> int | None:
    """How many decisions a page that goes on was looked for in, where that was not all."""
    if filters.words:
        return LOOKED_THROUGH
    return LOOKED_AT if found.following and len(found.rows) < PAGE_SIZE else None


@router.get("/ui/decisions.csv", dependencies=OF_EXPORT)
async def as_csv(request: Request) -> Response:
    return await _exported(request, "decisions.csv", "text/csv", ",".join(COLUMNS) + "\r\n", _csv)


@router.get("/ui/decisions.jsonl", dependencies=OF_EXPORT)
async def as_json_lines(request: Request) -> Response:
    return await _exported(request, "decisions.jsonl", "application/jsonl", "", _json_lines)


async def _exported(
    request: Request, name: str, kind: str, head: str, written: Callable[[list[Row]], str]
) -> Response:
    """What is seen, from the newest to the oldest, page by page."""
    allowed(request, Role.READER)
    _, explorer = parts(request)
    filters = asked.filters(request)
    first = await explorer.page(filters, None, EXPORT_SIZE)

    async def lines() -> AsyncIterator[str]:
        yield head
        left, page = MOST_EXPORTED, first
        while True:
            yield written(page.rows[:left])
            left -= len(page.rows)
            if page.following is None or left <= 0:
                return
            page = await explorer.page(filters, page.following, EXPORT_SIZE)

    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines(), media_type=f"{kind}; charset=utf-8", headers=headers)


@router.get("/ui/models", dependencies=OF_TIME)
async def models(request: Request) -> Response:
    allowed(request, Role.READER)
    service, explorer = parts(request)
    described = await service.serving.describe()
    aliases = await service.serving.aliases()
    stored = await explorer.span()
    pairs, span = [], None
    if stored is not None:
        span = asked.span(request, stored)
        pairs = await explorer.agreement_of_versions(span.since, span.until)
    return page(
        request,
        "models",
        serving=described["serving"],
        registered=_registered(described),
        aliases=aliases["aliases"],
        history=aliases["history"],
        before={alias: _before(aliases["history"], alias) for alias in aliases["aliases"]},
        pairs=pairs,
        matrix=story.agreement_matrix(pairs),
        span=span,
        spans=asked.SPANS,
        refused=service.serving.refusals(),
    )


@router.get("/ui/models/{version}", dependencies=OF_TIME)
async def model(request: Request, version: str) -> Response:
    """One version: its card, what it is worth, whether it foretells honestly, how it behaves."""
    allowed(request, Role.READER)
    service, explorer = parts(request)
    described = await service.serving.describe()
    known = _registered(described)
    found = next((one for one in known if one["version"] == version), None)
    if found is None:
        raise HTTPException(404, f"the registry knows no version {version!r}")
    aliases = await service.serving.aliases()
    stored = await explorer.span()
    days, chances, span = [], [], None
    if stored is not None:
        span = asked.span(request, stored)
        everyone = await explorer.days(span.since, span.until)
        days = story.by_day(row for row in everyone if row["model_version"] == version)
        told = await explorer.chances(span.since, span.until)
        chances = [row for row in told if row["model_version"] == version]
    labels = [str(row["day"]) for row in days]
    return page(
        request,
        "model",
        model=found,
        served=_roles(described["serving"], found["hash"]),
        card=await service.serving.card(version),
        report=await service.serving.report(version) is not None,
        stands={
            alias: (move, _before(aliases["history"], alias) or NOTHING)
            for alias, move in aliases["aliases"].items()
            if _names(move, version)
        },
        others=_others(aliases["aliases"], version),
        moves=[move for move in aliases["history"] if _names(move, version)],
        worth=story.worth(version, days) if days else None,
        difference=charts.difference(labels, story.running_difference(days)),
        chances=chances,
        calibration=charts.calibration(chances),
        behaviour=charts.behaviour(*story.weeks(days)),
        span=span,
        spans=asked.SPANS,
    )


@router.get("/ui/models/{version}/report", dependencies=asked.NOTHING)
async def report(request: Request, version: str) -> Response:
    """The report of a version's evaluation as training wrote it; its headers make it a sandbox."""
    allowed(request, Role.READER)
    service, _ = parts(request)
    path = await service.serving.report(version)
    if path is None:
        raise HTTPException(404, f"no report of an evaluation of {version!r} lies here")
    return FileResponse(path, media_type="text/html; charset=utf-8")


def _registered(described: Row) -> list[Row]:
    """Every version that the registry knows. Raises `ShadowLogUnavailable` when it cannot tell."""
    registry = described["registry"]
    if "unavailable" in registry:
        raise ShadowLogUnavailable(registry["unavailable"])
    return story.lineage(registry["models"])


def _roles(serving: list[Row], manifest_hash: str) -> list[str]:
    """In which roles a version is served now."""
    return [each["role"] for each in serving if each["manifest_hash"] == manifest_hash]


def _names(move: Row, version: str) -> bool:
    return bool(move["model_version"] == version)


def _before(history: list[Row], alias: str) -> str | None:
    """Where a rollback of the alias leads; None where there is nothing to go back to."""
    return rollback_target([move for move in reversed(history) if move["alias"] == alias])


def _others(aliases: Row, version: str) -> dict[str, Row]:
    """What may be let name a version that it does not name now; an alias that never moved too."""
    never = {"model_version": NOTHING, "changed_at": ""}
    standing = {PRIMARY_ALIAS: never, "champion": never} | aliases
    return {alias: move for alias, move in standing.items() if not _names(move, version)}


@router.get("/ui/state", dependencies=asked.NOTHING)
async def state(request: Request) -> Response:
    allowed(request, Role.READER)
    service, _ = parts(request)
    changes = await service.shadow_log.state_changes(100)
    return page(
        request, "state", state=service.controls.state.value, states=story.STATES, changes=changes
    )


def _as_id(words: str | None) -> UUID | None:
    try:
        return UUID(words) if words else None
    except ValueError:
        return None


def _json_lines(rows: list[Row]) -> str:
    return "".join(
        orjson.dumps({name: row[name] for name in COLUMNS}, option=orjson.OPT_UTC_Z).decode() + "\n"
        for row in rows
    )


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow(_cell(row[name]) for name in COLUMNS)
    return text.getvalue()


def _cell(value: object) -> object:
    """A value as a cell: no text in it can begin a formula."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
