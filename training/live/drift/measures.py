"""Measures of drift between two samples, and of change within a stream: numbers in, numbers out.

`MEASURES`, at the end, lists what is looked at in every decision: its name, the number, how it is
compared, and the thresholds. A sample's size counts for less when neighbours in time are alike:
every p-value here uses effective sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from river.drift import ADWIN
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from training.arrays import Floats, Rows
from training.config.judging import DriftConfig
from training.statistics.bootstrap import block_length, resamples

BINS = 10
DRAWS = 200


def effective_size(values: Floats) -> float:
    """n / (1 + 2 x sum of autocorrelations), those before the first negative pair (Geyer 1992,
    section 3.3).

    `values` of shape (N,) in order of time; NaN counts as the mean. Between 1 and the number of
    known values.
    """
    finite = np.isfinite(values)
    count = int(finite.sum())
    if count < 2:
        return float(count)
    centred = np.where(finite, values - values[finite].mean(), 0.0)
    size = len(values)
    spectrum = np.abs(np.fft.rfft(centred, 2 * size)) ** 2
    covariance = np.fft.irfft(spectrum)[:size]
    if covariance[0] <= 0:
        # A constant: every value says the same, and there is nothing to be unsure of.
        return float(count)
    correlation = covariance / covariance[0]
    pairs = correlation[: size - size % 2].reshape(-1, 2).sum(axis=1)
    stop = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
    return float(np.clip(count / max(2 * pairs[:stop].sum() - 1, 1.0), 1.0, count))


def bins_of(reference: Floats) -> Floats:
    """Inner edges of the bins: between values where there are few, else the reference's deciles."""
    values = np.unique(reference[np.isfinite(reference)])
    if not len(values):
        return np.zeros(0)
    if len(values) <= BINS:
        middles = (values[:-1] + values[1:]) / 2
        return np.concatenate(
            [[np.nextafter(values[0], -np.inf)], middles, [np.nextafter(values[-1], np.inf)]]
        )
    return np.unique(np.nanquantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))


def counts_in(values: Floats, edges: Floats) -> Floats:
    """How many values lie in each bin, and in the last place how many are NaN; shape (len(edges) +
    2,)."""
    finite = values[np.isfinite(values)]
    inside = np.bincount(np.searchsorted(edges, finite, side="right"), minlength=len(edges) + 1)
    return np.append(inside, len(values) - len(finite)).astype(float)


def psi(reference: Floats, recent: Floats) -> tuple[float, int]:
    """Population stability index: sum of (q - p) ln(q / p) over bins, and the number of bins that
    are in use.

    `p` and `q` are the shares of the reference and of the recent values; what is not known has a
    bin of its own, and an empty bin counts as half a value. Credit scoring's rule of thumb (Siddiqi
    2006): below 0.1 stable, above 0.25 not.
    """
    edges = bins_of(reference)
    first, second = counts_in(reference, edges), counts_in(recent, edges)
    used = first + second > 0
    p = np.maximum(first[used], 0.5) / len(reference)
    q = np.maximum(second[used], 0.5) / len(recent)
    return float(((q - p) * np.log(q / p)).sum()), int(used.sum())


def psi_p_value(value: float, bins: int, reference: float, recent: float) -> float:
    """Without drift, PSI x n m / (n + m) follows chi-square with bins - 1 degrees of freedom
    (Yurdakul 2018, ch. 3)."""
    if bins < 2:
        return 1.0
    return float(stats.chi2.sf(value * reference * recent / (reference + recent), bins - 1))


def ks(reference: Floats, recent: Floats) -> float:
    """Kolmogorov-Smirnov distance of the known values, 0 to 1; 0 when either sample has none."""
    first, second = (values[np.isfinite(values)] for values in (reference, recent))
    if not len(first) or not len(second):
        return 0.0
    return float(stats.ks_2samp(first, second, method="asymp").statistic)


def ks_p_value(distance: float, reference: float, recent: float) -> float:
    """Asymptotic p-value (Smirnov 1948) at the effective sizes."""
    return float(stats.kstwobign.sf(distance * np.sqrt(reference * recent / (reference + recent))))


class Shift(NamedTuple):
    """How far one number's distribution moved."""

    name: str
    psi: float
    ks: float
    p_value: float
    """Of either distance, times two for looking at both."""
    reference_mean: float | None
    recent_mean: float | None
    """Of the known values; None when there are none."""
    reference_missing: float
    recent_missing: float
    """Shares that are not known."""

    @property
    def size(self) -> float:
        """What thresholds are about."""
        return self.psi

    @property
    def says(self) -> str:
        """In words."""
        return f"{self.name}: PSI {self.psi:.2f}"


def shift(name: str, reference: Floats, recent: Floats) -> Shift:
    """Compare two samples of shape (N,) and (M,), each in order of time; NaN is not known."""
    sizes = max(effective_size(reference), 1.0), max(effective_size(recent), 1.0)
    value, bins = psi(reference, recent)
    distance = ks(reference, recent)
    p_value = min(1.0, 2 * min(psi_p_value(value, bins, *sizes), ks_p_value(distance, *sizes)))
    means = _mean(reference), _mean(recent)
    return Shift(name, value, distance, p_value, *means, _missing(reference), _missing(recent))


def _mean(values: Floats) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _missing(values: Floats) -> float:
    return float(1 - np.isfinite(values).mean())


class Move(NamedTuple):
    """How far a mean moved."""

    name: str
    reference: float
    recent: float
    p_value: float

    @property
    def size(self) -> float:
        """What thresholds are about, with its sign."""
        return self.recent - self.reference

    @property
    def says(self) -> str:
        """In words."""
        return f"{self.name} went from {self.reference:.0%} to {self.recent:.0%}"


def move(name: str, reference: Floats, recent: Floats) -> Move | None:
    """Difference of means by a z test at effective sizes; None when either sample has fewer than
    two known values."""
    samples = [values[np.isfinite(values)] for values in (reference, recent)]
    if min(len(sample) for sample in samples) < 2:
        return None
    means = [float(sample.mean()) for sample in samples]
    pooled = np.concatenate(samples)
    error = np.sqrt(pooled.var() * sum(1 / effective_size(sample) for sample in samples))
    p_value = float(2 * stats.norm.sf(abs(means[1] - means[0]) / error)) if error > 0 else 1.0
    return Move(name, means[0], means[1], p_value)


class Change(NamedTuple):
    """A change that the online detector found in a stream."""

    name: str
    noticed: int
    """Position in the stream at which it was noticed."""
    began: int
    """First position after the change, as far as can be told."""
    before: float
    after: float
    """Means of the two sides, from the change before up to where it was noticed."""


def changes(
    name: str, values: Floats, delta: float, bounds: tuple[float, float] = (0.0, 1.0)
) -> list[Change]:
    """ADWIN (Bifet & Gavalda 2007): every change of the mean of a stream, at confidence 1 - delta
    per cut.

    ADWIN says that there was a change, and only roughly where: its window shrinks by whole buckets.
    The place is where the two sides differ most, in standard errors; the detector then begins anew
    behind it.

    `values` of shape (N,) in order of time, without NaN; beyond the bounds they are clipped.
    """
    low, high = bounds
    clipped = np.clip(values, low, high)
    scaled = (clipped - low) / (high - low)  # the detector wants numbers between 0 and 1
    changes: list[Change] = []
    detector, last = ADWIN(delta=delta), 0
    for number, value in enumerate(scaled):
        detector.update(float(value))
        if detector.drift_detected:
            began = last + _split(scaled[last : number + 1])
            before, after = clipped[last:began].mean(), clipped[began : number + 1].mean()
            changes.append(Change(name, number, began, float(before), float(after)))
            detector, last = ADWIN(delta=delta), began
            for again in scaled[began : number + 1]:
                detector.update(float(again))
    return changes


def _split(values: Floats) -> int:
    """Where to cut so that the means of both sides differ most, in standard errors; at least one
    value on each side."""
    count = len(values)
    left = np.arange(1, count)
    gap = np.cumsum(values)[:-1] - left * values.mean()
    return int(np.argmax(np.abs(gap) / np.sqrt(left * (count - left)))) + 1


class ExpectedReward(NamedTuple):
    """Mean R of the advice's approvals, estimated before their outcomes are known."""

    expected: float
    low: float
    high: float
    """Bounds of 95 %: blocks of both samples are resampled, and the curve is fitted anew."""
    reference: float
    """What approvals earned in the reference window."""


def expected_reward(
    reference_probability: Floats,
    reference_reward: Floats,
    recent_probability: Floats,
    seed: int = 0,
) -> tuple[ExpectedReward, IsotonicRegression]:
    """What recent approvals will earn, judging by the model's own confidence; and the curve that
    says so.

    The idea of confidence-based performance estimation (NannyML's CBPE) carried from accuracy to
    reward: on approvals with known outcomes the mean reward is fitted as a rising function of the
    approval probability (isotonic regression), and averaged over the recent approvals'
    probabilities.

    It assumes that reward given probability is as it was (no concept drift): it sees approvals move
    to where the model earned less, not a market in which the same confidence earns less. The
    residuals see that, once outcomes arrive. The curve is level beyond the probabilities that the
    reference has.

    Parameters
    ----------
    reference_probability, reference_reward : shape (N,), approvals with outcomes (R).
    recent_probability : shape (M,), approvals.
    """
    curve = IsotonicRegression(out_of_bounds="clip").fit(reference_probability, reference_reward)
    expected = float(curve.predict(recent_probability).mean())
    sampled = []
    for rows, recent_rows in zip(
        _samples(reference_reward, seed), _samples(recent_probability, seed + 1), strict=True
    ):
        again = IsotonicRegression(out_of_bounds="clip").fit(
            reference_probability[rows], reference_reward[rows]
        )
        sampled.append(again.predict(recent_probability[recent_rows]).mean())
    low, high = np.quantile(sampled, [0.025, 0.975])
    return ExpectedReward(expected, float(low), float(high), float(reference_reward.mean())), curve


def _samples(values: Floats, seed: int) -> Rows:
    """(DRAWS, N) rows of stationary bootstrap samples, in blocks that suit the values."""
    return np.concatenate(list(resamples(len(values), block_length(values), DRAWS, seed)))


Row = Mapping[str, Any]
"""Of `log.judged_between`."""


@dataclass(frozen=True)
class Measure:
    """A number of every decision, and what about it is looked at.

    number : of a row; NaN where it is not known or not applicable.
    compare : of the reference's and the recent numbers, if they are compared; None when there are
        too few.
    limits : sizes from which it is to be watched, and from which the model is to be made anew.
    changes_within : bounds of the number, if the detector looks for changes within the window.
    """

    name: str
    number: Callable[[Row], float]
    compare: Callable[[str, Floats, Floats], Shift | Move | None] | None = None
    limits: Callable[[DriftConfig], tuple[float, float]] = lambda config: (math.inf, math.inf)
    changes_within: Callable[[DriftConfig], tuple[float, float]] | None = None


def _column(name: str) -> Callable[[Row], float]:
    return lambda row: math.nan if row[name] is None else float(row[name])


def _reward(row: Row) -> float:
    """R of the advised order, of approvals with an outcome."""
    return _column("advice_r")(row) if row["advice_approve"] else math.nan


def _psi_limits(config: DriftConfig) -> tuple[float, float]:
    return config.psi_watch, config.psi_refresh


def _rate_limits(config: DriftConfig) -> tuple[float, float]:
    return config.rate_watch, config.rate_refresh


def _share(config: DriftConfig) -> tuple[float, float]:
    return 0.0, 1.0


def _clipped_reward(config: DriftConfig) -> tuple[float, float]:
    return -config.clip_r, config.clip_r


MEASURES = (
    Measure("label_mass", _column("label_mass"), shift, _psi_limits, _share),
    Measure("approve_probability", _column("approve_probability"), shift, _psi_limits),
    Measure("agreement", _column("agree"), move, _rate_limits, _share),
    Measure("approval", _column("advice_approve"), move, _rate_limits),
    Measure("agent_approval", _column("agent_approve"), move, _rate_limits),
    Measure("abstention", lambda row: float(row["status"] == "abstained"), move, _rate_limits),
    Measure("reward", _reward, changes_within=_clipped_reward),
)
