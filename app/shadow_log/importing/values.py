"""What stands in foreign rows, as what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

MILLISECONDS_FROM = 1e11
"""A number of seconds that large is in the year 5138: it counts milliseconds."""


def number(row: Mapping[str, Any], *names: str) -> float | None:
    """The first of some columns that holds a finite number."""
    for name in names:
        try:
            value = float(row.get(name))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if math.isfinite(value):
            return value
    return None


def moment(value: Any, zone: ZoneInfo | None = None) -> datetime | None:
    """A time in UTC: a datetime, a text as ISO 8601 writes it, or seconds or milliseconds since
    1970. What has no zone is in `zone`, or in UTC."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        seconds = value / 1000 if abs(value) >= MILLISECONDS_FROM else value
        try:
            return datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, OSError, ValueError):
            return None
    try:
        told = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (told if told.tzinfo else told.replace(tzinfo=zone or UTC)).astimezone(UTC)


def flag(value: Any) -> bool | None:
    """Yes or no, as programs write it."""
    if isinstance(value, bool) or value is None:
        return value
    words = {"true": True, "1": True, "yes": True, "1.0": True}
    words |= {"false": False, "0": False, "no": False, "0.0": False}
    return words.get(str(value).strip().lower())
