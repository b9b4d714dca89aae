"""How a decision is stored: what many decisions share once, under its hash; what a column says
only there; and nothing that reading puts there again, nulls and what is empty.

`lean` takes a decision's JSON apart, `whole` puts it together again, to the same canonical bytes:
what is hashed and linked is the whole, so that both forms prove the same. Rows of earlier releases
hold everything, and are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from datetime import datetime
from enum import IntEnum
from functools import cache, lru_cache
from typing import Any, NamedTuple

from pydantic_core import to_jsonable_python
from sqlalchemy import (
    ARRAY,
    Boolean,
    DateTime,
    Double,
    Integer,
    Table,
    Text,
    any_,
    literal,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from app.domain.canonical import content_hash
from app.domain.errors import InvalidRecord
from app.domain.fields import Record
from app.domain.record.control import AgentAction
from app.domain.record.decision import Advice, Decision
from app.domain.record.outcome import Outcome
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
MARK = "direction"
"""A column that is null where a scenario stands whole in JSON: every candidate has one."""
RECORD_COLUMNS = (HEAD, USER, "request_hash", "schema_version")
"""What of the record is in columns, that are null where its JSON says it."""
_PROPOSED = ("label", "probabilities", "label_mass")
"""Columns that make a proposal."""
REPORTED: dict[str, type[Record]] = {"agent_actions": AgentAction, "outcomes": Outcome}
"""What the tables of reports hold that columns do not say all of."""
ADVICE_IN_COLUMNS = tuple(name for name in Advice.model_fields if name in tables.advices.c)
LATER = {name: {column.name for column in new} for name, new in tables.REPORTED_LATER.items()}
_SAID = {name: {*tables.metadata.tables[name].c.keys()} for name in REPORTED}
_REVIEWED: Json = {"vetoes": [], "caps": []}
"""What most reviews say."""
_ELSEWHERE = {*IN_COLUMNS, "scenario", "advices", "limits", "prompt"}
_SECTIONS: dict[str, type[Record]] = {
    name: field.annotation
    for name, field in Scenario.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Record)
}


class _Place(NamedTuple):
    """The column of a value of a scenario, and the type that it has in JSON."""

    column: str
    kind: type
    made: Callable[[Any], Any] | None = None
    """What is put there, where that is not what JSON says; None where it has no room."""


class _Object(NamedTuple):
    """Places of an object's values: it is stored there as a whole, or not at all."""

    places: dict[str, _Place]

    def put(self, value: Any, columns: Json) -> bool:
        """Put all that it says into columns; False where that would not be all, or is nothing."""
        told: Json = {}
        if type(value) is not dict:
            return False
        if _put(value, self.places, told) or not told:
            return False
        columns |= told
        return True


def _whole_number(value: int) -> int | None:
    return value if abs(value) < 2**31 else None


def _numbers(value: list[Any]) -> list[float] | None:
    return value if {type(item) for item in value} == {float} else None


def _sections() -> dict[str, dict[str, _Place | _Object]]:
    """What columns say of a scenario: by its section, and by the name there."""
    made: dict[type[TypeEngine[Any]], tuple[type, Callable[[Any], Any] | None]] = {
        Double: (float, None),
        DateTime: (str, datetime.fromisoformat),
        Integer: (int, _whole_number),
        Boolean: (bool, None),
        ARRAY: (list, _numbers),
        Text: (str, None),
    }
    sections: dict[str, dict[str, _Place | _Object]] = {"candidate": dict(_EARLIER)}
    for of, paths in tables.SCENARIO.items():
        for path in paths.split():
            section, name, *inner = path.split(".")
            place = _Place(tables.column_of(path), *made[type(of)])
            fields = sections.setdefault(section, {})
            if inner:
                within = fields.setdefault(name, _Object({}))
                assert isinstance(within, _Object)
                within.places[inner[0]] = place
            else:
                fields[name] = place
    return sections


_EARLIER = {
    "ts": _Place("as_of", str, datetime.fromisoformat),
    "score": _Place("score", float),
    **{name: _Place(name, str) for name in ("symbol", "session", "setup_type", "tier")},
}
"""What columns said before the others came."""
_SECTIONED = _sections()
_NO_COLUMNS: Json = dict.fromkeys(
    [
        *(tables.column_of(path) for paths in tables.SCENARIO.values() for path in paths.split()),
        *RECORD_COLUMNS,
    ]
)


class Lean(NamedTuple):
    """A decision as it is stored: columns that say what JSON said once, JSON of the decision and of
    each advice, what columns say of each advice's calibration, and the parts that it shares with
    others, by hash."""

    columns: Json
    scenario: Json
    record: Json
    advices: list[Json]
    calibrations: list[str | None]
    shared: Json


class Form(IntEnum):
    """How much is left standing of a row's JSON: each form leaves less than the one before."""

    FULL = 0
    """What many decisions share is gone, and nulls."""
    EMPTIED = 1
    """So is what is empty, also of a control."""
    SAID = 2
    """So is what the model said, and what reviews let pass: columns say it."""
    SCENARIO = 3
    """So are the values of the scenario."""
    LEAN = 4
    """So is the prompt, and hashes: as it is written now."""


def lean(
    document: Mapping[str, Any], limits_hash: str | None = None, *, form: Form = Form.LEAN
) -> Lean:
    """Take a decision apart. One whose limits are not those of its hash stays whole.

    Parameters
    ----------
    limits_hash : what they hash to, where that is known.
    """
    empty_too = form > Form.FULL
    scenario, limits = document["scenario"], document["limits"]
    if (limits_hash or content_hash(limits)) != document["limits_hash"]:
        rest = {name: document[name] for name in document if name not in ("scenario", "advices")}
        advices = document["advices"]
        return Lean(dict(_NO_COLUMNS), scenario, rest, advices, [None] * len(advices), {})
    _, head, user = document["prompt"]
    record = {name: value for name, value in document.items() if name not in _ELSEWHERE}
    if empty_too:
        if record.get("control"):
            record["control"] = without_defaults(AgentAction, record["control"])
        record = without_defaults(Decision, record)
    if form >= Form.SAID:
        review = record["control_review"]
        record["control_review"] = _without(review, _reviewed(scenario["plan"]))
    record |= {HEAD: _text_hash(head), USER: user}
    shared = {document["limits_hash"]: limits, record[HEAD]: head}
    columns = dict(_NO_COLUMNS)
    if form is Form.LEAN:
        columns |= {name: record.pop(name) for name in RECORD_COLUMNS}
        if not record["control_review"]:
            del record["control_review"]
    advices, calibrations = [], []
    for advice in document["advices"]:
        name = content_hash(advice["calibration"])
        shared[name] = advice["calibration"]
        kept = _lean_advice(advice, form)
        advices.append(kept if form is Form.LEAN else kept | {"calibration": name})
        calibrations.append(name if form is Form.LEAN else None)
    return Lean(
        columns, _lean_scenario(scenario, columns, form), record, advices, calibrations, shared
    )


def _lean_advice(advice: Mapping[str, Any], form: Form) -> Json:
    """What of an advice JSON says, but for its calibration."""
    kept = {key: value for key, value in advice.items() if key not in ADVICE_IN_COLUMNS}
    if form >= Form.SAID:
        kept = _said_in_json(advice, kept)
    kept = without_defaults(Advice, kept, form > Form.FULL)
    if form is Form.LEAN:
        if not kept.get("reading", True):
            del kept["reading"]
        if not kept.setdefault("review", None) and advice["review"]:
            del kept["review"]
    return kept


def _lean_scenario(scenario: Json, columns: Json, form: Form) -> Json:
    """What of a scenario JSON says; the rest is put into columns."""
    empty_too = form > Form.FULL
    if form >= Form.SCENARIO:
        scenario = _into_columns(scenario, columns)
    sections = {
        name: without_defaults(_SECTIONS[name], value, empty_too)
        if name in _SECTIONS and value
        else value
        for name, value in scenario.items()
    }
    left = without_defaults(Scenario, sections, empty_too)
    if form >= Form.SCENARIO:
        left = {name: value for name, value in left.items() if value != {}}
    return left


def forms_of(row: Mapping[str, Any]) -> list[Form]:
    """In which forms a row of `decisions` may be, the newest last."""
    if row[HEAD] is not None:
        return [Form.LEAN]
    return [Form.SCENARIO] if row[MARK] is not None else [Form.FULL, Form.EMPTIED, Form.SAID]


def is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a row of `decisions` shares nothing with others."""
    return row[HEAD] is None and HEAD not in row["record"]


def whole_scenario(row: Mapping[str, Any]) -> Any:
    """The scenario of a row of `decisions`. Raises `InvalidRecord`."""
    left = row["scenario"]
    if row[MARK] is None or not isinstance(left, dict):
        return left
    whole = {name: value for name, value in left.items() if name not in _SECTIONED}
    for section, fields in _SECTIONED.items():
        told = _out_of_columns(row, fields)
        rest = left.get(section, {})
        if not isinstance(rest, dict):
            raise InvalidRecord(f"the scenario's {section} is no JSON object")
        whole[section] = told | rest
    return whole


def whole_record(row: Mapping[str, Any], shared: Mapping[str, Any]) -> Json:
    """The record of a row of `decisions` without scenario and advices. Raises `InvalidRecord`."""
    if not isinstance(row["record"], dict):
        raise InvalidRecord("the record is no JSON object")
    record = dict(row["record"])
    if is_whole(row):
        return record
    if row[HEAD] is not None:
        record = {name: row[name] for name in RECORD_COLUMNS} | {"control_review": {}} | record
    head, user = _part(shared, record.pop(HEAD)), record.pop(USER, None)
    columns = {name: row[name] for name in IN_COLUMNS}
    limits = _part(shared, row["limits_hash"])
    record["control_review"] = _whole_review(record.get("control_review"), _plan_of(row))
    return {**columns, "limits": limits, "prompt": [row["prompt_version"], head, user], **record}


def whole_advice(row: Mapping[str, Any], shared: Mapping[str, Any]) -> Json:
    """The advice of a row of `advices`. Raises `InvalidRecord`."""
    record: Json = row["record"]
    name = _named(row, "calibration")
    if name is None:
        return record
    if not isinstance(record, dict):
        raise InvalidRecord("the advice is no JSON object")
    if row["calibration"] is not None:
        reading: Json = {} if row["log_probabilities"] is None else {"reading": {}}
        record = {"review": {}, **reading, **record}
    columns = {column: row[column] for column in ADVICE_IN_COLUMNS}
    whole = {**columns, **record, "calibration": _part(shared, name)}
    if row["log_probabilities"] is not None and isinstance(whole.get("reading"), dict):
        whole["reading"] = {"log_probabilities": row["log_probabilities"], **whole["reading"]}
    if row["probabilities"] is not None and "proposal" not in whole:
        whole["proposal"] = {name: row[name] for name in _PROPOSED}
    if "review" in whole:
        whole["review"] = _whole_review(whole["review"], _ordered(row))
    return whole


def lean_report(table: Table, document: Mapping[str, Any], later: bool = True) -> Json:
    """What of a report no column of its table says, nor its defaults; `later` are columns that rows
    of before migration 0027 do not have."""
    said = _SAID[table.name] if later else _SAID[table.name] - LATER[table.name]
    rest = {name: value for name, value in document.items() if name not in said}
    return without_defaults(REPORTED[table.name], rest)


def of_before(table: Table, row: Mapping[str, Any]) -> bool:
    """Whether a row of reports says nothing in the columns that came with migration 0027."""
    return all(row[name] is None for name in LATER[table.name])


def whole_report(table: Table, row: Mapping[str, Any]) -> Json:
    """What was reported, of its row; nulls are left out. Raises `InvalidRecord`."""
    if not isinstance(row["record"], dict):
        raise InvalidRecord("the record is no JSON object")
    named = (name for name in REPORTED[table.name].model_fields if name in table.c)
    columns = {name: row[name] for name in named if row[name] is not None}
    return {**to_jsonable_python(columns), **row["record"]}


def forms_of_report(table: Table, document: Mapping[str, Any]) -> list[Json]:
    """How the JSON of a report's row may stand there: as it is written, and as releases of before
    did, the newest first."""
    shape = REPORTED[table.name]
    earlier = [without_defaults(shape, document, empty_too) for empty_too in (True, False)]
    said = (lean_report(table, document, later) for later in (True, False))
    return [*said, *earlier, dict(document)]


def _into_columns(scenario: Json, columns: Json) -> Json:
    """Put the values that have columns there; what is left."""
    left = {name: value for name, value in scenario.items() if name not in _SECTIONED}
    for section, fields in _SECTIONED.items():
        if rest := _put(scenario.get(section, {}), fields, columns):
            left[section] = rest
    return left


def _put(values: Json, fields: Mapping[str, _Place | _Object], columns: Json) -> Json:
    """What of a section's values has no column. A null of one that has is nothing to be kept."""
    rest = {}
    for name, value in values.items():
        place = fields.get(name)
        if value is None and place is not None:
            continue
        if type(place) is _Place and type(value) is place.kind:
            if place.made is None:
                columns[place.column] = value
            elif (made := place.made(value)) is not None:
                columns[place.column] = made
            else:
                rest[name] = value
        elif type(place) is not _Object or not place.put(value, columns):
            rest[name] = value
    return rest


def _out_of_columns(row: Mapping[str, Any], fields: Mapping[str, _Place | _Object]) -> Json:
    told = {}
    for name, place in fields.items():
        if isinstance(place, _Place):
            value = row[place.column]
        else:
            value = _out_of_columns(row, place.places) or None
        if value is not None:
            told[name] = value
    return told


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


def _said_in_json(advice: Mapping[str, Any], kept: Json) -> Json:
    """What an advice's row still says in JSON of reading, proposal and review: not what its columns
    say. The mass of a model elsewhere is its own, and stays beside that of its proposal."""
    reading, proposal, review = (advice.get(name) for name in ("reading", "proposal", "review"))
    if reading:
        rest = {name: value for name, value in reading.items() if name != "log_probabilities"}
        kept = {**kept, "reading": rest}
    if proposal and reading and not reading.get("exchange"):
        kept = {name: value for name, value in kept.items() if name != "proposal"}
    if review:
        kept = {**kept, "review": _without(review, _ordered(advice))}
    return kept


def _ordered(advice: Mapping[str, Any]) -> Json:
    """What a review says of the order that an advice approves."""
    return _reviewed(advice) if advice["approve"] else _REVIEWED


def _reviewed(order: Mapping[str, Any]) -> Json:
    return {**_REVIEWED, "quantity": order["quantity"], "stop": order["stop"]}


def _plan_of(row: Mapping[str, Any]) -> Json:
    """What a review says of the agent's order."""
    try:
        return _reviewed(whole_scenario(row)["plan"])
    except (AttributeError, KeyError, TypeError):
        raise InvalidRecord("the scenario holds no plan") from None


def _without(review: Mapping[str, Any], told: Mapping[str, Any]) -> Json:
    """A review without what is told elsewhere."""
    return {
        name: value for name, value in review.items() if name not in told or value != told[name]
    }


def _whole_review(review: Any, told: Mapping[str, Any]) -> Any:
    return {**told, **review} if isinstance(review, dict) else review


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
    """The hash under which a row names a part, whatever somebody has made of it."""
    if row[part] is not None:
        return str(row[part])
    record = row["record"]
    name = record.get(part) if isinstance(record, dict) else None
    return name if isinstance(name, str) else None


def _part(shared: Mapping[str, Any], name: Any) -> Any:
    try:
        return shared[name]
    except (KeyError, TypeError):
        raise InvalidRecord(f"what it shares with others is missing: {name}") from None
