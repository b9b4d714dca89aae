"""What a rebuild takes is read off its own artefacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.learning.growth import Took, draw, rebuilt, took
from training.config.section import ConfigError


def artefact(folder: Path, stage: str, cpu_s: float, **facts: int) -> None:
    place = folder / f"{stage}-0123456789abcdef"
    place.mkdir(parents=True)
    manifest = {"stage": stage, "cost": {"cpu_s": cpu_s, "wall_s": 1.0}, "facts": facts}
    (place / "manifest.json").write_text(json.dumps(manifest))


def test_stages_are_told_apart(tmp_path: Path) -> None:
    for stage, seconds in (("scenarios", 10.0), ("teacher", 50.0), ("policy", 90.0)):
        artefact(tmp_path, stage, seconds)
    artefact(tmp_path, "encoded", 30.0, prompts=150)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shard").write_bytes(bytes(2**20))
    found = took(tmp_path, memory_gib=1.5)
    assert found[:4] == (150, 30.0, 90.0, 60.0)
    assert found.disk_gib == pytest.approx(1 / 1024, rel=0.01)
    assert found.line == "| 150 | 3.0 | 0.5 | 1.5 | 1.0 | 1.5 | 0.0 |"


def test_what_was_not_measured_is_dotted(tmp_path: Path) -> None:
    found = [
        Took(100, 50.0, 100.0, 30.0, 1.0, 0.25),
        Took(1000, 500.0, 1000.0, 30.0, 0.9, 2.5),
    ]
    draw(found, tmp_path / "growth.svg")
    drawn = (tmp_path / "growth.svg").read_text()
    assert "dotted: not measured" in drawn
    assert drawn.count("stroke-dasharray") >= 3


def test_a_rebuild_that_fails_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the rebuild of 10 scenarios failed"):
        rebuilt("bundled", ["typo.name=1"], 10, tmp_path)
