"""What a parent and its processes say to each other."""

from __future__ import annotations

from typing import Any, NamedTuple

from app.domain.record.event import StateChange


class Ready(NamedTuple):
    """It answers, here."""

    url: str = ""


class Failed(NamedTuple):
    """It cannot start, and why: for people."""

    why: str


class Stop(NamedTuple):
    """It shall answer what is under way, then end; `now`, end at once."""

    now: bool


class Entered(NamedTuple):
    """A process entered a state. `shared`: the stream has the change already."""

    change: StateChange
    shared: bool


class Count(NamedTuple):
    """Asks a process for its `Snapshot`."""


class CountAll(NamedTuple):
    """Asks the parent for those of all, the one who asks included: a list of `Snapshot`."""


class Health(NamedTuple):
    """Asks a process for its readiness, a document."""


class HealthOfOthers(NamedTuple):
    """Asks the parent how the others are: a list of `Other`."""


class Other(NamedTuple):
    """A process beside the one who asks: what it says of itself, or None and why it says
    nothing."""

    name: str
    said: dict[str, Any] | None
    why: str = ""
