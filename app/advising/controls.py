"""What people change while the service runs: the limits file and the trading state."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson
import structlog

from app.domain.errors import (
    InvalidRecord,
    JournalUnavailable,
    LimitsError,
    LimitsRefused,
    ShadowLogUnavailable,
)
from app.domain.record.event import StateChange
from app.domain.rules.case import TradingState
from app.domain.rules.limits import Limits, limits_text, parse_limits
from app.journal.journal import Journal, Receipt
from app.processes.siblings import ALONE, Alone
from app.shadow_log.limits_history import (
    BACK,
    GENERAL,
    Adoption,
    LimitsHistory,
    Proposal,
    Report,
    back_from,
)
from app.shadow_log.log import ShadowLog
from app.telemetry import Telemetry

log = structlog.get_logger()
REFRESH_S = 0.25
MAX_PAUSE_S = 1.0
"""While it fails, the state is looked for at least this often."""


class InForce(NamedTuple):
    """Limits, their hash, and how they are written. `adopted`: the adoption by which they judge in
    the place of a file."""

    limits: Limits
    hash: str
    toml: str
    adopted: Adoption | None = None

    @classmethod
    def of(cls, path: Path) -> Self:
        """Of a file of the service's. Raises `LimitsError`."""
        try:
            text = limits_text(path)
        except LimitsError as error:
            told = (
                "set ADVISOR_LIMITS to a limits file, ADVISOR_LIMITS_PROFILES to a folder of them"
            )
            raise LimitsError(f"{error}; {told}") from error
        limits = parse_limits(text, str(path))
        return cls(limits, limits.hash(), text)


Stamp = tuple[int, int, int]


class Entered(NamedTuple):
    """Told to processes beside this one: a change of state. `shared`: the stream has it already."""

    change: StateChange
    shared: bool


class Adopted(NamedTuple):
    """Told to processes beside this one: there are new limits in the history."""


class Controls:
    """The limits and the state in force. A bad limits file keeps the old limits; an unknown state
    is HALTED.

    Limits are those of a file, or those that an operator adopted in its place. All replicas follow
    the adoptions in Postgres; each keeps a copy on its disk, for a start while Postgres is away.

    Parameters
    ----------
    limits_path : the limits of everybody who has none of its own.
    profiles : folder of the others: NAME.toml judges what the principal NAME asks. It need not be
        there.
    kept : file for the copy of what was adopted.
    siblings : told what was changed here before that is answered.
    """

    def __init__(
        self,
        limits_path: Path,
        profiles: Path | None,
        journal: Journal,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
        kept: Path | None = None,
        siblings: Alone = ALONE,
    ) -> None:
        self._siblings = siblings
        self._path = limits_path
        self._folder = profiles
        self._history = LimitsHistory(shadow_log)
        self._kept = kept
        self._journal = journal
        self._log = shadow_log
        self._telemetry = telemetry
        self.state = TradingState.HALTED
        self.change: StateChange | None = None
        self._shared = True
        """Whether the change in force is the stream's: what could not be told to the others yet is
        held against it."""
        self._changing = asyncio.Lock()
        """One change follows the other."""
        self._told = ""
        """Why the state is unknown, as it was last logged."""
        self._unreadable = False
        """Whether it is unknown because what the stream holds is no state."""
        self._files = {GENERAL: InForce.of(limits_path)}
        """What each file says, by profile."""
        self._files |= {path.stem: InForce.of(path) for path in self._profile_paths()}
        self._adoptions = read_adoptions(kept)
        """The newest of each profile."""
        self._general = self._files[GENERAL]
        self._profiles: dict[str, InForce] = {}
        self._stamps = self._looked = self._file_stamps()
        self._enforce()

    async def start(self) -> None:
        """Learn the state: the newer of the stream's and the spool's, else the last change in
        Postgres, else ACTIVE on a new installation. While nobody can tell it, it is HALTED."""
        before = self.change
        try:
            stored, shared = await self._learn()
        except (JournalUnavailable, ShadowLogUnavailable, InvalidRecord) as error:
            if self.change is before:
                self._unknown(str(error))
                self._unreadable = isinstance(error, InvalidRecord)
            return
        self._told, self._unreadable = "", False
        if self.change is before:  # What was entered meanwhile may be newer than what was learned.
            self._enter(stored, shared=shared)

    async def _learn(self) -> tuple[StateChange | None, bool]:
        """The state's last change, and whether all replicas can know it.

        Without the stream, Postgres and this machine's spool tell: a change that the writer had not
        moved yet is then missed until the stream is back. A log that is empty tells nothing.
        """
        spooled = await self._journal.spooled_state()
        try:
            shared = await self._journal.get_state() or await self._log.latest_state()
        except JournalUnavailable:
            shared = await self._log.latest_state()
            if shared is None and spooled is None and not await self._log.holds_decisions():
                raise
        if spooled is None or (shared is not None and shared.recorded_at >= spooled.recorded_at):
            return shared, True
        return spooled, False

    def _unknown(self, reason: str) -> None:
        """Nobody can tell the state, so it refuses."""
        if reason != self._told:  # Once for each reason: this is tried several times a second.
            log.error("trading state unknown, HALTED until it is known or set", error=reason)
        self._told = reason
        self.state, self.change = TradingState.HALTED, None
        self._telemetry.state_entered(self.state)

    async def set_state(self, change: StateChange) -> Receipt:
        """Record a change, then enter it: the newest, whatever the clock says. Of two at once the
        newer is in force everywhere, as in the record. HALTED takes effect here even when nothing
        could be recorded."""
        change = change.after(self.change)
        halting = change.state is TradingState.HALTED
        if halting:
            self._enter(change, shared=False)
        told = asyncio.create_task(self._tell(change, False)) if halting else None
        try:
            async with self._changing:
                unknown = False
                try:
                    change = change.after(await self._journal.get_state())
                except (JournalUnavailable, InvalidRecord):
                    unknown = True
                receipt = await self._journal.set_state(change, whatever_lives=unknown)
                shared = receipt.target == "stream"
                self.follow(
                    Entered(change, shared)
                )  # Another process may have entered a newer one.
        finally:
            if told is not None:
                await told
        await self._tell(change, shared)
        return receipt

    async def _tell(self, change: StateChange, shared: bool) -> None:
        order = change.recorded_at.isoformat(timespec="microseconds")
        await self._siblings.tell(Entered(change, shared), lasting=order)

    def follow(self, entered: Entered) -> None:
        """Enter what a process beside this one entered, as it did; of two changes the newer."""
        change, shared = entered
        if self.change is None or change.recorded_at >= self.change.recorded_at:
            self._enter(change, shared=shared)

    async def refresh(self) -> None:
        """Follow the limits file and other replicas' state changes. Raises what keeps it from
        knowing the state, which then is HALTED."""
        try:
            await self._refresh_state()
        except Exception as error:
            self._unknown(str(error) or type(error).__name__)
            raise
        self._follow_files()

    def _follow_files(self) -> None:
        """Adopt what two looks in turn find as it is: a file that is being written in place is not
        read half, with defaults for what it does not say yet."""
        looked, self._looked = self._looked, self._file_stamps()
        if looked == self._looked:
            self.refresh_limits()

    @property
    def limits(self) -> Limits:
        """The limits of everybody who has none of its own."""
        return self._general.limits

    def limits_of(self, principal: str) -> InForce:
        """The limits that judge what a principal asks."""
        return self._profiles.get(principal, self._general)

    def limits_in_force(self) -> dict[str, Any]:
        """Version and hash of each, as `/readyz` shows them; and where limits that were adopted do
        not judge here."""
        shown = _shown(self._general)
        if self._profiles:
            shown["profiles"] = {
                name: _shown(each) for name, each in sorted(self._profiles.items())
            }
        if overruled := sorted(profile or "general" for profile in self.overruled()):
            shown["overruled"] = overruled
        return shown

    def by_profile(self) -> dict[str, InForce]:
        """The limits in force, the general ones first."""
        return {GENERAL: self._general, **dict(sorted(self._profiles.items()))}

    def overruled(self) -> dict[str, Adoption]:
        """Adoptions that do not judge here, because the file is not the one that they replaced."""
        return {
            profile: adoption
            for profile, adoption in self._adoptions.items()
            if adoption.toml is not None and not self._replaces(adoption)
        }

    async def adopt(
        self,
        toml: str | None,
        *,
        profile: str,
        seen: str,
        reason: str,
        by: str,
        proposal: Proposal | None = None,
        report: Report | None = None,
    ) -> Adoption:
        """Have limits judge in the place of a file, on all replicas; without text, the file.

        Raises
        ------
        LimitsError : they are no limits.
        LimitsRefused : others judge than the ones with the hash `seen`, or nothing would change.
        ShadowLogUnavailable : nobody knows whether it was recorded; look again.
        """
        await self.follow_adoptions()
        file, now = self._files.get(profile), self.by_profile().get(profile)
        if file is None or now is None:
            raise LimitsRefused(f"there is no limits file of {profile!r} to judge in the place of")
        if now.hash != seen:
            raise LimitsRefused(
                f"the limits in force are {now.limits.version} ({now.hash}), not those that you"
                " looked at: look again; nothing was changed"
            )
        wanted = file.hash if toml is None else parse_limits(toml, "the proposal").hash()
        if wanted == now.hash:
            raise LimitsRefused("these limits are in force already")
        newest = self._adoptions.get(profile)
        adoption = await self._history.adopt(
            toml,
            profile=profile,
            after=newest.id if newest else 0,
            file_hash=file.hash,
            reason=reason,
            by=by,
            proposal=proposal,
            report=report,
        )
        self._take({**self._adoptions, profile: adoption})
        await self._siblings.tell(Adopted())
        return adoption

    async def roll_back(self, *, profile: str, seen: str, reason: str, by: str) -> Adoption:
        """Go back to what judged before, at last to the file. Raises as `adopt`."""
        history = await self._history.adoptions_of(profile)
        file = self._files.get(profile)
        own = takewhile(lambda each: file is not None and each.file_hash == file.hash, history)
        before = back_from(list(own))
        toml = None if before is None else before.toml
        return await self.adopt(toml, profile=profile, seen=seen, reason=f"{BACK}{reason}", by=by)

    async def follow_adoptions(self) -> None:
        """Let judge what was adopted, here or through another replica. Raises
        `ShadowLogUnavailable`."""
        last = max((each.id for each in self._adoptions.values()), default=0)
        newest = await self._history.newest(last)
        if newest is not None:
            self._take({each.profile: each for each in newest})

    def _take(self, adoptions: dict[str, Adoption]) -> None:
        """Let these judge, but for those after which another one was taken meanwhile."""
        before = self._adoptions
        adoptions = before | {
            profile: each
            for profile, each in adoptions.items()
            if profile not in before or before[profile].id <= each.id
        }
        self._adoptions = adoptions
        if self._kept is not None:
            keep_adoptions(self._kept, adoptions)
        self._enforce()
        for profile, adoption in self.overruled().items():
            if before.get(profile) != adoption:
                log.warning(
                    "adopted limits do not judge here: the file is not the one that they replaced",
                    profile=profile or "general",
                    adopted=adoption.id,
                )

    def _replaces(self, adoption: Adoption) -> bool:
        file = self._files.get(adoption.profile)
        return file is not None and file.hash == adoption.file_hash

    def _enforce(self) -> None:
        """Let each profile be judged by what was adopted in the place of its file, else by the
        file."""
        before = self.by_profile()
        in_force = {profile: self._judging(profile) for profile in self._files}
        self._general = in_force.pop(GENERAL)
        self._profiles = in_force
        for profile, now in self.by_profile().items():
            was = before.get(profile)
            if was is not None and was.hash != now.hash:
                log.info(
                    "limits in force",
                    profile=profile or "general",
                    version=now.limits.version,
                    hash=now.hash,
                    adopted=now.adopted.id if now.adopted else None,
                )
        self._tell_limits()

    def _judging(self, profile: str) -> InForce:
        file, adoption = self._files[profile], self._adoptions.get(profile)
        if adoption is None or adoption.toml is None or not self._replaces(adoption):
            return file
        try:
            limits = parse_limits(adoption.toml, f"adopted limits {adoption.id}")
        except LimitsError as error:  # Of another release.
            self._telemetry.limits_refused()
            log.error("adopted limits refused, the file judges", error=str(error))
            return file
        return InForce(limits, limits.hash(), adoption.toml, adoption)

    def refresh_limits(self) -> None:
        """Adopt changed limits files; refuse a bad one, say so, and keep what is in force. A
        principal whose file is gone is judged by the general limits."""
        stamps = self._file_stamps()
        if stamps == self._stamps:
            return
        before, self._stamps = self._stamps, stamps
        for path in stamps.keys() - {self._path}:
            if stamps[path] != before.get(path):
                self._read_again(path)
        if stamps[self._path] != before[self._path]:
            self._read_again(self._path)
        for path in before.keys() - stamps.keys():
            if self._files.pop(path.stem, None) is not None:
                log.warning("limits profile is gone, the general limits judge", profile=path.stem)
        self._enforce()

    def _profile_of(self, path: Path) -> str:
        return GENERAL if path == self._path else path.stem

    def _read_again(self, path: Path) -> None:
        try:
            adopted = InForce.of(path)
        except LimitsError as error:
            self._telemetry.limits_refused()
            log.error("limits file refused, the old limits stay in force", error=str(error))
            return
        self._files[self._profile_of(path)] = adopted
        version = adopted.limits.version
        log.info("limits reloaded", file=path.name, version=version, hash=adopted.hash)

    async def _refresh_state(self) -> None:
        if self.change is None and self.state is TradingState.HALTED:
            await self.start()
            if self._unreadable:
                raise InvalidRecord(self._told)
            return
        before = self.change
        try:
            stored = await self._journal.get_state()
        except JournalUnavailable:
            # The stream is away: /readyz says so, and the state in force stays.
            return
        if stored is None or (self._shared and stored == self.change):
            return
        if self.change is not before:  # Entered since the stream was asked: the next look decides.
            return
        # The stream's order counts, not the replicas' clocks; only what it does not have yet goes
        # by its time.
        if self._shared or self.change is None or stored.recorded_at >= self.change.recorded_at:
            self._enter(stored, shared=True)

    def _enter(self, change: StateChange | None, *, shared: bool) -> None:
        before = self.state
        self.change, self._shared = change, shared
        self.state = change.state if change is not None else TradingState.ACTIVE
        self._telemetry.state_entered(self.state)
        if before is not self.state:
            log.warning(
                "trading state",
                before=before,
                now=self.state,
                reason=change.reason if change else "initial",
            )

    def _tell_limits(self) -> None:
        in_force = (self._general, *self._profiles.values())
        self._telemetry.limits_adopted([(each.limits.version, each.hash) for each in in_force])

    def _profile_paths(self) -> list[Path]:
        if self._folder is None:
            return []
        try:
            return sorted(self._folder.glob("*.toml"))
        except OSError:
            return []

    def _file_stamps(self) -> dict[Path, Stamp | None]:
        return {path: _stamp(path) for path in (self._path, *self._profile_paths())}


def _shown(judging: InForce) -> dict[str, Any]:
    shown = {"version": judging.limits.version, "hash": judging.hash}
    return shown if judging.adopted is None else shown | {"adopted": judging.adopted.id}


def read_adoptions(kept: Path | None) -> dict[str, Adoption]:
    """What was adopted when Postgres was last there; nothing where that cannot be read."""
    try:
        rows = orjson.loads(kept.read_bytes()) if kept is not None else []
        times = [datetime.fromisoformat(row["changed_at"]) for row in rows]
        told = [Adoption(**row | {"changed_at": at}) for row, at in zip(rows, times, strict=True)]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("adopted limits on disk cannot be read, Postgres tells them", error=str(error))
        return {}
    return {each.profile: each for each in told}


def keep_adoptions(kept: Path, adoptions: Mapping[str, Adoption]) -> None:
    """Keep them for a start while Postgres is away. A disk that cannot is logged."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{os.getpid()}")  # Other processes keep theirs here, too.
        beside.write_bytes(orjson.dumps([each._asdict() for each in adoptions.values()]))
        beside.chmod(0o600)
        beside.replace(kept)
    except OSError as error:
        log.error("adopted limits cannot be kept on disk", error=str(error))


def _stamp(path: Path) -> Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_size, stat.st_ino  # Also after a change of mode.
