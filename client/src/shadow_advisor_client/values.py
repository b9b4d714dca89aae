"""What an agent has at hand, as JSON: values of any library are understood, or named.

A value that cannot be sent is left out, alone, and its path is told: the service says whether it
could do without. Only what is nested too deeply, or in a circle, cannot be sent at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

MAX_DEPTH = 16
MAX_ARRAY = 1000
MAX_BITS = 1024
"""Of a whole number: more are no double, and Python does not write much longer ones."""
MAX_TEXT = 20_000
"""Characters: the service keeps far less of any text, and a message has an end."""
SENT_AS_THEY_ARE = frozenset({bool, type(None)})
_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, check_circular=False)
"""What it gets has no circle any more."""


class Encoded(NamedTuple):
    """A document as JSON, and of what was left out the path and why."""

    body: bytes
    left_out: dict[str, str]


class TooDeep(ValueError):
    """Nested deeper than a document may be, or in a circle."""


def encode(document: Mapping[str, Any]) -> Encoded:
    """JSON of a document. NaN, NaT and NA become null; times RFC 3339; scalars and small arrays of
    numpy, decimals, prices and quantities numbers; enums their values; dataclasses and pydantic
    models objects."""
    left_out: dict[str, str] = {}
    text = _JSON.encode(_mapping(document, "", 0, left_out))
    return Encoded(_in_bytes(text), left_out)


def _in_bytes(text: str) -> bytes:
    """Text as UTF-8. Half a character, as cut texts of other languages have, becomes U+FFFD; two
    halves are a whole one."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        halves = text.encode("utf-16-le", "surrogatepass")
        return halves.decode("utf-16-le", "replace").encode()


def _mapping(
    document: Mapping[Any, Any], path: str, depth: int, left_out: dict[str, str]
) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise TooDeep(f"nested deeper than {MAX_DEPTH} levels, or in a circle: {path[:80]}")
    plain: dict[str, Any] = {}
    for key, item in document.items():
        name = key if type(key) is str else _name(key)
        kind = type(item)  # Most are sent as they are: this keeps `submit` fast.
        if (
            (kind is str and len(item) <= MAX_TEXT)
            or kind in SENT_AS_THEY_ARE
            or (kind is float and math.isfinite(item))
            or (kind is int and item.bit_length() <= MAX_BITS)
        ):
            plain[name] = item
            continue
        place = f"{path}.{name}" if path else name
        try:
            encoded = _mapping if kind is dict else _plain
            plain[name] = encoded(item, place, depth + 1, left_out)
        except TooDeep:
            raise
        except Exception as error:
            left_out[place] = _why(error)
    return plain


def _name(key: Any) -> str:
    return str(key.value if isinstance(key, Enum) else key)


def _list(values: Any, path: str, depth: int, left_out: dict[str, str]) -> list[Any]:
    """The places of the others stay: what cannot be sent becomes null."""
    if depth > MAX_DEPTH:
        raise TooDeep(f"nested deeper than {MAX_DEPTH} levels, or in a circle: {path[:80]}")
    plain: list[Any] = []
    for number, item in enumerate(values):
        try:
            plain.append(_plain(item, f"{path}[{number}]", depth + 1, left_out))
        except TooDeep:
            raise
        except Exception as error:
            left_out[f"{path}[{number}]"] = _why(error)
            plain.append(None)
    return plain


def _plain(value: Any, path: str, depth: int, left_out: dict[str, str]) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value, path, depth, left_out)
    if isinstance(value, str) and len(value) > MAX_TEXT:
        left_out[path] = f"cut from {len(value)} to {MAX_TEXT} characters"
        return value[:MAX_TEXT]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ValueError(f"a whole number of more than {MAX_BITS} bits")
        return int(value)
    if isinstance(value, (float, Decimal)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _mapping(value, path, depth, left_out)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _list(value, path, depth, left_out)
    if isinstance(value, (datetime, date)):
        return value.isoformat() if value == value else None  # NaT is a datetime, but not itself.
    if isinstance(value, UUID):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        members = {member.name: getattr(value, member.name) for member in fields(value)}
        return _mapping(members, path, depth, left_out)
    return _of_a_library(value, path, depth, left_out)


def _of_a_library(value: Any, path: str, depth: int, left_out: dict[str, str]) -> Any:
    """What is known by its methods: none of these libraries is imported."""
    if type(value).__name__ == "NAType":  # pandas.NA
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind == "m":
        raise TypeError("a length of time needs a unit: send a number")
    if kind == "M":
        # `item()` would be a count of nanoseconds. These times have no zone; numpy's are UTC.
        text = str(value)
        if getattr(value, "ndim", 0):
            raise TypeError("an array of times: send a list of datetimes")
        if text == "NaT":
            return None
        return f"{text}Z" if "T" in text else text
    for name in ("as_double", "as_decimal", "model_dump", "tolist", "item"):
        method = getattr(value, name, None)
        if not callable(method) or isinstance(value, type):
            continue
        if name == "tolist" and math.prod(getattr(value, "shape", ())) > MAX_ARRAY:
            raise ValueError(f"an array of more than {MAX_ARRAY} values")
        if depth > MAX_DEPTH:
            raise TooDeep(f"nested deeper than {MAX_DEPTH} levels, or in a circle: {path[:80]}")
        return _plain(method(), path, depth + 1, left_out)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
