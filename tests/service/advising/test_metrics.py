"""What a scrape finds before, and when, something is counted."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from app.domain.record.decision import Engine, Role, TextEffect
from app.domain.record.event import RepetitionKind
from app.domain.rules.case import TradingState
from app.domain.scenario import Fault
from app.processes.metrics import ANSWERS, MAX_SYMBOLS, SECONDS, Metrics
from app.telemetry import (
    Asking,
    Attempt,
    AuthFailure,
    Dependency,
    LossCause,
    Pair,
    Part,
    Refusal,
    Rough,
    Saved,
    Stage,
    Task,
    Telemetry,
    Worth,
)
from tests import builders as build


def cells(metrics: Metrics, **labels: str) -> dict[tuple[str, str], float | None]:
    """Comparisons by the answers of agent and advice."""
    value = metrics.registry.get_sample_value
    return {
        (agent, advice): value(
            "advisor_comparisons_total", labels | {"agent": agent, "advice": advice}
        )
        for agent, advice in product(ANSWERS, ANSWERS)
    }


def combinations(metrics: Metrics) -> list[dict[str, str]]:
    """The labels under which comparisons are counted, without the answers."""
    (family,) = (each for each in metrics.registry.collect() if each.name == "advisor_comparisons")
    found = [
        {name: value for name, value in sample.labels.items() if name not in ("agent", "advice")}
        for sample in family.samples
        if sample.name.endswith("_total")
    ]
    return [labels for number, labels in enumerate(found) if labels not in found[:number]]


def test_a_decision_creates_four_cells_at_zero_and_a_comparison_counts_in_one() -> None:
    metrics = Metrics([build.MODEL])
    assert combinations(metrics) == []
    decision = build.decision("r-1")
    metrics.decided(decision)
    (labels,) = combinations(metrics)
    assert set(cells(metrics, **labels).values()) == {0.0}
    candidate = decision.scenario.candidate
    metrics.compared(decision.decision_id, candidate, build.MODEL, Pair(True, False))
    assert cells(metrics, **labels) == {
        ("approve", "approve"): 0.0,
        ("approve", "reject"): 1.0,
        ("reject", "approve"): 0.0,
        ("reject", "reject"): 0.0,
    }
    metrics.decided(build.decision("r-2"))
    assert cells(metrics, **labels)["approve", "reject"] == 1.0, (
        "a second decision does not begin anew"
    )


def test_what_news_did_is_counted_and_prompts_without_news_are_not() -> None:
    metrics = Metrics([build.MODEL])
    calm = build.decision("r-1")
    for effect in (None, TextEffect.HELD_BACK, TextEffect.HELD_BACK, TextEffect.NONE):
        advice = calm.primary.model_copy(update={"text_effect": effect})
        metrics.decided(calm.model_copy(update={"advices": (advice,)}))
    counted = {
        effect: metrics.registry.get_sample_value(
            "advisor_text_effects_total", {"effect": effect, "model_version": build.MODEL}
        )
        for effect in TextEffect
    }
    assert counted == {"none": 1, "refused": 0, "held_back": 2, "resized": 0}


def test_a_comparison_whose_decision_another_process_recorded_creates_the_cells_too() -> None:
    metrics = Metrics([build.MODEL])
    candidate = build.scenario().candidate
    metrics.compared(uuid4(), candidate, build.MODEL, Pair(False, False))
    (labels,) = combinations(metrics)
    assert cells(metrics, **labels)["reject", "reject"] == 1.0
    assert sum(value or 0 for value in cells(metrics, **labels).values()) == 1.0


def test_a_corrected_action_takes_the_place_of_what_was_compared_and_counts_no_second_time() -> (
    None
):
    metrics = Metrics([build.MODEL])
    candidate, first, second = build.scenario().candidate, uuid4(), uuid4()
    metrics.compared(first, candidate, build.MODEL, Pair(True, True))
    metrics.compared(second, candidate, build.MODEL, Pair(False, False))
    for agent in (False, True, False):
        metrics.compared_anew(first, build.MODEL, Pair(agent, True))
    metrics.compared_anew(uuid4(), build.MODEL, Pair(True, True))
    ratio = metrics.registry.get_sample_value(
        "advisor_agreement_ratio", {"model_version": build.MODEL}
    )
    assert ratio == 0.5, "the newest of the first disagrees, the second agrees"
    (labels,) = combinations(metrics)
    assert sum(value or 0 for value in cells(metrics, **labels).values()) == 2


@pytest.mark.parametrize("more", [0, 1, 5])
def test_symbols_beyond_the_first_share_one_name(more: int) -> None:
    metrics = Metrics([build.MODEL])
    for number in range(MAX_SYMBOLS + more):
        metrics.decided(build.decision(f"r-{number}", candidate__symbol=f"C{number}USDT"))
    names = {labels["symbol"] for labels in combinations(metrics)}
    assert len(names) == MAX_SYMBOLS + min(more, 1)
    assert ("other" in names) is (more > 0)


def test_made_up_symbols_do_not_keep_a_frequent_one_from_its_name_and_nothing_is_uncounted() -> (
    None
):
    metrics = Metrics([build.MODEL])
    for number in range(3 * MAX_SYMBOLS):
        made_up = build.scenario(candidate__symbol=f"C{number}USDT").candidate
        metrics.compared(uuid4(), made_up, build.MODEL, Pair(True, number % 2 == 0))
    real = build.scenario(candidate__symbol="BTCUSDT").candidate
    for _ in range(5):
        metrics.compared(uuid4(), real, build.MODEL, Pair(True, True))
    total = 0.0
    symbols = set()
    for labels in combinations(metrics):
        total += sum(value or 0 for value in cells(metrics, **labels).values())
        symbols.add(labels["symbol"])
        if labels["symbol"] == "BTCUSDT":
            assert cells(metrics, **labels)["approve", "approve"] == 4, "the first came as `other`"
    assert total == 3 * MAX_SYMBOLS + 5
    assert "BTCUSDT" in symbols
    assert len(symbols) == MAX_SYMBOLS + 1


COMPARED = uuid4()
OBSERVATIONS: dict[str, tuple[object, ...]] = {
    "answered": ("/advise", 200),
    "refused": (Refusal.RATE,),
    "unauthenticated": (AuthFailure.UNKNOWN,),
    "stage_took": (Stage.POLICY, 0.2),
    "decided": (build.decision("r-1"),),
    "advised_late": (build.scenario().candidate, build.decision("r-2").primary),
    "on_panel": (["elsewhere-1"],),
    "panel_asked": (build.MODEL, Asking.ANSWERED),
    "panel_answered": (build.MODEL, 0.4, 0.001),
    "panel_repeated": (build.MODEL, RepetitionKind.ORDER, True),
    "compared": (uuid4(), build.scenario().candidate, build.MODEL, Pair(True, False)),
    "compared_anew": (COMPARED, build.MODEL, Pair(False, True)),
    "lost": (LossCause.SPOOL_FULL, 2),
    "appended": ("spool",),
    "stream_holds": (3, 4.5),
    "spool_holds": (5,),
    "stream_seen": (True, 0.4, datetime(2026, 11, 20, tzinfo=UTC)),
    "written": ({"decisions": 1}, 0.1),
    "events_missing": (3,),
    "under_way": (3, 1.5),
    "left_out": (Part.PLAN, Fault.UNIT),
    "prompts_wait": (6,),
    "batch_read": (4,),
    "labels_read": (0.97,),
    "read_by": (Engine.ONEDNN,),
    "engine_failed": (),
    "replicas": (["http://vllm:8000"],),
    "replica_asked": ("http://vllm:8000", Attempt.OVERTAKEN),
    "rough": (Rough.READ_AGAIN,),
    "rough_compared": (Rough.NEAR, 0.004),
    "serving": ([(build.manifest("new"), Role.PRIMARY)],),
    "version_refused": (),
    "limits_adopted": ([("2026-11-23", build.HASH)],),
    "limits_refused": (),
    "state_entered": (TradingState.HALTED,),
    "dependency_seen": (Dependency.VALKEY, True),
    "report_unchecked": (),
    "task_works": (Task.CONTROLS, True),
    "task_failed": (Task.CONTROLS,),
    "worth_seen": (Worth(saved=[Saved("SPREAD", "BTCUSDT", 2, 1.5)]),),
}


def test_every_observation_of_the_port_is_tried_here() -> None:
    port = {name for name in vars(Telemetry) if not name.startswith("_")}
    assert set(OBSERVATIONS) == port


@pytest.mark.parametrize(("name", "told"), OBSERVATIONS.items(), ids=OBSERVATIONS)
def test_what_is_observed_can_be_scraped(name: str, told: tuple[object, ...]) -> None:
    metrics = Metrics([build.MODEL])
    metrics.compared(COMPARED, build.scenario().candidate, build.MODEL, Pair(True, True))
    before = generate_latest(metrics.registry)
    getattr(metrics, name)(*told)
    assert generate_latest(metrics.registry) != before


@given(took=st.lists(st.sampled_from(SECONDS) | st.floats(0, 20), max_size=20))
def test_stages_are_told_as_the_librarys_histogram_tells_them(took: list[float]) -> None:
    """Ours is a third of the time of the library's, which locks."""
    metrics, theirs = Metrics(), CollectorRegistry()
    histogram = Histogram("advisor_stage_seconds", "-", ["stage"], registry=theirs, buckets=SECONDS)
    for stage in Stage:
        histogram.labels(stage.value)
    for seconds in took:
        metrics.stage_took(Stage.POLICY, seconds)
        histogram.labels(Stage.POLICY.value).observe(seconds)

    def told(registry: CollectorRegistry) -> set[str]:
        lines = generate_latest(registry).decode().splitlines()
        return {each for each in lines if each.startswith("advisor_stage_seconds_")} - {
            each for each in lines if "_created" in each
        }

    assert told(metrics.registry) == told(theirs)
