"""How pages look: templates with every value escaped, and the words for numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from app.api.access import caller_of
from app.domain.principal import OPEN, Role

NONE = "–"
"""Stands where a value is not known."""
HEADING_BELOW = 2
"""So many steps the headings of a text lie below those of the page that shows it."""
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
_UNITS = ((31_557_600.0, "years"), (86_400.0, "days"), (3_600.0, "h"), (60.0, "min"))


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, its thousands apart; a dash for none."""
    if value is None or not isfinite(value):
        return NONE
    return f"{value:,.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign."""
    return NONE if value is None or not isfinite(value) else f"{value:+,.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of one, in per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def price(value: float | None) -> str:
    """Six significant digits, and no exponent that people would have to read, but for what no
    market's price is."""
    if value is None or not isfinite(value):
        return NONE
    size = abs(value)
    if 1e6 <= size < 1e15:
        return f"{value:,.8f}".rstrip("0").rstrip(".")
    if 1e-15 <= size < 1e-4:
        return format(Decimal(f"{value:.6g}"), "f")
    return f"{value:,.6g}"


def moment(value: datetime | str | None) -> str:
    """A time in UTC, to the second."""
    if value is None:
        return NONE
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def lapse(seconds: float | None) -> str:
    """A signed length of time, in the unit in which it is read at a glance."""
    if seconds is None:
        return NONE
    size, unit = next((each for each in _UNITS if abs(seconds) >= 2 * each[0]), (1.0, "s"))
    return f"{seconds / size:+,.1f} {unit}"


def script_json(value: object) -> Markup:
    """JSON that stands inside a script element: no `<` in it, so nothing there can end it."""
    return Markup(orjson.dumps(value, default=str).decode().replace("<", "\\u003c"))


def pretty(value: object) -> str:
    """A document, indented."""
    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode()


def markdown(text: str) -> Markup:
    """A text in Markdown. HTML in it is shown as it is written, images are links, and a link leads
    to no script."""
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + HEADING_BELOW, 6)}"
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def yes(value: bool | None) -> str:
    """approve or reject; a dash for neither."""
    return {True: "approve", False: "reject", None: NONE}[value]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.api.explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "price": price,
        "moment": moment,
        "lapse": lapse,
        "script_json": script_json,
        "pretty": pretty,
        "markdown": markdown,
        "yes": yes,
    }
    environment.globals["none"] = NONE
    return environment


_TEMPLATES = _environment()


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page. Every template knows who looks at it, and where."""
    caller = caller_of(request)
    content = _TEMPLATES.get_template(f"{template}.html.j2").render(
        who=None if caller is None else caller.name,
        may_operate=caller is not None and caller.may(Role.OPERATOR),
        signed_in=caller is not None and caller is not OPEN,
        path=request.url.path,
        **{"refresh_s": None} | values,
    )
    return HTMLResponse(content, status)
