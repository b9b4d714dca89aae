"""What answers a browser: pages, and refusals that are pages as well."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.advising.service import Service
from app.api.explorer.look import page
from app.api.wire import status_of
from app.domain.errors import AdvisorError
from app.shadow_log.reading.explore import Explorer

STATIC = Path(__file__).parent / "static"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
log = structlog.get_logger()
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose problems, and defects, are told on a page. What may be got may be asked for its
    head."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **told: Any) -> None:
        super().__init__(path, endpoint, **told)
        if self.methods and "GET" in self.methods:
            self.methods.add("HEAD")

    def get_route_handler(self) -> Handler:
        """The handler of the route, with its problems caught."""
        answer = super().get_route_handler()

        async def answer_with_pages(request: Request) -> Response:
            try:
                return await answer(request)
            except HTTPException as error:
                title = "This cannot be shown" if request.method == "GET" else "This was not done"
                return page(
                    request, "problem", error.status_code, title=title, detail=str(error.detail)
                )
            except RequestValidationError:
                detail = f"{request.url.path} is not the address of anything here"
                return page(request, "problem", 404, title="There is no such page", detail=detail)
            except AdvisorError as error:
                status, title = status_of(error)
                return page(request, "problem", status, title=title, detail=str(error))
            except ClientDisconnect:
                raise  # Nobody is there to read a page.
            except Exception as error:
                log.exception("a page has a defect", method=request.method, path=request.url.path)
                detail = f"{type(error).__name__}; the log has the trace"
                return page(request, "problem", 500, title="A defect of this page", detail=detail)

        return answer_with_pages


nowhere = APIRouter(route_class=PageRoute, include_in_schema=False)
"""What no other page is, the last of all."""


@nowhere.api_route("/ui/{rest:path}", methods=METHODS)
async def no_page(request: Request, rest: str) -> Response:
    if rest == "" or rest.endswith("/"):
        return RedirectResponse(request.url.path.rstrip("/"), 307)
    raise HTTPException(404, f"{request.url.path[:200]} is not the address of anything here")


def parts(request: Request) -> tuple[Service, Explorer]:
    """What pages ask."""
    service: Service = request.app.state.service
    return service, Explorer(service.shadow_log.engine)
