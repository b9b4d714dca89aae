"""What indicators are computed from: the bars of one symbol, side by side."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
"""Seconds of a day; days are UTC."""
MAX_PRICE_GAP = 0.2
"""A plan whose entry is further than this fraction from the bars' price belongs to another market
or unit."""
Floats = NDArray[np.float64]
Times = NDArray[np.int64]
"""(N,) seconds since 1970, UTC."""


class Series(Protocol):
    """Bars of one symbol, oldest first. Arrays of shape (N,); prices in quote currency, volume in
    base units. An outage leaves a gap."""

    @property
    def seconds(self) -> int:
        """Length of a bar."""

    @property
    def closed_at(self) -> Times: ...
    @property
    def open(self) -> Floats: ...
    @property
    def high(self) -> Floats: ...
    @property
    def low(self) -> Floats: ...
    @property
    def close(self) -> Floats: ...
    @property
    def volume(self) -> Floats: ...
