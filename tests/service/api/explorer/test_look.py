"""Numbers on pages say what they are."""

from __future__ import annotations

import pytest

from app.api.explorer.look import price, signed


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
