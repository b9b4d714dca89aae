"""What answers a browser: pages, and refusals that are pages as well."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.advising.service import Service
from app.api.explorer.look import page
from app.api.wire import STATUS
from app.domain.errors import AdvisorError
from app.shadow_log.reading.explore import Explorer

STATIC = Path(__file__).parent / "static"
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose problems are told on a page. What may be got may be asked for its head."""

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
                status, title = STATUS[type(error)]
                return page(request, "problem", status, title=title, detail=str(error))

        return answer_with_pages


def parts(request: Request) -> tuple[Service, Explorer]:
    """What pages ask."""
    service: Service = request.app.state.service
    return service, Explorer(service.shadow_log.engine)
