"""What people are told of a running service, in a process of its own: nothing of it can slow the
service, or stop it.

It looks at the service every few seconds, and takes what Alertmanager posts; what changed goes to
every address of ADVISOR_NOTICES. What was seen and what waits for an address are remembered in two
files: a restart tells of what happened meanwhile, and loses nothing. What was being sent when the
process was killed may be told twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, generate_latest

from app.api.tokens import Tokens, write_private
from app.cli.health.addresses import Notice, NotTaken, Takes
from app.domain.principal import Principal, Role
from app.domain.text import counted
from app.operator_client import OperatorClient, OperatorError

MOST_AN_HOUR = 30
"""Notices that go out in an hour; further ones are counted, and told of as a number."""
SILENT_LOOKS = 4
"""Looks in a row without an answer before somebody is told."""
TRIED_FOR_S = 3600.0
"""So long an address that is away is told what it missed."""
MOST_BYTES = 1_000_000
"""Of what Alertmanager may post."""
MOST_CHANGES = 200
"""Changes of the state that are remembered: more than the service tells at once."""
MISSING = "advisor_events_missing"
DEMOTED = "demoted by itself"
"""In the reason of a version that stepped back without anybody (`advisor-train drift --demote`)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
Memory = dict[str, Any]


def looked(client: OperatorClient, before: Memory | None = None) -> Memory:
    """What a look at the service shows of what people are told, after an earlier look. Raises
    `OperatorError`."""
    state = client.state()
    readiness, aliases, limits = client.readiness(), client.aliases(), client.limits()
    missing = [
        value for name, value in client.metrics().items() if name.partition("{")[0] == MISSING
    ]
    return {
        "state": state,
        "changes": _changes_of_state(client, state.get("change"), (before or {}).get("changes")),
        "moves": aliases["history"][::-1],
        "adoptions": limits["history"][::-1],
        "status": readiness["status"],
        "refused": readiness.get("models_refused") or {},
        "missing": max(missing, default=0.0),
    }


def _changes_of_state(
    client: OperatorClient, current: Any, seen: list[Any] | None
) -> list[Any] | None:
    """Changes of the state that were seen and that are seen now, the first in time first. The one
    in force may be there before the record has it. None while no record of them was ever read."""
    try:
        recorded = client.state_changes()[::-1]
    except OperatorError:
        if seen is None:
            return None
        recorded = []
    if current is not None and current not in recorded:
        recorded.append(current)
    seen = seen or []
    return [*seen, *(change for change in recorded if change not in seen)][-MOST_CHANGES:]


def changes(before: Memory, now: Memory) -> Iterator[Notice]:
    """What to tell of the difference between two looks, the first in time first."""
    yield from _of_state(before, now)
    for move in now["moves"][len(before["moves"]) :]:
        body = f"{move['changed_by']}: {move['reason']}"
        level = "failure" if DEMOTED in move["reason"] else "warning"
        yield Notice(f"{move['alias']} is now {move['model_version']}", body, level)
    known = max((each["id"] for each in before["adoptions"]), default=0)
    for adoption in now["adoptions"]:
        if (
            adoption["id"] <= known
        ):  # The service names the newest alone: a count would stand still.
            continue
        what = "the file's" if adoption["toml"] is None else adoption["hash"][:19]
        whose = adoption["profile"] or "everybody"
        body = f"{adoption['changed_by']}: {adoption['reason']}"
        yield Notice(f"limits {what} judge {whose}", body, "warning")
    if now["status"] != before["status"]:
        level = "info" if now["status"] == "ready" else "failure"
        yield Notice(f"the service is {now['status']}", "`advisor doctor` says why", level)
    for version in sorted(now["refused"].keys() - before["refused"].keys()):
        yield Notice(f"{version} is not served", str(now["refused"][version]), "failure")
    if now["missing"] > before["missing"]:
        body = "runbook: AdvisorEventsMissing"
        told = counted(round(now["missing"]), "event is", "events are")
        yield Notice(f"{told} missing in the record", body, "failure")


def _of_state(before: Memory, now: Memory) -> Iterator[Notice]:
    """Every change on record, however short it stood; and what is no change that anybody made, such
    as a state that is unknown. Without a record, that a change was taken back is told at least."""
    seen, current = before.get("changes"), now["state"].get("change")
    added = [] if seen is None else [each for each in now["changes"] if each not in seen]
    for change in added:
        yield _of_change("is" if change == current else "was", change["state"], change)
    if before["state"] != now["state"] and current not in added:
        state = now["state"].get("state")
        again = ", and was changed meanwhile" if before["state"].get("state") == state else ""
        yield _of_change("is", f"{state}", current or {}, again)


def _of_change(verb: str, state: str, change: Memory, more: str = "") -> Notice:
    level = "info" if state == "ACTIVE" else "failure"
    body = f"{change.get('changed_by')}: {change.get('reason')}"
    return Notice(f"trading {verb} {state}{more}", body, level)


def of_alerts(document: Any, runbooks: str) -> list[Notice]:
    """What Alertmanager posts (version 4), one notice an alert, with an absolute link to what to
    do. Raises ValueError when it is nothing of the kind."""
    try:
        return [_of_alert(alert, runbooks) for alert in document["alerts"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("this is not what Alertmanager posts") from error


def _of_alert(alert: dict[str, Any], runbooks: str) -> Notice:
    labels, notes = alert["labels"], alert.get("annotations", {})
    page = str(notes.get("runbook", ""))
    link = f"{runbooks.rstrip('/')}/{page}" if runbooks and page else page
    firing = alert["status"] == "firing"
    level = "failure" if labels.get("severity") == "critical" else "warning"
    if not firing:
        level = "info"
    body = f"{notes.get('summary', '')}\n{link}".strip()
    return Notice(f"{labels['alertname']} {'fires' if firing else 'has ended'}", body, level)


class Address:
    """One address, and what waits for it: told in order, the first first. While it takes nothing,
    what comes waits behind; each for `TRIED_FOR_S` at most."""

    def __init__(self, name: str, takes: Takes) -> None:
        self.name = name
        self.waiting: deque[tuple[float, Notice]] = deque()
        """With the time at which each came."""
        self.why = ""
        """Why it did not take what was sent last; empty where it did."""
        self._takes = takes
        self._away = False

    def send(self, now: float) -> int:
        """Send what waits. How many were given up."""
        given_up = 0
        while self.waiting:
            since, notice = self.waiting[0]
            if not self._took(_late(notice, now - since)):
                if now - since < TRIED_FOR_S:
                    break
                given_up += 1
                log.error("a notice was given up", address=self.name, title=notice.title)
            self.waiting.popleft()
        return given_up

    def _took(self, notice: Notice) -> bool:
        """Told once when an address goes away, and once when it is back: never what it is."""
        self.why = ""
        try:
            self._takes(notice)
        except NotTaken as error:
            self.why = str(error)
        except Exception as error:
            self.why = type(error).__name__
        took = not self.why
        if took is self._away:
            self._away = not took
            if took:
                log.info("notices are taken again", address=self.name)
            else:
                log.error("a notice was not taken", address=self.name, error=self.why)
        return took


def _late(notice: Notice, by_s: float) -> Notice:
    if by_s < 60:
        return notice
    return notice._replace(body=f"{notice.body}\n(told {counted(round(by_s / 60), 'minute')} late)")


class Outbox:
    """Sends what it is given to every address, never more than so much an hour, and counts what
    became of it. What an address does not take is tried again, also after a restart.

    Parameters
    ----------
    kept : file that what waits is written to before it is sent; none: it ends with the process.
    clock : seconds that another process counts on from.
    """

    def __init__(
        self,
        addresses: Mapping[str, Takes],
        kept: Path | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self._addresses = [Address(name, takes) for name, takes in addresses.items()]
        self._path = kept
        self._clock = clock
        self._busy = Lock()
        self._sent_at: list[float] = []
        self._held = 0
        self.registry = CollectorRegistry()
        self._count = Counter(
            "advisor_notices", "Notices to people.", ["result"], registry=self.registry
        )
        for result in ("sent", "failed", "held", "given_up"):
            self._count.labels(result)
        self._take_up(clock())

    def tell(self, notice: Notice) -> bool:
        """Whether it went out to every address at once. A failure is counted and logged, never
        raised."""
        with self._busy:
            now = self._clock()
            self._sent_at = [at for at in self._sent_at if 0 <= now - at < 3600]
            if len(self._sent_at) >= MOST_AN_HOUR:
                self._held += 1
                self._count.labels("held").inc()
                self._keep()
                return False
            self._sent_at.append(now)
            if self._held:
                before = counted(self._held, "notice before this was", "notices before this were")
                body = f"{notice.body}\n({before} not sent)"
                notice, self._held = notice._replace(body=body), 0
            for address in self._addresses:
                address.waiting.append((now, notice))
            self._keep()
            self._send(now)
            sent = not any(address.waiting for address in self._addresses)
        self._count.labels("sent" if sent else "failed").inc()
        return sent

    def send(self) -> None:
        """Send what waits, to all addresses at once: none waits for another."""
        with self._busy:
            self._send(self._clock())

    def _send(self, now: float) -> None:
        away = [address for address in self._addresses if address.waiting]
        waited = [len(address.waiting) for address in away]
        if away:
            with ThreadPoolExecutor(len(away)) as threads:
                given_up = sum(threads.map(lambda address: address.send(now), away))
            self._count.labels("given_up").inc(given_up)
        if waited != [len(address.waiting) for address in away]:
            self._keep()

    def _take_up(self, now: float) -> None:
        """What a process before this one left. What waited for an address that is not there any
        more is given up."""
        if self._path is None or not self._path.exists():
            return
        addresses = {address.name: address for address in self._addresses}
        try:
            kept = json.loads(self._path.read_bytes())
            sent_at, held = [float(at) for at in kept["sent_at"]], int(kept["held"])
            waiting = {
                name: [(min(float(since), now), Notice(*map(str, said))) for since, *said in left]
                for name, left in kept["waiting"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("notices that waited cannot be read", file=str(self._path), error=str(error))
            return
        self._sent_at, self._held = sent_at, held
        for name, left in waiting.items():
            if name in addresses:
                addresses[name].waiting.extend(left)
            else:
                self._count.labels("given_up").inc(len(left))
                log.error("notices were given up", address=name, notices=len(left))

    def _keep(self) -> None:
        if self._path is None:
            return
        waiting = {
            address.name: [(since, *notice) for since, notice in address.waiting]
            for address in self._addresses
        }
        kept = {"sent_at": self._sent_at, "held": self._held, "waiting": waiting}
        try:
            write_private(self._path, json.dumps(kept))
        except OSError as error:
            log.warning("what waits is not kept", error=str(error))


class Watch:
    """Looks again and again, and tells what changed since the look that the file remembers."""

    def __init__(self, client: OperatorClient, outbox: Outbox, memory: Path) -> None:
        self._client = client
        self._outbox = outbox
        self._path = memory
        self._silent = 0
        self._before = self._remembered()

    def look(self) -> None:
        """One look, after what waits was tried again. A service that does not answer is told of
        once, and when it is back."""
        self._outbox.send()
        try:
            now = looked(self._client, self._before)
        except OperatorError as error:
            self._silent += 1
            if self._silent == SILENT_LOOKS:
                self._outbox.tell(Notice("the service does not answer", str(error), "failure"))
            return
        if self._silent >= SILENT_LOOKS:
            self._outbox.tell(Notice("the service answers again", f"it is {now['status']}"))
        self._silent = 0
        if self._before is not None:
            for notice in changes(self._before, now):
                self._outbox.tell(notice)
        if now != self._before:
            self._before = now
            self._remember(now)

    def _remembered(self) -> Memory | None:
        try:
            memory: Memory = json.loads(self._path.read_bytes())
            list(changes(memory, memory))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return memory

    def _remember(self, memory: Memory) -> None:
        try:
            write_private(self._path, json.dumps(memory))
        except OSError as error:
            log.warning("what was told is not remembered", error=str(error))


async def watching(watch: Watch, every_s: float) -> None:
    """Look until cancelled."""
    while True:
        await asyncio.to_thread(watch.look)
        await asyncio.sleep(every_s)


def receiver(outbox: Outbox, tokens: Tokens, runbooks: str) -> FastAPI:
    """`POST /alerts` for Alertmanager, `GET /metrics`: for whoever has the role metrics."""
    app = FastAPI(openapi_url=None)

    def known(request: Request) -> bool:
        address = request.client.host if request.client else ""
        holder = tokens.holder(request.headers.get("Authorization"), datetime.now(UTC), address)
        return isinstance(holder, Principal) and holder.may(Role.METRICS)

    @app.post("/alerts")
    async def alerts(request: Request) -> Response:
        if not known(request):
            return JSONResponse({"detail": "a token with the role metrics is needed"}, 401)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return JSONResponse({"detail": "this is too long"}, 413)
        try:
            notices = of_alerts(json.loads(body), runbooks)
        except (ValueError, RecursionError) as error:
            return JSONResponse({"detail": str(error)[:200]}, 422)
        sent = [await asyncio.to_thread(outbox.tell, notice) for notice in notices]
        return JSONResponse({"sent": sum(sent)})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not known(request):
            return JSONResponse({"detail": "a token with the role metrics is needed"}, 401)
        return Response(generate_latest(outbox.registry), media_type="text/plain")

    return app
