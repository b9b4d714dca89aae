"""A route whose problems and defects are pages."""

from __future__ import annotations

import httpx
from fastapi import APIRouter, FastAPI

from app.api.explorer.route import PageRoute
from app.domain.errors import InvalidRecord


class Worse(InvalidRecord):
    """A kind of its own, which nobody gave a status."""


def failing() -> httpx.AsyncClient:
    """An app of two pages: one has a defect, the other refuses."""
    router = APIRouter(route_class=PageRoute)

    @router.get("/ui/defect")
    async def defect() -> int:
        return 1 // 0

    @router.get("/ui/worse")
    async def worse() -> None:
        raise Worse("the field is <wrong>")

    app = FastAPI()
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


async def test_a_defect_is_told_on_a_page_without_its_values() -> None:
    async with failing() as client:
        answer = await client.get("/ui/defect")
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith("text/html")
    assert "ZeroDivisionError; the log has the trace" in answer.text
    assert "1 //" not in answer.text


async def test_an_error_without_a_status_of_its_own_has_that_of_its_kind() -> None:
    async with failing() as client:
        answer = await client.get("/ui/worse")
    assert answer.status_code == 422
    assert "the field is &lt;wrong&gt;" in answer.text
