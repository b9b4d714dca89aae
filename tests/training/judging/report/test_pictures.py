"""What pictures show, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from training.judging.report.document import Plot, Section
from training.judging.report.pictures import by_month, forest, pairs
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
