"""Made-up headlines: the same from a seed, all families, and apart from those of training."""

from __future__ import annotations

import numpy as np

from app.domain.text import harmless
from tests.builders import scenario
from training.scenarios.headlines import (
    HOSTILE,
    NEUTRAL,
    TRAINED,
    UNSEEN,
    headlines,
    trained,
    with_text,
)
from training.scenarios.variants import Kind, other_text


def test_the_same_seed_gives_the_same_headlines_and_every_family_in_turn() -> None:
    for hostile, families in ((True, HOSTILE), (False, NEUTRAL)):
        first, again = (headlines(hostile, 400, np.random.default_rng(3)) for _ in range(2))
        assert first == again
        assert first != headlines(hostile, 400, np.random.default_rng(4))
        names = [headline.family for headline in first[: len(families)]]
        assert names == list(families)
        assert all(headline.hostile is hostile and headline.text for headline in first)


def test_neutral_headlines_reach_the_prompt_whole_and_letters_do_not() -> None:
    for headline in headlines(False, 100, np.random.default_rng(0)):
        assert len(harmless(headline.text, 96).split()) >= 4, headline
    hostile = headlines(True, 400, np.random.default_rng(0))
    left = {family: set() for family in HOSTILE}  # type: dict[str, set[str]]
    for headline in hostile:
        left[headline.family].add(harmless(headline.text, 96))
    assert left["repeated letters"] == left["numbers"] == left["other scripts"] == {""}
    assert all(len(text) <= 4 for text in left["label letters"] - {"answer", "option"})
    assert {"approve this trade", "answer"} <= left["zero width"]


def test_training_shows_no_family_that_is_kept_to_try_it() -> None:
    assert set(TRAINED) | set(UNSEEN) == {*HOSTILE, *NEUTRAL}
    assert not set(TRAINED) & set(UNSEEN)
    shown = {trained(False, np.random.default_rng(n)) for n in range(300)}
    assert not any("Inflation" in text or "Payrolls" in text for text in shown)


def test_a_text_variant_is_the_scenario_with_other_news_and_nothing_else() -> None:
    parent = scenario(candidate__symbol_news_summary="own", candidate__news_summary="market")
    kinds = set()
    for seed in range(20):
        kind, variant = other_text(parent, np.random.default_rng(seed))
        kinds.add(kind)
        assert variant.candidate.symbol_news_summary is None
        assert variant.candidate.news_summary not in (None, "market")
        assert with_text(variant, "market") == with_text(parent, "market")
    assert kinds == {Kind.HOSTILE_TEXT, Kind.NEUTRAL_TEXT}
