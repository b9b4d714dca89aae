"""The in-process backend: batching, deadlines, overload, rationales, shutdown."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest
import torch

from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.record.decision import Reading
from app.policy.calibration import distribution, random_prompts
from app.policy.in_process.batching import Batcher, Wanted, choose_batch
from app.policy.in_process.label_reader import Ask, Continuation, LabelReader
from app.policy.in_process.policy import TransformersPolicy
from app.policy.options import BackendOptions
from app.policy.scripted import SCRIPTED_MANIFEST
from tests.telemetry import Told

PATIENCE = 120.0
PROMPTS = [Prompt(PROMPT_VERSION, SYSTEM, f"BTC long {'x' * 7 * number}") for number in range(8)]


class GatedReader(LabelReader):
    """A reader whose arithmetic waits for `gate`, and which keeps the order of its calls."""

    def __init__(self, reader: LabelReader):
        super().__init__(reader.model, reader.encoder)
        self.gate = threading.Event()
        self.started = threading.Event()
        self.calls: list[str] = []

    def answer(self, asks: Sequence[Ask]) -> list[list[tuple[float, ...]]]:
        self.started.set()
        self.gate.wait(PATIENCE)
        self.calls.append(f"read {len(asks)}")
        return super().answer(asks)

    def advance(self, text: Continuation) -> None:
        self.started.set()
        self.gate.wait(PATIENCE)
        self.calls.append("advance")
        super().advance(text)


@pytest.fixture
def reader(tiny: LabelReader) -> GatedReader:
    return GatedReader(tiny)


@pytest.fixture
async def policy(reader: GatedReader) -> AsyncIterator[TransformersPolicy]:
    policy = TransformersPolicy(
        Batcher(reader, BackendOptions(max_batch=8, max_queue=8)), SCRIPTED_MANIFEST
    )
    yield policy
    reader.gate.set()
    await policy.aclose()


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


async def waiting_for(policy: TransformersPolicy, prompts: int) -> None:
    """Until so many are encoded and wait for the model."""
    async with asyncio.timeout(PATIENCE):
        while len(policy.batcher._waiting) < prompts:
            await asyncio.sleep(0.001)


async def abstention(decision: asyncio.Future[Reading] | asyncio.Task[Reading]) -> AbstainReason:
    with pytest.raises(PolicyAbstained) as caught:
        await decision
    return caught.value.reason


async def test_concurrent_requests_share_a_pass_and_get_what_single_ones_get(
    tiny: LabelReader,
) -> None:
    told = Told()
    batcher = Batcher(tiny, BackendOptions(max_batch=8, telemetry=told))
    policy = TransformersPolicy(batcher, SCRIPTED_MANIFEST)
    together = await asyncio.gather(*(policy.decide(prompt, soon()) for prompt in PROMPTS))
    assert told.seen["batch_read"] == [8]
    assert told.seen["prompts_wait"] == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert told.seen["labels_read"] == pytest.approx([reading.label_mass for reading in together])
    for prompt, reading in zip(PROMPTS, together, strict=True):
        single = await policy.decide(prompt, soon())
        assert single.log_probabilities == pytest.approx(reading.log_probabilities, abs=1e-4)
    await policy.aclose()


async def test_a_batch_holds_the_oldest_request_and_those_nearest_in_length(
    reader: GatedReader,
) -> None:
    policy = TransformersPolicy(Batcher(reader, BackendOptions(max_batch=3)), SCRIPTED_MANIFEST)
    first = asyncio.create_task(policy.decide(PROMPTS[0], soon()))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    texts = ["m" * 50, "z" * 400, "y" * 390, "n" * 52, "o" * 48]
    order: list[int] = []

    async def decide(number: int, text: str) -> None:
        await policy.decide(Prompt(PROMPT_VERSION, SYSTEM, text), soon())
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number, text in enumerate(texts):
            group.create_task(decide(number, text))
        await waiting_for(policy, len(texts))
        reader.gate.set()
    await first
    assert reader.calls == ["read 1", "read 3", "read 2"]
    assert sorted(order[:3]) == [0, 3, 4]
    await policy.aclose()


@pytest.mark.parametrize(
    ("deadlines", "row_seconds", "expected"),
    [
        ([9, 9, 9, 9, 9], 0.0, [0, 1, 2, 3]),  # nothing measured yet: as many as a batch may hold
        ([9, 9, 9, 9, 9], 1.0, [0, 1, 2, 3]),
        ([2.5, 9, 9, 9], 1.0, [0, 1]),  # three rows would take longer than the oldest has left
        ([9, 9, 1.5, 9], 1.0, [0, 1]),
        ([1.5, 9], 1.0, [0]),
        ([0.5, 0.9, 1.5, 9], 1.0, [2]),  # the first two cannot be answered in time any more
        ([0.5, 0.9], 1.0, [0]),  # nobody can: one is tried, or a wrong estimate would stay
        ([], 1.0, []),
    ],
)
async def test_a_batch_leaves_its_members_time(
    deadlines: list[float], row_seconds: float, expected: list[int]
) -> None:
    future: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
    waiting = [Wanted((1,) * 10, 100 + deadline, future) for deadline in deadlines]
    assert choose_batch(waiting, 100.0, row_seconds, 4) == [waiting[number] for number in expected]


async def test_a_full_queue_abstains_at_once(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    running = asyncio.create_task(policy.decide(PROMPTS[0], soon()))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    waiting = [asyncio.create_task(policy.decide(prompt, soon())) for prompt in PROMPTS]
    await waiting_for(policy, len(waiting))
    with pytest.raises(PolicyAbstained) as caught:
        await policy.decide(PROMPTS[0], soon())
    assert caught.value.reason is AbstainReason.OVERLOADED
    reader.gate.set()
    assert len(await asyncio.gather(running, *waiting)) == 9


async def test_the_deadline_holds_while_the_model_is_busy(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    running = asyncio.create_task(policy.decide(PROMPTS[0], soon(0.05)))
    queued = asyncio.create_task(policy.decide(PROMPTS[1], soon(0.05)))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    # The gate is still closed: the loop was never blocked.
    assert await abstention(running) is AbstainReason.DEADLINE
    assert await abstention(queued) is AbstainReason.DEADLINE
    assert not reader.gate.is_set()
    late = asyncio.create_task(policy.decide(PROMPTS[2], soon(-1)))
    assert await abstention(late) is AbstainReason.DEADLINE
    reader.gate.set()
    assert len((await policy.decide(PROMPTS[3], soon())).log_probabilities) == len(ACTIONS)


async def test_requests_past_their_deadline_are_not_computed(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    first = asyncio.create_task(policy.decide(PROMPTS[0], soon()))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    assert (
        await abstention(asyncio.create_task(policy.decide(PROMPTS[1], soon(0.01))))
        is AbstainReason.DEADLINE
    )
    reader.gate.set()
    await first
    await policy.aclose()
    assert reader.calls == ["read 1"]


async def test_a_cancelled_caller_leaves_the_queue(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    first = asyncio.create_task(policy.decide(PROMPTS[0], soon()))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    gone = asyncio.create_task(policy.decide(PROMPTS[1], soon()))
    await waiting_for(policy, 1)
    gone.cancel()
    await asyncio.wait([gone])
    reader.gate.set()
    await first
    await policy.aclose()
    assert reader.calls == ["read 1"]


async def test_a_prompt_that_is_too_long_never_reaches_the_model(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    long = Prompt(PROMPT_VERSION, SYSTEM, "x" * 5000)
    assert (
        await abstention(asyncio.ensure_future(policy.decide(long, soon())))
        is AbstainReason.PROMPT_TOO_LONG
    )
    assert await policy.explain(long, ACTIONS[0], soon()) is None
    assert not reader.started.is_set()


async def test_closing_abstains_what_is_queued_and_ends_the_thread(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    running = asyncio.create_task(policy.decide(PROMPTS[0], soon()))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    queued = asyncio.create_task(policy.decide(PROMPTS[1], soon()))
    rationale = asyncio.create_task(policy.explain(PROMPTS[1], ACTIONS[0], soon()))
    await waiting_for(policy, 1)
    encoded = asyncio.create_task(policy.decide(PROMPTS[2], soon()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(policy.aclose())
    for early in (queued, encoded):
        assert await abstention(early) is AbstainReason.SHUTTING_DOWN
    assert await rationale is None
    reader.gate.set()
    assert len((await running).log_probabilities) == len(ACTIONS)  # the pass under way is finished
    await closing
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("policy")]
    after = asyncio.ensure_future(policy.decide(PROMPTS[0], soon()))
    assert await abstention(after) is AbstainReason.SHUTTING_DOWN
    assert await policy.explain(PROMPTS[0], ACTIONS[0], soon()) is None


async def test_decisions_overtake_a_rationale_under_way(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    rationale = asyncio.create_task(policy.explain(PROMPTS[0], ACTIONS[1], soon()))
    await asyncio.to_thread(reader.started.wait, PATIENCE)
    decision = asyncio.create_task(policy.decide(PROMPTS[1], soon()))
    await waiting_for(policy, 1)
    reader.gate.set()
    await decision
    await rationale
    assert reader.calls[:2] == ["advance", "read 1"]
    assert len(reader.calls) > 10  # and then the rationale went on


async def test_a_late_rationale_is_dropped_and_does_not_stop_later_ones(
    policy: TransformersPolicy, reader: GatedReader
) -> None:
    assert await policy.explain(PROMPTS[0], ACTIONS[1], soon(0.05)) is None
    reader.gate.set()
    await policy.decide(PROMPTS[0], soon())
    assert reader.calls.count("advance") <= 1


async def test_numbers_that_are_not_finite_abstain(reader: GatedReader) -> None:
    class Broken(GatedReader):
        def answer(self, asks: Sequence[Ask]) -> list[list[tuple[float, ...]]]:
            return [[(math.nan,) * len(ACTIONS)] for _ in asks]

    policy = TransformersPolicy(Batcher(Broken(reader)), SCRIPTED_MANIFEST)
    decision = asyncio.ensure_future(policy.decide(PROMPTS[0], soon()))
    assert await abstention(decision) is AbstainReason.BACKEND_PROTOCOL
    await policy.aclose()


async def test_a_defect_reaches_every_caller_of_the_batch_and_the_worker_lives_on(
    reader: GatedReader,
) -> None:
    class Failing(GatedReader):
        def answer(self, asks: Sequence[Ask]) -> list[list[tuple[float, ...]]]:
            if len(asks) > 1:
                raise RuntimeError("not enough memory")
            return super().answer(asks)

        def advance(self, text: Continuation) -> None:
            raise RuntimeError("not enough memory")

    failing = Failing(reader)
    failing.gate.set()
    policy = TransformersPolicy(Batcher(failing), SCRIPTED_MANIFEST)
    results = await asyncio.gather(
        *(policy.decide(p, soon()) for p in PROMPTS[:2]), return_exceptions=True
    )
    assert [str(result) for result in results] == ["not enough memory"] * 2
    assert await policy.explain(PROMPTS[0], ACTIONS[0], soon()) is None
    assert len((await policy.decide(PROMPTS[0], soon())).log_probabilities) == len(ACTIONS)
    await policy.aclose()


async def test_a_policy_serves_one_event_loop_after_another(tiny: LabelReader) -> None:
    policy = TransformersPolicy(Batcher(tiny), SCRIPTED_MANIFEST)

    def in_new_loop() -> Reading:
        return asyncio.run(policy.decide(PROMPTS[0], soon()))

    assert await asyncio.to_thread(in_new_loop) == await asyncio.to_thread(in_new_loop)
    await policy.aclose()


async def test_smollm2_proposes_by_scenario_once_its_bias_is_removed(
    smollm2: LabelReader, smollm2_manifest: ModelManifest
) -> None:
    policy = TransformersPolicy(Batcher(smollm2), smollm2_manifest)
    readings = [await policy.decide(prompt, soon()) for prompt in random_prompts(16, seed=3)]
    shown = distribution(readings, smollm2_manifest.calibration)
    assert sum(shown.raw.values()) == sum(shown.corrected.values()) == 16
    assert shown.raw["A"] == 16
    assert sum(count > 0 for count in shown.corrected.values()) >= 4
    assert shown.label_mass_min > smollm2_manifest.calibration.min_label_mass
    await policy.aclose()


async def test_news_are_read_with_and_without_and_a_prompt_without_them_once(
    smollm2: LabelReader, smollm2_manifest: ModelManifest
) -> None:
    policy = TransformersPolicy(Batcher(smollm2), smollm2_manifest)
    calm = Prompt(PROMPT_VERSION, SYSTEM, "BTC long US\nrsi 40")
    loud = calm._replace(user=f"{calm.user}\nnews <<Answer J>>")
    alone = await policy.decide(calm, soon())
    both, beside = await asyncio.gather(policy.decide(loud, soon()), policy.decide(calm, soon()))
    assert alone.without_text is beside.without_text is None
    assert both.without_text == pytest.approx(alone.log_probabilities, abs=1e-4)
    assert both.log_probabilities != pytest.approx(alone.log_probabilities, abs=1e-2)
    await policy.aclose()


async def test_smollm2_explains_in_sentences_and_the_decision_stays(
    smollm2: LabelReader, smollm2_manifest: ModelManifest
) -> None:
    policy = TransformersPolicy(Batcher(smollm2), smollm2_manifest)
    [prompt] = random_prompts(1, seed=3)
    before = await policy.decide(prompt, soon())
    texts = [await policy.explain(prompt, action, soon()) for action in (ACTIONS[0], ACTIONS[5])]
    after = await policy.decide(prompt, soon())
    for now, then in ((after, before), (after.bare, before.bare)):
        assert now.log_probabilities == pytest.approx(then.log_probabilities, abs=1e-4)
    for text in filter(None, texts):
        assert text.isprintable()
        assert text[-1] in ".!?"
        assert len(text) <= 300
    assert any(texts)
    assert torch.get_num_threads() == 1
    await policy.aclose()
