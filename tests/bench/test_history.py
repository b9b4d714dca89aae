"""Each run of a bench leaves a line; every bench is listed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.history import commit, processor, record
from bench.serving.load import Load
from tests.deploy.prometheus_tool import ROOT

X86 = """processor\t: 0
model name\t: AMD EPYC 9354
flags\t\t: fpu sse2 fma avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd sve
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_runs_are_appended_with_time_commit_and_machine(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    before = datetime.now(UTC).replace(microsecond=0)
    record("service", {"append_p50_ms": 0.5}, file)
    record("labels", {"ratio": 100.0}, file)
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["bench"], first["figures"]) == ("service", {"append_p50_ms": 0.5})
    assert (second["bench"], second["figures"]) == ("labels", {"ratio": 100.0})
    assert before <= datetime.fromisoformat(first["at"]) <= datetime.now(UTC)
    assert first["commit"] == commit()
    assert first["machine"]["cores"] >= 1


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        record("labels", {"ratio": float("nan")}, tmp_path / "history.jsonl")


def test_a_commit_says_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is no commit")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head[:12]
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == head[:12] + "+"


def test_the_first_processor_is_read_on_x86_and_arm_and_none_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text(X86)
    (tmp_path / "arm").write_text(ARM)
    assert processor(tmp_path / "x86")["model name"] == "AMD EPYC 9354"
    assert processor(tmp_path / "x86")["flags"] == "fpu sse2 fma avx2 avx512f avx512_vnni"
    assert processor(tmp_path / "arm")["flags"] == "fp asimd sve"
    assert processor(tmp_path / "missing") == {}


def test_quantiles_of_a_load_are_its_samples() -> None:
    load = Load([0.4, 0.1, 0.3, 0.2], 2.0)
    assert [load.quantile(share) for share in (0.0, 0.5, 0.99)] == [0.1, 0.3, 0.4]
    assert load.rate == 2


def test_the_list_of_benches_names_each_that_can_be_started() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = {line.split()[2].removeprefix("bench.") for line in listed}
    assert names == {
        "compare", "judging.claim", "judging.contest", "judging.gate", "judging.results",
        "learning.curve", "learning.gpu", "learning.growth", "learning.held_out", "learning.labels",
        "learning.legible", "learning.maker", "learning.planted", "learning.teacher",
        "learning.text", "learning.training", "learning.twins", "record.answers", "record.chain",
        "record.ingest", "record.questions", "record.tamper", "record.what_if", "serving.cascade",
        "serving.client", "serving.deciders", "serving.engines", "serving.flame",
        "serving.overload", "serving.peers", "serving.service", "serving.start",
        "serving.versions",
    }  # fmt: skip
    assert all(len(line.split()) > 6 for line in listed), "each says what it measures"
