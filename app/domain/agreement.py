"""Agreement between two raters who say yes or no."""

from __future__ import annotations

from collections.abc import Iterable


def cohens_kappa(pairs: Iterable[tuple[bool, bool]]) -> float:
    """Cohen (1960): (p_o - p_e) / (1 - p_e); NaN without pairs or when chance agreement is
    certain."""
    both = [(int(a), int(b)) for a, b in pairs]
    if not both:
        return float("nan")
    n = len(both)
    observed = sum(a == b for a, b in both) / n
    first, second = sum(a for a, _ in both) / n, sum(b for _, b in both) / n
    expected = first * second + (1 - first) * (1 - second)
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)
