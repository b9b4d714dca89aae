"""Values that say what they mean in another way than the schema: read as they are meant, or not at
all.

Each mender gets a value and what pydantic knows of its fault, and gives what was meant, and why;
`None` where nobody can tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import Any, NamedTuple

from pydantic_core import ErrorDetails

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_EXPECTED = re.compile(r"'([^']*)'")
_YES = frozenset({"true", "yes", "y", "1", "on", "approve", "approved", "accept", "accepted"})
_NO = frozenset({"false", "no", "n", "0", "off", "reject", "rejected", "veto", "vetoed", "skip"})
_SAME = {"buy": "long", "sell": "short", "bull": "bullish", "bear": "bearish"}


class Mended(NamedTuple):
    """What a value meant, and why it was taken so."""

    value: Any
    why: str


def mended(fault: ErrorDetails) -> Mended | None:
    """What the value at fault meant; None where nobody can tell."""
    mender = _MENDERS.get(fault["type"])
    if mender is None or fault["input"] is None:
        return None
    return mender(fault["input"], fault.get("ctx") or {})


def plainly(value: Any) -> Any:
    """A text that is a number, or a time without an offset, as that; anything else as it is."""
    if not isinstance(value, str):
        return value
    number = _number(value, {})
    if number is not None:
        return number.value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else value


def likely(fault: ErrorDetails) -> str:
    """What to say of a number beyond its range that fits in another unit; empty where none does."""
    value, context = fault["input"], fault.get("ctx") or {}
    name = "".join(map(str, fault["loc"][-1:]))
    most = context.get("le", context.get("ge"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not most:
        return ""
    unit, size = next((unit for mark, unit in _UNITS if mark in name), _PER_CENT)
    meant = _is_share(value, most) if (unit, size) == _PER_CENT else True
    fits = meant and abs(value) / size <= abs(most)
    return f"; {unit} it would be {value / size:g}" if fits else ""


def _is_share(value: float, most: float) -> bool:
    """Whether a field holds a share, and a value is more than one by more than rounding."""
    return abs(most) <= 1 and abs(value) > 1.01


_PER_CENT = ("in per cent", 100.0)
_UNITS = (
    ("seconds", ("in milliseconds", 1000.0)),
    ("confidence", ("on a scale that is ten times as long", 10.0)),
)
"""What a number is most often told in instead, by what its field's name holds."""


def _flag(value: Any, context: dict[str, Any]) -> Mended | None:
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    word = "01"[int(value)] if isinstance(value, float) and value in (0.0, 1.0) else word
    if word in _YES | _NO:
        return Mended(word in _YES, "a flag is true or false")
    return None


def _number(value: Any, context: dict[str, Any]) -> Mended | None:
    text = value.strip() if isinstance(value, str) else ""
    if len(text) > 64 or not _NUMBER.fullmatch(text) or not isfinite(float(text)):
        return None
    return Mended(float(text), "a number is no text")


def _whole(value: Any, context: dict[str, Any]) -> Mended | None:
    number = _number(value, context)
    return number if number is not None and number.value.is_integer() else None


def _text(value: Any, context: dict[str, Any]) -> Mended | None:
    if value is False:
        return Mended(None, "false: there is none")
    if value is True:
        return Mended("true", "a text is no flag")
    if isinstance(value, int | float):
        return Mended(str(value), "a text is no number")
    if isinstance(value, dict | list):
        # The library's own: it writes whole numbers of any length.
        written = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        return Mended(written, "written as JSON")
    return None


def _cut(value: Any, context: dict[str, Any]) -> Mended | None:
    most = context["max_length"]
    unit = "characters" if isinstance(value, str) else "elements"
    if isinstance(value, dict):
        return Mended(dict(list(value.items())[:most]), f"cut from {len(value)} to {most} keys")
    return Mended(value[:most], f"cut from {len(value)} to {most} {unit}")


def _member(value: Any, context: dict[str, Any]) -> Mended | None:
    """A word of a closed set, however it is written."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    word = re.sub(r"[\s_-]+", "_", value.strip().lower())
    word = _SAME.get(word, word)
    members = _EXPECTED.findall(str(context.get("expected", "")))
    meant = next((m for m in members if re.sub(r"[\s_-]+", "_", m.lower()) == word), None)
    return None if meant is None else Mended(meant, "read as a member of the list")


def _tag(value: Any, context: dict[str, Any]) -> Mended | None:
    """An object whose kind is a word of a closed set."""
    name = str(context.get("discriminator", "")).strip("'")
    expected = {"expected": context.get("expected_tags")}
    meant = _member(value.get(name), expected) if isinstance(value, dict) else None
    return None if meant is None else Mended({**value, name: meant.value}, f"{name}: {meant.why}")


def _alone(value: Any, context: dict[str, Any]) -> Mended | None:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return Mended([value], "one where a list belongs")
    return None


def _in_utc(value: Any, context: dict[str, Any]) -> Mended | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return Mended(moment.replace(tzinfo=UTC).isoformat(), "without an offset: read as UTC")
    except (ValueError, AttributeError):
        return None


_MENDERS: dict[str, Callable[[Any, dict[str, Any]], Mended | None]] = {
    "bool_type": _flag,
    "bool_parsing": _flag,
    "float_type": _number,
    "float_parsing": _number,
    "value_error": _whole,
    "string_type": _text,
    "string_too_long": _cut,
    "too_long": _cut,
    "notional": _number,
    "tuple_type": _alone,
    "enum": _member,
    "literal_error": _member,
    "union_tag_invalid": _tag,
    "timezone_aware": _in_utc,
}
"""By the type of pydantic's error. `value_error` is that of a whole number, among others."""
