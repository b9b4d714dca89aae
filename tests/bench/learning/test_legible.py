"""Numbers as words: fifths by hand, and what stays as it is."""

from __future__ import annotations

import pytest

from app.domain.model.prompt import Line, LineKind
from bench.learning.legible import edges_of, in_words


def text(rsi: int, news: str = "price 30 thousand") -> list[Line]:
    return [
        Line(LineKind.SCORES, "score 6.5 of 5.5"),
        Line(LineKind.INDICATORS, f"rsi {rsi} support"),
        Line(LineKind.NEWS, f"news <<{news}>>"),
    ]


def test_a_number_is_the_word_for_its_fifth_of_those_seen_before() -> None:
    edges = edges_of([text(rsi) for rsi in range(0, 101)])
    assert edges["rsi"] == pytest.approx([20, 40, 60, 80])
    shown = [in_words(text(rsi), edges)[1].text for rsi in (5, 21, 59, 99)]
    assert shown == [
        "rsi very low support",
        "rsi low support",
        "rsi middle support",
        "rsi very high support",
    ]


def test_news_stay_and_so_do_numbers_that_nobody_saw_before() -> None:
    edges = edges_of([text(rsi) for rsi in range(0, 101)])
    assert "price" not in edges
    words = in_words([*text(50), Line(LineKind.FLOW, "volume 7")], edges)
    assert words[2].text == "news <<price 30 thousand>>"
    assert words[3].text == "volume 7"
