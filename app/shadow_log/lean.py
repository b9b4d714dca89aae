"""How a decision is stored: what many decisions share once, under its hash; what a column says
only there; and nothing that reading puts there again, nulls and what is empty.

`lean` takes a decision's JSON apart, `whole` puts it together again, to the same canonical bytes:
what is hashed and linked is the whole, so that both forms prove the same. Rows of earlier releases
hold everything, and are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, lru_cache
from typing import Any, NamedTuple

from pydantic_core import to_jsonable_python
from sqlalchemy import ARRAY, Text, any_, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord
from app.domain.fields import Record
from app.domain.record.control import AgentAction
from app.domain.record.decision import Advice, Decision
from app.domain.scenario import Scenario
from app.shadow_log.schema import tables

Json = dict[str, Any]
HEAD, USER = "prompt_head", "prompt_user"
"""Hash of the part of the prompt that is the same for every scenario, and the rest of it."""
IN_COLUMNS = (
    "decision_id",
    "request_id",
    "received_at",
    "evaluated_at",
    "traceparent",
    "state",
    "prompt_hash",
    "limits_hash",
    "principal",
)
"""Fields of a decision that are columns as they are."""
ADVICE_IN_COLUMNS = tuple(name for name in Advice.model_fields if name in tables.advices.c)
_ELSEWHERE = {*IN_COLUMNS, "scenario", "advices", "limits", "prompt"}
_SECTIONS: dict[str, type[Record]] = {
    name: field.annotation
    for name, field in Scenario.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Record)
}


class Lean(NamedTuple):
    """A decision's JSON as it is stored: of the decision, of each advice, and the parts that it
    shares with others, by hash."""

    scenario: Json
    record: Json
    advices: list[Json]
    shared: Json


def lean(
    document: Mapping[str, Any], limits_hash: str | None = None, *, empty_too: bool = True
) -> Lean:
    """Take a decision apart. One whose limits are not those of its hash stays whole.

    Parameters
    ----------
    limits_hash : what they hash to, where that is known.
    empty_too : without, as releases of before did it: they left standing what is empty, and all
        of a control.
    """
    scenario, limits = document["scenario"], document["limits"]
    if (limits_hash or content_hash(limits)) != document["limits_hash"]:
        rest = {name: document[name] for name in document if name not in ("scenario", "advices")}
        return Lean(scenario, rest, document["advices"], {})
    _, head, user = document["prompt"]
    record = {name: value for name, value in document.items() if name not in _ELSEWHERE}
    if empty_too:
        if record.get("control"):
            record["control"] = without_defaults(AgentAction, record["control"])
        record = without_defaults(Decision, record)
    record |= {HEAD: _text_hash(head), USER: user}
    shared = {document["limits_hash"]: limits, record[HEAD]: head}
    advices = []
    for advice in document["advices"]:
        calibration = advice["calibration"]
        name = content_hash(calibration)
        shared[name] = calibration
        kept = {key: value for key, value in advice.items() if key not in ADVICE_IN_COLUMNS}
        advices.append(without_defaults(Advice, kept, empty_too) | {"calibration": name})
    sections = {
        name: without_defaults(_SECTIONS[name], value, empty_too)
        if name in _SECTIONS and value
        else value
        for name, value in scenario.items()
    }
    return Lean(without_defaults(Scenario, sections, empty_too), record, advices, shared)


def whole_record(row: Mapping[str, Any], shared: Mapping[str, Any]) -> Json:
    """The record of a row of `decisions` without scenario and advices. Raises `InvalidRecord`."""
    if not isinstance(row["record"], dict):
        raise InvalidRecord("the record is no JSON object")
    record = dict(row["record"])
    if HEAD not in record:
        return record
    head, user = _part(shared, record.pop(HEAD)), record.pop(USER, None)
    columns = {name: row[name] for name in IN_COLUMNS}
    limits = _part(shared, row["limits_hash"])
    return {**columns, "limits": limits, "prompt": [row["prompt_version"], head, user], **record}


def whole_advice(row: Mapping[str, Any], shared: Mapping[str, Any]) -> Json:
    """The advice of a row of `advices`. Raises `InvalidRecord`."""
    record: Json = row["record"]
    name = _named(row, "calibration")
    if name is None:
        return record
    columns = {column: row[column] for column in ADVICE_IN_COLUMNS}
    return {**columns, **record, "calibration": _part(shared, name)}


async def parts(
    connection: AsyncConnection, decisions: Iterable[Json], advices: Iterable[Json]
) -> Json:
    """What rows of `decisions` and `advices` share, by hash."""
    wanted: set[str] = set()
    for row in decisions:
        if (head := _named(row, HEAD)) is not None:
            wanted |= {head, row["limits_hash"]}
    for row in advices:
        if (calibration := _named(row, "calibration")) is not None:
            wanted.add(calibration)
    if not wanted:
        return {}
    kept = tables.shared_parts.c
    query = select(kept.hash, kept.content).where(
        kept.hash == any_(literal(sorted(wanted), ARRAY(Text)))
    )
    return {row.hash: row.content for row in await connection.execute(query)}


def without_defaults(
    shape: type[Record], document: Mapping[str, Any], empty_too: bool = True
) -> Json:
    """A document without the nulls, and the empty lists and objects, that reading it puts there
    again."""
    put = _put_back(shape) if empty_too else _nulls(shape)
    return {
        name: value for name, value in document.items() if name not in put or value != put[name]
    }


def with_defaults(shape: type[Record], document: Mapping[str, Any]) -> Json:
    """A document with what `without_defaults` took, but for fields that are only written when they
    say something."""
    return {**deepcopy(_always_written(shape)), **document}


@cache
def _put_back(shape: type[Record]) -> Json:
    """What reading makes of fields that a document does not name, where that is nothing."""
    put: Json = {}
    for name, field in shape.model_fields.items():
        if field.default_factory in (dict, list, tuple) or field.default in (None, ()):
            put[name] = to_jsonable_python(field.get_default(call_default_factory=True))
    return put


@cache
def _nulls(shape: type[Record]) -> Json:
    return {name: value for name, value in _put_back(shape).items() if value is None}


@cache
def _always_written(shape: type[Record]) -> Json:
    fields = shape.model_fields
    return {name: value for name, value in _put_back(shape).items() if not fields[name].exclude_if}


@lru_cache(maxsize=64)
def _text_hash(text: str) -> str:
    return content_hash(text)


def _named(row: Mapping[str, Any], part: str) -> str | None:
    """The hash under which a row's record names a part, whatever somebody has made of it."""
    record = row["record"]
    name = record.get(part) if isinstance(record, dict) else None
    return name if isinstance(name, str) else None


def _part(shared: Mapping[str, Any], name: Any) -> Any:
    try:
        return shared[name]
    except (KeyError, TypeError):
        raise InvalidRecord(f"what it shares with others is missing: {name}") from None
