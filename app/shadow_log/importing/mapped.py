"""Any table with a mapping file, which says which column is which field of ours.

```toml
source = "my-bot"
time_zone = "UTC"             # of times that do not say theirs

[candidate]                   # our field = your column
symbol = "pair"
direction = "side"
ts = "opened"
[plan]
entry = "open_price"
stop = "stop_loss"
targets = ["tp1", "tp2"]
quantity = "size"
[outcome]
exit_time = "closed"
exit_price = "close_price"
net_pnl = "profit"
outcome = "why"

[values.direction]            # your word = ours
buy = "long"
[constants.candidate]         # what no column says
setup_type = "trend"
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.domain.candidate import Candidate
from app.domain.errors import InvalidRecord
from app.domain.fields import Record
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.scenario import Plan
from app.shadow_log.importing.rows import ImportFault
from app.shadow_log.importing.trade import Told
from app.shadow_log.importing.values import flag, moment

PARTS: dict[str, type[Record]] = {
    "candidate": Candidate,
    "plan": Plan,
    "action": AgentAction,
    "outcome": Outcome,
}
TIMES = ("ts", "decided_at", "exit_time")
FLAGS = ("decision", "near_support", "near_resistance", "macro_news_safe", "spoofing_alert")
REQUIRED = ("symbol", "direction", "ts")
OTHERS = ("source", "time_zone", "values", "constants")


class Mapped:
    """A mapping file. Raises `ImportFault` that names what it cannot say."""

    def __init__(self, path: Path) -> None:
        try:
            document = tomllib.loads(path.read_text())
            self.zone = ZoneInfo(document.get("time_zone", "UTC"))
        except (OSError, ValueError, ZoneInfoNotFoundError) as error:
            raise ImportFault(f"{path}: {error}") from error
        self.source = str(document.get("source", path.stem))
        self.words: Mapping[str, Mapping[str, Any]] = document.get("values", {})
        constants = document.get("constants", {})
        wrong = sorted(document.keys() - {*PARTS, *OTHERS})
        self.columns: dict[str, dict[str, Any]] = {}
        self.constants: dict[str, dict[str, Any]] = {}
        for part, record in PARTS.items():
            self.columns[part] = document.get(part, {})
            self.constants[part] = constants.get(part, {})
            named = self.columns[part].keys() | self.constants[part].keys()
            wrong += [f"{part}.{name}" for name in sorted(named - record.model_fields.keys())]
        told = self.columns["candidate"].keys() | self.constants["candidate"].keys()
        faults = [f"there is no {name}" for name in wrong]
        faults += [f"candidate.{name} is not mapped" for name in REQUIRED if name not in told]
        decided = self.columns["action"].keys() | self.constants["action"].keys()
        if not self.columns["outcome"] and "decision" not in decided:
            faults.append("neither an outcome nor action.decision is mapped: what was traded?")
        if faults:
            raise ImportFault(f"{path}: {'; '.join(faults)}")

    def told(self, row: Mapping[str, Any]) -> Told | None:
        """A row of a table; None for one without symbol, direction or time, and for a trade that
        has not ended. Raises `InvalidRecord` for a time that nobody can read."""
        parts = {part: self._part(part, row) for part in PARTS}
        candidate = parts["candidate"]
        if any(candidate.get(name) is None for name in REQUIRED):
            return None
        head = {name: candidate.pop(name) for name in REQUIRED}
        action, outcome = parts["action"], parts["outcome"]
        ended = any(value is not None for value in outcome.values())
        # Without an outcome a trade is still open, and only who says so rejected a candidate.
        if not ended and self.columns["outcome"] and action.get("decision") is not False:
            return None
        if action.get("decision") is None:
            action["decision"] = ended
        if action["decision"]:
            order = parts["plan"]
            action = {name: order.get(name) for name in ("entry", "stop", "quantity")} | action
        if ended:
            outcome = {"arm": "agent", "outcome": "early_exit"} | {
                name: value for name, value in outcome.items() if value is not None
            }
        return Told(
            str(head["symbol"]).upper().replace("/", "").replace("-", ""),
            str(head["direction"]).lower(),
            head["ts"],
            action,
            outcome if ended else None,
            candidate,
            parts["plan"],
        )

    def _part(self, part: str, row: Mapping[str, Any]) -> dict[str, Any]:
        columns = self.columns[part]
        absent = sorted(
            {name for names in columns.values() for name in _listed(names)} - row.keys()
        )
        if absent:
            raise ImportFault(f"no column {', '.join(absent)}; there are {', '.join(row)}")
        read = {name: self._value(name, source, row) for name, source in columns.items()}
        constants = {
            name: self._converted(name, value) for name, value in self.constants[part].items()
        }
        return constants | {name: value for name, value in read.items() if value is not None}

    def _value(self, name: str, source: Any, row: Mapping[str, Any]) -> Any:
        if isinstance(source, list):
            values = [self._converted(name, row[column]) for column in source]
            return [value for value in values if value is not None] or None
        value = row[source]
        words = self.words.get(name, {})
        value = words.get(str(value), words.get(str(value).lower(), value))
        converted = self._converted(name, value)
        return [converted] if name == "targets" and converted is not None else converted

    def _converted(self, name: str, value: Any) -> Any:
        """A CSV has texts alone."""
        if name in TIMES:
            return self._time(name, value)
        if name in FLAGS:
            return flag(value)
        return _maybe_number(value)

    def _time(self, name: str, value: Any) -> datetime | None:
        read = moment(_maybe_number(value), self.zone)
        if read is None and value is not None:
            raise InvalidRecord(
                f"{name}: {str(value)[:40]!r} is no time: write it as 2026-10-20 10:00 (ISO 8601),"
                " or as seconds or milliseconds since 1970"
            )
        return read


def _listed(names: Any) -> list[str]:
    return names if isinstance(names, list) else [names]


def _maybe_number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
