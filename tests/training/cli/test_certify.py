"""Which scenarios a certificate is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.errors import InvalidRecord
from tests import builders as build
from training.cli.certify import certify, spread


def test_scenarios_are_spread_evenly_over_all() -> None:
    some = [build.scenario(candidate__rsi=float(rsi)) for rsi in range(10)]
    assert [each.candidate.rsi for each in spread(some, 4)] == [0, 2, 5, 7]
    assert spread(some, 20) == some
    assert spread([], 5) == []


def test_too_few_scenarios_are_refused_before_one_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecord, match=r"scenarios are too few .*2,000.*--prompts"):
        certify(
            tmp_path / "no-version",
            config="tiny",
            overrides=[f'artifacts="{tmp_path / "artefacts"}"'],
            prompts=100,
        )
