"""Distances, moves and changes by hand, and on processes whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.config.judging import DriftConfig
from training.live.drift.measures import (
    MEASURES,
    bins_of,
    changes,
    counts_in,
    effective_size,
    expected_reward,
    ks,
    ks_p_value,
    move,
    psi,
    psi_p_value,
    shift,
)

CONFIG = DriftConfig()


def test_psi_by_hand() -> None:
    """Half and half against a quarter and three quarters: 0.25 ln 1.5 - 0.25 ln 0.5."""
    value, bins = psi(np.array([0.0, 1.0] * 4), np.array([0.0, 1.0, 1.0, 1.0]))
    assert value == pytest.approx(0.25 * math.log(1.5) - 0.25 * math.log(0.5))
    assert bins == 2
    assert psi_p_value(value, 2, 8, 4) == pytest.approx(math.erfc(math.sqrt(value * 32 / 12 / 2)))


def test_what_is_not_known_has_a_bin_of_its_own_and_an_empty_bin_counts_half() -> None:
    """None of four was unknown, then two of four: (0.5 - 1) ln(0.5 / 1) + (0.5 - 0.125) ln(0.5 /
    0.125)."""
    value, bins = psi(np.ones(4), np.array([1.0, 1.0, np.nan, np.nan]))
    assert value == pytest.approx(-0.5 * math.log(0.5) + 0.375 * math.log(4))
    assert bins == 2


@pytest.mark.parametrize(
    ("reference", "recent"), [([1.0] * 5, [2.0] * 5), ([0.0, 1.0] * 5, [7.0] * 5)]
)
def test_a_value_that_the_reference_never_had_is_seen(
    reference: list[float], recent: list[float]
) -> None:
    assert psi(np.array(reference), np.array(recent))[0] > 1


def test_many_values_fall_into_tenths_of_the_reference() -> None:
    reference = np.arange(1000.0)
    assert list(counts_in(reference, bins_of(reference))) == [100.0] * 10 + [0.0]


def test_ks_by_hand() -> None:
    first, second = np.array([1.0, 2, 3, 4, np.nan]), np.array([3.0, 4, 5, 6])
    assert ks(first, second) == 0.5
    assert ks(first, np.full(3, np.nan)) == 0.0
    # The 5 % point of Kolmogorov's distribution is 1.3581.
    assert ks_p_value(1.3581 / math.sqrt(50), 100, 100) == pytest.approx(0.05, abs=1e-4)


def test_the_effective_size_of_noise_is_its_length_and_of_a_slow_process_far_less() -> None:
    """An AR(1) of coefficient a has n (1 - a) / (1 + a): 0.9 leaves a nineteenth."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20_000)
    assert effective_size(noise) > 18_000
    slow = np.empty_like(noise)
    slow[0] = noise[0]
    for n in range(1, len(noise)):
        slow[n] = 0.9 * slow[n - 1] + noise[n]
    assert effective_size(slow) == pytest.approx(20_000 / 19, rel=0.15)
    assert effective_size(np.full(50, 3.0)) == 50
    assert effective_size(np.full(50, np.nan)) == 0


def test_a_move_of_a_mean_is_tested_by_its_standard_error() -> None:
    """60 of 100 against 40 of 100: z = 0.2 / sqrt(0.25 x 2 / 100) = 2.828, p = 0.00468."""
    half = np.random.default_rng(1).permutation(np.repeat([1.0, 0.0], [60, 40]))
    other = np.random.default_rng(2).permutation(np.repeat([1.0, 0.0], [40, 60]))
    found = move("x", half, other)
    assert found is not None
    assert (found.reference, found.recent) == (0.6, 0.4)
    sizes = effective_size(half), effective_size(other)
    z = 0.2 / math.sqrt(0.25 * (1 / sizes[0] + 1 / sizes[1]))
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert move("x", np.full(3, np.nan), half) is None


def test_the_detector_finds_a_planted_change_and_where_it_was() -> None:
    rng = np.random.default_rng(3)
    stream = np.concatenate([rng.random(1000) < 0.7, rng.random(500) < 0.3]).astype(float)
    found = changes("agreement", stream, 0.001)
    assert len(found) == 1
    assert 1000 <= found[0].noticed < 1100
    assert found[0].began == pytest.approx(1000, abs=20)
    assert found[0].before == pytest.approx(0.7, abs=0.05)
    assert found[0].after == pytest.approx(0.3, abs=0.1)


def test_the_detector_is_silent_without_a_change() -> None:
    alarms = [
        bool(changes("x", (np.random.default_rng(seed).random(1500) < 0.6).astype(float), 0.001))
        for seed in range(40)
    ]
    assert sum(alarms) <= 1


def test_the_expected_reward_is_what_the_confidences_promise() -> None:
    """Confident approvals earned 1 R and hesitant ones lost 1 R, half each; three of four recent
    ones hesitate."""
    confidence = np.tile([0.9, 0.5], 100)
    earned = np.tile([1.0, -1.0], 100)
    estimate, curve = expected_reward(confidence, earned, np.tile([0.9, 0.5, 0.5, 0.4], 50))
    assert estimate.expected == pytest.approx(-0.5)
    assert estimate.reference == 0
    assert estimate.low <= -0.5 <= estimate.high < 0
    assert list(curve.predict([0.2, 0.7, 0.95])) == pytest.approx([-1, 0, 1])


def test_features_that_drift_in_slow_waves_are_not_significant() -> None:
    """A process far slower than the window: a distance as large as a shift, and yet no evidence."""
    rng = np.random.default_rng(5)
    slow = np.empty(1500)
    slow[0] = 0
    for n in range(1, 1500):
        slow[n] = 0.998 * slow[n - 1] + rng.normal()
    found = shift("slow", slow[:1200], slow[1200:])
    assert found.psi > CONFIG.psi_refresh
    assert found.p_value > CONFIG.alpha


def test_a_change_of_a_bounded_number_is_told_in_its_own_unit() -> None:
    """From 1 R to -1 R within bounds of 3 R, but for one outlier of 50 R that counts as 3."""
    stream = np.concatenate([np.full(400, 1.0), np.full(400, -1.0)])
    stream[10] = 50.0
    (found,) = changes("reward", stream, 0.001, (-3.0, 3.0))
    assert found.began == 400
    assert found.before == pytest.approx((399 + 3) / 400)
    assert found.after == pytest.approx(-1.0)


def test_every_measure_reads_its_number_of_a_row() -> None:
    row = {
        "label_mass": 0.9,
        "approve_probability": None,
        "agree": True,
        "advice_approve": False,
        "agent_approve": None,
        "status": "abstained",
        "advice_r": 0.0,
    }
    read = {measure.name: measure.number(row) for measure in MEASURES}
    unknown = {name for name, number in read.items() if math.isnan(number)}
    assert unknown == {"approve_probability", "agent_approval", "reward"}, "nothing was approved"
    assert {name: read[name] for name in read.keys() - unknown} == {
        "label_mass": 0.9,
        "agreement": 1.0,
        "approval": 0.0,
        "abstention": 1.0,
    }
