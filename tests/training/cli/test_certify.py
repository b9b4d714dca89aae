"""Which scenarios a certificate is made of."""

from __future__ import annotations

from tests import builders as build
from training.cli.certify import spread


def test_scenarios_are_spread_evenly_over_all() -> None:
    some = [build.scenario(candidate__rsi=float(rsi)) for rsi in range(10)]
    assert [each.candidate.rsi for each in spread(some, 4)] == [0, 2, 5, 7]
    assert spread(some, 20) == some
    assert spread([], 5) == []
