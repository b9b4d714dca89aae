"""Versions that another process of ours reads, which holds the models for several API processes.

That process comes and goes: it is reached by a socket of the file system, and after each time that
it ended every version that is served here is loaded there anew, under the manifest that it had.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import structlog

from app.domain.errors import (
    AbstainReason,
    AdvisorError,
    ManifestMismatch,
    ModelFileError,
    PolicyAbstained,
)
from app.domain.model.actions import Action
from app.domain.model.manifest import ModelManifest
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Abstention, Reading
from app.domain.scenario import Scenario
from app.processes.channel import Channel, Unanswered
from app.tasks import end
from app.telemetry import Dependency, Telemetry

log = structlog.get_logger()
AGAIN_S = 0.1
RETRY_S = 30.0
STARTS_WITHIN_S = 600.0
"""What brings torch takes its time on a busy machine."""
GRACE_S = 0.05
"""After a deadline, for the answer that it has passed."""
ENDED = "the process that runs the models has ended and is started again"
REFUSALS: dict[str, type[AdvisorError]] = {
    each.__name__: each for each in (ManifestMismatch, ModelFileError)
}


class Load(NamedTuple):
    """Asks for a version; answered by `Loaded`, or `Refused`."""

    directory: Path
    registered: ModelManifest | None


class Loaded(NamedTuple):
    """It is there, until who asked releases it or ends."""

    manifest: ModelManifest
    parallel: int
    health: str


class Refused(NamedTuple):
    """It must not be served: one of `REFUSALS` by its name."""

    kind: str
    why: str


class Decide(NamedTuple):
    """Asks a version, by the hash of its manifest; answered by `Said`, or None where it is not
    loaded."""

    manifest_hash: str
    prompt: Prompt
    deadline: float
    scenario: Scenario | None
    rough: bool


class Said(NamedTuple):
    """Its answer, and how it reads now."""

    reading: Reading | Abstention
    health: str


class Explain(NamedTuple):
    """Asks for a rationale; answered by text, or None."""

    manifest_hash: str
    prompt: Prompt
    action: Action
    deadline: float
    scenario: Scenario | None


class Release(NamedTuple):
    """A version is not needed here any more."""

    manifest_hash: str


class ReadElsewhere:
    """A `Policy` that the other process reads. Abstains with BACKEND_UNAVAILABLE while it does not
    run, or has not loaded the version again."""

    def __init__(self, reader: Reader, directory: Path, loaded: Loaded) -> None:
        self._reader = reader
        self.directory = directory
        self._manifest, self._parallel, self._health = loaded
        self._hash = loaded.manifest.hash()
        self.away: str | None = None
        """Why it cannot answer now."""

    @property
    def manifest(self) -> ModelManifest:
        """The version that is answering."""
        return self._manifest

    @property
    def parallel(self) -> int:
        """As the other process says."""
        return self._parallel

    @property
    def health(self) -> str:
        """How it reads, as it was told with the last answer."""
        return self.away or self._health

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Reading:
        """Read the labels; see `Policy.decide`. Abstains as the policy there, and as above."""
        asked = Decide(self._hash, prompt, deadline, scenario, rough)
        said: Said | None = await self._ask(asked, deadline)
        if said is None:
            raise PolicyAbstained(AbstainReason.BACKEND_UNAVAILABLE, self.away or ENDED)
        reading, self._health = said
        if isinstance(reading, Abstention):
            raise PolicyAbstained(reading.reason, reading.detail or "")
        return reading

    async def explain(
        self, prompt: Prompt, action: Action, deadline: float, scenario: Scenario | None = None
    ) -> str | None:
        """One or two sentences; None when late, or while the other process does not run."""
        with suppress(PolicyAbstained):
            asked = Explain(self._hash, prompt, action, deadline, scenario)
            text: str | None = await self._ask(asked, deadline)
            return text
        return None

    async def aclose(self) -> None:
        """The other process may forget it."""
        self._reader.release(self)

    async def _ask(self, what: Any, deadline: float) -> Any:
        if self.away is not None:
            raise PolicyAbstained(AbstainReason.BACKEND_UNAVAILABLE, self.away)
        try:
            return await self._reader.ask(what, max(deadline - monotonic(), 0.0) + GRACE_S)
        except Unanswered as error:
            if monotonic() >= deadline:
                raise PolicyAbstained(AbstainReason.DEADLINE, str(error)) from error
            raise PolicyAbstained(AbstainReason.BACKEND_UNAVAILABLE, str(error)) from error


class Reader:
    """The other process, as this one knows it; on this event loop.

    Parameters
    ----------
    place : its socket.
    """

    def __init__(self, place: Path, telemetry: Telemetry) -> None:
        self._place, self._telemetry = place, telemetry
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._reached = asyncio.Event()
        self._policies: list[ReadElsewhere] = []
        self._keeping = asyncio.create_task(self._keep())

    def load(self, directory: Path, registered: ModelManifest | None = None) -> ReadElsewhere:
        """A version, verified and loaded there; see `Backends.load`. Blocks: call it in a
        thread."""
        loading = asyncio.run_coroutine_threadsafe(self._load(directory, registered), self._loop)
        return loading.result()

    async def ask(self, what: Any, patience_s: float | None = None) -> Any:
        """The other process' answer. Raises `Unanswered`."""
        if self._channel is None:
            raise Unanswered(ENDED)
        return await self._channel.ask(what, patience_s)

    def release(self, policy: ReadElsewhere) -> None:
        """A version is served here no more."""
        if policy in self._policies:
            self._policies.remove(policy)
        if self._channel is not None:
            with suppress(Unanswered):
                self._channel.tell(Release(policy.manifest.hash()))

    async def aclose(self) -> None:
        """Leave it."""
        await end([self._keeping])

    async def _load(self, directory: Path, registered: ModelManifest | None) -> ReadElsewhere:
        try:
            async with asyncio.timeout(STARTS_WITHIN_S):
                await self._reached.wait()
            loaded = await self.ask(Load(directory, registered))
        except (Unanswered, TimeoutError) as error:
            why = str(error) or f"it has not started within {STARTS_WITHIN_S:g} s"
            raise ModelFileError(
                f"{directory}: the process that runs the models did not load it: {why}; its log"
                " says more"
            ) from error
        policy = ReadElsewhere(self, directory, _or_raise(loaded))
        self._policies.append(policy)
        return policy

    async def _keep(self) -> None:
        """Reach the other process, again each time that it has ended."""
        while True:
            try:
                streams = await asyncio.open_unix_connection(self._place)
            except OSError:
                await asyncio.sleep(AGAIN_S)
                continue
            channel = self._channel = Channel(*streams, _hears_nothing)
            hearing = asyncio.create_task(channel.run())
            again = asyncio.create_task(self._load_again())
            self._reached.set()
            try:
                await asyncio.wait([hearing])
            finally:
                self._channel = None
                self._reached.clear()
                for policy in self._policies:
                    policy.away = ENDED
                await end([hearing, again])
            log.error("the process that runs the models has ended")
            self._telemetry.dependency_seen(Dependency.MODEL, False)

    async def _load_again(self) -> None:
        """Every version that was served when it ended, under the manifest that it had; one that
        cannot be loaded is tried again."""
        while away := [policy for policy in self._policies if policy.away is not None]:
            for policy in away:
                try:
                    _or_raise(await self.ask(Load(policy.directory, policy.manifest)))
                except AdvisorError as error:
                    policy.away = f"it cannot be loaded again: {error}"
                    log.error(policy.away, version=policy.manifest.model_version)
                else:
                    policy.away = None
                    log.info("a version is read again", version=policy.manifest.model_version)
            if any(policy.away is not None for policy in self._policies):
                await asyncio.sleep(RETRY_S)
        self._telemetry.dependency_seen(Dependency.MODEL, True)


def _or_raise(loaded: Loaded | Refused) -> Loaded:
    if isinstance(loaded, Refused):
        raise REFUSALS[loaded.kind](loaded.why)
    return loaded


async def _hears_nothing(what: Any) -> None:
    """It is asked, and asks nothing."""
