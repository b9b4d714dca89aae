"""Names for what passes between the stages: arrays by their meaning, days, and progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Self

import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
"""Seconds of a day; days are UTC."""
HELD_OUT_FROM = date(2023, 1, 1)
HELD_OUT_UNTIL = date(2025, 1, 1)
"""The held-out period, without its last day: no rebuild trains on it."""

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


@dataclass(frozen=True, eq=False)
class Columns:
    """Many things of one kind, an array per property; each array's first axis counts the things."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def at(self, rows: Rows | Flags) -> Self:
        """Some of them."""
        return type(self)(**{name: values[rows] for name, values in vars(self).items()})

    def put(self, rows: Rows, some: Self) -> None:
        """Overwrite some of them."""
        for name, values in vars(some).items():
            getattr(self, name)[rows] = values

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        names = vars(parts[0])
        return cls(**{
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        })  # fmt: skip


def silent(done: int, total: int) -> None:
    """The progress that nobody watches."""


def instant(day: date) -> int:
    """Midnight UTC at which a day begins; seconds since 1970."""
    return int(datetime.combine(day, time(), UTC).timestamp())
