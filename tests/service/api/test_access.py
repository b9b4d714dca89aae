"""Who may ask what of the running service."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shadow_advisor_client import AdvisorClient
from structlog.testing import capture_logs

from app.api.access import COOKIE, Failures
from app.api.tokens import TokenFile, Tokens
from app.domain.canonical import decision_id
from app.domain.principal import Role
from app.main import create_app
from app.operator_client import OperatorClient, OperatorError
from app.processes.metrics import Metrics
from app.settings import SettingsError, read_settings
from app.shadow_log.proof.verify import verify
from app.writer import scraped
from tests.service.running import Running, drained, expire, request, running, settings_for

ROLES = {
    "agent": [Role.AGENT],
    "desk": [Role.AGENT],
    "operator": [Role.OPERATOR],
    "reader": [Role.READER],
    "metrics": [Role.METRICS],
}
ACTION = {"decision": False, "final_skip_reason": "llm_veto"}
OUTCOME = {"arm": "agent", "outcome": "not_traded", "r_multiple": 0.0}
CHANGE = {"state": "REDUCING", "reason": "drill", "changed_by": "alice"}


class Asked:
    """A running service, and a token for each name."""

    def __init__(self, api: Running, tokens: dict[str, str]) -> None:
        self.api = api
        self.tokens = tokens

    async def ask(self, who: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} | more.pop("headers", {})
        return await self.api.client.request(method, path, headers=headers, **more)


@pytest.fixture
async def service(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Asked]:
    file = TokenFile(tmp_path / "tokens.json")
    tokens = {name: file.create(name, roles) for name, roles in ROLES.items()}
    tokens["resolver"] = file.create("resolver", [Role.REPORTER], of=["desk"])
    settings = settings_for(database_url, valkey_url, tmp_path, open=None)
    async with running(settings) as api:
        yield Asked(api, tokens)


def routes() -> list[tuple[str, str]]:
    """Every route with a method, those that OpenAPI does not show, and what is no route."""
    found = [
        (method.upper(), re.sub(r"[{}]", "", path.replace("{id}", str(decision_id("r-1")))))
        for path, operations in create_app().openapi()["paths"].items()
        for method in operations
    ]
    assert len(found) >= 12
    others = ("/metrics", "/docs", "/redoc", "/openapi.json", "/nothing", "/uix", "/healthz/")
    return [
        *found,
        *(("GET", path) for path in others),
        ("HEAD", "/metrics"),
        ("OPTIONS", "/state"),
    ]


async def test_an_anonymous_caller_may_ask_after_health_and_nothing_else(service: Asked) -> None:
    client = service.api.client
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    closed = [route for route in routes() if route[1] not in ("/healthz", "/readyz")]
    replies = await asyncio.gather(*(client.request(*route) for route in closed))
    assert {reply.status_code for reply in replies} == {401}
    assert all("advisor" in reply.headers["WWW-Authenticate"] for reply in replies)


MAY = {
    ("POST", "/advise"): {"agent", "desk"},
    ("PUT", "/decisions/{id}/agent-action"): {"agent"},
    ("PUT", "/decisions/{id}/outcome"): {"agent"},
    ("GET", "/decisions/{id}"): {"agent", "operator", "reader"},
    ("GET", "/state"): {"agent", "desk", "operator", "reader"},
    ("GET", "/state/changes"): {"operator", "reader"},
    ("PUT", "/state"): {"operator"},
    ("GET", "/models"): {"operator", "reader"},
    ("PUT", "/models/v1"): {"operator"},
    ("GET", "/aliases"): {"operator", "reader"},
    ("PUT", "/aliases/shadow"): {"operator"},
    ("GET", "/metrics"): {"operator", "reader", "metrics"},
    ("GET", "/readyz"): {*ROLES, "resolver"},
    ("GET", "/openapi.json"): {*ROLES, "resolver"},
}


async def test_every_role_may_do_what_it_is_for_and_nothing_else(service: Asked) -> None:
    await service.ask("agent", "POST", "/advise", json=request("r-1"))
    bodies: dict[str, Any] = {"/advise": request("r-2"), "/state": CHANGE}
    for (method, template), names in MAY.items():
        path = template.replace("{id}", str(decision_id("r-1")))
        for who in service.tokens:
            body = bodies.get(path, ACTION if "action" in path else OUTCOME)
            if method == "GET":
                reply = await service.ask(who, method, path)
            else:
                reply = await service.ask(who, method, path, json=body)
            # Another's decision is unknown rather than forbidden; a version that is not there, too.
            refused = reply.status_code == 403 or (
                reply.status_code == 404 and template.startswith("/decisions")
            )
            assert refused == (who not in names), (who, method, path, reply.text)
            assert reply.status_code < 500


async def test_nobody_occupies_reads_or_reports_on_anothers_decision(service: Asked) -> None:
    first = (await service.ask("desk", "POST", "/advise", json=request("r-1"))).json()
    other = request("r-1", candidate__rsi=11.0)
    second = await service.ask("agent", "POST", "/advise", json=other)
    assert second.status_code == 200, "the id is not occupied"
    assert first["decision_id"] == str(decision_id("r-1", "desk"))
    assert second.json()["decision_id"] == str(decision_id("r-1"))
    theirs, absent = f"/decisions/{first['decision_id']}", f"/decisions/{decision_id('x', 'agent')}"
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "/agent-action", ACTION),
        ("PUT", "/outcome", OUTCOME),
    ):
        more = {} if body is None else {"json": body}
        reply = await service.ask("agent", method, theirs + path, **more)
        nothing = await service.ask("agent", method, absent + path, **more)
        assert (reply.status_code, nothing.status_code) == (404, 404)
        assert reply.json()["detail"].split()[:2] == nothing.json()["detail"].split()[:2]
        assert (await service.ask("desk", method, theirs + path, **more)).is_success
    assert (await service.ask("resolver", "PUT", f"{theirs}/outcome", json=OUTCOME)).is_success
    denied = await service.ask(
        "resolver", "PUT", f"/decisions/{decision_id('r-1')}/outcome", json=OUTCOME
    )
    assert denied.status_code == 404


async def test_the_record_says_who_asked_who_reported_and_who_changed_the_state(
    service: Asked,
) -> None:
    known = (await service.ask("desk", "POST", "/advise", json=request("r-1"))).json()[
        "decision_id"
    ]
    await service.ask("desk", "PUT", f"/decisions/{known}/agent-action", json=ACTION)
    for who in ("desk", "resolver"):
        await service.ask(who, "PUT", f"/decisions/{known}/outcome", json=OUTCOME)
    later = await service.ask(
        "desk", "POST", "/advise", json=request("r-2"), headers={"Prefer": "respond-async"}
    )
    assert later.status_code == 202
    await service.ask("operator", "PUT", "/state", json=CHANGE)
    change = (await service.ask("reader", "GET", "/state")).json()["change"]
    assert (change["changed_by"], change["reason"]) == ("operator", "alice: drill")
    await drained(service.api.settings)
    stored = (await service.ask("reader", "GET", f"/decisions/{known}")).json()
    assert stored["decision"]["principal"] == "desk"
    assert stored["agent_actions"][0]["reported_by"] == "desk"
    assert [each["reported_by"] for each in stored["outcomes"]] == ["desk", "resolver"]
    where = later.json()["location"]
    async with asyncio.timeout(20):
        while (await service.ask("desk", "GET", where)).status_code != 200:
            await asyncio.sleep(0.02)
    await drained(service.api.settings)
    accepted = (await service.ask("desk", "GET", where)).json()
    assert accepted["decision"]["principal"] == "desk"
    report = await verify(service.api.service.shadow_log.engine)
    assert report.findings == []


async def test_clients_say_who_they_are_and_know_their_ids(
    service: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def talk() -> tuple[str | None, Any]:
        with AdvisorClient(service.api.url, token=service.tokens["desk"]) as client:
            advice = client.advise(request("r-1"), deadline_s=20)
            known = client.submit(request("r-2"))
            client.close(20)
            assert client.stats().dropped == {}
        return known, advice

    known, advice = await asyncio.to_thread(talk)
    assert advice is not None
    assert known == str(decision_id("r-2", "desk"))
    assert (await service.ask("desk", "GET", f"/decisions/{known}")).is_success
    for name in ("ADVISOR_TOKEN", "ADVISOR_ADMIN_TOKEN", "ADVISOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADVISOR_HOME", str(tmp_path))
    operator = OperatorClient(service.api.url)
    with pytest.raises(OperatorError, match=r"refuses GET /state \(401\): send a token"):
        await asyncio.to_thread(operator.state)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "operator").write_text(service.tokens["operator"] + "\n")
    assert (await asyncio.to_thread(operator.state))["state"] == "ACTIVE"
    monkeypatch.setenv("ADVISOR_TOKEN_FILE", str(tmp_path / "tokens" / "operator"))
    assert (await asyncio.to_thread(operator.state))["state"] == "ACTIVE"
    monkeypatch.setenv("ADVISOR_TOKEN", service.tokens["metrics"])
    with pytest.raises(
        OperatorError, match=r"\(403\).*needs the role reader or agent; metrics has"
    ):
        await asyncio.to_thread(operator.state)


async def test_a_message_waits_for_a_token_that_was_rotated(
    service: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ADVISOR_TOKEN", raising=False)
    monkeypatch.setenv("ADVISOR_HOME", str(tmp_path))
    (tmp_path / "tokens").mkdir()
    place = tmp_path / "tokens" / "agent"
    place.write_text("advisor.agent.revoked")
    client = AdvisorClient(service.api.url, breaker_pause_s=0.05)

    async def refused() -> None:
        async with asyncio.timeout(20):
            while not client.stats().last_error:
                await asyncio.sleep(0.02)

    assert client.submit(request("r-1")) == str(decision_id("r-1"))
    await refused()
    assert "HTTP 401" in str(client.stats().last_error)
    place.write_text(service.tokens["agent"])
    await asyncio.to_thread(client.close, 20.0)
    assert (client.stats().sent, client.stats().dropped) == (1, {})


async def test_failures_are_counted_and_logged_without_the_token_and_known_callers_never_wait(
    service: Asked,
) -> None:
    api = service.api
    with capture_logs() as logs:
        for header, reason in (
            (None, "missing"),
            ("Token x", "malformed"),
            ("Bearer advisor.agent.guessed", "unknown"),
        ):
            headers = {} if header is None else {"Authorization": header}
            reply = await api.client.get("/state", headers=headers)
            assert reply.status_code == 401
            assert api.metric("advisor_auth_failures_total", reason=reason) == 1
            assert "guessed" not in reply.text
    (line,) = (each for each in logs if each["event"] == "authentication failed")
    assert (line["reason"], line["address"]) == ("missing", "127.0.0.1")
    assert "guessed" not in json.dumps(logs, default=str)
    wrong = await api.client.get("/readyz", headers={"Authorization": "Bearer guessed"})
    assert wrong.json() == {"status": "ready"}
    assert api.metric("advisor_auth_failures_total", reason="unknown") == 2


def test_each_failure_of_an_address_makes_the_next_answer_wait_longer() -> None:
    failures = Failures(most=2)
    assert [failures.delay("a", at) for at in (0.0, 1.0, 2.0)] == [0.0, 0.1, 0.2]
    assert failures.delay("b", 2.0) == 0.0
    for _ in range(100):
        assert failures.delay("a", 3.0) <= 2.0
    assert failures.delay("a", 61.0) == 0.0, "a minute later it begins anew"
    failures.delay("c", 62.0)
    assert failures.delay("b", 63.0) == 0.0, "the oldest is forgotten"


async def test_pages_for_people_take_a_token_as_a_password(service: Asked) -> None:
    client = service.api.client
    asked = await client.get("/docs")
    assert asked.headers["WWW-Authenticate"].startswith("Basic ")
    credentials = base64.b64encode(f"me:{service.tokens['reader']}".encode()).decode()
    basic = {"Authorization": f"Basic {credentials}"}
    assert (await client.get("/docs", headers=basic)).is_success
    assert (await client.get("/redoc", headers=basic)).headers["Location"] == "/docs"
    assert (await client.get("/state", headers=basic)).status_code == 401
    for broken in ("!!", base64.b64encode(b"\xff").decode(), base64.b64encode(b"no").decode()):
        reply = await client.get("/docs", headers={"Authorization": f"Basic {broken}"})
        assert reply.status_code == 401


async def test_the_writers_metrics_are_for_whoever_has_the_role(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    tokens = {name: file.create(name, roles) for name, roles in ROLES.items()}
    metrics = Metrics()
    known = Tokens(file.path, tmp_path / "uses")
    async with (
        scraped(metrics, known, "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.get("/metrics")).status_code == 401
        for who in ROLES:
            reply = await client.get("/metrics", headers={"Authorization": f"Bearer {tokens[who]}"})
            assert reply.is_success == (who in ("operator", "reader", "metrics"))
            assert ("advisor_writer_rows_total" in reply.text) == reply.is_success
    assert (
        metrics.registry.get_sample_value("advisor_auth_failures_total", {"reason": "missing"}) == 1
    )


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8321"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost, evil.example"}, 421),
        ({"Host": "user@localhost"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "advisor.desk.example:8321"}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8321"}, 200),
        ({"Host": "192.0.2.7"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8321", "Origin": "http://localhost:8322"}, 403),
        ({"Host": "localhost:8321", "Origin": "https://localhost:8321"}, 403),
        ({"Host": "localhost:8321", "Origin": "http://localhost:8321"}, 200),
    ],
    ids=str,
)
async def test_a_browser_that_was_pointed_here_is_not_answered(
    database_url: str, valkey_url: str, tmp_path: Path, sent: dict[str, str], status: int
) -> None:
    names = settings_for(
        database_url, valkey_url, tmp_path, allowed_hosts="a, advisor.desk.example"
    )
    async with running(names) as api:
        for method, path in (("GET", "/healthz"), ("GET", "/state")):
            assert (await api.client.request(method, path, headers=sent)).status_code == status
        body = json.dumps(CHANGE | {"state": "HALTED"})
        await api.client.put("/state", content=body, headers=sent)
        assert (await api.client.get("/state")).json()["state"] == (
            "HALTED" if status == 200 else "ACTIVE"
        )


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Origin": "https://advisor.example"}, 200),
        ({"Origin": "https://Advisor.Example"}, 200),
        ({"Origin": "https://two.example:8443", "Host": "two.example:8443"}, 200),
        ({"Origin": "https://two.example"}, 403),
        ({"Origin": "http://advisor.example"}, 200),  # What was asked, as the connection has it.
        ({"Origin": "http://advisor.example:80"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://advisor.example", "Host": "evil.example"}, 421),
    ],
    ids=str,
)
async def test_a_page_behind_a_proxy_that_speaks_tls_may_ask(
    database_url: str, valkey_url: str, tmp_path: Path, sent: dict[str, str], status: int
) -> None:
    """The proxy hands on Host as it came; the plain scheme of the connection is our own address."""
    origins = "https://advisor.example, https://two.example:8443"
    settings = settings_for(database_url, valkey_url, tmp_path, public_origin=origins)
    async with running(settings) as api:
        headers = {"Host": "advisor.example"} | sent
        for path in ("/docs", "/state"):
            assert (await api.client.get(path, headers=headers)).status_code == status
        reply = await api.client.put("/state", json=CHANGE, headers=headers)
        assert reply.status_code == status
        if status == 403:
            assert "ADVISOR_PUBLIC_ORIGIN" in reply.json()["detail"]


def test_decision_models_that_are_set_to_nothing_are_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADVISOR_DECIDERS", "")
    assert read_settings().deciders is None


@pytest.mark.parametrize(
    "origin", ["advisor.example", "ftp://advisor.example", "https://", "https://a.example/path"]
)
def test_an_origin_that_is_none_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"ADVISOR_PUBLIC_ORIGIN.*is no origin"):
        read_settings(public_origin=origin)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("Prefer", "respond-async", "wait=5"),
        ("Idempotency-Key", "r-1", "r-2"),
        ("Idempotency-Key", "r-1", "r-1"),
        ("X-Deadline-Ms", "1000", "2000"),
        ("Authorization", "Bearer AGENT", "Bearer OPERATOR"),
        ("Host", "127.0.0.1", "localhost"),
        ("Origin", "http://127.0.0.1", "http://evil.example"),
        ("Content-Type", "application/json", "text/plain"),
        ("Content-Length", "2", "3"),
        ("Content-Length", "2", "2"),
    ],
)
async def test_of_a_header_that_is_sent_twice_none_wins(
    service: Asked, name: str, first: str, second: str
) -> None:
    sent = {
        "Host": "127.0.0.1",
        "Authorization": "Bearer AGENT",
        "Content-Type": "application/json",
    }
    sent |= {"Content-Length": "2"}
    lines = [f"{known}: {value}" for known, value in sent.items() if known != name]
    lines += [f"{name}: {first}", f"{name.lower()}: {second}"]
    text = "\r\n".join(["POST /advise HTTP/1.1", *lines, "", "{}"])
    for who in ("agent", "operator"):
        text = text.replace(who.upper(), service.tokens[who])
    address = httpx.URL(service.api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(text.encode())
    head, _, body = (await reader.readuntil(b"}")).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert name.lower() in json.loads(body)["detail"].lower()
    assert await drained(service.api.settings) == 0


async def test_a_scraper_with_two_tokens_has_none(tmp_path: Path) -> None:
    token = TokenFile(tmp_path / "tokens.json").create("prometheus", [Role.METRICS])
    tokens = Tokens(tmp_path / "tokens.json", tmp_path / "uses")
    sent = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer other")]
    async with (
        scraped(Metrics(), tokens, "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.get("/metrics", headers=sent[:1])).status_code == 200
        assert (await client.get("/metrics", headers=sent)).status_code == 401


async def test_a_body_is_json_and_says_so_and_no_page_is_given_leave(service: Asked) -> None:
    body = json.dumps(request("r-1"))
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json")
    for kind in kinds:
        reply = await service.ask(
            "agent", "POST", "/advise", content=body, headers={"Content-Type": kind}
        )
        assert reply.status_code == 415, kind
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        reply = await service.ask(
            "agent", "POST", "/advise", content=body, headers={"Content-Type": kind}
        )
        assert reply.status_code == 200
    asked = {"Origin": service.api.url, "Access-Control-Request-Method": "PUT"}
    preflight = await service.api.client.options("/state", headers=asked)
    for headers in (reply.headers, preflight.headers):
        assert [name for name in headers if name.startswith("access-control")] == []
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("outcome", "r_multiple", 1.7e308),
        ("outcome", "r_multiple", -1000.5),
        ("outcome", "net_pnl", 1e13),
        ("outcome", "fees", 1e13),
        ("outcome", "pnl_pct", -1e7),
        ("outcome", "holding_seconds", 1e12),
        ("outcome", "exit_price", 1e13),
        ("agent-action", "size_usd", 1e13),
        ("agent-action", "quantity", 1e16),
    ],
)
async def test_a_report_that_no_market_can_give_is_refused(
    service: Asked, part: str, field: str, value: Any
) -> None:
    known = (await service.ask("desk", "POST", "/advise", json=request("r-1"))).json()[
        "decision_id"
    ]
    bodies: dict[str, dict[str, Any]] = {
        "outcome": {"arm": "agent", "outcome": "sl"},
        "agent-action": {"decision": True},
    }
    body = bodies[part]
    where = f"/decisions/{known}/{part}"
    refused = await service.ask("desk", "PUT", where, json=body | {field: value})
    assert refused.status_code == 422
    assert field in refused.json()["detail"]
    assert (await service.ask("desk", "PUT", where, json=body)).status_code == 202


async def test_a_decision_has_room_for_corrections_and_not_for_floods(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path, max_reports=3)
    async with running(settings) as api:
        known, other = [
            (await api.advise(request(name))).json()["decision_id"] for name in ("r-1", "r-2")
        ]
        statuses = []
        for size in (1.0, 1.0, 2.0, 3.0, 4.0, 5.0):
            body = {"decision": True, "size_usd": size}
            reply = await api.client.put(f"/decisions/{known}/agent-action", json=body)
            statuses.append(reply.status_code)
        assert statuses == [202, 202, 202, 202, 429, 429], "a repeat is not counted"
        for path in (f"/decisions/{known}/outcome", f"/decisions/{other}/outcome"):
            assert (await api.client.put(path, json=OUTCOME)).status_code == 202


async def test_a_token_that_expires_while_it_is_used_opens_nothing_any_more_by_any_road(
    service: Asked, tmp_path: Path
) -> None:
    """A header, a password of the browser's own form, a cookie, the form of the pages."""
    client, token = service.api.client, service.tokens["operator"]
    password = base64.b64encode(f"me:{token}".encode()).decode()
    form = {"Origin": service.api.url, "Content-Type": "application/x-www-form-urlencoded"}

    async def asked() -> list[httpx.Response]:
        return [
            await service.ask("operator", "GET", "/state"),
            await service.ask("operator", "PUT", "/state", json=CHANGE | {"state": "ACTIVE"}),
            await client.get("/docs", headers={"Authorization": f"Basic {password}"}),
            await client.get("/ui", headers={"Cookie": f"{COOKIE}={token}"}),
            await client.post("/ui/login", data={"token": token}, headers=form),
        ]

    before = await asked()
    assert [reply.status_code for reply in before] == [200, 200, 200, 200, 303]
    assert f"{COOKIE}={token}" in before[-1].headers["set-cookie"]
    expire(tmp_path / "tokens.json")
    after = await asked()
    assert [reply.status_code for reply in after] == [401, 401, 401, 303, 401]
    assert "this token has expired" in after[0].json()["detail"]
    assert after[3].headers["location"] == "/ui/login?next=/ui"
    assert f'{COOKIE}=""' in after[3].headers["set-cookie"]
    assert "this token has expired" in after[4].text
    assert "set-cookie" not in after[4].headers
    # A page of ours that is open still is sent to the form, and nothing happens.
    kept = form | {"Cookie": f"{COOKIE}={token}"}
    halted = {"state": "HALTED", "reason": "late", "sure": "yes"}
    late = await client.post("/ui/state", data=halted, headers=kept)
    assert (late.status_code, late.headers["location"]) == (303, "/ui/login?lost=1")
    assert service.api.service.controls.state.value == "ACTIVE"
