"""What a parent and its processes say to each other."""

from __future__ import annotations

from typing import Any, NamedTuple


class Ready(NamedTuple):
    """It answers, here."""

    url: str = ""


class Failed(NamedTuple):
    """It cannot start, and why: for people."""

    why: str


class Stop(NamedTuple):
    """It shall answer what is under way, then end; `now`, end at once."""

    now: bool


class Told(NamedTuple):
    """What happened in one process, and holds for all. `lasting`: whoever starts later is told, as
    long as nothing of that kind with a greater one was; empty: nobody is."""

    what: Any
    lasting: str = ""


class Gone(NamedTuple):
    """A process has ended, by its name; told to the others."""

    name: str


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
