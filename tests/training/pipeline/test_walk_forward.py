"""Walk-forward: retrained before each period, judged on it, nothing of the held-out period read."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.training.support.rebuilds import NOW, config_in, shop_of
from training.arrays import instant
from training.config.file import RebuildConfig
from training.pipeline.walk_forward import walk_forward
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact

FIRST, UNTIL = date(2022, 11, 20), date(2022, 12, 30)


def config(folder: Path, base: Path, bars: int = 4000) -> RebuildConfig:
    return config_in(
        folder,
        base,
        market__synthetic__bars=bars,
        scenarios__limit=60,
        walk_forward={"first": FIRST, "until": UNTIL, "period_days": 20, "limit": 60},
    )


def test_each_period_is_judged_by_what_was_made_before_it(tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_base)
    made = walk_forward(settings, shop_of(settings), NOW)
    assert made.facts["periods"] == 2
    begins = [instant(FIRST), instant(FIRST + timedelta(days=20))]
    found = [
        Artifact.open(path.parent)
        for path in (tmp_path / "artifacts").glob("scenarios-*/manifest.json")
    ]
    sets = sorted(
        (ScenarioSet.open(each) for each in found), key=lambda each: int(each.as_of.max())
    )
    assert len(sets) == 5, "prompts and all candidates of two that train, and those that judge"
    for trained, begin in zip(sets[:4], np.repeat(begins, 2), strict=True):
        assert trained.ends_at.max() <= begin + 8 * 3600
        assert trained.as_of.max() < begin
    assert sets[-1].as_of.min() >= begins[0]
    assert sets[-1].as_of.max() < instant(UNTIL)
    twin = json.loads((made / "report.json").read_text())
    assert "walking forward" in twin["facts"]["period"]
    assert "versions that looked at this period" not in twin["facts"]


def test_a_period_in_which_nothing_is_decided_is_left_out(tiny_base: Path, tmp_path: Path) -> None:
    settings, lines = config(tmp_path, tiny_base, bars=1900), list[str]()
    made = walk_forward(settings, shop_of(settings, lines.append), NOW)
    assert "period 2022-12-10 to 2022-12-30: 0 scenarios, left out" in lines, "bars end on 12-03"
    assert made.facts["periods"] == 1


@pytest.mark.parametrize("days", [0.5, 36.5, 1e10])
def test_a_period_has_whole_days(tiny_base: Path, tmp_path: Path, days: float) -> None:
    with pytest.raises(ValidationError, match="period_days"):
        config_in(tmp_path, tiny_base, walk_forward={"period_days": days})


def test_a_walk_into_the_held_out_period_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must follow each other"):
        config_in(tmp_path, tiny_base, walk_forward={"first": FIRST, "until": date(2023, 6, 1)})
