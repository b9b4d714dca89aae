"""What a report may say. Sanity of what comes in now: records that were written before stay as they
are, so these bounds are no part of their schema."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from app.domain.errors import InvalidRecord
from app.domain.fields import shown
from app.domain.intake.reception import Received
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Fault, LeftOut

Report = TypeVar("Report", AgentAction, Outcome)

MAX_OWN_RISK = 1000.0
MAX_MONEY = 1e12
MAX_PERCENT = 1e6
MAX_SECONDS = 10 * 366 * 86_400.0
AHEAD = timedelta(hours=1)
"""How far another machine's clock may be before ours."""
ZONE = "a time without an offset is read as UTC"
_BOUNDS: dict[str, tuple[float, str]] = {
    "r_multiple": (MAX_OWN_RISK, "times its own risk"),
    "mae_r": (MAX_OWN_RISK, "times its own risk"),
    "mfe_r": (MAX_OWN_RISK, "times its own risk"),
    "net_pnl": (MAX_MONEY, "quote currency"),
    "fees": (MAX_MONEY, "quote currency"),
    "slippage": (MAX_MONEY, "quote currency"),
    "size_usd": (MAX_MONEY, "quote currency"),
    "exit_price": (MAX_MONEY, "quote currency"),
    "max_price": (MAX_MONEY, "quote currency"),
    "entry": (MAX_MONEY, "quote currency"),
    "stop": (MAX_MONEY, "quote currency"),
    "quantity": (1e15, "base units"),
    "pnl_pct": (MAX_PERCENT, "percent"),
    "holding_seconds": (MAX_SECONDS, "seconds"),
}


def plausible(
    received: Received[Report], now: datetime, as_of: datetime | None = None
) -> Received[Report]:
    """A report without the times that no clock can give: what it tells beside them counts. Raises
    `InvalidRecord` that names every number that no market can give.

    Parameters
    ----------
    now : by our clock.
    as_of : of the decision that is reported on, where it is known: nothing ended before it.
    """
    report = received.record
    _require_possible(report)
    odd = _odd_times(report, now, as_of)
    if not odd:
        return received
    gone: tuple[LeftOut, ...] = tuple(
        LeftOut(field=name, value=shown(getattr(report, name)), why=why[:200], fault=Fault.TIME)
        for name, why in odd.items()
    )
    record = report.model_copy(update=dict.fromkeys(odd))
    return received._replace(record=record, left_out=(*received.left_out, *gone))


def _require_possible(report: AgentAction | Outcome) -> None:
    wrong = []
    for name, (most, unit) in _BOUNDS.items():
        value = getattr(report, name, None)  # Not every report has every field.
        if value is not None and abs(value) > most:
            wrong.append(f"{name}: {value:g} is beyond {most:g} {unit}")
    if wrong:
        raise InvalidRecord("; ".join(wrong))


def _odd_times(
    report: AgentAction | Outcome, now: datetime, as_of: datetime | None
) -> dict[str, str]:
    """Times that cannot be, and why, by their fields."""
    odd: dict[str, str] = {}
    ended = report.exit_time if isinstance(report, Outcome) else None
    decided = report.decided_at if isinstance(report, AgentAction) else None
    for name, moment in (("exit_time", ended), ("decided_at", decided)):
        if moment is not None and moment > now + AHEAD:
            odd[name] = f"it is in the future; {ZONE}"
    if ended is not None and as_of is not None and ended < as_of:
        odd["exit_time"] = f"it is before the decision, {as_of.isoformat()}; {ZONE}"
    if isinstance(report, Outcome) and ended is not None and as_of is not None and not odd:
        held = _held_too_long(report, (ended - as_of).total_seconds())
        odd |= {} if held is None else {"holding_seconds": held}
    return odd


def _held_too_long(outcome: Outcome, most_s: float) -> str | None:
    """Of a trade that was held for longer than there is time between its decision and its end."""
    held = outcome.holding_seconds
    if held is None or held <= most_s + AHEAD.total_seconds():
        return None
    unit = "likely milliseconds: " if held > 60 * most_s and held / 1000 <= most_s else ""
    return f"{unit}from the decision to exit_time there are {most_s:g} s"
