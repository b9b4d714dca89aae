"""Numbers on pages say what they are."""

from __future__ import annotations

import pytest

from app.api.explorer.look import lapse, price, signed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (40000.0, "40,000"),
        (1234567.25, "1,234,567.25"),
        (0.00001234, "0.00001234"),
        (1.5e-9, "0.0000000015"),
        (-2e-12, "-0.000000000002"),
        (5e-314, "5e-314"),
        (1e300, "1e+300"),
        (float("nan"), "–"),
    ],
)
def test_a_price_is_never_shown_as_nothing_nor_as_hundreds_of_digits(
    value: float, shown: str
) -> None:
    assert price(value) == shown


def test_what_is_no_number_has_no_sign() -> None:
    assert (signed(float("inf")), signed(-1.5)) == ("–", "-1.50")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.25, "+0.2 s"),
        (119.0, "+119.0 s"),
        (-120.0, "-2.0 min"),
        (6 * 3600.0, "+6.0 h"),
        (3 * 86400.0, "+3.0 days"),
        (-284277203.8, "-9.0 years"),
    ],
)
def test_a_length_of_time_is_told_in_a_unit_that_is_read_at_a_glance(
    seconds: float | None, shown: str
) -> None:
    assert lapse(seconds) == shown
