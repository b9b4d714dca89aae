"""Agreement beyond chance and regimes, by hand."""

from __future__ import annotations

import math

import pytest

from app.domain.record.comparison import Regime, cohens_kappa, regime
from tests.domain.scenarios import scenario


@pytest.mark.parametrize(
    ("percentile", "expected"),
    [
        (None, Regime.UNKNOWN),
        (0.0, Regime.CALM),
        (0.3299, Regime.CALM),
        (0.33, Regime.NORMAL),
        (0.7499, Regime.NORMAL),
        (0.75, Regime.VOLATILE),
        (1.0, Regime.VOLATILE),
    ],
)
def test_a_regime_begins_at_its_lower_bound(percentile: float | None, expected: Regime) -> None:
    assert regime(scenario(candidate__volatility_pct=percentile).candidate) is expected


def test_kappa_by_hand() -> None:
    # 20 both yes, 5 only the first, 10 only the second, 15 neither: observed 0.7, yes in 0.5 and
    # 0.6, so expected 0.5 x 0.6 + 0.5 x 0.4 = 0.5; (0.7 - 0.5) / 0.5 = 0.4.
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([(True, True), (False, False)]) == 1
    assert cohens_kappa([(True, False), (False, True)]) == -1


def test_kappa_of_nothing_or_of_certain_agreement_is_no_number() -> None:
    assert math.isnan(cohens_kappa([]))
    assert math.isnan(cohens_kappa([(True, True)] * 3))
