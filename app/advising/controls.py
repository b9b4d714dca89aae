"""What people change while the service runs: the limits file and the trading state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog

from app.domain.case import TradingState
from app.domain.errors import (
    InvalidRecord,
    JournalUnavailable,
    LimitsError,
    ShadowLogUnavailable,
)
from app.domain.event import StateChange
from app.domain.limits import Limits, read_limits
from app.journal.journal import Journal, Receipt
from app.shadow_log.log import ShadowLog
from app.telemetry import Telemetry

log = structlog.get_logger()
REFRESH_S = 0.25
MAX_PAUSE_S = 1.0
"""While it fails, the state is looked for at least this often."""


class InForce(NamedTuple):
    """Limits, and their hash."""

    limits: Limits
    hash: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Of a file. Raises `LimitsError`."""
        limits = read_limits(path)
        return cls(limits, limits.hash())


Stamp = tuple[int, int, int]


class Controls:
    """The limits and the state in force. A bad limits file keeps the old limits; an unknown state
    is HALTED.

    Parameters
    ----------
    limits_path : the limits of everybody who has none of its own.
    profiles : folder of the others: NAME.toml judges what the principal NAME asks. It need not be
        there.
    """

    def __init__(
        self,
        limits_path: Path,
        profiles: Path | None,
        journal: Journal,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
    ) -> None:
        self._path = limits_path
        self._folder = profiles
        self._journal = journal
        self._log = shadow_log
        self._telemetry = telemetry
        self.state = TradingState.HALTED
        self.change: StateChange | None = None
        self._shared = True
        """Whether the change in force is the stream's: what could not be told to the others yet is
        held against it."""
        self._told = ""
        """Why the state is unknown, as it was last logged."""
        self._unreadable = False
        """Whether it is unknown because what the stream holds is no state."""
        self._general = InForce.of(limits_path)
        self._profiles = {path.stem: InForce.of(path) for path in self._profile_paths()}
        self._stamps = self._file_stamps()
        self._tell_limits()

    async def start(self) -> None:
        """Learn the state: the newer of the stream's and the spool's, else the last change in
        Postgres, else ACTIVE on a new installation. While nobody can tell it, it is HALTED."""
        try:
            stored, shared = await self._learn()
        except (JournalUnavailable, ShadowLogUnavailable, InvalidRecord) as error:
            self._unknown(str(error))
            self._unreadable = isinstance(error, InvalidRecord)
            return
        self._told, self._unreadable = "", False
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
        """Record a change, then enter it. HALTED takes effect here even when nothing could be
        recorded."""
        if change.state is TradingState.HALTED:
            self._enter(change, shared=False)
        receipt = await self._journal.set_state(change)
        self._enter(change, shared=receipt.target == "stream")
        return receipt

    async def refresh(self) -> None:
        """Follow the limits file and other replicas' state changes. Raises what keeps it from
        knowing the state, which then is HALTED."""
        try:
            await self._refresh_state()
        except Exception as error:
            self._unknown(str(error) or type(error).__name__)
            raise
        self.refresh_limits()

    @property
    def limits(self) -> Limits:
        """The limits of everybody who has none of its own."""
        return self._general.limits

    def limits_of(self, principal: str) -> InForce:
        """The limits that judge what a principal asks."""
        return self._profiles.get(principal, self._general)

    def limits_in_force(self) -> dict[str, Any]:
        """Version and hash of each, as `/readyz` shows them."""
        shown = {
            name: {"version": each.limits.version, "hash": each.hash}
            for name, each in sorted(self._profiles.items())
        }
        general = {"version": self._general.limits.version, "hash": self._general.hash}
        return general | ({"profiles": shown} if shown else {})

    def refresh_limits(self) -> None:
        """Adopt changed limits files; refuse a bad one, say so, and keep what is in force. A
        principal whose file is gone is judged by the general limits."""
        stamps = self._file_stamps()
        if stamps == self._stamps:
            return
        before, self._stamps = self._stamps, stamps
        for path in stamps.keys() - {self._path}:
            if stamps[path] != before.get(path):
                self._adopt(path)
        if stamps[self._path] != before[self._path]:
            self._adopt(self._path)
        for path in before.keys() - stamps.keys():
            if self._profiles.pop(path.stem, None) is not None:
                log.warning("limits profile is gone, the general limits judge", profile=path.stem)
        self._tell_limits()

    def _adopt(self, path: Path) -> None:
        try:
            adopted = InForce.of(path)
        except LimitsError as error:
            self._telemetry.limits_refused()
            log.error("limits file refused, the old limits stay in force", error=str(error))
            return
        if path == self._path:
            self._general = adopted
        else:
            self._profiles[path.stem] = adopted
        version = adopted.limits.version
        log.info("limits reloaded", file=path.name, version=version, hash=adopted.hash)

    async def _refresh_state(self) -> None:
        if self.change is None and self.state is TradingState.HALTED:
            await self.start()
            if self._unreadable:
                raise InvalidRecord(self._told)
            return
        try:
            stored = await self._journal.get_state()
        except JournalUnavailable:
            # The stream is away: /readyz says so, and the state in force stays.
            return
        if stored is None or (self._shared and stored == self.change):
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


def _stamp(path: Path) -> Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_size, stat.st_ino  # Also after a change of mode.
