"""The GPU's script on the CPU, with a tiny model: it runs through, and counts as it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu import Passed, base_pass, trained
from bench.planted import ALGORITHMS, planted_problem
from tests.policy.tiny_models import write_manifest
from tests.training.support.planted import tiny_reader


def test_the_chip_s_share_is_arithmetic_over_time_over_peak() -> None:
    passed = Passed(prompts=10, tokens=1000, seconds=2.0, flops=98.9e12)
    assert passed.tokens_per_s == 500
    assert passed.used("NVIDIA H100 80GB HBM3") == pytest.approx(98.9e12 / 2 / 989e12)
    assert passed.used("cpu") is None


def test_a_base_pass_counts_every_token_once_and_the_head_once(tmp_path: Path) -> None:
    reader, _ = tiny_reader(tmp_path)
    some, more = (base_pass(reader, count, batch=4) for count in (3, 6))
    head = len(reader.encoder.head)
    assert head < some.tokens < more.tokens
    weights = sum(parameter.numel() for parameter in reader.model.parameters())
    assert more.flops == 2.0 * weights * more.tokens


def test_every_algorithm_is_trained_and_timed(tmp_path: Path) -> None:
    reader, base = tiny_reader(tmp_path)
    write_manifest(base, "base-1")
    given, _ = planted_problem(tmp_path / "planted", base, reader, 24, 0)
    changes = {"epochs": 1, "max_majority": 1.0, "min_entropy": 0.0}
    done = list(trained(given, reader, tmp_path / "made", changes))
    assert [name for name, _, _ in done] == list(ALGORITHMS)
    assert all(seconds > 0 and share <= 1 for _, seconds, share in done)
