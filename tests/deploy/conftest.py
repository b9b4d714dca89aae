"""A real Prometheus, where one can be had."""

from __future__ import annotations

import pytest

from tests.deploy.prometheus_tool import Tools, find_tools


@pytest.fixture(scope="session")
def tools() -> Tools:
    """Paths of `prometheus` and `promtool`."""
    return find_tools()
