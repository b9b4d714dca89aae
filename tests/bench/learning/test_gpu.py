"""The GPU's script on the CPU, with a tiny model: it runs through, and counts as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench.learning.gpu
from bench.learning.gpu import Passed, base_pass, served, trained
from bench.learning.planted import ALGORITHMS, planted_problem
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


def test_decisions_are_counted_by_how_many_were_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    monkeypatch.setitem(bench.learning.gpu.SHAPES, "135M", small)
    monkeypatch.setattr(bench.learning.gpu, "VOCABULARY", 64)
    weights = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32 + 2 * 16)  # of the layers alone
    for done in served("135M", torch.bfloat16, torch.device("cpu"), "H100", (1, 3)):
        assert (done.shape, done.weights) == ("135M", "bfloat16")
        assert done.per_s == pytest.approx(1000 * done.at_once / done.p50_ms)
        flops = 2 * weights * 128 * done.at_once / (done.p50_ms / 1000)
        assert done.used == pytest.approx(flops / 989e12)
