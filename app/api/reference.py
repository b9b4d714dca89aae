"""`/docs`: the interfaces to try out, drawn by Swagger UI, which lies beside the pages."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import RedirectResponse, Response

STATIC = "/ui/static"
router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    app = request.app
    return get_swagger_ui_html(
        openapi_url=app.openapi_url,
        title=app.title,
        swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{STATIC}/mark.svg",
    )


@router.get("/redoc")
async def redoc() -> Response:
    return RedirectResponse("/docs", 307)
