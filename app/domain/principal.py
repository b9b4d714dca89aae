"""Who asks, and what it may do: roles, and whose decisions it may read and report on."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from app.domain.canonical import DEFAULT_PRINCIPAL, is_of

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,47}$"
EVERY = "*"
"""In the place of a name: the decisions of every principal."""


class Role(StrEnum):
    """`agent` asks for advice, and reads and reports on its own decisions; `reporter` reports on
    those of the principals that its token names; `operator` changes state, versions and aliases,
    and sees what a reader sees; `reader` sees every decision and all the service tells of itself;
    `metrics` sees numbers."""

    AGENT = "agent"
    REPORTER = "reporter"
    OPERATOR = "operator"
    READER = "reader"
    METRICS = "metrics"


_INCLUDED = {
    Role.OPERATOR: frozenset({Role.READER, Role.METRICS}),
    Role.READER: frozenset({Role.METRICS}),
}


class Principal(NamedTuple):
    """Somebody with a name. `of` names the principals on whose decisions a reporter reports."""

    name: str
    roles: frozenset[Role]
    of: frozenset[str] = frozenset()

    def may(self, role: Role) -> bool:
        """Whether it has a role, or one that includes it."""
        return role in self.roles or any(role in _INCLUDED.get(r, ()) for r in self.roles)

    def may_report_on(self, decision_id: UUID) -> bool:
        """Its own decisions as an agent; those that it was named for as a reporter."""
        if self.may(Role.AGENT) and is_of(decision_id, self.name):
            return True
        if not self.may(Role.REPORTER):
            return False
        return EVERY in self.of or any(is_of(decision_id, name) for name in self.of)

    def may_read(self, decision_id: UUID) -> bool:
        """What it reports on, and everything as a reader."""
        return self.may(Role.READER) or self.may_report_on(decision_id)


OPEN = Principal(DEFAULT_PRINCIPAL, frozenset(Role))
"""Whoever asks without a token where that is allowed."""
