"""What cannot work is said where the client is made; this machine is reached without a proxy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.service.api.http_faults import faulty, ok

from shadow_advisor_client import AdvisorClient, ConfigurationError
from shadow_advisor_client.connection import Connection, is_this_machine
from shadow_advisor_client.identity import find_token

PROXIES = [f"{kind}_PROXY" for kind in ("ALL", "HTTP", "HTTPS", "NO")]
FAR = "http://advisor.example:8321"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:port",
        "127.0.0.1:8321",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:8321?x=1",
        "http://ex ample",
        "http://127.0.0.1:8321/advise",
        "",
        None,
    ],
)
def test_a_wrong_address_is_an_error_where_the_client_is_made(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"not the address of a service|has a port"):
        AdvisorClient(url)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://proxy", "http://proxy:port"])
def test_a_wrong_proxy_is_an_error_where_the_client_is_made(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError):
        AdvisorClient(FAR)


def test_an_absent_file_of_certificates_is_an_error_where_certificates_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE is .*absent\.pem"):
        AdvisorClient("https://advisor.example")
    assert Connection(FAR).proxy is None


def test_this_machine_is_reached_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "[::1],10.0.0.0/8")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with faulty(ok) as server, AdvisorClient(server.url) as client:
        assert client.advise({"request_id": "r"}, deadline_s=20.0) is not None
        assert client.stats().proxy is None


def test_a_proxy_is_used_for_others_and_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with faulty(ok) as proxy:
        address = proxy.url.replace("http://", "http://me:secret@")
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("NO_PROXY", "other.example,[::1]")
        with AdvisorClient(FAR) as client:
            assert client.stats().proxy == proxy.url
            assert repr(client) == f"<AdvisorClient of {FAR} through the proxy {proxy.url}>"
            assert client.advise({"request_id": "r"}, deadline_s=20.0) is not None
        assert [path for _, path, _, _ in proxy.requests] == [f"{FAR}/advise"]
        assert Connection("http://other.example").proxy is None


def test_a_password_in_the_address_is_not_shown() -> None:
    assert str(Connection("http://me:secret@advisor.example/base/")) == (
        "http://advisor.example/base"
    )


def test_netrc_does_not_replace_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with faulty(ok) as server, AdvisorClient(server.url, token="advisor.me.secret") as client:
        assert client.advise({"request_id": "r"}, deadline_s=20.0) is not None
        assert server.requests[0][3]["Authorization"] == "Bearer advisor.me.secret"


@pytest.mark.parametrize(
    ("host", "this"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", True),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
        (None, False),
    ],
)
def test_which_hosts_are_this_machine(host: str | None, this: bool) -> None:
    assert is_this_machine(host) is this


def test_https_asks_for_certificates() -> None:
    with (
        faulty(ok) as server,
        Connection(server.url.replace("http:", "https:")).open(5.0) as http,
        pytest.raises(httpx.ConnectError),
    ):
        http.get("/")


@pytest.mark.parametrize("value", ["0.5", None, True, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", ["deadline_s", "queue_size", "exit_budget_s", "breaker_pause_s"])
def test_a_setting_that_is_no_number_is_an_error_where_the_client_is_made(
    name: str, value: Any
) -> None:
    """Each would end a thread of the client, or lose every message, without a word."""
    with pytest.raises(ConfigurationError, match=f"{name} is "):
        AdvisorClient("http://127.0.0.1:1", **{name: value})


@pytest.mark.parametrize(
    "given",
    [
        {"queue_size": 0},
        {"queue_size": -5},
        {"max_age_s": 0},
        {"deadline_s": -1},
        {"exit_budget_s": -1},
        {"queue_bytes": 0},
        {"queue_dir": ""},
    ],
    ids=str,
)
def test_a_setting_by_which_nothing_would_be_sent_is_an_error_where_the_client_is_made(
    given: dict[str, Any],
) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(given))} is "):
        AdvisorClient("http://127.0.0.1:1", **given)


def test_numbers_of_a_library_are_numbers_and_a_message_may_wait_for_ever() -> None:
    given: dict[str, Any] = {"deadline_s": np.float32(0.5), "queue_size": np.int64(5)}
    client = AdvisorClient("http://127.0.0.1:1", max_age_s=math.inf, **given)
    client.close(0)


@pytest.mark.parametrize("token", ["\u043a\u043b\u044e\u0447", "two words", "line\n", 5])
def test_a_token_that_no_header_can_carry_is_an_error_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigurationError, match="token") as refused:
        AdvisorClient("http://127.0.0.1:1", token=token)
    assert str(token) not in str(refused.value)


def test_a_token_of_the_environment_that_no_header_can_carry_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADVISOR_TOKEN", "\u043a\u043b\u044e\u0447")
    assert find_token("http://127.0.0.1:1", "agent", ["ADVISOR_TOKEN"]) is None
