"""Who may scrape the gauges of drift, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from training.live.drift.exporter import ExporterFault, exported

GAUGE = "advisor_drift_changes 3.0"


@contextmanager
def serving(token_file: Path | None) -> Iterator[tuple[str, str]]:
    """An exporter at a free port: the address that it listens at, and its URL."""
    registry = CollectorRegistry()
    Gauge("advisor_drift_changes", "changes", registry=registry).set(3)
    server = exported(registry, 0, token_file)
    try:
        host, port = server.server_address[:2]
        yield str(host), f"http://127.0.0.1:{port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def scraped(url: str, authorization: str | None = None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return httpx.get(url, headers=headers)


def test_without_a_token_nobody_on_another_machine_can_come() -> None:
    with serving(None) as (host, url):
        assert host == "127.0.0.1"
        assert GAUGE in scraped(url).text


def test_everybody_else_needs_the_token_that_the_file_holds_now(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    with serving(path) as (host, url):
        assert host == "0.0.0.0"
        assert GAUGE in scraped(url, "Bearer first").text
        for wrong in ("", "Bearer", "Bearer other", "Basic first", "first"):
            refused = scraped(url, wrong)
            assert (refused.status_code, GAUGE in refused.text) == (401, False), wrong
        assert scraped(url).headers["www-authenticate"] == 'Bearer realm="advisor"'
        path.write_text("second")
        assert scraped(url, "Bearer first").status_code == 401
        assert GAUGE in scraped(url, "bearer second").text
        for nothing in ("", " \n"):
            path.write_text(nothing)
            assert scraped(url, "Bearer").status_code == 401
        path.unlink()
        assert scraped(url, "Bearer second").status_code == 401


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff\xfe"])
def test_a_token_that_is_none_is_told_at_the_start(
    content: str | bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ExporterFault, match="token"):
        exported(CollectorRegistry(), 0, path)


def test_a_port_that_is_taken_is_told() -> None:
    with serving(None) as (_, url), pytest.raises(ExporterFault, match="cannot listen"):
        exported(CollectorRegistry(), httpx.URL(url).port or 0, None)
