"""What every stored record shares: frozen, strict about numbers, unknown keys refused, text
cleaned."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
)
from pydantic_core import ErrorDetails

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord

MAX_EXACT_INTEGER = 2**53
MAX_INTEGER = 2**63 - 1
MOST_NAMED = 16
"""Violations up to which a refusal looks for the names that were meant."""
FIRST, LAST = (edge.replace(tzinfo=UTC) for edge in (datetime.min, datetime.max))
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Record(BaseModel):
    """Base of every domain record: immutable, no NaN or infinity, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null"
    )

    def as_json(self) -> dict[str, Any]:
        """JSON-like dictionary: times as RFC 3339, enums as values."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """Content hash of the whole record."""
        return content_hash(self.as_json())

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a record back. Raises `InvalidRecord`, which names every field at fault."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InvalidRecord(f"{cls.__name__}: {describe(error.errors(), cls)}") from error


def absent(value: Any) -> bool:
    """For fields that came later: a record without one is written as it was before."""
    return value is None or value == ()


def empty(value: Any) -> bool:
    """As `absent`, for collections."""
    return not value


def describe(errors: list[ErrorDetails], shape: type[BaseModel] | None = None) -> str:
    """One line for all violations: `candidate.rsi: Input should be less than or equal to 100 (got
    140)`. With the shape, a key that it does not have comes with the nearest that it has; not where
    so much is wrong that looking for names would cost something."""
    keys = [] if shape is None or len(errors) > MOST_NAMED else sorted(set(_paths(shape)))
    return "; ".join(
        f"{location(e['loc'])}: {e['msg']}"
        + (nearest(location(e["loc"]), keys) if e["type"] == "extra_forbidden" else "")
        for e in causes(errors)
    )


def causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Violations without those that only follow from another: a default that is made of a field
    which was refused. A text that is too long has characters, not items."""
    return [_in_words(e) for e in errors if e.get("type") != "default_factory_not_called"]


def _in_words(error: ErrorDetails) -> ErrorDetails:
    most = error.get("ctx", {}).get("max_length")
    if error["type"] != "too_long" or not isinstance(error["input"], str):
        return error
    return {**error, "msg": f"String should have at most {most} characters"}


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing when none of the names is like this one."""
    like = get_close_matches(name[:100], names, n=1)
    return f"; did you mean {like[0]}?" if like else ""


def _paths(shape: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every key of a shape and of the shapes in it, as `exposure.max_notional`."""
    for name, field in shape.model_fields.items():
        yield before + name
        for inner in _shapes(field.annotation):
            yield from _paths(inner, f"{before}{name}.")


def _shapes(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, also inside `... | None` and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _shapes(argument)


def location(loc: tuple[int | str, ...]) -> str:
    """`candidate.positions[0].stop` for pydantic's location tuple."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path or "(whole document)"


class _Short(reprlib.Repr):
    """The beginning of a value: what a refusal shows does not cost more than what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxstring = 3, 8, 100
        self.maxlong, self.maxother = 60, 100

    def repr_dict(self, value: dict[str, Any], level: int) -> str:
        """Unsorted, and no further than it is shown."""
        if level <= 0:
            return "{...}"
        pairs = (
            f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}"
            for key, item in islice(value.items(), 8)
        )
        return "{" + ", ".join(pairs) + ("" if len(value) <= 8 else ", ...") + "}"


_SHORT = _Short()


def shown(value: Any) -> str:
    """The beginning of a value."""
    return clean_text(_SHORT.repr(value)[:120])


def utc(value: datetime) -> datetime:
    """The same instant, in UTC. Raises ValueError when UTC has no such year."""
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("in UTC it is outside the years 1 to 9999") from error


def clean_text(text: str) -> str:
    """Drop control characters and lone surrogates, which Postgres cannot store and no reader
    needs."""
    return _CONTROL.sub(" ", text)


def exact(value: Any, depth: int = 0) -> Any:
    """Free-form JSON made storable without loss: integral floats become integers, text is cleaned.

    Raises ValueError for numbers that a double cannot hold exactly, and for nesting deeper than 6.
    """
    if depth > 6:
        raise ValueError("nested deeper than 6 levels")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("NaN and infinities are not JSON: send null")
        if abs(value) >= MAX_EXACT_INTEGER:
            raise ValueError(f"{repr(value)[:40]} is beyond 2^53: send it as a string")
        return int(value) if float(value).is_integer() else float(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): exact(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item, depth + 1) for item in value]
    raise ValueError(f"{type(value).__name__} is not JSON")


def keeping_unknown(shape: type[BaseModel], document: Any) -> Any:
    """A document whose keys that a shape does not know have moved to its `extra`."""
    if not isinstance(document, dict):
        return document
    unknown = document.keys() - shape.model_fields.keys()
    extra = document.get("extra") or {}
    if not unknown or not isinstance(extra, dict):
        return document
    kept = {key: item for key, item in document.items() if key not in unknown}
    kept["extra"] = {**extra, **{key: document[key] for key in sorted(unknown, key=str)}}
    return kept


def _number(value: Any) -> Any:
    """Pass what may be a whole number on. Raises ValueError for a flag or a text, which pydantic
    would convert, and for what JSON's writers have no integer for."""
    if isinstance(value, bool | str):
        raise ValueError("Input should be a whole number, not a flag or a text")
    if isinstance(value, int | float) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("Input should be a whole number of 64 bits")
    return value


Number = Annotated[float, Strict()]
"""A JSON number; `true` and `"56"` are none."""
Whole = Annotated[int, BeforeValidator(_number)]
"""A whole JSON number of 64 bits: 34, or 34.0 as senders write it whose languages have one kind of
number."""
Flag = Annotated[bool, Strict()]
"""`true` or `false`; 1 and `"yes"` are none."""
Instant = Annotated[AwareDatetime, AfterValidator(utc)]
Text = Annotated[str, AfterValidator(clean_text), Field(max_length=2000)]
ShortText = Annotated[str, AfterValidator(clean_text), Field(max_length=200)]
Hash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def measure(
    unit: str,
    what: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    null: str | None = None,
    default: Any = ...,
) -> Any:
    """A documented field: `unit`, range, and what null means. Null is allowed only where `null`
    says what it means."""
    extra: dict[str, Any] = {"unit": unit} | ({"null": null} if null else {})
    if null is not None and default is ...:
        default = None
    return Field(default, ge=ge, le=le, gt=gt, description=what, json_schema_extra=extra)


Extra = Annotated[dict[str, Any], AfterValidator(exact), Field(max_length=64)]


def moved(moment: datetime, by: timedelta) -> datetime:
    """A moment in UTC so much later; no further than the calendar goes."""
    return moment + min(max(by, FIRST - moment), LAST - moment)
