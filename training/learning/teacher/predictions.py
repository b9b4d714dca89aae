"""What the teacher says of scenarios: an expectation for every action, and chances for the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from safetensors.numpy import load_file

from training.arrays import Columns, Floats
from training.stages.store import Artifact

FILE = "taught.safetensors"


@dataclass(frozen=True, eq=False)
class Predictions(Columns):
    """Of N scenarios.

    expected : (N, 10) net R of each action, in the order of `ACTIONS`; to reject is worth 0.
    sd : (N, 10) standard deviation of what that action will have earned, R: the luck of one trade,
        not the doubt about its expectation. 0 for rejecting.
    doubt : (N, 10) standard error of `expected`, R: how far teachers disagree that each did without
        a part of the training rows. 0 for rejecting.
    stake : (N,) the plan's risk over the account's equity, which is no prediction but says what a
        variance of R is to the account; NaN where not known.
    win : (N,) probability that the agent's plan makes money after costs.
    stopped : (N,) probability that it ends at its initial stop.
    range_atr : (N,) highest high less lowest low from entry to the time exit, in ATR: the median.
    """

    expected: Floats
    sd: Floats
    doubt: Floats
    stake: Floats
    win: Floats
    stopped: Floats
    range_atr: Floats

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Of a finished stage `taught`."""
        return cls(**load_file(artifact / FILE))
