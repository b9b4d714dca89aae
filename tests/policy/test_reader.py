"""Versions that another process reads: what they say, and what is said while it is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from app.domain.errors import (
    AbstainReason,
    ManifestMismatch,
    ModelFileError,
    PolicyAbstained,
)
from app.domain.model.actions import ACTIONS
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.policy.backends import Backends
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.reader.elsewhere import ENDED, ReadElsewhere, Reader
from app.policy.reader.process import Models, visited
from app.telemetry import Dependency
from tests.policy.tiny_models import POSITIONS, save_tiny_model, write_manifest
from tests.service.running import until
from tests.telemetry import Told

PATIENCE = 120.0
PROMPTS = [Prompt(PROMPT_VERSION, SYSTEM, f"BTC long {'x' * 7 * number}") for number in range(6)]


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_model(tmp_path_factory.mktemp("versions") / "tiny-1")
    write_manifest(directory, "tiny-1")
    return directory


class Process:
    """The other process, as far as a socket can tell: it ends, and begins anew without a model."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.told = Told()
        self.models: Models
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        self.models = Models(BackendOptions(prompt_tokens=POSITIONS, telemetry=self.told))
        await self._stack.enter_async_context(visited(self.place, self.models))

    async def end(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    (tmp_path / "private").mkdir()
    process = Process(tmp_path / "private" / "reader")
    await process.start()
    yield process
    await process.end()


class Seen(Told):
    def dependency_seen(self, dependency: Dependency, up: bool) -> None:
        self.seen["dependency_seen"].append((dependency, up))


@asynccontextmanager
async def reaching(process: Process) -> AsyncIterator[tuple[Reader, Seen]]:
    seen = Seen()
    reader = Reader(process.place, seen)
    try:
        yield reader, seen
    finally:
        await reader.aclose()


async def load(reader: Reader, directory: Path) -> ReadElsewhere:
    backends = Backends(BackendOptions(elsewhere=reader))
    policy = await asyncio.to_thread(backends.load, directory)
    assert isinstance(policy, ReadElsewhere)
    return policy


async def abstained(policy: Policy, deadline: float) -> AbstainReason:
    with pytest.raises(PolicyAbstained) as caught:
        await policy.decide(PROMPTS[0], deadline)
    return caught.value.reason


async def test_it_says_what_it_would_say_in_process_and_several_share_it(
    process: Process, version: Path
) -> None:
    options = BackendOptions(prompt_tokens=POSITIONS)
    here = await asyncio.to_thread(Backends(options).load, version)
    async with reaching(process) as (one, _), reaching(process) as (other, _):
        policies = [await load(reader, version) for reader in (one, other)]
        asked = [(policy, prompt) for policy in policies for prompt in PROMPTS]
        said = await asyncio.gather(*(each.decide(prompt, soon()) for each, prompt in asked))
        exact = [await here.decide(prompt, soon()) for prompt in PROMPTS]
        for reading, expected in zip(said, exact * 2, strict=True):
            assert reading.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-3)
            assert reading.engine is expected.engine
        assert policies[0].manifest == here.manifest
        assert policies[0].health == here.health == "exactly"
        assert policies[0].parallel == 1
        assert max(process.told.seen["batch_read"]) > 1, "of both, read together"
        held = process.models.find(here.manifest.hash())
        await policies[0].aclose()

        async def one_is_left() -> bool:
            return process.models._users.total() == 1

        await until(one_is_left)
        assert process.models.find(here.manifest.hash()) is held
        assert await policies[1].decide(PROMPTS[0], soon())

    async def nobody_is_left() -> bool:
        return process.models.find(here.manifest.hash()) is None

    await until(nobody_is_left)
    await here.aclose()


async def test_what_must_not_be_served_is_refused_as_in_process(
    process: Process, version: Path, tmp_path: Path
) -> None:
    damaged = save_tiny_model(tmp_path / "damaged")
    write_manifest(damaged, "damaged-1")
    (damaged / "config.json").write_text("{}")
    async with reaching(process) as (reader, _):
        with pytest.raises(ManifestMismatch, match=r"bytes differ from the manifest: config"):
            await load(reader, damaged)
        with pytest.raises(ModelFileError, match="nothing-here"):
            await load(reader, tmp_path / "nothing-here")
        policy = await load(reader, version)
        assert await abstained(policy, time.monotonic() - 1) is AbstainReason.DEADLINE
        long = Prompt(PROMPT_VERSION, SYSTEM, "x" * 2 * POSITIONS)
        with pytest.raises(PolicyAbstained) as caught:
            await policy.decide(long, soon())
        assert caught.value.reason is AbstainReason.PROMPT_TOO_LONG


async def test_a_rationale_comes_from_there(process: Process, version: Path) -> None:
    async with reaching(process) as (reader, _):
        policy = await load(reader, version)
        assert await policy.explain(PROMPTS[0], ACTIONS[1], time.monotonic() - 1) is None
        text = await policy.explain(PROMPTS[0], ACTIONS[1], soon())
        assert text is None or text, "what random weights say need be no sentence"


async def test_while_it_is_away_versions_abstain_and_then_they_are_loaded_again(
    process: Process, version: Path
) -> None:
    async with reaching(process) as (reader, seen):
        policy = await load(reader, version)
        before = await policy.decide(PROMPTS[0], soon())
        await process.end()

        async def away() -> bool:
            return policy.away is not None

        await until(away)
        assert await abstained(policy, soon()) is AbstainReason.BACKEND_UNAVAILABLE
        assert await policy.explain(PROMPTS[0], ACTIONS[1], soon()) is None
        assert policy.health == ENDED
        await process.start()

        async def back() -> bool:
            return policy.away is None

        await until(back)
        again = await policy.decide(PROMPTS[0], soon())
        assert again.log_probabilities == pytest.approx(before.log_probabilities, abs=1e-4)
        told = [up for dependency, up in seen.seen["dependency_seen"]]
        assert told[-2:] == [False, True]


async def test_a_version_that_cannot_be_loaded_again_says_so_and_is_tried_again(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.policy.reader.elsewhere.RETRY_S", 0.01)
    directory = save_tiny_model(tmp_path / "tiny-2")
    write_manifest(directory, "tiny-2")
    config = (directory / "config.json").read_bytes()
    async with reaching(process) as (reader, _):
        policy = await load(reader, directory)
        (directory / "config.json").write_text("{}")
        await process.end()
        await process.start()

        async def refused() -> bool:
            return policy.away is not None and "bytes differ" in policy.away

        await until(refused)
        assert await abstained(policy, soon()) is AbstainReason.BACKEND_UNAVAILABLE
        (directory / "config.json").write_bytes(config)

        async def back() -> bool:
            return policy.away is None

        await until(back)
        assert await policy.decide(PROMPTS[0], soon())


async def test_one_that_never_comes_refuses_a_load_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.policy.reader.elsewhere.STARTS_WITHIN_S", 0.01)
    async with reaching(Process(tmp_path / "nobody")) as (reader, _):
        with pytest.raises(ModelFileError, match="has not started within"):
            await load(reader, tmp_path)
