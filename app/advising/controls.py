"""What people change while the service runs: the limits file and the trading state."""

from __future__ import annotations

from pathlib import Path

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


class Controls:
    """The limits and the state in force. A bad limits file keeps the old limits; an unknown state
    is HALTED."""

    def __init__(
        self, limits_path: Path, journal: Journal, shadow_log: ShadowLog, telemetry: Telemetry
    ) -> None:
        self._path = limits_path
        self._journal = journal
        self._log = shadow_log
        self._telemetry = telemetry
        self._stamp: tuple[int, int, int] | None = None
        self.state = TradingState.HALTED
        self.change: StateChange | None = None
        self._shared = True
        """Whether the change in force is the stream's: what could not be told to the others yet is
        held against it."""
        self._told = ""
        """Why the state is unknown, as it was last logged."""
        self._unreadable = False
        """Whether it is unknown because what the stream holds is no state."""
        self.limits: Limits
        self.limits_hash: str
        self._adopt(read_limits(limits_path))
        self._stamp = self._file_stamp()

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

    def refresh_limits(self) -> None:
        """Adopt a changed limits file; refuse a bad one, say so, and keep what is in force."""
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            limits = read_limits(self._path)
        except LimitsError as error:
            self._telemetry.limits_refused()
            log.error(
                "limits file refused, the old limits stay in force",
                error=str(error),
                in_force=self.limits_hash,
            )
            return
        self._adopt(limits)
        log.info("limits reloaded", version=limits.version, hash=self.limits_hash)

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

    def _adopt(self, limits: Limits) -> None:
        self.limits = limits
        self.limits_hash = limits.hash()
        self._telemetry.limits_adopted(limits.version, self.limits_hash)

    def _file_stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ctime_ns, stat.st_size, stat.st_ino  # Also after a change of mode.
