"""What pictures show, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from matplotlib import colormaps

from training.judging.contest.arena import Played
from training.judging.contest.arms import Arm
from training.judging.contest.portfolio import Curve
from training.judging.report.arms import draw_curves
from training.judging.report.document import Plot, Section
from training.judging.report.pictures import (
    around,
    by_month,
    draw_trades,
    forest,
    pairs,
    readable_on,
    smoothed,
    widest,
)
from training.market.bars import Bars
from training.outcomes.orders import Order, Orders
from training.outcomes.simulate import Fates
from training.statistics.bootstrap import Estimate, none


def seconds(*when: tuple[int, int]) -> np.ndarray:
    return np.array([int(datetime(y, m, 15, tzinfo=UTC).timestamp()) for y, m in when])


def test_a_month_holds_the_sum_of_its_scenarios_and_nothing_where_it_had_none() -> None:
    years, table = by_month(seconds((2023, 12), (2023, 12), (2024, 1)), np.array([0.5, -0.2, 1.0]))
    assert years == [2023, 2024]
    assert table.shape == (2, 12)
    assert np.isclose(table[0, 11], 0.3)
    assert table[1, 0] == 1.0
    assert np.isfinite(table).sum() == 2


def test_every_scenario_is_in_one_pair_of_answers() -> None:
    agent, policy = np.array([True, True, False, False]), np.array([True, False, True, True])
    counts = {(one, other): int(here.sum()) for one, other, here in pairs(agent, policy)}
    assert counts == {(True, True): 1, (True, False): 1, (False, True): 2, (False, False): 0}


def test_the_widest_trades_are_the_agents_own_best_saved_first_and_worst_missed_first() -> None:
    gap = np.array([0.5, 9.0, -2.0, 1.2, 0.0, -0.1, 3.0, 0.7, -4.0])
    traded = np.array([True, False, True, True, True, True, True, True, True])
    assert widest(traded, gap).tolist() == [6, 3, 7, 8, 2, 5]
    assert widest(traded & (gap > 0), gap).tolist() == [6, 3, 7], "nothing was missed"
    assert widest(np.zeros(9, dtype=bool), gap).tolist() == []


def test_learning_is_shown_as_means_of_a_twentieth_of_its_steps() -> None:
    steps, means = smoothed(np.arange(40.0))
    assert (steps[0], means[0]) == (2, 0.5)
    assert (steps[-1], means[-1]) == (40, 38.5)
    assert [list(each) for each in smoothed(np.array([3.0, 1.0]))] == [[1, 2], [3.0, 1.0]]


def test_a_trade_is_shown_between_as_many_bars_before_and_after_it() -> None:
    closed_at = np.arange(1, 101) * 3600
    flat = np.full(100, 5.0)
    bars = Bars("BTCUSDT", 3600, closed_at, flat, flat, flat, flat, flat)
    shown = around(bars, opened=40 * 3600, ended=50 * 3600)
    assert (shown.closed_at[0] // 3600, shown.closed_at[-1] // 3600) == (30, 59)
    assert len(around(bars, opened=0, ended=3600)) == 3, "what is before the first bar is not there"


def test_trades_are_drawn_with_what_both_earned_and_one_that_is_open_still_is_not() -> None:
    closed_at = np.arange(1, 101) * 3600
    prices = 100 + np.sin(np.arange(100) / 5)
    bars = Bars("BTCUSDT", 3600, closed_at, prices, prices + 1, prices - 1, prices, prices)
    order = Order("BTCUSDT", 0, 100.0, 98.0, (102.0, 103.0, np.inf), 1.0, 1.0, 2.0)
    fates = Fates.unknown(3)
    for row, (begun, ended, sold) in enumerate(((20, 30, 98.0), (40, 45, 103.0))):
        fates.entered_at[row], fates.exited_at[row] = begun * 3600, ended * 3600
        fates.bought[row], fates.sold[row] = 100.0, sold
    agent = Played(Arm(Orders.of([order] * 3)), fates, np.array([-1.0, 1.5, 0.0]))
    section = Section("Apart")
    draw_trades(section, agent, np.array([0.0, 0.0, 9.0]), {"btcusdt": bars})
    [plot] = section.parts
    assert isinstance(plot, Plot)
    told = [
        words for words in ("agent -1.0 R", "agent +1.5 R", "agent +0.0 R") if words in plot.svg
    ]
    assert told == ["agent -1.0 R", "agent +1.5 R"]
    draw_trades(section, agent, agent.r, {"btcusdt": bars})
    assert len(section.parts) == 1, "nothing was saved or missed"


def test_a_forest_has_a_line_a_rival_and_colours_only_what_is_sure() -> None:
    section = Section("Arms")
    gaps = {
        "beaten": Estimate(0.2, 0.1, 0.3, 100),
        "luck": Estimate(0.1, -0.1, 0.3, 100),
        "better": Estimate(-0.2, -0.3, -0.1, 100),
        "unknown": none("no trades"),
    }
    forest(section, "Policy less rival", gaps)
    [plot] = section.parts
    assert isinstance(plot, Plot)
    assert all(word in plot.svg for word in ("beaten", "luck", "better"))
    assert "unknown" not in plot.svg
    assert "#1f7a6d" in plot.svg
    assert "#b3263a" in plot.svg
    forest(section, "Nothing to show", {"unknown": none("no trades")})
    assert len(section.parts) == 1


def test_numbers_on_the_heat_map_are_read_on_every_colour() -> None:
    """Dark green and dark red carry white, yellow and the pale colours black."""
    scale = colormaps["RdYlGn"]
    assert [readable_on(np.array(scale(at))) for at in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        "white", "black", "black", "black", "white",
    ]  # fmt: skip


def test_the_policy_is_seen_among_random_vetoes_on_a_scale_of_its_own() -> None:
    at = np.arange(3) * 86_400
    flat, market = (
        Curve(0, at, np.array(values), 1.0) for values in ([1.0, 1.01, 0.99], [1.0, 4.0, 6.0])
    )
    section = Section("As a portfolio")
    draw_curves(section, {"policy": flat, "buy and hold": market}, [flat, flat])
    plots = [part for part in section.parts if isinstance(part, Plot)]
    assert [plot.caption for plot in plots] == [
        "Equity",
        "Equity of the policy among draws of the random veto at its rate",
        "Drawdown",
    ]
    assert "random veto, 2 draws" in plots[1].svg
    assert "buy and hold" not in plots[1].svg
