"""What `advisor doctor` looks at: each check says what it saw, and how to mend what is wrong.

A check never changes anything, waits some seconds at most for a silent server, and never ends
another: what it cannot find out it says.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from sqlalchemy import text

from app.api.tokens import TokenFile, Tokens, require_somebody
from app.cli.health.addresses import addresses_of
from app.domain.errors import AdvisorError
from app.domain.rules.limits import read_limits
from app.domain.text import counted
from app.journal.stream import StreamJournal
from app.main import deciders, default_directory
from app.operator_client import OperatorClient, OperatorError
from app.policy.versions.store import find_manifest
from app.settings import SCRIPTED, Settings, SettingsError
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.checkpoint import read_checkpoints
from app.shadow_log.proof.places import place_at

SKEW_S = 2.0
"""Clocks of two machines may differ by so much: limits on a snapshot's age allow 5 s."""
SOON = timedelta(days=7)
"""A token that ends within this is told of."""
STALE = timedelta(hours=1)
"""A checkpoint should not be older than this while events come in."""
WAITS = 1_000
"""Events that may wait for the writer before it is called late."""


class State(StrEnum):
    """Of one thing that was looked at."""

    OK = "ok"
    WATCH = "watch"
    WRONG = "wrong"


class Finding(NamedTuple):
    """What one look saw."""

    check: str
    state: State
    what: str
    mend: str = ""


class Bounds(NamedTuple):
    """What may be asked for otherwise."""

    free_gb: float
    prometheus: str | None


Check = Callable[[Settings, Bounds], Coroutine[Any, Any, list[Finding]]]


async def examine(settings: Settings, bounds: Bounds) -> list[Finding]:
    """Every finding of every check, in their order; they look at the same time."""
    looks = await asyncio.gather(*(_look(name, check, settings, bounds) for name, check in CHECKS))
    return [finding for look in looks for finding in look]


async def _look(name: str, check: Check, settings: Settings, bounds: Bounds) -> list[Finding]:
    """One check's findings; its failure is one, for it is what is wrong."""
    try:
        return await check(settings, bounds)
    except (AdvisorError, OperatorError, OSError) as error:
        return [Finding(name, State.WRONG, str(error), REMEDIES.get(name, ""))]


async def _home(settings: Settings, bounds: Bounds) -> list[Finding]:
    """Where files are written: by us, and with room for more."""
    home = settings.home
    if not home.is_dir():
        return [
            Finding("home", State.WRONG, f"there is no {home}", f"mkdir -p -m 700 {home}"),
        ]
    findings = []
    if not os.access(home, os.W_OK):
        mend = f"let the service's user own {home}"
        findings.append(Finding("home", State.WRONG, f"{home} cannot be written", mend))
    usage = shutil.disk_usage(home)
    free = usage.free / 1e9
    told = f"{free:.1f} GB free of {usage.total / 1e9:.0f} where {home} lies"
    mend = "free space, or move ADVISOR_HOME: a full disk loses what Valkey does not take"
    enough = free >= bounds.free_gb
    state = State.OK if enough else State.WRONG
    return [*findings, Finding("disk", state, told, "" if enough else mend)]


async def _limits(settings: Settings, _: Bounds) -> list[Finding]:
    """The general limits, and those of every profile."""
    limits = read_limits(settings.limits)
    folder = settings.limits_profiles
    profiles = [path.stem for path in sorted(folder.glob("*.toml"))]
    for name in profiles:
        read_limits(folder / f"{name}.toml")
    told = f"{settings.limits}: version {limits.version}, {len(profiles)} profiles beside it"
    findings = [Finding("limits", State.OK, told)]
    if not folder.is_dir():
        mend = "name the folder of profiles in ADVISOR_LIMITS_PROFILES"
        findings.append(Finding("limits", State.WATCH, f"there is no folder {folder}", mend))
    return [*findings, *_profiles_of_nobody(profiles, settings)]


def _profiles_of_nobody(profiles: Sequence[str], settings: Settings) -> Iterator[Finding]:
    """Profiles that nearly have the name of somebody who asks, and so judge nobody."""
    names = {token.name for token in TokenFile(settings.tokens_file).tokens()}
    for profile in profiles:
        meant = [n for n in names if n.casefold() == profile.strip().casefold() and n != profile]
        if profile not in names and meant:
            told = f"{profile}.toml judges nobody: who asks is {meant[0]}"
            mend = f"name it {meant[0]}.toml"
            yield Finding("limits", State.WATCH, told, mend)


async def _tokens(settings: Settings, _: Bounds) -> list[Finding]:
    """Whether somebody may ask, and for how long."""
    require_somebody(Tokens(*settings.who_may), settings.host)
    tokens = TokenFile(settings.tokens_file).tokens()
    findings = list(_ends_of(settings.tokens_file, datetime.now(UTC)))
    if not tokens and settings.open is None and settings.admin_token is None:
        mend = "advisor token create --name agent --role agent"
        findings.append(Finding("tokens", State.WRONG, "nobody holds a token", mend))
    if settings.open is not None:
        told = "whoever asks from this machine may do everything (ADVISOR_OPEN)"
        findings.append(Finding("tokens", State.WATCH, told, "unset it where others log in"))
    return findings or [Finding("tokens", State.OK, f"{len(tokens)} in {settings.tokens_file}")]


def _ends_of(path: Path, now: datetime) -> Iterator[Finding]:
    """Principals none of whose tokens is good for long."""
    ends: dict[str, datetime] = {}
    for token in TokenFile(path).tokens():
        end = token.expires_at or datetime.max.replace(tzinfo=UTC)
        ends[token.name] = max(end, ends.get(token.name, end))
    for name, end in sorted(ends.items()):
        mend = f"advisor token rotate {name}"
        if end <= now:
            yield Finding("tokens", State.WRONG, f"{name}'s ended {end:%Y-%m-%d %H:%M} UTC", mend)
        elif end <= now + SOON:
            yield Finding("tokens", State.WATCH, f"{name}'s ends {end:%Y-%m-%d %H:%M} UTC", mend)


async def _model(settings: Settings, _: Bounds) -> list[Finding]:
    """The version that a start would serve when no alias says otherwise."""
    if settings.model == SCRIPTED:
        told = "MODEL=scripted: the shipped fake decides, no model does"
        return [Finding("model", State.WATCH, told, "unset MODEL")]
    directory = Path(settings.model) if settings.model else default_directory(settings)
    manifest = await asyncio.to_thread(find_manifest, directory, settings.manifests_dir)
    manifest.require_compatible()
    return [Finding("model", State.OK, f"{manifest.model_version}, every file as in its manifest")]


async def _deciders(settings: Settings, _: Bounds) -> list[Finding]:
    """The file of decision models elsewhere, where there is one, and their keys."""
    if settings.deciders is None:
        return []
    return [Finding("deciders", State.OK, f"{len(deciders(settings))} in {settings.deciders}")]


async def _postgres(settings: Settings, _: Bounds) -> list[Finding]:
    """Whether it answers, has this release's schema, keeps what it confirms, and has our clock."""
    if not settings.database_url:
        return [Finding("postgres", State.WRONG, "no address", REMEDIES["postgres"])]
    log = ShadowLog.connect(settings.database_url)
    try:
        await log.ping()
        async with log.engine.connect() as connection:
            row = (await connection.execute(text(STATE_OF_POSTGRES))).mappings().one()
    finally:
        await log.aclose()
    findings = []
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if row[name] == "off":
            mend = f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()"
            findings.append(Finding("postgres", State.WRONG, f"{name} is off", mend))
    if not row["makes_months"]:
        mend = "advisor migrate, and use the role advisor_writer"
        findings.append(
            Finding("partitions", State.WRONG, "this role cannot make the next month's", mend)
        )
    findings.append(_skew("Postgres", row["now"]))
    told = f"{counted(row['decisions'], 'decision')} (estimated), {row['size'] / 1e9:.2f} GB"
    return [Finding("postgres", State.OK, told), *findings]


def _skew(who: str, at: datetime) -> Finding:
    """How far another machine's clock is from ours."""
    off = abs((datetime.now(UTC) - at).total_seconds())
    fine = off <= SKEW_S
    mend = "" if fine else "let both machines follow a time server (chrony, systemd-timesyncd)"
    state = State.OK if fine else State.WRONG
    return Finding("clock", state, f"{who}'s is {off:.1f} s from this machine's", mend)


async def _valkey(settings: Settings, _: Bounds) -> list[Finding]:
    """Whether it answers and keeps what it confirms, and what waits in it."""
    if not settings.redis_url:
        return [Finding("valkey", State.WRONG, "no address", REMEDIES["valkey"])]
    stream = StreamJournal(settings.redis_url, 2.0)
    try:
        condition = await stream.look()
        waiting, age = await stream.backlog()
    finally:
        await stream.aclose()
    if condition.durable is None:
        told = "it does not tell whether it keeps what it confirms"
        mend = "ask who hosts it for appendonly yes, appendfsync always, noeviction"
        findings = [Finding("valkey", State.WATCH, told, mend)]
    elif condition.faults:
        findings = [
            Finding("valkey", State.WRONG, what, mend)
            for what, _, mend in (fault.partition(": ") for fault in condition.faults)
        ]
    else:
        findings = [Finding("valkey", State.OK, "every confirmed write is on its disk")]
    late = waiting > WAITS
    queued = counted(waiting, "event waits", "events wait")
    told = f"{queued} for the writer, the oldest for {age:.0f} s"
    mend = "is `advisor writer` running? docs/runbook.md, AdvisorWriterBehind" if late else ""
    return [*findings, Finding("writer", State.WATCH if late else State.OK, told, mend)]


async def _spool(settings: Settings, _: Bounds) -> list[Finding]:
    """What waits on disk because Valkey was away."""
    segments = sorted(settings.spool_dir.glob("*.segment"))
    size = sum(path.stat().st_size for path in segments)
    if size == 0:
        return []
    told = f"{size:,} bytes in {len(segments)} segments of {settings.spool_dir}"
    return [Finding("spool", State.WATCH, told, "a running API drains it once Valkey answers")]


async def _checkpoints(settings: Settings, _: Bounds) -> list[Finding]:
    """Whether the record was signed lately."""
    place = settings.checkpoints_here
    if place is None:
        mend = "set ADVISOR_CHECKPOINTS for the writer: a place that the database does not hold"
        return [Finding("checkpoints", State.WATCH, "none are written as far as seen here", mend)]
    signed, cut = await asyncio.to_thread(read_checkpoints, place_at(place))
    if not signed:
        mend = "is `advisor writer` running with ADVISOR_CHECKPOINTS?"
        return [Finding("checkpoints", State.WATCH, "none has been written yet", mend)]
    at = max(datetime.fromisoformat(document["at"]) for document in signed)
    told = f"{len(signed)}, the newest of {at:%Y-%m-%d %H:%M} UTC, {cut} cut lines"
    fresh = datetime.now(UTC) - at <= STALE
    mend = "" if fresh else "if events came since, restart the writer and read its log"
    return [Finding("checkpoints", State.OK if fresh else State.WATCH, told, mend)]


async def _places(settings: Settings, _: Bounds) -> list[Finding]:
    """What the environment names, and nothing asks for until a page or a notice needs it."""
    findings = []
    for name, folder in (("bars", settings.bars), ("drift", settings.drift)):
        if folder is not None and not folder.is_dir():
            told = f"there is no folder {folder}"
            mend = f"make it, or unset ADVISOR_{name.upper()}"
            findings.append(Finding(name, State.WATCH, told, mend))
    if settings.notices:
        try:
            told = counted(len(addresses_of(settings)), "address", "addresses")
            findings.append(Finding("notices", State.OK, told, ""))
        except SettingsError as error:
            mend = "mend ADVISOR_NOTICES; `advisor notices test` sends one"
            findings.append(Finding("notices", State.WRONG, str(error), mend))
    return findings


async def _service(settings: Settings, _: Bounds) -> list[Finding]:
    """What the running API says of itself."""
    client = OperatorClient(
        f"http://{settings.host}:{settings.port}", settings.admin_token, timeout_s=5.0
    )
    report = await asyncio.to_thread(client.readiness)
    status = str(report.pop("status", "unknown"))
    told = ", ".join(
        f"{name} {_briefly(value)}"
        for name, value in sorted(report.items())
        if _is_worth_a_word(value)
    )
    state = {"ready": State.OK, "degraded": State.WATCH}.get(status, State.WRONG)
    mend = "" if state is State.OK else "docs/runbook.md, by the name of what is not up"
    return [Finding("service", state, f"{status}: {told}"[:500], mend)]


def _is_worth_a_word(value: Any) -> bool:
    """Whether it is more than that nothing is the matter."""
    return value is False or (value is not True and value not in ("up", "whole", 0, [], {}))


def _briefly(value: Any) -> str:
    """A part of what the service says of itself, on a line."""
    if isinstance(value, dict):
        return str(
            value.get("version") or ", ".join(f"{key}: {each}" for key, each in value.items())
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


async def _alerts(_: Settings, bounds: Bounds) -> list[Finding]:
    """What Prometheus says is wrong, where it was named."""
    if bounds.prometheus is None:
        return []
    try:
        async with httpx.AsyncClient(base_url=bounds.prometheus, timeout=5.0) as http:
            answer = (await http.get("/api/v1/alerts")).raise_for_status().json()
            alerts = answer["data"]["alerts"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        mend = "is that the address of Prometheus?"
        return [Finding("alerts", State.WRONG, f"{bounds.prometheus}: {error}", mend)]
    firing = [alert for alert in alerts if alert.get("state") == "firing"]
    return [_of_alert(alert) for alert in firing] or [
        Finding("alerts", State.OK, f"none of {len(alerts)} is firing")
    ]


def _of_alert(alert: dict[str, Any]) -> Finding:
    notes, name = alert.get("annotations", {}), str(alert.get("labels", {}).get("alertname"))
    told = f"{name}: {notes.get('summary', '')}"
    return Finding("alerts", State.WRONG, told, str(notes.get("runbook", "")))


STATE_OF_POSTGRES = """
SELECT clock_timestamp() AS now, current_setting('fsync') AS fsync,
  current_setting('full_page_writes') AS full_page_writes,
  current_setting('synchronous_commit') AS synchronous_commit,
  pg_database_size(current_database()) AS size,
  has_function_privilege('advisor_make_month(text)', 'EXECUTE') AS makes_months,
  (SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class
   WHERE relispartition AND relkind = 'r' AND relname LIKE 'decisions\\_%') AS decisions
"""
REMEDIES = {
    "limits": "mend the file that ADVISOR_LIMITS names; docs/vetoes.md has every key",
    "tokens": "docs/runbook.md, Tokens",
    "model": "`advisor model import`, or let MODEL name a version's directory",
    "deciders": "mend the file that ADVISOR_DECIDERS names",
    "postgres": "start Postgres, let DATABASE_URL name it, then `advisor migrate`",
    "valkey": "start Valkey with appendonly yes, and let REDIS_URL name it",
    "checkpoints": "look at the place that ADVISOR_CHECKPOINTS names",
    "service": "`advisor up`, or `advisor serve`",
}
CHECKS: tuple[tuple[str, Check], ...] = (
    ("home", _home),
    ("limits", _limits),
    ("tokens", _tokens),
    ("model", _model),
    ("deciders", _deciders),
    ("postgres", _postgres),
    ("valkey", _valkey),
    ("spool", _spool),
    ("checkpoints", _checkpoints),
    ("places", _places),
    ("service", _service),
    ("alerts", _alerts),
)
