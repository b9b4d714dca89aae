"""The section of freqtrade's configuration."""

from __future__ import annotations

import pytest

from shadow_advisor_client.adapters.freqtrade import ShadowAdvisor
from shadow_advisor_client.adapters.freqtrade.section import Section, read_section


def test_nothing_needs_to_be_said_and_a_back_test_asks_only_when_named() -> None:
    assert read_section({}) == Section()
    assert Section().run_modes == ("dry_run", "live")


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"uri": "http://x"}, "uri"),
        ({"exits": "mine"}, "mine"),
        ({"run_modes": ["backtest", "hyperopt"]}, "hyperopt"),
    ],
)
def test_what_it_does_not_know_is_an_error_that_names_it(
    section: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        read_section({"shadow_advisor": section})


class IStrategy:
    """Freqtrade's, as far as the order of classes goes."""

    def __init__(self, config: dict[str, object]) -> None:
        self.config = config


def test_the_mixin_stands_before_the_strategy() -> None:
    with pytest.raises(TypeError, match="stands before"):
        type("Wrong", (IStrategy, ShadowAdvisor), {})


def test_a_mode_that_is_not_named_leaves_the_strategy_as_it_is() -> None:
    strategy = type("Quiet", (ShadowAdvisor, IStrategy), {})({"runmode": "hyperopt"})
    assert strategy.shadow_advisor is None
    assert set(vars(strategy)) == {"config"}
