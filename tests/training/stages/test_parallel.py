"""The same function over many things: here, in processes, on Ray; the order and the results are the
same."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tests.training.support.candles import HOUR, START, random_walk
from training.arrays import DAY_S
from training.judging.contest.performance import performance
from training.judging.contest.portfolio import Book, Clock, Trades, trade
from training.stages.parallel import BackendMissing, over


def books(count: int) -> list[Book]:
    """Portfolios of a wandering market, each trading at other hours."""
    bars = random_walk(600, 4)
    clock = Clock([bars])
    made = []
    for number in range(count):
        entered = np.arange(number, 580, 12)
        orders = Trades(
            symbol=np.zeros(len(entered), dtype=np.int64),
            entered_at=START + HOUR * entered,
            exited_at=START + HOUR * (entered + 6),
            bought=bars.open[entered],
            sold=bars.close[entered + 5],
            r=bars.close[entered + 5] / bars.open[entered] - 1,
            size=np.full(len(entered), 0.01),
        )
        made.append(trade(clock, orders, capital=1000.0))
    return made


measure = partial(performance, seconds=DAY_S, draws=100, seed=3)


def test_results_come_in_the_order_of_things() -> None:
    assert over(math.sqrt, (n * n for n in range(50)), workers=1) == [float(n) for n in range(50)]
    assert over(math.sqrt, (n * n for n in range(50)), workers=2) == [float(n) for n in range(50)]
    assert over(math.sqrt, [], workers=2) == []


def test_processes_measure_what_one_process_measures() -> None:
    every = books(5)
    alone = over(measure, every, workers=1)
    assert alone == [measure(each) for each in every]
    assert over(measure, every, workers=2) == alone
    assert len({each.expectancy_r.value for each in alone}) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_one_is_an_error_of_all(workers: int) -> None:
    with pytest.raises(ValueError, match="math domain error"):
        over(math.sqrt, [1.0, -1.0, 4.0], workers)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize("workers", [1, 2])
def test_without_ray_there_is_one_line_that_says_what_to_do(workers: int) -> None:
    with pytest.raises(
        BackendMissing, match=r'^Ray is not installed: pip install "shadow-advisor\[ray\]", or set'
    ) as no:
        over(math.sqrt, [1.0], workers, "ray")
    assert "evaluate.backend" in str(no.value)
    assert "\n" not in str(no.value)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local Ray of two tasks at a time, whose workers import what this process imports."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_tasks_on_ray_measure_what_one_process_measures(cluster: Any) -> None:
    every = books(3)
    assert over(measure, every, workers=2, backend="ray") == over(measure, every, workers=1)
    assert over(math.sqrt, [9.0, 4.0, 1.0], workers=2, backend="ray") == [3.0, 2.0, 1.0]
    assert cluster.is_initialized()
