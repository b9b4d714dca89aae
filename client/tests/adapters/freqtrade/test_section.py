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
        ({"run_modes": "backtest"}, "run_modes: 'backtest' is no list"),
        ({"run_modes": []}, "run_modes: .* is no list"),
        ({"follow": "false"}, "follow: 'false' is neither true nor false"),
        ({"enabled": "no"}, "enabled: 'no' is neither true nor false"),
        ({"enabled": 0}, "enabled: 0 is neither"),
        ({"bars": "350"}, "bars: '350' is no number"),
        ({"bars": 350.5}, "bars: 350.5 is no count"),
        ({"bars": 10**9}, "bars: 1000000000 is not from 0 to 4096"),
        ({"exits_hours": 10_000}, "exits_hours: 10000 is not from 1.0 to 720.0"),
        ({"deadline_s": -1}, "deadline_s: -1 is not from"),
        ({"backtest_wait_s": -1}, "backtest_wait_s: -1 is not from"),
    ],
)
def test_what_it_does_not_know_is_an_error_that_names_it(
    section: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        read_section({"shadow_advisor": section})


def test_a_section_is_keys_and_their_values() -> None:
    odd_ones: tuple[object, ...] = ([], "http://127.0.0.1:8321", True)
    for odd in odd_ones:
        with pytest.raises(ValueError, match="is no section of keys"):
            read_section({"shadow_advisor": odd})
    told = read_section({"shadow_advisor": {"follow": True, "bars": 0, "exits_hours": 24}})
    assert (told.follow, told.bars, told.exits_hours) == (True, 0, 24)


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
