"""People are told of what happens: by a real service, a real webhook and apprise itself."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from app.api.tokens import TokenFile, Tokens
from app.cli.health.addresses import Notice, NotTaken, Takes, addresses_of
from app.cli.health.noticing import (
    MOST_AN_HOUR,
    SILENT_LOOKS,
    TRIED_FOR_S,
    Outbox,
    Watch,
    changes,
    of_alerts,
    receiver,
)
from app.domain.principal import Role
from app.operator_client import OperatorClient
from app.settings import SettingsError, read_settings
from tests.service.processes import advisor, environment
from tests.service.running import drained, running, settings_for

BEFORE: dict[str, Any] = {
    "state": {"state": "ACTIVE"},
    "moves": [],
    "adoptions": [],
    "status": "ready",
    "refused": {},
    "missing": 0.0,
}
ALERTS = {
    "version": "4",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "AdvisorApiDown", "severity": "critical"},
            "annotations": {
                "summary": "It is away.",
                "runbook": "docs/runbook.md#advisorapidown",
            },
        },
        {"status": "resolved", "labels": {"alertname": "AdvisorDrift"}},
    ],
}


class Told(list[Notice]):
    """What was told, instead of telling it."""

    def __call__(self, notice: Notice) -> None:
        self.append(notice)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a webhook, as apprise writes it, and what it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == "/here" else 500)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_address[1]}/here", got
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_halt_is_told_once_also_when_the_watch_was_away_meanwhile(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    told, memory = Told(), tmp_path / "notices.json"
    async with running(settings_for(database_url, valkey_url, tmp_path)) as served:
        client = OperatorClient(str(served.client.base_url))
        watch = Watch(client, Outbox({"people": told}), memory)
        await asyncio.to_thread(watch.look)
        assert told == [], "the first look has nothing to compare with"
        await asyncio.to_thread(client.set_state, "HALTED", "a test", "me")
        again = Watch(client, Outbox({"people": told}), memory)
        for _ in range(2):
            await asyncio.to_thread(again.look)
    (notice,) = told
    assert (notice.title, notice.level) == ("trading is HALTED", "failure")
    assert notice.body.endswith("me: a test")


async def test_a_state_that_stood_for_less_than_a_look_is_told_once_and_as_past(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    told, memory = Told(), tmp_path / "notices.json"
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings) as served:
        client = OperatorClient(str(served.client.base_url))
        watch = Watch(client, Outbox({"people": told}), memory)
        await asyncio.to_thread(client.set_state, "HALTED", "long ago", "me")
        await drained(settings)
        await asyncio.to_thread(watch.look)
        assert told == [], "what was before the first look is no news"
        for state, reason in (("REDUCING", "a drill"), ("ACTIVE", "over")):
            await asyncio.to_thread(client.set_state, state, reason, "me")
        await asyncio.to_thread(watch.look)
        await drained(settings)
        again = Watch(client, Outbox({"people": told}), memory)
        for _ in range(2):
            await asyncio.to_thread(again.look)
    assert sorted(notice.title for notice in told) == ["trading is ACTIVE", "trading was REDUCING"]
    assert {notice.level for notice in told} == {"info", "failure"}


def test_a_state_without_a_record_of_changes_is_told_as_it_is() -> None:
    """A service or a memory of before, and a state that nobody set because none could be read."""
    change = {"recorded_at": "t", "state": "ACTIVE", "changed_by": "me", "reason": "r"}
    active = BEFORE | {"state": {"state": "ACTIVE", "change": change}}
    (first,) = changes(BEFORE, active)
    assert first.title == "trading is ACTIVE, and was changed meanwhile"
    recorded = active | {"changes": [change]}
    assert list(changes(active, recorded)) == [], "the record is there, and nothing is news"
    (unknown,) = changes(recorded, recorded | {"state": {"state": "HALTED", "change": None}})
    assert (unknown.title, unknown.level) == ("trading is HALTED", "failure")


def test_a_service_that_is_away_is_told_of_once(tmp_path: Path) -> None:
    told = Told()
    watch = Watch(
        OperatorClient("http://127.0.0.1:1"), Outbox({"people": told}), tmp_path / "notices.json"
    )
    for _ in range(3 * SILENT_LOOKS):
        watch.look()
    assert [notice.title for notice in told] == ["the service does not answer"]


def test_promotions_limits_losses_and_refusals_are_told() -> None:
    move = {"alias": "champion", "model_version": "v2", "reason": "better", "changed_by": "me"}
    adoption = {"id": 1, "toml": "x", "hash": "sha256:" + 64 * "a", "profile": "", "reason": "r"}
    now = BEFORE | {
        "moves": [move],
        "adoptions": [adoption | {"changed_by": "you"}],
        "status": "degraded",
        "refused": {"v3": "its bytes differ"},
        "missing": 7.0,
    }
    assert list(changes(BEFORE, now)) == [
        Notice("champion is now v2", "me: better", "warning"),
        Notice(f"limits sha256:{12 * 'a'} judge everybody", "you: r", "warning"),
        Notice("the service is degraded", "`advisor doctor` says why", "failure"),
        Notice("v3 is not served", "its bytes differ", "failure"),
        Notice("7 events are missing in the record", "runbook: AdvisorEventsMissing", "failure"),
    ]
    assert list(changes(now, now)) == []
    newer = adoption | {"id": 2, "changed_by": "you", "reason": "again"}
    (told,) = changes(now, now | {"adoptions": [newer]})  # The service tells of the newest alone.
    assert told.body == "you: again"
    fell = move | {"model_version": "v1", "reason": "rollback from v2: demoted by itself: drift"}
    (told,) = changes(BEFORE, BEFORE | {"moves": [fell]})
    assert told.level == "failure", "nobody asked for it"


def test_more_than_so_many_an_hour_are_held_and_counted() -> None:
    told, now = Told(), [0.0]
    outbox = Outbox({"people": told}, clock=lambda: now[0])
    sent = [outbox.tell(Notice(str(number), "")) for number in range(MOST_AN_HOUR + 5)]
    assert sent == [True] * MOST_AN_HOUR + [False] * 5
    now[0] = 3600.0
    outbox.tell(Notice("next", "body"))
    assert told[-1] == Notice("next", "body\n(5 notices before this were not sent)")
    assert outbox.registry.get_sample_value("advisor_notices_total", {"result": "held"}) == 5


def test_what_fails_is_counted_and_raises_nothing() -> None:
    def broken(_: Notice) -> None:
        raise OSError("nobody there")

    outbox = Outbox({"people": broken})
    assert outbox.tell(Notice("a", "b")) is False
    assert outbox.registry.get_sample_value("advisor_notices_total", {"result": "failed"}) == 1


def test_an_address_that_was_away_is_told_in_order_and_nobody_waits_for_it() -> None:
    told, there, now, up = Told(), Told(), [0.0], [False]

    def away(notice: Notice) -> None:
        if not up[0]:
            raise NotTaken("asleep")
        told(notice)

    outbox = Outbox({"there": there, "away": away}, clock=lambda: now[0])
    assert not outbox.tell(Notice("HALTED", "by me"))
    assert not outbox.tell(Notice("ACTIVE", "by me"))
    assert [notice.title for notice in there] == ["HALTED", "ACTIVE"]
    now[0], up[0] = 120.0, True
    outbox.send()
    assert told == [
        Notice("HALTED", "by me\n(told 2 minutes late)"),
        Notice("ACTIVE", "by me\n(told 2 minutes late)"),
    ]
    assert len(there) == 2, "not twice"
    up[0] = False
    outbox.tell(Notice("old", ""))
    now[0] += TRIED_FOR_S
    outbox.send()
    up[0] = True
    outbox.send()
    assert len(told) == 2
    count = outbox.registry.get_sample_value
    assert count("advisor_notices_total", {"result": "given_up"}) == 1
    assert count("advisor_notices_total", {"result": "failed"}) == 3


def test_what_an_address_did_not_take_is_told_after_a_restart_once(tmp_path: Path) -> None:
    told, there, now, path = Told(), Told(), [0.0], tmp_path / "notices-waiting.json"

    def outbox(**addresses: Takes) -> Outbox:
        return Outbox(addresses, path, clock=lambda: now[0])

    def away(_: Notice) -> None:
        assert "HALTED" in path.read_text(), "kept before it is sent"
        raise OSError

    first = outbox(there=there, away=away)
    assert not first.tell(Notice("HALTED", "by me", "failure"))
    for _ in range(MOST_AN_HOUR):
        first.tell(Notice("more", ""))
    assert path.stat().st_mode & 0o777 == 0o600
    now[0] = 180.0
    again = outbox(there=there, away=told)
    again.send()
    assert told[0] == Notice("HALTED", "by me\n(told 3 minutes late)", "failure")
    assert len(told) == len(there) == MOST_AN_HOUR
    assert not again.tell(Notice("too many", "")), "the hour counts on"
    outbox(there=there, away=told).send()
    assert len(told) == MOST_AN_HOUR, "not twice"
    now[0] = 4000.0
    outbox(there=there, away=told).tell(Notice("next", ""))
    assert told[-1].body == "\n(2 notices before this were not sent)"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"waiting": {"people": [[1, "a"]]}}', "null"])
def test_a_file_of_what_waits_that_cannot_be_read_stops_nothing(text: str, tmp_path: Path) -> None:
    path, told = tmp_path / "notices-waiting.json", Told()
    path.write_text(text)
    assert Outbox({"people": told}, path).tell(Notice("HALTED", "by me"))
    assert len(told) == 1


def test_what_waits_for_an_address_that_was_taken_away_is_given_up_and_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "notices-waiting.json"

    def away(_: Notice) -> None:
        raise NotTaken("asleep")

    Outbox({"people": away}, path).tell(Notice("HALTED", "by me"))
    other = Outbox({"others": Told()}, path)
    assert other.registry.get_sample_value("advisor_notices_total", {"result": "given_up"}) == 1


def test_a_halt_that_was_taken_back_between_two_looks_is_told() -> None:
    change = {"changed_by": "me", "reason": "over", "recorded_at": "2026-11-27T03:00:00Z"}
    now = BEFORE | {"state": {"state": "ACTIVE", "change": change}}
    title = "trading is ACTIVE, and was changed meanwhile"
    assert list(changes(BEFORE, now)) == [Notice(title, "me: over", "info")]


def test_an_alert_comes_with_an_absolute_link() -> None:
    assert of_alerts(ALERTS, "https://code.example/advisor/blob/main/") == [
        Notice(
            "AdvisorApiDown fires",
            "It is away.\nhttps://code.example/advisor/blob/main/docs/runbook.md#advisorapidown",
            "failure",
        ),
        Notice("AdvisorDrift has ended", "", "info"),
    ]


async def test_alertmanager_needs_the_role_metrics_and_sends_what_it_should(tmp_path: Path) -> None:
    file, told = TokenFile(tmp_path / "tokens.json"), Told()
    tokens = {role: file.create(role.value, [role]) for role in (Role.METRICS, Role.AGENT)}
    app = receiver(Outbox({"people": told}), Tokens(file.path, tmp_path / "uses"), "")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://notices") as client:
        assert (await client.post("/alerts", json=ALERTS)).status_code == 401
        agent = {"Authorization": f"Bearer {tokens[Role.AGENT]}"}
        assert (await client.post("/alerts", json=ALERTS, headers=agent)).status_code == 401
        client.headers["Authorization"] = f"Bearer {tokens[Role.METRICS]}"
        for body in ("[]", "{", '{"alerts": [1]}', "[" * 100_000, '{"alerts": 3}'):
            assert (await client.post("/alerts", content=body)).status_code == 422, body[:20]
        assert (await client.post("/alerts", content=b" " * 1_000_001)).status_code == 413
        assert (await client.post("/alerts", json=ALERTS)).json() == {"sent": 2}
        assert 'advisor_notices_total{result="sent"} 2.0' in (await client.get("/metrics")).text
    assert len(told) == 2


def test_apprise_sends_and_the_command_says_what_was_not_taken(
    webhook: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    address, got = webhook
    done = advisor(environment(tmp_path, advisor_notices=address), "notices", "test")
    assert (done.returncode, "every address took it" in done.stderr) == (0, True)
    (received,) = got
    assert received["title"] == "a test of shadow-advisor"
    three = f"{address} {address.replace('/here', '/secret-path')} file:/nowhere/at/all"
    done = advisor(environment(tmp_path, advisor_notices=three), "notices", "test")
    assert done.returncode == 1
    told = " ".join(done.stderr.split())
    assert "address 2 (json) did not take it: Failed to send JSON " in told
    assert "error=500" in told
    assert "address 3 (file) did not take it: No such file or directory" in told
    assert "secret" not in told
    variables = environment(tmp_path, advisor_notices="json://nobody:pass-word@127.0.0.1:9/token")
    document = json.loads(advisor(variables, "notices", "test", "--json").stdout)
    why = document["address 1 (json)"]["why"]
    assert why == "A Connection error occurred sending JSON notification to ...."


@pytest.mark.filterwarnings("ignore:'imghdr'")  # apprise imports it.
def test_addresses_that_are_none_are_refused_without_showing_them() -> None:
    with pytest.raises(SettingsError, match="names no address"):
        addresses_of(read_settings(notices=" "))
    with pytest.raises(SettingsError, match="cannot read address 2") as refused:
        addresses_of(read_settings(notices="json://host/x nonsense-secret"))
    assert "secret" not in str(refused.value)


def test_a_file_gets_a_line_a_notice_and_needs_no_apprise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notices.jsonl"
    monkeypatch.setenv("ADVISOR_NOTICES", f"file:{path}")
    monkeypatch.setitem(sys.modules, "apprise", None)
    outbox = Outbox(addresses_of(read_settings()))
    assert outbox.tell(Notice("trading is HALTED", "me: why", "failure"))
    assert outbox.tell(Notice("trading is ACTIVE", "me: over"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["title"] for line in lines] == ["trading is HALTED", "trading is ACTIVE"]
    assert (lines[0]["body"], lines[0]["level"]) == ("me: why", "failure")
    monkeypatch.setenv("ADVISOR_NOTICES", "file:")
    with pytest.raises(SettingsError, match="names no file"):
        addresses_of(read_settings())
