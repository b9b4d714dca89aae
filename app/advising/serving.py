"""Which model versions are served: those that the settings pin, and those that aliases name.

The alias `shadow` names the primary, every alias `shadow-...` a further version in shadow. Other
aliases are names and nothing more. An alias that is moved to `none` names nothing. A look at the
aliases loads what they name in a thread, swaps it in between two requests, and closes the old one
when its last request has ended. The first look is the start.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import structlog

from app.domain.errors import (
    AdvisorError,
    AliasRefused,
    InvalidRecord,
    ManifestMismatch,
    ModelFileError,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.model.aliases import NOTHING
from app.domain.model.manifest import PRIMARY_ALIAS, ModelManifest
from app.domain.record.decision import Role, Version
from app.policy.backends import Backends
from app.policy.options import BackendOptions
from app.policy.port import Policy
from app.policy.reader.elsewhere import ReadElsewhere
from app.policy.versions.files import read_text, refusals
from app.policy.versions.store import base_of, find_version, load_manifest, report_beside
from app.policy.withheld import WithheldPolicy
from app.processes.siblings import ALONE, Alone
from app.shadow_log.log import ShadowLog
from app.telemetry import Telemetry

log = structlog.get_logger()
FURTHER_PREFIX = "shadow-"
REFRESH_S = 0.5
MOST_CARD_BYTES = 1 << 20
PATIENCE_S = 300.0
"""A look may load a model, or several."""
RETRY_S = 30.0
"""After which a version that could not be loaded is tried again: its files may have been on their
way."""


@dataclass(frozen=True, eq=False)
class Models:
    """The versions being served: the primary's advice is the reply, the others are recorded beside
    it."""

    primary: Policy
    shadows: tuple[Policy, ...] = ()

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Every policy, the primary first."""
        return (self.primary, *self.shadows)

    def with_roles(self) -> tuple[tuple[Policy, Role], ...]:
        """Every policy with its role, the primary first."""
        return ((self.primary, Role.PRIMARY), *((policy, Role.SHADOW) for policy in self.shadows))

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        """What each policy's readings are concluded with, the primary's first."""
        return tuple(
            Version(p.manifest.model_version, p.manifest.hash(), p.manifest.calibration, role)
            for p, role in self.with_roles()
        )


class Pins(NamedTuple):
    """What the settings say, whatever the aliases do. A pin is a version's directory, or a policy.

    Parameters
    ----------
    primary : what is served while the alias `shadow` names nothing, cannot be asked, or is not
        followed.
    because : why it is not followed; None follows it.
    shadows : always served beside the primary.
    """

    primary: Path | Policy
    because: str | None = None
    shadows: tuple[Path | Policy, ...] = ()


class Moved(NamedTuple):
    """Told to processes beside this one: an alias was moved."""


class _Refused(NamedTuple):
    """A version that an alias names and that could not be loaded."""

    model_version: str
    again_at: float
    because: str = ""


def is_served(alias: str) -> bool:
    """Whether an alias says what is served."""
    return alias == PRIMARY_ALIAS or alias.startswith(FURTHER_PREFIX)


class Serving:
    """Moves aliases and follows them. One move or look at a time; whatever fails leaves everything
    as it was."""

    def __init__(
        self,
        pins: Pins,
        backends: Backends,
        shadow_log: ShadowLog,
        telemetry: Telemetry,
        siblings: Alone = ALONE,
    ) -> None:
        self._siblings = siblings
        self._pins = pins
        self._backends = backends
        self._log = shadow_log
        self._telemetry = telemetry
        self._models: Models | None = None
        self._initial: Policy
        self._pinned: tuple[Policy, ...] = ()
        self._named: dict[str, Policy] = {}
        self._unregistered: list[tuple[Path | Policy, Policy]] = []
        self._refused: dict[str, _Refused] = {}
        self._retired: list[Policy] = []
        self._in_use: Counter[Models] = Counter()
        self._lock = asyncio.Lock()

    @property
    def options(self) -> BackendOptions:
        """How versions are run here."""
        return self._backends.options

    @property
    def models(self) -> Models:
        """Versions that the next request gets, from the first look on; replaced as a whole, also
        while requests are under way."""
        assert self._models is not None, "the first look decides what is served"
        return self._models

    @contextmanager
    def using(self) -> Iterator[Models]:
        """The versions in force now, for a whole request: a switch meanwhile concerns the next
        one."""
        models = self.models
        self._in_use[models] += 1
        try:
            yield models
        finally:
            self._in_use[models] -= 1
            if not self._in_use[models]:
                del self._in_use[models]

    async def keep_up(self) -> None:
        """Register what the start served, serve what the aliases name, and close what is not used
        any more."""
        await self._register_initial()
        await self.follow()

    async def follow(self) -> None:
        """One look at the aliases. Without Postgres, what is served stays; at the start, it is the
        default.

        Raises
        ------
        UnknownVersion, ManifestMismatch, ModelFileError : at the start, when the primary cannot be
            served. Later such a version is refused and counted, and what was served stays.
        """
        await self._close_retired()
        async with self._lock:
            try:
                aliases = await self._aliases()
                if self._models is None:
                    await self._start(aliases)
            except ShadowLogUnavailable as error:
                if self._models is not None:
                    if await self._log.is_away(error):
                        return  # /readyz and advisor_dependency_up say so.
                    raise
                if self._why_fixed(PRIMARY_ALIAS) is None:
                    log.warning(
                        "aliases unknown, starting with the default version", error=str(error)
                    )
                aliases = {}
                await self._start(aliases)
            for alias in sorted({*aliases, *self._named}):
                await self._follow_alias(alias, aliases.get(alias, NOTHING))

    async def register(self, model_version: str) -> ModelManifest:
        """Verify a version's directory and make its manifest known.

        Raises
        ------
        UnknownVersion, ManifestMismatch, ModelFileError, ShadowLogUnavailable : nothing was
            changed.
        """
        registered = await self._log.registered(model_version)
        expected = None if registered is None else registered.manifest_hash
        manifest = await asyncio.to_thread(self._verified, model_version, expected)
        await self._log.register_model(manifest)
        return manifest

    async def move(
        self, alias: str, model_version: str, *, reason: str, by: str, seen: str | None = None
    ) -> str | None:
        """Point an alias at a version; where it pointed before. A version that is going to be
        served is loaded first, so that an alias never names one that cannot be. `seen` as of
        `ShadowLog.set_alias`.

        Raises
        ------
        AliasRefused, UnknownVersion, ManifestMismatch, ModelFileError, ShadowLogUnavailable : the
            alias did not move, and what is served stays.
        """
        fixed = self._why_fixed(alias) if is_served(alias) else None
        if fixed is not None:
            raise AliasRefused(f"this service does not follow the alias {alias}: {fixed}")
        if alias == PRIMARY_ALIAS and model_version == NOTHING:
            raise AliasRefused(
                f"the alias {PRIMARY_ALIAS} names the primary version: it cannot name {NOTHING}"
            )
        async with self._lock:
            before = (await self._log.aliases()).get(alias)
            policy = None
            if is_served(alias) and model_version != NOTHING:
                policy = await self._registered(model_version)
            try:
                if alias == PRIMARY_ALIAS and before is None:
                    before, noted = await self._note_initial(by, seen)
                    seen = None if seen is None else noted
                await self._log.set_alias(alias, model_version, reason=reason, by=by, seen=seen)
            except AdvisorError:
                await self._close_unless_served(policy)
                raise
            if is_served(alias):
                self._name(alias, policy)
        await self._siblings.tell(Moved())
        return before

    async def aliases(self) -> dict[str, Any]:
        """Where each alias points, whether it is served here, and all moves, newest first."""
        moves = await self._log.alias_moves()
        newest = {move["alias"]: move for move in moves}
        serving = {alias: policy.manifest.model_version for alias, policy in self._named.items()}
        return {
            "aliases": {
                alias: {**move, "served": serving.get(alias) == move["model_version"]}
                for alias, move in sorted(newest.items())
            },
            "history": moves[::-1],
        }

    async def describe(self) -> dict[str, Any]:
        """Versions being served with their manifests; versions and aliases of the registry when it
        can be read."""
        serving = [
            {
                "role": role.value,
                "manifest_hash": policy.manifest.hash(),
                "manifest": policy.manifest.as_json(),
            }
            for policy, role in self.models.with_roles()
        ]
        try:
            registry: Any = {
                "models": await self._log.models(),
                "aliases": await self._log.aliases(),
            }
        except ShadowLogUnavailable as error:
            registry = {"unavailable": str(error)}
        return {"serving": serving, "registry": registry}

    def refusals(self) -> dict[str, str]:
        """Why versions are not served, by the alias that names them or by their own name."""
        withheld = {
            policy.manifest.model_version: policy.because
            for policy in self._policies
            if isinstance(policy, WithheldPolicy)
        }
        away = {
            policy.manifest.model_version: policy.away
            for policy in self._policies
            if isinstance(policy, ReadElsewhere) and policy.away is not None
        }
        return (
            withheld | away | {alias: refused.because for alias, refused in self._refused.items()}
        )

    async def aclose(self) -> None:
        """Close every policy."""
        for policy in {*self._policies, *self._pinned, *self._retired}:
            await policy.aclose()

    @property
    def _policies(self) -> tuple[Policy, ...]:
        return () if self._models is None else self._models.policies

    def _why_fixed(self, alias: str) -> str | None:
        """Why an alias that says what is served is not followed here; None follows it."""
        if self._backends.options.vllm_url is not None:
            return "with VLLM_URL, that server's weights decide"
        return self._pins.because if alias == PRIMARY_ALIAS else None

    async def _aliases(self) -> dict[str, str]:
        """The aliases that are followed here, and what they name. Raises
        `ShadowLogUnavailable`."""
        if self._why_fixed(FURTHER_PREFIX) is not None:
            return {}
        return {
            alias: model_version
            for alias, model_version in (await self._log.aliases()).items()
            if is_served(alias) and self._why_fixed(alias) is None
        }

    async def _start(self, aliases: dict[str, str]) -> None:
        """Serve the pinned versions, and as primary what the alias names, else the default."""
        named = aliases.get(PRIMARY_ALIAS)
        if named is not None:
            self._initial = self._named[PRIMARY_ALIAS] = await self._first(named)
        else:
            self._initial = await self._pin(self._pins.primary)
        for pin in self._pins.shadows:
            self._pinned = (*self._pinned, await self._pin(pin))
        pins = (self._pins.primary, *self._pins.shadows)
        self._unregistered = list(zip(pins, (self._initial, *self._pinned), strict=True))
        self._serve()

    async def _first(self, model_version: str) -> Policy:
        try:
            return await self._registered(model_version)
        except UnknownVersion as error:
            raise UnknownVersion(
                f"{error}; the alias {PRIMARY_ALIAS} names it, MODEL can name another"
            ) from error

    async def _pin(self, pin: Path | Policy) -> Policy:
        """A pinned version, as the registry knows it; without Postgres, as it is.

        Raises
        ------
        ManifestMismatch, ModelFileError : it must not be served.
        """
        if not isinstance(pin, Path):
            return pin
        policy = confirmed = await asyncio.to_thread(self._backends.load, pin)
        try:
            confirmed = await self._as_registered(pin, policy)
        except ShadowLogUnavailable:
            pass  # `_register_initial` asks again.
        except AdvisorError:
            await policy.aclose()
            raise
        if confirmed is not policy:
            await policy.aclose()
        return confirmed

    async def _as_registered(self, pin: Path, policy: Policy) -> Policy:
        """The same files under the manifest that is registered under the version's name: the same
        model, imported here on another day, has another one.

        Raises
        ------
        ManifestMismatch : other files are registered.
        """
        manifest = policy.manifest
        known = await self._log.registered(manifest.model_version)
        if known is None or known.manifest_hash == manifest.hash():
            return policy
        same: Policy | None = None
        with suppress(InvalidRecord):
            registered = ModelManifest.from_json(known.document)
            if (
                registered.hash() == known.manifest_hash
                and registered.files == manifest.files
                and registered.base == manifest.base
            ):
                same = await asyncio.to_thread(self._backends.load, pin, registered)
        if same is None:
            raise ManifestMismatch(
                f"{pin} is called {manifest.model_version} and has manifest {manifest.hash()}, but"
                f" {known.manifest_hash} with other content is registered under that name: versions"
                " are immutable, give the new one a new name"
            )
        log.info("served under the manifest that is registered", version=manifest.model_version)
        return same

    async def _register_initial(self) -> None:
        """Make what the start served known to the registry, as soon as Postgres answers. What the
        registry knows otherwise is not served any longer."""
        while self._unregistered:
            pin, policy = self._unregistered[0]
            try:
                if isinstance(pin, Path):
                    self._replace(policy, await self._confirmed(pin, policy))
                else:
                    await self._log.register_model(policy.manifest)
            except ShadowLogUnavailable as unavailable:
                if await self._log.is_away(unavailable):
                    return
                raise
            except ManifestMismatch as error:
                log.error("a version is served that the registry knows otherwise", error=str(error))
            self._unregistered.pop(0)

    async def _confirmed(self, pin: Path, policy: Policy) -> Policy:
        """The policy as the registry knows it, and known to it; or one that abstains."""
        try:
            confirmed = await self._as_registered(pin, policy)
            await self._log.register_model(confirmed.manifest)
            return confirmed
        except (ManifestMismatch, ModelFileError) as error:
            self._telemetry.version_refused()
            log.error("version refused, it abstains from now on", error=str(error))
            return WithheldPolicy(policy.manifest, str(error))

    def _replace(self, old: Policy, new: Policy) -> None:
        """Serve another policy in the place of a pinned one, from the next request on."""
        if new is old:
            return
        if self._initial is old:
            self._initial = new
        self._pinned = tuple(new if policy is old else policy for policy in self._pinned)
        for alias, policy in self._named.items():
            if policy is old:
                self._named[alias] = new
        self._serve()
        self._retired.append(old)

    async def _follow_alias(self, alias: str, model_version: str) -> None:
        """Serve what one alias names. A version that cannot be loaded is counted, and what was
        served stays."""
        serving = self._named.get(alias)
        if model_version == NOTHING:
            if serving is not None and alias != PRIMARY_ALIAS:
                self._name(alias, None)
            return
        if serving is not None and serving.manifest.model_version == model_version:
            return
        refused = self._refused.get(alias, _Refused("", 0.0))
        if refused.model_version == model_version and monotonic() < refused.again_at:
            return
        try:
            policy = await self._registered(model_version)
        except AdvisorError as error:
            self._refused[alias] = _Refused(model_version, monotonic() + RETRY_S, str(error))
            self._telemetry.version_refused()
            log.error(
                "version refused, what was served stays",
                alias=alias,
                version=model_version,
                error=str(error),
            )
            return
        self._refused.pop(alias, None)
        self._name(alias, policy)

    async def _registered(self, model_version: str) -> Policy:
        """A policy of this version, loaded unless it is being served, and known to the registry by
        its manifest."""
        serving = {policy.manifest.model_version: policy for policy in self._policies}
        policy = serving.get(model_version)
        if policy is None:
            registered = await self._log.registered(model_version)
            expected = None if registered is None else registered.manifest_hash
            policy = await asyncio.to_thread(self._load, model_version, expected)
        try:
            await self._log.register_model(policy.manifest)
        except AdvisorError:
            await self._close_unless_served(policy)
            raise
        return policy

    async def card(self, model_version: str) -> str | None:
        """The card that came with a version; None where none lies beside it here."""

        def read() -> str | None:
            try:
                folder = find_version(model_version, self._backends.options.roots)
                return read_text(folder / "README.md", MOST_CARD_BYTES)
            except (AdvisorError, OSError, ValueError):
                return None

        return await asyncio.to_thread(read)

    async def report(self, model_version: str) -> Path | None:
        """The report of a version's evaluation; None where none lies beside it here."""

        def find() -> Path | None:
            try:
                path = report_beside(find_version(model_version, self._backends.options.roots))
                return path if path.is_file() and not path.is_symlink() else None
            except (AdvisorError, OSError, ValueError):
                return None

        return await asyncio.to_thread(find)

    def _load(self, model_version: str, manifest_hash: str | None) -> Policy:
        with refusals(f"model version {model_version}"):
            directory = find_version(model_version, self._backends.options.roots, manifest_hash)
            return self._backends.load(directory)

    def _verified(self, model_version: str, manifest_hash: str | None) -> ModelManifest:
        roots = self._backends.options.roots
        with refusals(f"model version {model_version}"):
            manifest = load_manifest(find_version(model_version, roots, manifest_hash))
            base_of(manifest, roots)
            return manifest

    async def _note_initial(self, by: str, seen: str | None) -> tuple[str, str]:
        """Record what was served before the first move, so that there is something to go back to:
        which, and when that was."""
        manifest, reason = self._initial.manifest, "served before the first move"
        await self._log.register_model(manifest)
        noted = await self._log.set_alias(
            PRIMARY_ALIAS, manifest.model_version, reason=reason, by=by, seen=seen
        )
        return manifest.model_version, noted

    def _name(self, alias: str, policy: Policy | None) -> None:
        """Let an alias name a policy, and serve accordingly from the next request on."""
        if policy is None:
            self._named.pop(alias, None)
        else:
            self._named[alias] = policy
        before = self._policies
        self._serve()
        if self._policies == before:
            return
        log.info("versions", serving=[policy.manifest.model_version for policy in self._policies])
        gone = [policy for policy in before if policy not in self._policies]
        self._retired += [policy for policy in gone if policy not in self._pinned]

    def _serve(self) -> None:
        """The primary, the pinned versions, and those that further aliases name, each once."""
        primary = self._named.get(PRIMARY_ALIAS, self._initial)
        further = [self._named[alias] for alias in sorted(self._named) if alias != PRIMARY_ALIAS]
        distinct = {primary.manifest.model_version: primary}
        for policy in (*self._pinned, *further):
            distinct.setdefault(policy.manifest.model_version, policy)
        policies = tuple(distinct.values())
        if policies == self._policies:
            return
        self._models = models = Models(policies[0], policies[1:])
        self._telemetry.serving((policy.manifest, role) for policy, role in models.with_roles())

    async def _close_unless_served(self, policy: Policy | None) -> None:
        if policy is not None and policy not in self._policies:
            await policy.aclose()

    async def _close_retired(self) -> None:
        """Close what no request can ask any more."""
        in_use = {policy for models in self._in_use for policy in models.policies}
        for policy in [policy for policy in self._retired if policy not in in_use]:
            self._retired.remove(policy)
            await policy.aclose()
