"""What became of every field that was sent: refusals and dry runs tell it in the same words."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from app.domain.fields import Record, causes, location, shown
from app.domain.intake.reception import COERCED, LEFT_OUT
from app.domain.scenario import Account
from app.schemas import AdviseRequest, FieldReport, Reread, Verdict, reread

MAX_REPORTS = 500
_EXTRA = "extra"
_VERDICTS = {
    "missing": Verdict.MISSING,
    LEFT_OUT: Verdict.LEFT_OUT,
    COERCED: Verdict.COERCED,
}
"""By types of faults; of others, that they refuse."""


def refused_fields(error: ValidationError | RequestValidationError) -> list[FieldReport]:
    """A report on each field that is at fault, the first fifty; what alone would be left out, or
    read in another way, is told as that."""
    if isinstance(error, ValidationError):
        found: list[Any] = error.errors(include_url=False, include_context=False)
    else:
        found = list(error.errors())
    return [
        FieldReport(
            field=_field(fault["loc"]),
            verdict=_VERDICTS.get(fault.get("type", ""), Verdict.REFUSED),
            sent=shown(fault.get("input")),
            why=fault["msg"],
        )
        for fault in causes(found)[:50]
    ]


def unusual_fields(body: AdviseRequest) -> list[FieldReport]:
    """A report on each field of a request that was left out, or read in another way than it was
    written."""
    gone = [
        FieldReport(field=g.field, verdict=Verdict.LEFT_OUT, sent=g.value, why=g.why)
        for g in body.left_out
    ]
    read = [
        FieldReport(field=c.field, verdict=Verdict.COERCED, sent=c.value, taken=c.taken, why=c.why)
        for c in map(Reread.model_validate, reread(body.coerced))
    ]
    return [*gone, *read]


def derived_fields(account: Account) -> list[FieldReport]:
    """A report on each field of an account that the agent's own reports tell."""
    if account.derived is None:
        return []
    told = account.as_json()
    return [
        FieldReport(
            field=f"account.{name}",
            verdict=Verdict.DERIVED,
            taken=shown(told[name]),
            why=f"from what this agent reported, the newest {account.derived.age_s:.0f} s ago",
        )
        for name in (*account.derived.fields, "derived")
        if name in told  # whoever sends `derived` may name anything
    ]


def field_reports(sent: Any, unusual: Sequence[FieldReport]) -> list[FieldReport]:
    """A report on each field of a request for advice: of those that were sent what was taken of
    them, of the others what it means that they are not known.

    Parameters
    ----------
    sent : the document as it came.
    unusual : why it is refused as a whole, or what was not taken as it was written or not sent.
    """
    named = {report.field for report in unusual}
    told = _told(AdviseRequest, sent, "") if isinstance(sent, dict) else iter(())
    sound = (report for report in told if not _is_told(report.field, named))
    return [*unusual, *islice(sound, MAX_REPORTS)]


def _is_told(field: str, refused: set[str]) -> bool:
    """Whether a fault lies in a field, or the field in one."""
    return any(
        field == other
        or other.startswith((f"{field}.", f"{field}["))
        or field.startswith(f"{other}.")
        for other in refused
    )


def _told(record: type[Record], sent: Mapping[str, Any], path: str) -> Iterator[FieldReport]:
    for name, field in record.model_fields.items():
        place = f"{path}{name}"
        value, inner = sent.get(name), _record_of(field.annotation)
        if name == _EXTRA:
            yield from _unrecognised(record, sent, path)
        elif inner is not None and (isinstance(value, dict) or _is_section(field)):
            yield from _told(inner, value if isinstance(value, dict) else {}, f"{place}.")
        elif value is None:
            null = _null(field)
            if null is not None:
                yield FieldReport(field=place, verdict=Verdict.MISSING, why=null)
        else:
            yield _taken(record, name, place, value)


def _unrecognised(
    record: type[Record], sent: Mapping[str, Any], path: str
) -> Iterator[FieldReport]:
    """What no field is for; it is kept."""
    further = sent.get(_EXTRA)
    kept = dict(further) if isinstance(further, dict) else {}
    for key, value in {
        **kept,
        **{key: sent[key] for key in sent.keys() - record.model_fields.keys()},
    }.items():
        yield FieldReport(
            field=f"{path}{key}"[:200],
            verdict=Verdict.UNRECOGNISED,
            sent=shown(value),
            why="no field of this name: kept under `extra`, read by nobody",
        )


def _taken(record: type[Record], name: str, place: str, value: Any) -> FieldReport:
    """A field that was sent; of one that is refused, nothing is taken."""
    adapter = _adapter(record, name)
    try:
        taken = adapter.dump_python(adapter.validate_python(value), mode="json")
    except ValidationError as error:
        why = error.errors(include_url=False, include_context=False)[0]["msg"]
        return FieldReport(field=place, verdict=Verdict.REFUSED, sent=shown(value), why=why)
    if _same(value, taken):
        return FieldReport(field=place, verdict=Verdict.ACCEPTED, sent=shown(value))
    return FieldReport(field=place, verdict=Verdict.COERCED, sent=shown(value), taken=shown(taken))


@cache
def _adapter(record: type[Record], name: str) -> TypeAdapter[Any]:
    field = record.model_fields[name]
    annotated: Any = field.annotation
    for constraint in field.metadata:
        annotated = Annotated[annotated, constraint]
    return TypeAdapter(annotated)


def _same(sent: Any, taken: Any) -> bool:
    """Whether a value was taken as it was sent: 34 as 34.0, a time in another notation."""
    if isinstance(taken, dict) and isinstance(sent, dict):
        unsent = taken.keys() - sent.keys()
        return all(_same(item, taken.get(key)) for key, item in sent.items()) and all(
            taken[key] is None for key in unsent
        )
    if isinstance(taken, list) and isinstance(sent, list):
        return len(sent) == len(taken) and all(map(_same, sent, taken))
    if isinstance(taken, str) and isinstance(sent, str):
        return sent == taken or (_instant(sent) is not None and _instant(sent) == _instant(taken))
    return bool(sent == taken and isinstance(sent, bool) == isinstance(taken, bool))


def _instant(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _record_of(annotation: Any) -> type[Record] | None:
    """The record that a field holds, or may hold; None when it holds something else."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [_record_of(member) for member in typing.get_args(annotation)]
        return next((member for member in members if member is not None), None)
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return None


def _is_section(field: FieldInfo) -> bool:
    """Whether a record is always there: each of its fields is missing by itself."""
    return field.is_required() or isinstance(field.default, Record)


def _null(field: FieldInfo) -> str | None:
    """What it means that a field is not known; None of fields that need not be told."""
    extra = field.json_schema_extra
    null = extra.get("null") if isinstance(extra, dict) else None
    return None if null is None else str(null)


def _field(loc: tuple[int | str, ...]) -> str:
    """The field's path as the sender wrote it, without the tag of the union."""
    return location(tuple(part for part in loc if part not in ("one", "many")))
