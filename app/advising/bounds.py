"""How many reports one decision may have: corrections are wanted, floods are not."""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

from app.domain.errors import TooManyReports
from app.domain.record.event import EventKind

REMEMBERED = 50_000


class ReportBounds:
    """Counts new reports of each decision and kind in this process; the decisions that were
    reported on last are remembered."""

    def __init__(self, most: int, remembered: int = REMEMBERED) -> None:
        self._most, self._remembered = most, remembered
        self._counts: OrderedDict[tuple[UUID, EventKind], int] = OrderedDict()

    def full(self, decision_id: UUID, kind: EventKind) -> bool:
        """Whether there is no room for another."""
        return self._counts.get((decision_id, kind), 0) >= self._most

    def require_room(self, decision_id: UUID, kind: EventKind) -> None:
        """Raises `TooManyReports`."""
        if self.full(decision_id, kind):
            raise TooManyReports(
                f"decision {decision_id} has {self._most} reports of kind {kind.value} already"
            )

    def count(self, decision_id: UUID, kind: EventKind) -> None:
        """One more."""
        self._counts[decision_id, kind] = self._counts.pop((decision_id, kind), 0) + 1
        if len(self._counts) > self._remembered:
            self._counts.popitem(last=False)
