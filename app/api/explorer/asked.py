"""What a page was asked for: the words of its address, and the fields of its form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode
from uuid import UUID

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from app.domain.fields import clean_text, moved
from app.domain.record.decision import AdviceStatus
from app.domain.rules.vetoes import VetoCode
from app.shadow_log.reading.explore import Filters, Place

MOST_FORM_BYTES = 8_192
LONGEST_WORD = 200
SPANS = (7, 30, 90, 365)
"""Days that the overview offers."""
OF_TIME = ("days", "since", "until")
OF_EXPORT = (
    "q", "symbol", "version", "status", "veto", "outcome", "since", "until", "disagree",
)  # fmt: skip
OF_DECISIONS = (*OF_EXPORT, "after")
BETWEEN = 0


class Span(NamedTuple):
    """From when until when, and the days that it was asked for by; None is everything, `BETWEEN`
    the times that were named."""

    since: datetime
    until: datetime
    days: int | None


def words(*names: str) -> Callable[[Request], None]:
    """A dependency of a page that knows these words in its address. Raises 400 for others: a filter
    that is misspelt would show everything as if it had filtered."""

    def require_known(request: Request) -> None:
        for word, times in Counter(name for name, _ in request.query_params.multi_items()).items():
            if word not in names:
                near = get_close_matches(word, names, 1)
                knows = f"it knows {', '.join(names) or 'none'}"
                meant = f"did you mean {near[0]}?" if near else knows
                raise HTTPException(400, f"this page knows no word {word[:50]!r}: {meant}")
            if times > 1:
                raise HTTPException(400, f"{word} is said {times} times: which one is meant?")

    return require_known


NOTHING = [Depends(words())]
"""Of a page whose address has no words."""


def filters(request: Request) -> Filters:
    """The filters in an address. Raises 400 that names what cannot be read."""
    since, until = between(_word(request, "since"), _word(request, "until"))
    return Filters(
        symbol=_word(request, "symbol"),
        since=since,
        until=until,
        version=_word(request, "version"),
        status=_one_of(request, "status", AdviceStatus),
        veto=_one_of(request, "veto", VetoCode),
        outcome=_word(request, "outcome"),
        disagree=_one_of(request, "disagree", ("1",)) is not None,
        words=_word(request, "q"),
    )


def after(request: Request) -> Place | None:
    """Where the page begins: TIME_ID, as `address` writes it."""
    written = _word(request, "after")
    if written is None:
        return None
    when, _, decision = written.partition("_")
    try:
        return Place(_utc(when), UUID(decision))
    except ValueError:
        raise HTTPException(400, f"after={written!r} is not a place in the list") from None


def place_text(place: Place) -> str:
    """A place, as `after` reads it."""
    return f"{place.as_of.astimezone(UTC).isoformat()}_{place.decision_id}"


def address(request: Request, path: str, **changes: str | None) -> str:
    """The same question at `path`, with other words; None takes one out."""
    words = {name: value for name, value in request.query_params.items() if value}
    kept = {name: value for name, value in {**words, **changes}.items() if value is not None}
    return f"{path}?{urlencode(kept)}" if kept else path


def span(request: Request, stored: tuple[datetime, datetime]) -> Span:
    """The times that are named, or else the days before the newest decision; 30 when nothing is
    said. Raises 400."""
    oldest, newest = stored
    until = moved(newest, timedelta(microseconds=1))
    first, last = between(_word(request, "since"), _word(request, "until"))
    written = _word(request, "days")
    if first or last:
        if written:
            raise HTTPException(400, f"days={written!r} beside since or until: say one of them")
        return Span(first or oldest, last or until, BETWEEN)
    written = written or "30"
    if written == "all":
        return Span(oldest, until, None)
    if not written.isdecimal() or int(written) not in SPANS:
        offered = ", ".join(map(str, SPANS))
        raise HTTPException(400, f"days={written!r}: choose one of {offered}, or `all`")
    return Span(moved(newest, -timedelta(days=int(written))), until, int(written))


async def form(request: Request, most: int = MOST_FORM_BYTES) -> dict[str, str]:
    """The fields of a form of ours. Raises 403 for one that another page sent, 413, 415."""
    if request.headers.get("origin") is None:
        raise HTTPException(403, "a form is answered when the browser says that this page sent it")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "send the form as application/x-www-form-urlencoded")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"the form is larger than {most} bytes")
    try:
        fields = parse_qs(body.decode(), max_num_fields=16, errors="strict")
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None
    return {name: _written(values[-1].strip()) for name, values in fields.items()}


def _written(value: str) -> str:
    """What stands in a field, as it can be kept; line ends as everywhere."""
    return clean_text(value.replace("\r\n", "\n"))


def require_sure(fields: dict[str, str]) -> None:
    """Raises 422 unless the box of a form is ticked."""
    if fields.get("sure") != "yes":
        raise HTTPException(422, "tick the box that says that you are sure; nothing was changed")


def require_as_seen(fields: dict[str, str], now: str) -> None:
    """Raises 409 when a form was sent by a page that showed something else than is now: somebody
    else, or another tab, was faster."""
    if fields.get("seen", now) != now:
        raise HTTPException(
            409, "somebody changed it since this page was made: look again; nothing was changed"
        )


def between(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Both times of a span as they were written, None an open end. Raises 400, also when it ends
    before it begins."""
    first, last = moment("since", since), moment("until", until)
    if first and last and first >= last:
        raise HTTPException(400, f"since={first.isoformat()} is not before {last.isoformat()}")
    return first, last


def _one_of(request: Request, name: str, known: Iterable[str]) -> str | None:
    """A word that is one of a closed set, as it is spelt there. Raises 400."""
    written = _word(request, name)
    values = [str(value) for value in known]
    if written is not None and written not in values:
        near = get_close_matches(written.casefold(), [value.casefold() for value in values], 1)
        meant = next(iter(v for v in values if v.casefold() in near), " or ".join(values[:4]))
        raise HTTPException(400, f"{name}={written!r} is none that there is: did you mean {meant}?")
    return written


def _word(request: Request, name: str) -> str | None:
    value = request.query_params.get(name, "").strip()
    if len(value) > LONGEST_WORD or "\0" in value:
        raise HTTPException(400, f"{name} is longer than {LONGEST_WORD} characters, or not text")
    return value or None


def moment(name: str, written: str | None) -> datetime | None:
    """A time that was written into a field; None when it was left empty. Raises 400."""
    if not written:
        return None
    try:
        return _utc(written)
    except ValueError:
        raise HTTPException(
            400, f"{name}={written!r} is no time: write 2024-03-01 or 2024-03-01T12:00"
        ) from None


def _utc(written: str) -> datetime:
    """A time; one without a zone is UTC. Raises `ValueError`."""
    when = datetime.fromisoformat(written)
    try:
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{written} is outside the years 1 to 9999 in UTC") from None
