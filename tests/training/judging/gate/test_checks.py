"""The gate's checks: serving reads what training read, and headlines are tried on the version."""

from __future__ import annotations

import numpy as np

from app.domain.model.manifest import Calibration
from app.domain.record.decision import Reading
from app.domain.scenario import Scenario
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy, reading_of
from tests import builders as build
from tests.training.support.rebuilds import read_by
from training.judging.gate.checks import PARITY_SCENARIOS, parity, texts
from training.judging.gate.texts import EACH
from training.judging.gate.verdict import CheckName
from training.pipeline.evaluate import Evaluated


def scenarios(count: int) -> list[Scenario]:
    """They differ by a number that their prompts show."""
    return [build.scenario(candidate__rsi=30.0 + number) for number in range(count)]


class Steps:
    """Counts."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self) -> None:
        self.done += 1


def read(*labels: str) -> list[Reading]:
    return [reading_of(label) for label in labels]


async def test_the_same_readings_are_parity() -> None:
    steps = Steps()
    check, seconds = await parity(
        ScriptedPolicy(["H", "A", "J"]), scenarios(3), read("H", "A", "J"), steps
    )
    assert (check.name, check.passed) == (CheckName.PARITY, True)
    assert check.evidence == "3 scenarios: largest gap 0.0e+00 nats, 0 other actions"
    assert steps.done == 3
    assert seconds >= 0


async def test_a_reading_that_is_off_by_more_than_the_tolerance_is_none() -> None:
    for gap, passes in ((0.009, True), (0.02, False)):
        off = list(reading_of("A").log_probabilities)
        off[4] += gap
        trained = [reading_of("H"), Reading(log_probabilities=tuple(off))]
        check, _ = await parity(ScriptedPolicy(["H", "A"]), scenarios(2), trained, Steps())
        assert check.passed is passes
        assert check.evidence == f"2 scenarios: largest gap {gap:.1e} nats, 0 other actions"


async def test_another_action_is_none_unless_both_were_as_good() -> None:
    check, _ = await parity(ScriptedPolicy(["H", "A"]), scenarios(2), read("H", "J"), Steps())
    assert not check.passed
    assert check.evidence.endswith("1 other actions")
    served, trained = (np.full(10, -9.0) for _ in range(2))
    served[7:9], trained[7:9] = (-0.700, -0.701), (-0.702, -0.700)
    policy = ScriptedPolicy([Reading(log_probabilities=tuple(served.tolist()))])
    was = [Reading(log_probabilities=tuple(trained.tolist()))]
    check, _ = await parity(policy, scenarios(1), was, Steps())
    assert check.passed, (
        "H and I are a thousandth apart: within the tolerance either may come first"
    )
    assert check.evidence == "1 scenarios: largest gap 2.0e-03 nats, 0 other actions"


async def test_the_reading_without_news_is_compared_too() -> None:
    loud = [build.scenario(candidate__news_summary="calm news")]
    trained = [
        Reading(
            log_probabilities=reading_of("H").log_probabilities,
            without_text=reading_of("A").log_probabilities,
        )
    ]
    check, _ = await parity(ScriptedPolicy(["H"]), loud, trained, Steps())
    assert not check.passed
    policy = ScriptedPolicy(lambda prompt: "H" if prompt.texts else "A")
    check, _ = await parity(policy, loud, trained, Steps())
    assert check.passed


async def test_what_a_version_answers_beside_the_action_is_compared_too() -> None:
    """With the text and without it; an answer that is not there is another one."""
    calibration = Calibration(outlook=build.outlook_calibration())
    manifest = SCRIPTED_MANIFEST.model_copy(update={"calibration": calibration})

    def answering(win: float, bare_win: float) -> Reading:
        chances = {"stopped": (0.7, 0.3), "range": (0.1, 0.2, 0.4, 0.2, 0.1)}
        said = build.answering(build.reading("A"), win=(1 - win, win), **chances)
        bare = build.answering(build.reading("A"), win=(1 - bare_win, bare_win), **chances)
        return said.model_copy(
            update={
                "without_text": bare.log_probabilities,
                "questions_without_text": bare.questions,
            }
        )

    trained = answering(0.4, 0.4)
    for served, passes in (
        (trained, True),
        (answering(0.401, 0.4), True),
        (answering(0.6, 0.4), False),
        (answering(0.4, 0.6), False),
        (trained.model_copy(update={"questions": {}}), False),
    ):
        policy = ScriptedPolicy([served], manifest=manifest)
        check, _ = await parity(policy, scenarios(1), [trained], Steps())
        assert check.passed is passes


async def test_a_prompt_that_many_headlines_leave_is_read_once() -> None:
    policy, steps, made = ScriptedPolicy(["A"]), Steps(), scenarios(12)
    check = await texts(policy, made, steps)
    assert check.passed
    assert steps.done == 2 * EACH * 12
    prompts = list(policy.prompts)
    assert len(set(prompts)) == len(prompts) < 2 * EACH * 12
    assert sum(not prompt.texts for prompt in prompts) == 12, "letters alone leave no text"


def test_an_evaluation_keeps_its_checks_and_what_a_decision_took(evaluated: Evaluated) -> None:
    facts = read_by(evaluated, "checks").facts
    assert [each["name"] for each in facts["checks"]] == ["parity", "injection"]
    assert facts["checks"] == [
        {name: each[name] for name in ("name", "passed", "evidence")}
        for each in evaluated.report["checks"]
    ]
    assert facts["checks"][0]["evidence"].startswith(f"{PARITY_SCENARIOS} scenarios: largest gap ")
    assert " headlines: hostile ones turn " in facts["checks"][1]["evidence"]
    assert facts["decision_s"] > 0
