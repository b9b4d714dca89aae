"""Names for what passes between the stages: arrays by their meaning, a day, and progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
"""Seconds of a day; days are UTC."""

Floats = NDArray[np.float64]
"""Numbers, of the shape that is said where they are used."""
Flags = NDArray[np.bool_]
"""(N,) true where a row counts."""
Rows = NDArray[np.int64]
"""(M,) positions in a table."""
Times = NDArray[np.int64]
"""(N,) seconds since 1970, UTC."""

Progress = Callable[[int, int], None]
"""Hears how much of a work is done: `progress(done, total)`."""
Meter = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress bar with a title."""


def silent(done: int, total: int) -> None:
    """The progress that nobody watches."""
