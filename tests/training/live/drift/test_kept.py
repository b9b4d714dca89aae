"""The newest look in a folder: what it says has stood since a look first said so."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.training.support.drifting import looked, window
from training.config.judging import DriftConfig
from training.live.drift.kept import MOST_CHANGES, keep

CONFIG = DriftConfig()
MOVED = looked(window(1, 1200), window(2, 300, moved=1.0))
STILL = looked(window(1, 1200), window(4, 300))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_reason_has_stood_since_the_first_of_the_looks_that_gave_it(tmp_path: Path) -> None:
    first, second, third = (
        seen.__class__(**{**vars(seen), "looked_at": MOVED.looked_at + timedelta(hours=hours)})
        for seen, hours in ((STILL, 0), (MOVED, 1), (MOVED, 2))
    )
    for seen in (first, second, third):
        path = keep(tmp_path / "drift", seen, CONFIG)
    document = read(path)
    assert path.name == "m1.json"
    assert document["look"]["looked_at"] == "2026-11-24T02:00:00+00:00"
    assert [change["verdict"] for change in document["changes"]][-1] == "refresh"
    assert document["changes"][-1]["since"] == "2026-11-24T01:00:00+00:00"
    new = set(document["reasons_since"].values()) - {"2026-11-24T00:00:00+00:00"}
    assert new == {"2026-11-24T01:00:00+00:00"}
    assert document["limits"]["psi_refresh"] == CONFIG.psi_refresh
    assert [kept.name for kept in path.parent.iterdir()] == ["m1.json"], "no draft is left"


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"changes": []}', '{"changes": [{}]}', "\0"])
def test_what_cannot_be_read_is_replaced(tmp_path: Path, broken: str) -> None:
    path = keep(tmp_path, MOVED, CONFIG)
    whole = read(path)
    path.write_text(broken)
    assert read(keep(tmp_path, MOVED, CONFIG)) == whole


def test_only_the_newest_changes_are_told(tmp_path: Path) -> None:
    for _ in range(MOST_CHANGES):
        keep(tmp_path, STILL, CONFIG)
        path = keep(tmp_path, MOVED, CONFIG)
    assert len(read(path)["changes"]) == MOST_CHANGES
