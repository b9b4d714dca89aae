"""Partial acceptance: what cannot be used of a document is left out and named, and only what a
decision cannot do without is refused.

A document is validated as often as it takes. After each time every fault is mended where it is
plain what was meant (`mending.py`), else its place is emptied: the field, or the element of a list;
where a part then lacks what it needs, the part. What stands in one place is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from app.domain.errors import InvalidRecord
from app.domain.fields import causes, clean_text, exact, location, shown
from app.domain.intake.mending import Mended, likely, mended
from app.domain.scenario import Fault, LeftOut

MAX_ROUNDS = 16
_LACKING = ("missing", "too_short")
LEFT_OUT, COERCED = "left_out", "coerced"
DONE_WITHOUT = (LEFT_OUT, COERCED)
"""Types of faults, in what is refused for others, that alone are no reason to refuse."""
MOST_INSIDE = 64
"""Faults that are mended in one part that is of use as a whole."""
MAX_FAULTS = 256
"""A document with more is refused: it is another kind of document."""
Path = tuple[int | str, ...]
Shape = TypeVar("Shape")


class Coerced(NamedTuple):
    """What was read in another way than it was written."""

    path: Path
    value: Any
    taken: Any
    why: str

    @property
    def field(self) -> str:
        return location(self.path)[:200]


class Doubt(NamedTuple):
    """A value that has another unit than its field, as it seems by the others; or, `is_none`, an
    element that says that there is nothing."""

    path: Path
    why: str
    is_none: bool = False


class Needs(NamedTuple):
    """What a decision cannot do without, and where elements count even when they say nothing.

    Parameters
    ----------
    fields : paths that are refused rather than left out.
    counted : lists whose elements are emptied rather than taken away.
    extras : objects whose unknown keys move to their `extra`.
    names : what identifies something: never read in another way than it was written.
    whole : lists and objects that are of no use without one of their elements.
    """

    fields: frozenset[Path]
    counted: frozenset[Path] = frozenset()
    extras: frozenset[Path] = frozenset()
    names: frozenset[Path] = frozenset()
    whole: frozenset[Path] = frozenset()

    def may_go(self, path: Path) -> bool:
        """Whether a place may be emptied."""
        return bool(path) and not any(field[: len(path)] == path for field in self.fields)


class Received(NamedTuple, Generic[Shape]):
    """What was made of a document."""

    record: Shape
    left_out: tuple[LeftOut, ...] = ()
    coerced: tuple[Coerced, ...] = ()


def no_doubts(record: Any) -> Sequence[Doubt]:
    """Nothing is held against anything."""
    return ()


def receive(
    adapter: TypeAdapter[Shape],
    sent: Any,
    needs: Needs,
    doubts: Callable[[Shape], Sequence[Doubt]] = no_doubts,
) -> Received[Shape]:
    """Read a document, parsed already. Raises `ValidationError` that names what is refused."""
    reading = _Reading(deepcopy(sent), needs)
    for _ in range(MAX_ROUNDS):
        try:
            record = adapter.validate_python(reading.document)
        except ValidationError as error:
            reading.mend(error)
            continue
        # What was made of something else that was sent, a quantity of a notional, is not doubted.
        doubted = [doubt for doubt in doubts(record) if reading.was_sent(doubt.path)]
        if not doubted:
            return Received(record, tuple(reading.left_out), tuple(reading.coerced))
        reading.doubt(doubted)
    raise InvalidRecord("too much of it cannot be used")


class _Reading:
    """A document while it is made usable."""

    def __init__(self, document: Any, needs: Needs) -> None:
        self.document = document
        self._needs = needs
        self._first: ValidationError | None = None
        self.left_out: list[LeftOut] = []
        self.coerced: list[Coerced] = []

    def mend(self, error: ValidationError) -> None:
        """Mend every fault, or empty its place. Raises the error when one may not go."""
        self._first = self._first or error
        placed: dict[Path, list[ErrorDetails]] = {}
        for fault in causes(error.errors(include_url=False)):
            placed.setdefault(self._place(fault), []).append(fault)
        if len(placed) > MAX_FAULTS:
            raise error
        holders = {path[:length] for path in placed for length in range(len(path))}
        # What a part lacks, or a list is short of, is seen again when what is in it was settled.
        now = {
            path: faults
            for path, faults in placed.items()
            if path not in holders or any(fault["type"] not in _LACKING for fault in faults)
        }
        done: set[Path] = set()
        # Elements are taken away from the end, so that those before keep their numbers.
        refused = [
            path
            for path, faults in sorted(now.items(), key=_from_the_end)
            if not self._settle(path, faults, done)
        ]
        if refused or len(self.left_out) > MAX_FAULTS:
            raise self._named(error, [fault for path in refused for fault in placed[path]])

    def _named(self, error: ValidationError, refused: Sequence[ErrorDetails]) -> ValidationError:
        """The error that names most: the first one, when it names what is refused. What alone would
        be no reason to refuse stands at its end, as `LEFT_OUT` or `COERCED`."""
        first = error if self._first is None else self._first
        named = {fault["loc"] for fault in first.errors(include_url=False)}
        most = first if all(fault["loc"] in named for fault in refused) else error
        why = [fault["loc"] for fault in refused]
        told = [(*self._fate(fault, why), fault) for fault in most.errors(include_url=False)]
        told.sort(key=lambda fate: fate[0] in DONE_WITHOUT)
        return ValidationError.from_exception_data(most.title, [_told(*fate) for fate in told])

    def _fate(self, fault: ErrorDetails, refused: Sequence[Path]) -> tuple[str, str]:
        """The type of a fault and why it is one; where its place was settled, and lies in none that
        is refused, what became of it."""
        if any(fault["loc"][: len(path)] == path for path in refused):
            return fault["type"], fault["msg"]
        place = location(fault["loc"])
        settled = [(LEFT_OUT, gone.field, gone.why) for gone in self.left_out]
        settled += [(COERCED, read.field, read.why) for read in self.coerced]
        for kind, field, why in settled:
            if place == field or place.startswith((f"{field}.", f"{field}[")):
                return kind, why
        return fault["type"], fault["msg"]

    def was_sent(self, path: Path) -> bool:
        """Whether the document has this place."""
        try:
            self._at(path)
        except (LookupError, TypeError):
            return False
        return True

    def doubt(self, doubts: Sequence[Doubt]) -> None:
        """Empty the places of doubtful values. Raises `ValidationError` when one may not go."""
        needed = [d for d in doubts if not self._needs.may_go(d.path)]
        if needed:
            refusals = [_refusal(d, self._at(d.path)) for d in needed]
            raise ValidationError.from_exception_data("document", refusals)
        for path, why, is_none in sorted(doubts, key=lambda doubt: _last_first(doubt.path)):
            if is_none:
                self.coerced.append(Coerced(path, self._at(path), None, why))
                del self._at(path[:-1])[path[-1]]
            else:
                self._empty(path, why, Fault.UNIT)

    def _settle(self, path: Path, faults: Sequence[ErrorDetails], done: set[Path]) -> bool:
        """Whether the faults in a place, one for each thing that it might have been, are no reason
        to refuse any more."""
        fault = faults[0]
        if any(path[:length] in done for length in range(len(path) + 1)):
            return True
        done.add(path)
        if path[-1:] == ("extra",) and fault["type"] == "value_error":
            return self._keep_exact(path)
        if fault["type"] == "extra_forbidden" and path[:-1] in self._needs.extras:
            return self._keep_beside(path)
        if path in self._needs.whole and self._mend_inside(faults):
            return True
        meant = self._meant(path, faults)
        if meant is not None:
            self.coerced.append(Coerced(path, self._at(path), meant.value, meant.why))
            self._put(path, meant.value)
            return True
        if not self._needs.may_go(path):
            return False
        told = faults if path in self._needs.whole else faults[:1]
        why = "; ".join(self._inside(path, each) + each["msg"] + likely(each) for each in told[:8])
        self._empty(path, why, _kind(fault))
        return True

    def _mend_inside(self, faults: Sequence[ErrorDetails]) -> bool:
        """Mend every fault in a place that is of use as a whole, or none."""
        meant = {self._deepest(fault): mended(fault) for fault in faults[:MOST_INSIDE]}
        if len(faults) > MOST_INSIDE or None in meant.values():
            return False
        for path, read in meant.items():
            assert read is not None
            self.coerced.append(Coerced(path, self._at(path), read.value, read.why))
            self._put(path, read.value)
        return True

    def _inside(self, path: Path, fault: ErrorDetails) -> str:
        """What is at fault within a place that goes as a whole. Of a union's member pydantic puts
        the name of its kind before it."""
        inner = fault["loc"][len(path) :] if path in self._needs.whole else ()
        held = self._at(path)
        if inner and isinstance(held, dict) and inner[0] not in held:
            inner = inner[1:]
        return f"{location(inner)}: " if inner else ""

    def _meant(self, path: Path, faults: Sequence[ErrorDetails]) -> Mended | None:
        """What stands in a place, where it is plain. What pydantic was given there is not always
        what was sent: a validator may have made it of something else."""
        if not path or path in self._needs.counted or path in self._needs.names:
            return None
        sent = self._at(path)
        for fault in faults:
            given = fault.copy()
            if "at" in (fault.get("ctx") or {}):  # It was told of the part, and means this of it.
                given["input"] = sent
            meant = mended(given) if given["input"] is sent else None
            if meant is not None:
                return meant
        return None

    def _keep_exact(self, path: Path) -> bool:
        """Of free keys, those that JSON's readers keep."""
        extra = self._at(path)
        for key in list(extra) if isinstance(extra, dict) else ():
            try:
                exact({key: extra[key]})
            except ValueError as error:
                self._empty((*path, key), str(error), Fault.TYPE)
        return True

    def _keep_beside(self, path: Path) -> bool:
        holder = self._at(path[:-1])
        value = holder.pop(path[-1])
        extra = holder.get("extra")
        if not isinstance(extra, dict):
            extra = holder["extra"] = {}
        extra[path[-1]] = value
        self.coerced.append(Coerced(path, value, value, "no field of this name: kept under extra"))
        return True

    def _empty(self, path: Path, why: str, fault: Fault) -> None:
        holder, value = self._at(path[:-1]), self._at(path)
        if isinstance(holder, list) and path[:-1] in self._needs.counted:
            holder[int(path[-1])] = {}
        else:
            del holder[path[-1]]
            if value is None and isinstance(holder, dict):
                return  # Null is not known: so it is without the field.
        self.left_out.append(
            LeftOut(
                field=clean_text(location(path))[:200],
                value=shown(value),
                why=clean_text(why)[:200],
                fault=fault,
            )
        )

    def _put(self, path: Path, value: Any) -> None:
        holder = self._at(path[:-1])
        if value is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value

    def _at(self, path: Path) -> Any:
        value = self.document
        for part in path:
            value = value[part]
        return value

    def _place(self, fault: ErrorDetails) -> Path:
        """Where in the document a fault lies: of what is missing, the part that lacks it. Names
        that pydantic puts into a location for members of a union are none of the sender's."""
        path = self._deepest(fault)
        held = (path[: len(whole)] for whole in self._needs.whole if path[: len(whole)] == whole)
        return next(held, path)

    def _deepest(self, fault: ErrorDetails) -> Path:
        """As `_place`, and within what goes as a whole."""
        told = (fault.get("ctx") or {}).get("at")
        loc = (*fault["loc"], told) if isinstance(told, str) else told or fault["loc"]
        value = self.document
        path: list[int | str] = []
        for part in loc:
            inside = isinstance(value, dict) and part in value
            if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
                value = value[part]
                path.append(part)
        return tuple(path)


def _from_the_end(placed: tuple[Path, list[ErrorDetails]]) -> tuple[tuple[bool, int, str], ...]:
    return _last_first(placed[0])


def _last_first(path: Path) -> tuple[tuple[bool, int, str], ...]:
    return tuple((isinstance(p, str), -p if isinstance(p, int) else 0, str(p)) for p in path)


def _kind(fault: ErrorDetails) -> Fault:
    kind = fault["type"]
    if kind == "extra_forbidden":
        return Fault.UNKNOWN
    if kind == "missing":
        return Fault.INCOMPLETE
    if kind.startswith(("greater", "less", "too_", "finite")):
        return Fault.RANGE
    return Fault.TIME if kind.startswith(("datetime", "timezone", "later")) else Fault.TYPE


def _told(kind: str, why: str, fault: ErrorDetails) -> InitErrorDetails:
    told = PydanticCustomError(kind, "{why}", {"why": why})
    return InitErrorDetails(type=told, loc=fault["loc"], input=fault["input"])


def _refusal(doubt: Doubt, value: Any) -> InitErrorDetails:
    kind = PydanticCustomError("unit", "{why}", {"why": doubt.why})
    return InitErrorDetails(type=kind, loc=doubt.path, input=value)
