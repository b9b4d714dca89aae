"""A version's answers are the same, over the base pass or asked prompt by prompt as the service
asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.domain.scenario import Scenario
from tests.training.support.rebuilds import read_by
from training.judging.gate.checks import TOLERANCE
from training.learning.model import answers
from training.learning.model.base_pass import Encoded
from training.pipeline.evaluate import Evaluated
from training.scenarios.table import ScenarioSet

SOME = 6


@pytest.fixture(scope="module")
def asked(evaluated: Evaluated) -> list[Scenario]:
    return ScenarioSet.open(read_by(evaluated, "scenarios")).scenarios()[:SOME]


def test_an_adapter_asked_as_the_service_asks_answers_what_it_answers_over_the_base_pass(
    evaluated: Evaluated, asked: list[Scenario], tiny_base: Path
) -> None:
    steps: list[tuple[int, int]] = []
    found = answers.of_version(
        evaluated.version,
        [tiny_base.parent],
        asked,
        1,
        lambda done, total: steps.append((done, total)),
    )
    kept = np.load(read_by(evaluated, "answers of policy") / answers.FILE)
    assert found.shape == (SOME, 10)
    assert found.dtype == kept.dtype == np.float32
    assert np.abs(found - kept[:SOME]).max() < TOLERANCE
    assert steps == [(number, SOME) for number in range(1, SOME + 1)]


def test_a_whole_model_answers_what_the_base_pass_read(
    evaluated: Evaluated, asked: list[Scenario], tiny_base: Path
) -> None:
    found = answers.of_version(tiny_base, [tiny_base.parent], asked, 1)
    untuned = np.asarray(Encoded.open(read_by(evaluated, "encoded")).label_log_probs)
    assert np.abs(found - untuned[:SOME]).max() < TOLERANCE
    tuned = np.load(read_by(evaluated, "answers of policy") / answers.FILE)
    assert np.abs(found - tuned[:SOME]).max() > TOLERANCE, "the adapter does something"
