"""The shipped fake, the calibration arithmetic, and the cleaning of generated text."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import ACTIONS, LABELS
from app.domain.model.manifest import Calibration
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.record.decision import Reading, propose
from app.policy.calibration import bias_of, distribution, random_prompts
from app.policy.rationale import is_complete, sentences
from app.policy.scripted import ScriptedPolicy, reading_of

PROMPTS = [Prompt(PROMPT_VERSION, SYSTEM, f"scenario {number}") for number in range(50)]


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def label_of(reading: Reading) -> str:
    return propose(reading, Calibration()).label


async def test_a_function_is_asked_without_the_news_too_and_turns_are_not() -> None:
    loud = PROMPTS[0]._replace(user="BTC\nnews <<approve>>")
    obeys = ScriptedPolicy(lambda prompt: "J" if "approve" in prompt.user else "A")
    reading = await obeys.decide(loud, soon())
    assert (label_of(reading), label_of(reading.bare)) == ("J", "A")
    turns = ScriptedPolicy(["J", "A"])
    readings = [await turns.decide(loud, soon()) for _ in range(2)]
    assert [(label_of(each), label_of(each.bare)) for each in readings] == [("J", "J"), ("A", "A")]
    assert (await obeys.decide(PROMPTS[0], soon())).without_text is None


async def test_a_list_is_answered_in_turn_and_again() -> None:
    abstains = PolicyAbstained(AbstainReason.OVERLOADED, "busy")
    policy = ScriptedPolicy(["A", reading_of("J"), abstains])
    for _ in range(2):
        assert label_of(await policy.decide(PROMPTS[0], soon())) == "A"
        assert label_of(await policy.decide(PROMPTS[1], soon())) == "J"
        with pytest.raises(PolicyAbstained, match="overloaded: busy"):
            await policy.decide(PROMPTS[2], soon())
    assert list(policy.prompts) == PROMPTS[:3] * 2


async def test_a_function_of_the_prompt_answers() -> None:
    policy = ScriptedPolicy(lambda prompt: "B" if "7" in prompt.user else "A")
    assert [label_of(await policy.decide(PROMPTS[n], soon())) for n in (6, 7)] == ["A", "B"]


async def test_without_a_script_the_label_follows_from_the_prompt() -> None:
    first = [await ScriptedPolicy().decide(prompt, soon()) for prompt in PROMPTS]
    again = [await ScriptedPolicy().decide(prompt, soon()) for prompt in reversed(PROMPTS)]
    assert first == again[::-1]
    assert {label_of(reading) for reading in first} == set(LABELS)


async def test_a_closed_gate_holds_the_answer_until_the_deadline() -> None:
    gate = asyncio.Event()
    policy = ScriptedPolicy(["B"], gate=gate)
    with pytest.raises(PolicyAbstained) as caught:
        await policy.decide(PROMPTS[0], soon(0.01))
    assert caught.value.reason is AbstainReason.DEADLINE
    waiting = asyncio.create_task(policy.decide(PROMPTS[0], soon()))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    assert label_of(await waiting) == "B"


async def test_after_closing_it_abstains() -> None:
    policy = ScriptedPolicy(rationale="Why not.")
    assert await policy.explain(PROMPTS[0], ACTIONS[0], soon()) == "Why not."
    await policy.aclose()
    assert await policy.explain(PROMPTS[0], ACTIONS[0], soon()) is None
    with pytest.raises(PolicyAbstained) as caught:
        await policy.decide(PROMPTS[0], soon())
    assert caught.value.reason is AbstainReason.SHUTTING_DOWN


def test_a_scripted_reading_is_a_distribution_and_unknown_labels_are_refused() -> None:
    reading = reading_of("C")
    assert reading.label_mass == pytest.approx(0.99)
    assert (
        max(reading.log_probabilities)
        == reading.log_probabilities[2]
        == pytest.approx(math.log(0.9))
    )
    with pytest.raises(ValueError, match="'K' is not a label"):
        reading_of("K")


def test_the_bias_is_the_log_of_the_mean_label_probability() -> None:
    halves = tuple(
        math.log(p) for p in (0.25, 0.25, *([1e-9] * 8))
    )  # half of the mass is on labels
    other = tuple(math.log(p) for p in (0.75, 0.25, *([1e-9] * 8)))
    bias = bias_of([Reading(log_probabilities=halves), Reading(log_probabilities=other)])
    assert bias[:2] == pytest.approx((math.log(0.625), math.log(0.375)), abs=1e-6)


def test_removing_the_bias_leaves_what_depends_on_the_scenario() -> None:
    def reading(a: float, b: float) -> Reading:
        return Reading(log_probabilities=tuple(math.log(p) for p in (a, b, *([1e-3] * 8))))

    readings = [reading(0.80, 0.10), reading(0.60, 0.30)]
    shown = distribution(readings, Calibration(bias=bias_of(readings)))
    assert (shown.raw["A"], shown.raw["B"]) == (2, 0)
    assert (shown.corrected["B"], sum(shown.corrected.values())) == (1, 2)
    assert shown.label_mass_min == pytest.approx(0.908)


def test_random_prompts_are_reproducible_and_differ() -> None:
    assert random_prompts(20, seed=1) == random_prompts(20, seed=1)
    assert (
        len({prompt.hash for prompt in random_prompts(20, seed=1) + random_prompts(20, seed=2)})
        == 40
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The trend is up. Volume agrees. More follows.", "The trend is up. Volume agrees."),
        ("The trend is up\x00\x1b[31m.\n\n  RSI is 3.5 and ris", "The trend is up [31m."),
        ("no end in sight", None),
        ("", None),
        ("x" * 301 + ".", None),
        ("Short one. " + "y" * 300 + ".", "Short one."),
        ("Is it? Yes!", "Is it? Yes!"),
    ],
)
def test_a_rationale_is_one_or_two_whole_printable_sentences(
    text: str, expected: str | None
) -> None:
    assert sentences(text) == expected


def test_generation_may_stop_after_two_sentences() -> None:
    assert not is_complete("One. And two")
    assert is_complete("One. And two.")
