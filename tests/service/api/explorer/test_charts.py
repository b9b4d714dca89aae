"""Charts are read without a ruler: round prices, labels apart, time as long as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.api.explorer.charts import (
    LABEL_PX,
    PLOT_PX,
    agreement,
    behaviour,
    candles,
    difference,
    probabilities,
    running_r,
)
from app.shadow_log.bar_files import Candle

AT = datetime(2026, 11, 26, 12, tzinfo=UTC)


def drawn(low: float, high: float, **agent: float) -> Any:
    """A chart of three bars between two prices, and the levels of the agent's order."""
    bars = [Candle(AT + timedelta(hours=i), low, high, low, high) for i in range(3)]
    return candles(bars, AT, {"agent": agent}, [])


def moved(chart: Any) -> dict[str, float]:
    """How far each label lies below its line, from the highest price down."""
    marks = [mark for mark in chart["series"][0]["markLine"]["data"] if "yAxis" in mark]
    return {mark["name"]: mark["label"]["padding"][0] + LABEL_PX / 2 for mark in marks}


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (4585.2, 5072.891462885187, (4500, 5100, 100)),
        (0.08123, 0.08789, (0.08, 0.088, 0.002)),
        (0.99, 1.01, (0.99, 1.01, 0.005)),
        (7.0, 7.0, (None, None, 0.000002)),
        (0.0, 5e-314, (0.0, None, None)),
        (1.0, 1e300, (0.0, 1e300, 2e299)),
    ],
)
def test_an_axis_of_prices_ends_and_steps_at_numbers_that_people_read(
    low: float, high: float, ends: tuple[float | None, ...]
) -> None:
    axis = drawn(low, high, entry=high)["yAxis"]
    for name, end in zip(("min", "max", "interval"), ends, strict=True):
        assert end is None or axis[name] == pytest.approx(end, rel=1e-12)
    assert axis["min"] <= low
    assert axis["max"] >= high
    assert axis["max"] > axis["min"]


def test_labels_of_prices_near_each_other_are_moved_apart_and_stay_beside_the_plot() -> None:
    """On 1,000 to 1,600 a price is 0.55 pixels."""
    far = drawn(1000.0, 1600.0, stop=1100.0, entry=1300.0, tp1=1500.0)
    assert set(moved(far).values()) == {0.0}
    near = drawn(1000.0, 1600.0, tp2=1310.0, tp1=1305.0, entry=1300.0, stop=1000.0, floor=1002.0)
    assert moved(near) == {
        "agent: tp2": 0.0,
        "agent: tp1": pytest.approx(LABEL_PX - 0.55 * 5, abs=0.1),
        "agent: entry": pytest.approx(2 * LABEL_PX - 0.55 * 10, abs=0.1),
        "agent: floor": pytest.approx(-LABEL_PX + 0.55 * 2, abs=0.1),
        "agent: stop": 0.0,
    }
    assert pytest.approx(0.55) == PLOT_PX / 600


def test_each_action_has_a_line_of_its_own() -> None:
    chart = probabilities(["reject", "0.25 of risk, 1 ATR"], {"a": [0.9, 0.1], "b": [0.5, 0.5]})
    assert chart["yAxis"]["data"] == ["reject", "0.25 of risk, 1 ATR"]
    assert [series["data"] for series in chart["series"]] == [[0.9, 0.1], [0.5, 0.5]]
    assert chart["legend"]["show"]


def test_days_lie_along_time_as_far_apart_as_they_were() -> None:
    days, values = ["2017-11-25", "2026-11-23"], [0.5, 1.0]
    for chart in (running_r(days, values, values), difference(days, [None, None])):
        assert chart["xAxis"] == {"type": "time"}
        for series in chart["series"]:
            assert [day for day, _ in series["data"]] == days
            assert series["step"] == "end", "a sum stays what it was until it is another"


def test_a_line_of_shares_does_not_cross_years_without_decisions() -> None:
    days, values = ["2017-11-24", "2017-11-25", "2026-11-23"], [0.5, 0.25, 1.0]
    for chart in (agreement(days, values), behaviour(days, {"agreement": values})):
        assert chart["xAxis"] == {"type": "time"}
        assert chart["series"][0]["data"] == [
            ["2017-11-24", 0.5],
            ["2017-11-25", 0.25],
            ["2017-11-25", None],
            ["2026-11-23", 1.0],
        ]
    assert agreement([], [])["series"][0]["data"] == []
