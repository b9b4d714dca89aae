"""Numbers of several processes, as one would have them."""

from __future__ import annotations

from math import isnan, nan

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from app.processes.metrics import CELLS, Metrics
from app.processes.totals import Across, Counted, outlasting, together
from app.telemetry import Dependency, Pair, Stage
from tests import builders as build


def gauge(value: float, across: Across) -> list[Counted]:
    return [Counted("g", "gauge", "what", across, False, {("g", ()): value})]


@pytest.mark.parametrize(
    ("across", "one"), [(Across.SUM, 5.0), (Across.LARGEST, 3.0), (Across.LEAST, 2.0)]
)
def test_a_gauge_says_how_several_make_one(across: Across, one: float) -> None:
    [counted] = together([gauge(2.0, across), gauge(3.0, across)])
    assert counted.samples == {("g", ()): one}


@pytest.mark.parametrize("across", list(Across))
def test_what_one_process_does_not_know_another_tells(across: Across) -> None:
    for told in ((nan, 1.0), (1.0, nan)):
        [counted] = together([gauge(each, across) for each in told])
        assert counted.samples == {("g", ()): 1.0}
    [counted] = together([gauge(nan, across), gauge(nan, across)])
    assert isnan(counted.samples["g", ()])


def read(metrics: Metrics, *several: Metrics) -> CollectorRegistry:
    """What a scrape of several processes would find, to be asked for samples."""

    class Told:
        def collect(self) -> list[object]:
            text = metrics.exposition([each.snapshot() for each in several]).decode()
            return list(text_string_to_metric_families(text))

    registry = CollectorRegistry()
    registry.register(Told())  # type: ignore[arg-type]
    return registry


def test_counters_and_histograms_are_added_up_and_gauges_are_not() -> None:
    one, other = Metrics(["v"]), Metrics(["v"])
    for metrics, times in ((one, 2), (other, 3)):
        for _ in range(times):
            metrics.appended("stream")
            metrics.stage_took(Stage.JOURNAL, 0.003)
        metrics.stream_holds(7, float(times))
        metrics.under_way(times, 0.5)
        metrics.dependency_seen(Dependency.VALKEY, metrics is one)
    value = read(one, one, other).get_sample_value
    assert value("advisor_journal_appends_total", {"target": "stream"}) == 5
    assert value("advisor_stage_seconds_count", {"stage": "journal"}) == 5
    assert value("advisor_stage_seconds_bucket", {"stage": "journal", "le": "0.005"}) == 5
    assert value("advisor_stage_seconds_bucket", {"stage": "journal", "le": "0.002"}) == 0
    assert value("advisor_stage_seconds_sum", {"stage": "journal"}) == pytest.approx(0.015)
    assert value("advisor_journal_backlog") == 7
    assert value("advisor_journal_oldest_seconds") == 3
    assert value("advisor_items_under_way") == 5
    assert value("advisor_dependency_up", {"dependency": "valkey"}) == 0


def test_agreement_of_several_is_that_of_all_their_comparisons() -> None:
    one, other, whole = Metrics(), Metrics(), Metrics()
    pairs = [Pair(True, True)] * 3 + [Pair(False, True)] + [Pair(False, False)] * 2
    for number, pair in enumerate(pairs):
        decision = build.decision(f"r-{number}")
        for metrics in (whole, one if number % 3 else other):
            metrics.decided(decision)
            candidate = decision.scenario.candidate
            metrics.compared(decision.decision_id, candidate, build.MODEL, pair)
    value = read(one, one, other, Metrics(["idle"])).get_sample_value
    for name in ("advisor_agreement_ratio", "advisor_agreement_kappa"):
        labels = {"model_version": build.MODEL}
        assert value(name, labels) == pytest.approx(whole.registry.get_sample_value(name, labels))
        assert isnan(value(name, {"model_version": "idle"}) or 0.0)
    assert CELLS not in one.exposition([one.snapshot(), other.snapshot()]).decode()


def test_of_a_process_that_ended_counters_stay_and_gauges_do_not() -> None:
    ended, running = Metrics(["v"]), Metrics(["v"])
    ended.appended("stream")
    ended.under_way(4, 1.0)
    running.appended("stream")
    left = outlasting(ended.snapshot())
    told = running.exposition([running.snapshot(), left]).decode()
    assert 'advisor_journal_appends_total{target="stream"} 2.0' in told
    assert "advisor_items_under_way 0.0" in told


def test_one_process_told_as_several_reads_as_it_does_alone() -> None:
    metrics = Metrics(["v"])
    metrics.decided(build.decision("r-1"))
    alone = list(text_string_to_metric_families(metrics.exposition().decode()))
    several = list(
        text_string_to_metric_families(metrics.exposition([metrics.snapshot()]).decode())
    )
    assert [repr(each) for each in several] == [repr(each) for each in alone]
