"""What a request may cost, found out before it is paid: values of a body, requests of a caller."""

from __future__ import annotations

import re
from collections import OrderedDict

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Also a string that never ends: every byte is looked at once."""
MAX_CALLERS = 4096


def values(body: bytes, enough: int) -> int:
    """How many values a JSON document holds, at most one too many for each list and object. A
    document that cannot hold more than `enough` is not looked at closely."""
    marks = _marks(body)
    return marks if marks <= enough else _marks(_STRING.sub(b"", body))


def _marks(body: bytes) -> int:
    return 1 + body.count(b",") + body.count(b"[") + body.count(b"{")


class Buckets:
    """A token bucket for each caller: `rate` requests a second, `burst` at once. The callers that
    came last are remembered."""

    def __init__(self, rate: float, burst: float, most: int = MAX_CALLERS) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str, now: float) -> float:
        """Take one token; 0.0 when there was one, else the seconds until there is."""
        tokens, then = self._callers.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        granted = tokens >= 1
        self._callers[caller] = (tokens - granted, now)
        if len(self._callers) > self._most:
            self._callers.popitem(last=False)
        return 0.0 if granted else (1 - tokens) / self._rate
