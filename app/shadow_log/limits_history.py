"""Limits that were proposed, what the record says of them, and which judge in the place of a file.

An adoption names the hash of the file that it replaces. Where the file is another one, because
somebody has edited it by hand since, the file judges: what stands on the machine and is newer wins.
Adoptions of a profile follow each other one by one: of two that would follow the same one, the
database lets one in.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Table, func, select
from sqlalchemy.exc import IntegrityError

from app.domain.errors import LimitsRefused
from app.domain.rules.limits import parse_limits
from app.shadow_log.database import translated_errors
from app.shadow_log.log import ShadowLog
from app.shadow_log.rows import plain
from app.shadow_log.schema import tables

GENERAL = ""
"""The profile of everybody who has none of its own."""
BACK = "rollback: "
"""How the reason of a rollback begins."""


class Proposal(NamedTuple):
    """Limits that somebody would have. `since` and `until`: which decisions they are tried on."""

    id: int
    profile: str
    toml: str
    hash: str
    note: str
    since: datetime | None
    until: datetime | None
    proposed_by: str
    proposed_at: datetime


class Report(NamedTuple):
    """What a proposal would have done: a document of `app.domain.what_if.Tally`, as JSON."""

    id: int
    proposal_id: int
    against: str
    report: str
    seconds: float
    made_at: datetime


class Adoption(NamedTuple):
    """Limits that judge in the place of the file whose hash is `file_hash`; without `toml` the file
    judges again."""

    id: int
    profile: str
    previous: int
    toml: str | None
    hash: str
    file_hash: str
    proposal_id: int | None
    report_id: int | None
    reason: str
    changed_by: str
    changed_at: datetime


class LimitsHistory:
    """Every method raises `ShadowLogUnavailable` in an outage."""

    def __init__(self, log: ShadowLog) -> None:
        self._log = log

    async def propose(
        self,
        profile: str,
        toml: str,
        *,
        note: str,
        by: str,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Proposal:
        """Keep limits to be tried and talked about. Raises `LimitsError`."""
        row = {
            "profile": profile,
            "toml": toml,
            "hash": parse_limits(toml, "the proposal").hash(),
            "note": note,
            "since": since,
            "until": until,
            "proposed_by": by,
        }
        return Proposal(**await self._log.add_own("limits_proposal", row))

    async def proposals(self, most: int) -> list[Proposal]:
        """The newest, the newest first."""
        table = tables.limits_proposals
        return [Proposal(**row) for row in await self._newest(table, most)]

    async def proposal(self, id: int) -> Proposal | None:
        """One of them."""
        table = tables.limits_proposals
        rows = await self._newest(table, 1, table.c.id == id)
        return Proposal(**rows[0]) if rows else None

    async def add_report(
        self, proposal_id: int, against: str, report: str, seconds: float
    ) -> Report:
        """Keep what a proposal would have done."""
        row = {"proposal_id": proposal_id, "against": against, "report": report, "seconds": seconds}
        return Report(**await self._log.add_own("limits_report", row))

    async def report(self, proposal_id: int, id: int | None = None) -> Report | None:
        """One on a proposal, or else the newest."""
        table = tables.limits_reports
        wanted = [table.c.proposal_id == proposal_id]
        if id is not None:
            wanted.append(table.c.id == id)
        rows = await self._newest(table, 1, *wanted)
        return Report(**rows[0]) if rows else None

    async def adopt(
        self,
        toml: str | None,
        *,
        profile: str,
        after: int,
        file_hash: str,
        reason: str,
        by: str,
        proposal: Proposal | None = None,
        report: Report | None = None,
    ) -> Adoption:
        """Let limits judge in the place of a file, or without text the file itself, after the
        adoption `after` (0: the first), by a report on `proposal`. Raises `LimitsError`, and
        `LimitsRefused` when another one came in between."""
        row = {
            "profile": profile,
            "previous": after,
            "toml": toml,
            "hash": file_hash if toml is None else parse_limits(toml, "the proposal").hash(),
            "file_hash": file_hash,
            "proposal_id": None if proposal is None else proposal.id,
            "report_id": None if report is None else report.id,
            "reason": reason,
            "changed_by": by,
        }
        try:
            return Adoption(**await self._log.add_own("limits_adoption", row))
        except IntegrityError as error:
            raise LimitsRefused(
                "somebody else has changed these limits since you looked: look again; nothing was"
                " changed"
            ) from error

    async def adoptions(self, most: int) -> list[Adoption]:
        """The newest of all profiles, the newest first."""
        return [Adoption(**row) for row in await self._newest(tables.limits_adoptions, most)]

    async def adoptions_of(self, profile: str) -> list[Adoption]:
        """Every one of a profile, the newest first."""
        table = tables.limits_adoptions
        return [
            Adoption(**row) for row in await self._newest(table, None, table.c.profile == profile)
        ]

    async def newest_of_each(self, most: int) -> list[Adoption]:
        """The newest of each profile, `most` of each, the newest first."""
        table = tables.limits_adoptions
        place = func.row_number().over(partition_by=table.c.profile, order_by=table.c.id.desc())
        placed = select(table.c.id, place.label("place")).subquery()
        among = table.c.id.in_(select(placed.c.id).where(placed.c.place <= most))
        return [Adoption(**row) for row in await self._newest(table, None, among)]

    async def newest(self, known: int) -> list[Adoption] | None:
        """The newest of each profile; None when none is newer than the id `known`."""
        c = tables.limits_adoptions.c
        _, last = await self._log.stamp("limits_adoptions")
        if last <= known:
            return None
        with translated_errors():
            async with self._log.engine.connect() as connection:
                each = select(func.max(c.id)).group_by(c.profile)
                rows = await connection.execute(
                    select(tables.limits_adoptions).where(c.id.in_(each))
                )
                return [Adoption(**plain(row)) for row in rows]

    async def _newest(
        self, table: Table, most: int | None, *wanted: Any
    ) -> Sequence[dict[str, Any]]:
        query = select(table).where(*wanted).order_by(table.c.id.desc()).limit(most)
        with translated_errors():
            async with self._log.engine.connect() as connection:
                return [plain(row) for row in await connection.execute(query)]


def back_from(history: Sequence[Adoption]) -> Adoption | None:
    """Where a rollback goes, of one profile's adoptions, the newest first: what judged before the
    newest, or None for the file. What was rolled back from is left behind for good, so that two
    rollbacks in a row go two steps back. Raises `LimitsRefused`: the file judges already."""
    stood: list[Adoption] = []
    for adoption in reversed(history):
        hashes = [each.hash for each in stood]
        if adoption.toml is None:
            stood = []
        elif adoption.reason.startswith(BACK) and adoption.hash in hashes:
            stood = stood[: hashes.index(adoption.hash) + 1]
        else:
            stood.append(adoption)
    if not stood:
        raise LimitsRefused("the file judges already: there is nothing to go back from")
    return stood[-2] if len(stood) > 1 else None
