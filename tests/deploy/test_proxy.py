"""Two replicas behind TLS: a real Caddy on the shipped file, two real APIs on one Postgres and one
Valkey."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from app.advising.serving import Models
from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.local.servers import free_port
from app.policy.scripted import ScriptedPolicy
from tests.deploy.containers import SERVICES, resolved, variables
from tests.deploy.prometheus_tool import ROOT, find_caddy
from tests.service.running import drained, request, running, settings_for, until

CADDYFILE = ROOT / "deploy" / "proxy" / "Caddyfile"
VERSION = SERVICES["proxy"]["image"].removeprefix("caddy:")
OF_TLS = variables(ROOT / "deploy" / "tls.env")


@asynccontextmanager
async def proxied(directory: Path, port: int, *replicas: str) -> AsyncIterator[Path]:
    """Caddy before these replicas until the block ends; the certificate of its authority."""
    environment = os.environ | {
        "ADVISOR_TLS_PORT": str(port),
        "ADVISOR_REPLICAS": " ".join(url.removeprefix("http://") for url in replicas),
        "XDG_DATA_HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
    }
    command = [
        str(find_caddy(VERSION)),
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        str(CADDYFILE),
    ]
    with (directory / "caddy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log)
        try:
            yield directory / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        finally:
            process.terminate()
            await process.wait()


async def test_requests_go_on_when_a_replica_ends_and_people_come_in_over_tls(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    origin = f"https://localhost:{port}"
    tokens = tmp_path / "tokens.json"
    agent = TokenFile(tokens).create("agent", [Role.AGENT])
    operator = TokenFile(tokens).create("ops", [Role.OPERATOR])
    first, second = (
        settings_for(
            database_url,
            valkey_url,
            tmp_path / name,
            open=None,
            tokens=tokens,
            public_origin=origin,
        )
        for name in ("first", "second")
    )
    bearer = {"Authorization": f"Bearer {agent}"}
    async with running(second, Models(ScriptedPolicy(["A"]))) as staying, AsyncExitStack() as left:
        ending = await left.enter_async_context(running(first, Models(ScriptedPolicy(["A"]))))
        async with proxied(tmp_path, port, ending.url, staying.url) as authority:
            await until(_there(authority))
            trusted = ssl.create_default_context(cafile=str(authority))
            async with httpx.AsyncClient(base_url=origin, verify=trusted, timeout=30) as client:
                await until(_answers(client))
                await _asked(client, range(8), bearer)
                shares = [
                    replica.metric("advisor_requests_total", route="/advise", code="200")
                    for replica in (ending, staying)
                ]
                assert sum(shares) == 8
                assert min(shares) > 0, "both of them work"
                await _come_in(client, origin, operator)
                assert (await client.get("/metrics", headers=bearer)).status_code == 404
                await left.aclose()
                await _asked(client, range(8, 24), bearer)
        assert await drained(second) >= 24


async def _asked(client: httpx.AsyncClient, numbers: range, bearer: dict[str, str]) -> None:
    """Every request is answered."""
    for i in numbers:
        answer = await client.post("/advise", json=request(f"r{i}"), headers=bearer)
        assert answer.status_code == 200, answer.text


async def _come_in(client: httpx.AsyncClient, origin: str, token: str) -> None:
    """By the form; the cookie never leaves by plain HTTP, and other pages do nothing."""
    form = {"token": token, "next": "/ui"}
    came = await client.post("/ui/login", data=form, headers={"Origin": origin})
    assert came.status_code == 303, came.text
    assert "Secure" in came.headers["set-cookie"]
    assert (await client.get("/ui")).status_code == 200
    halted = {"state": "HALTED", "reason": "theirs", "sure": "yes"}
    theirs = {"Origin": "https://evil.example"}
    assert (await client.post("/ui/state", data=halted, headers=theirs)).status_code == 403


def test_the_profile_has_two_homes_and_names_what_the_proxy_asks() -> None:
    """A spool belongs to one process."""
    homes = {
        volume.split(":")[0]
        for name in ("api", "api-2")
        for volume in SERVICES[name]["volumes"]
        if volume.endswith(":/var/lib/advisor")
    }
    assert homes == {"advisor", "advisor-2"}
    assert "{$ADVISOR_REPLICAS:api:8321 api-2:8321}" in CADDYFILE.read_text()
    assert {"api", "api-2"} <= set(OF_TLS["ADVISOR_ALLOWED_HOSTS"].split(","))
    assert OF_TLS["ADVISOR_PUBLIC_ORIGIN"] == f"https://{OF_TLS['ADVISOR_SITE']}:8443"
    [port] = SERVICES["proxy"]["ports"]
    assert resolved(port, {}) == "127.0.0.1:8443:8443"
    assert SERVICES["proxy"]["environment"].keys() <= {"ADVISOR_SITE", "ADVISOR_TLS"}


def _there(path: Path) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return path.is_file() and "END CERTIFICATE" in path.read_text()

    return there


def _answers(client: httpx.AsyncClient) -> Callable[[], Awaitable[bool]]:
    async def answers() -> bool:
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    return answers
