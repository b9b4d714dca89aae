"""What the newest look at drift says, on a page: the file that training wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from app.api.explorer.looks import looks_in
from tests.service.api.explorer.site import Site
from tests.training.support.drifting import looked, window
from training.config.judging import DriftConfig
from training.live.drift.kept import keep

MOVED = looked(window(1, 1200), window(2, 300, moved=1.0))
FEW = looked(window(1, 12), window(2, 3))


async def test_a_page_tells_what_the_newest_look_says(site: Site) -> None:
    assert "Nobody has looked at drift yet" in (await site.get("/ui/drift")).text
    await site.decide("it")
    await site.stored()
    keep(site.api.settings.looks_folder, MOVED, DriftConfig())
    shown = re.sub(r"\s+", " ", (await site.get("/ui/drift")).text)
    assert '<span class="drift refresh">refresh</span> <small>since 2026-11-24 00:00:00' in shown
    for reason in MOVED.reasons:
        assert reason.says in shown
    for shift in MOVED.features:
        assert f'<th scope="row">{shift.name}</th><td class="n">{shift.psi:,.3f}</td>' in shown
    options = re.search(r'id="shifts-options">(.*?)</script>', shown)
    assert options is not None
    drawn = json.loads(options[1])["series"][0]["data"]
    farthest = max(shift.psi for shift in (*MOVED.features, *MOVED.distributions))
    assert drawn[0]["value"] == round(farthest, 4)
    assert "m1 drifts: refresh, since 2026-11-24" in (await site.get("/ui")).text


async def test_a_look_that_compared_nothing_says_so(site: Site) -> None:
    keep(site.api.settings.looks_folder, FEW, DriftConfig())
    shown = (await site.get("/ui/drift?version=m1")).text
    assert "each side needs 100 decisions" in shown
    assert "12 decisions in the reference and 3 recent ones" in shown
    assert (await site.get("/ui/drift?version=..%2fm1")).status_code == 404
    assert (await site.get("/ui/drift", "agent")).status_code == 403


@pytest.mark.parametrize("broken", ["", "{}", "[" * 5000, '{"look": {"verdict": 1}}', "\0"])
async def test_a_file_that_is_no_look_is_named_and_breaks_nothing(site: Site, broken: str) -> None:
    folder = site.api.settings.looks_folder
    keep(folder, MOVED, DriftConfig())
    (folder / "other.json").write_text(broken)
    shown = await site.get("/ui/drift")
    assert shown.status_code == 200
    assert "other.json" in shown.text
    assert "m1" in shown.text


def test_a_number_that_is_none_makes_no_look(tmp_path: Path) -> None:
    path = keep(tmp_path, MOVED, DriftConfig())
    document = json.loads(path.read_text())
    document["look"]["age_days"] = float("nan")
    path.write_text(json.dumps(document))
    assert looks_in(tmp_path).unreadable == ["m1.json"]
