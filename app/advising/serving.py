"""Which model versions are served: those that the settings fix, and those that aliases name.

The alias `shadow` names the primary, every alias `shadow-...` a further version in shadow. Other
aliases are names and nothing more. An alias that is moved to `none` names nothing. A running
service follows the aliases: it loads a version in a thread, swaps it in between two requests, and
closes the old one when its last request has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from app.advising.advise import Advisor, Models
from app.domain.errors import AdvisorError, AliasRefused, ModelFileError, ShadowLogUnavailable
from app.domain.manifest import ModelManifest
from app.metrics import Metrics
from app.policy.port import Policy
from app.policy.store import find_base, find_version, load_manifest
from app.shadow_log.log import NOTHING, ShadowLog

log = structlog.get_logger()
PRIMARY_ALIAS = "shadow"
FURTHER_PREFIX = "shadow-"
REFRESH_S = 0.5
RETRY_S = 30.0
"""After which a version that could not be loaded is tried again: its files may have been on their
way."""


@dataclass(frozen=True)
class Directories:
    """Where versions lie, and how one becomes a policy (blocks for seconds; raises what
    `load_policy` raises)."""

    roots: Sequence[Path]
    load: Callable[[Path], Policy]


@dataclass(frozen=True)
class Fixed:
    """What the settings say, whatever the aliases do.

    Parameters
    ----------
    primary : why the alias `shadow` is not followed; None follows it.
    aliases : why no alias is followed at all; None follows them.
    shadows : versions that are always served beside the primary.
    """

    primary: str | None = None
    aliases: str | None = None
    shadows: tuple[Policy, ...] = ()


@dataclass(frozen=True)
class Start:
    """What is served at the start, and where versions are found later.

    Parameters
    ----------
    named : policies among `models` that are there because an alias names them, by alias.
    """

    models: Models
    directories: Directories
    fixed: Fixed = Fixed()
    named: Mapping[str, Policy] = field(default_factory=dict)


@dataclass
class _Refusal:
    """A version that an alias names and that could not be loaded."""

    model_version: str
    again_at: float = field(default_factory=lambda: monotonic() + RETRY_S)


def is_served(alias: str) -> bool:
    """Whether an alias says what is served."""
    return alias == PRIMARY_ALIAS or alias.startswith(FURTHER_PREFIX)


class Versions:
    """Moves aliases and follows them. One move or switch at a time; whatever fails leaves
    everything as it was."""

    def __init__(
        self, advisor: Advisor, start: Start, shadow_log: ShadowLog, metrics: Metrics
    ) -> None:
        self._advisor = advisor
        self._directories = start.directories
        self._fixed = start.fixed
        self._initial = start.models.primary
        self._named = dict(start.named)
        self._log = shadow_log
        self._metrics = metrics
        self._refused: dict[str, _Refusal] = {}
        self._retired: list[Policy] = []
        self._lock = asyncio.Lock()
        self._show()

    async def register(self, model_version: str) -> ModelManifest:
        """Verify a version's directory and make its manifest known.

        Raises
        ------
        UnknownVersion, ManifestMismatch, ModelFileError, ShadowLogUnavailable : nothing was
            changed.
        """
        manifest = await asyncio.to_thread(self._verified, model_version)
        await self._log.register_model(manifest)
        return manifest

    async def move(self, alias: str, model_version: str, *, reason: str, by: str) -> str | None:
        """Point an alias at a version; where it pointed before. A version that is going to be
        served is loaded first, so that an alias never names one that cannot be.

        Raises
        ------
        AliasRefused, UnknownVersion, ManifestMismatch, ModelFileError, ShadowLogUnavailable : the
            alias did not move, and what is served stays.
        """
        self._require_movable(alias, model_version)
        async with self._lock:
            before = (await self._log.aliases()).get(alias)
            policy = None
            if is_served(alias) and model_version != NOTHING:
                policy = await self._registered(model_version)
            try:
                if alias == PRIMARY_ALIAS and before is None:
                    before = await self._note_initial(by)
                await self._log.set_alias(alias, model_version, reason=reason, by=by)
            except AdvisorError:
                await self._close_unless_served(policy)
                raise
            if is_served(alias):
                self._name(alias, policy)
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

    async def follow_forever(self) -> None:
        """Serve what the aliases name, and close what is not used any more, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.follow()

    async def follow(self) -> None:
        """One look at the aliases. Without Postgres, what is served stays."""
        await self._close_retired()
        if self._fixed.aliases is not None:
            return
        async with self._lock:
            try:
                aliases = await self._log.aliases()
            except ShadowLogUnavailable:
                return  # /readyz and advisor_dependency_up say so.
            for alias in sorted({*aliases, *self._named}):
                if is_served(alias) and not (
                    alias == PRIMARY_ALIAS and self._fixed.primary is not None
                ):
                    await self._follow_one(alias, aliases.get(alias, NOTHING))

    async def aclose(self) -> None:
        """Close every policy."""
        for policy in {*self._advisor.models.policies, *self._fixed.shadows, *self._retired}:
            await policy.aclose()

    async def _follow_one(self, alias: str, model_version: str) -> None:
        """Serve what one alias names. A version that cannot be loaded is counted, and what was
        served stays."""
        serving = self._named.get(alias)
        if model_version == NOTHING:
            if serving is not None and alias != PRIMARY_ALIAS:
                self._name(alias, None)
            return
        refused = self._refused.get(alias)
        if serving is not None and serving.manifest.model_version == model_version:
            return
        if (
            refused is not None
            and refused.model_version == model_version
            and monotonic() < refused.again_at
        ):
            return
        try:
            policy = await self._registered(model_version)
        except AdvisorError as error:
            self._refused[alias] = _Refusal(model_version)
            self._metrics.version_refusals.inc()
            log.error(
                "version refused, what was served stays",
                alias=alias,
                version=model_version,
                error=str(error),
            )
            return
        self._refused.pop(alias, None)
        self._name(alias, policy)

    def _require_movable(self, alias: str, model_version: str) -> None:
        fixed = self._fixed.aliases if is_served(alias) else None
        if alias == PRIMARY_ALIAS:
            fixed = fixed or self._fixed.primary
            if model_version == NOTHING:
                raise AliasRefused(
                    f"the alias {PRIMARY_ALIAS} names the primary version: it cannot name {NOTHING}"
                )
        if fixed is not None:
            raise AliasRefused(f"this service does not follow the alias {alias}: {fixed}")

    async def _registered(self, model_version: str) -> Policy:
        """A policy of this version, loaded unless it is being served, and known to the registry by
        its manifest."""
        serving = {
            policy.manifest.model_version: policy for policy in self._advisor.models.policies
        }
        policy = serving.get(model_version)
        if policy is None:
            policy = await asyncio.to_thread(self._load, model_version)
        try:
            await self._log.register_model(policy.manifest)
        except AdvisorError:
            await self._close_unless_served(policy)
            raise
        return policy

    def _load(self, model_version: str) -> Policy:
        try:
            return self._directories.load(find_version(model_version, self._directories.roots))
        except OSError as error:
            raise ModelFileError(
                f"model version {model_version} cannot be read: {error}"
            ) from error

    def _verified(self, model_version: str) -> ModelManifest:
        manifest = load_manifest(find_version(model_version, self._directories.roots))
        if manifest.base is not None:
            find_base(manifest.base, self._directories.roots)
        return manifest

    async def _note_initial(self, by: str) -> str:
        """Record what was served before the first move, so that there is something to go back
        to."""
        manifest = self._initial.manifest
        await self._log.register_model(manifest)
        await self._log.set_alias(
            PRIMARY_ALIAS, manifest.model_version, reason="served before the first move", by=by
        )
        return manifest.model_version

    def _name(self, alias: str, policy: Policy | None) -> None:
        """Let an alias name a policy, and serve accordingly from the next request on."""
        if policy is None:
            self._named.pop(alias, None)
        else:
            self._named[alias] = policy
        before = self._advisor.models
        primary = self._named.get(PRIMARY_ALIAS, self._initial)
        further = [self._named[alias] for alias in sorted(self._named) if alias != PRIMARY_ALIAS]
        distinct = {primary.manifest.model_version: primary}
        for each in (*self._fixed.shadows, *further):
            distinct.setdefault(each.manifest.model_version, each)
        models = Models(primary, tuple(distinct.values())[1:])
        if models.policies == before.policies:
            return
        self._advisor.models = models
        self._show()
        gone = [policy for policy in before.policies if policy not in models.policies]
        self._retired += [policy for policy in gone if policy not in self._fixed.shadows]
        log.info("versions", serving=[policy.manifest.model_version for policy in models.policies])

    def _show(self) -> None:
        self._metrics.show_models(
            (policy.manifest, role) for policy, role in self._advisor.models.with_roles()
        )

    async def _close_unless_served(self, policy: Policy | None) -> None:
        if policy is not None and policy not in self._advisor.models.policies:
            await policy.aclose()

    async def _close_retired(self) -> None:
        """Close what no request can ask any more."""
        for policy in [policy for policy in self._retired if not self._advisor.uses(policy)]:
            self._retired.remove(policy)
            await policy.aclose()
