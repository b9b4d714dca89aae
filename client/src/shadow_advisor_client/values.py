"""What an agent has at hand, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any
from uuid import UUID

MAX_DEPTH = 16


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON of what an agent has at hand: NaN becomes null, times RFC 3339, numpy scalars numbers,
    enums values."""
    return json.dumps(_plain(document, 0), allow_nan=False, ensure_ascii=True).encode()


def _plain(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels, or in a circle")
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, depth + 1)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, UUID):
        return str(value)
    item = getattr(value, "item", None)
    if callable(item):
        return _plain(item(), depth + 1)
    raise TypeError(f"{type(value).__name__} is not JSON")
