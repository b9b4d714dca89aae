"""A Prometheus on the shipped configuration, and what it answers."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.monitoring import PROMETHEUS, RULE_FILES, Query
from tests.deploy.prometheus_tool import Prometheus, Tools
from tests.service.running import until

SCRAPE_INTERVAL = "250ms"


class Scraper:
    """The HTTP API of a Prometheus."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, path: str, **parameters: Any) -> Any:
        """The `data` of an answer, which must be a success."""
        reply = await self._client.get(f"/api/v1/{path}", params=parameters)
        document = reply.json()
        assert document["status"] == "success", f"{parameters}: {document}"
        assert not document.get("warnings"), f"{parameters}: {document['warnings']}"
        return document["data"]

    async def run(self, query: Query) -> list[float]:
        """The numbers that Grafana would draw, over the last minute or now."""
        if query.instant:
            found = await self.get("query", query=query.expr, time=time())
            return [float(series["value"][1]) for series in found["result"]]
        now = time()
        found = await self.get("query_range", query=query.expr, start=now - 60, end=now, step=1)
        return [float(value) for series in found["result"] for _, value in series["values"]]

    async def value(self, expr: str) -> float | None:
        """The only number of an expression, or None where there is not one."""
        values = await self.run(Query("", expr, instant=True))
        return values[0] if len(values) == 1 else None

    def reaches(self, expr: str, expected: float) -> Callable[[], Awaitable[bool]]:
        """A condition to wait for."""

        async def reached() -> bool:
            return await self.value(expr) == pytest.approx(expected)

        return reached


def render(directory: Path, ports: Mapping[str, int], token: str | None = None) -> Path:
    """The shipped configuration and rules, but for addresses, intervals and where the token is;
    only the jobs that `ports` names. Without a token nobody is told one."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], SCRAPE_INTERVAL)
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    for name, port in ports.items():
        credentials = jobs[name].pop("authorization", None)
        if credentials is not None and token is not None:
            place = directory / Path(credentials["credentials_file"]).name
            place.write_text(token)
            jobs[name]["authorization"] = {"credentials_file": str(place)}
        jobs[name]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    configuration["scrape_configs"] = [jobs[name] for name in ports]
    for path in RULE_FILES:
        document = yaml.safe_load(path.read_text())
        for group in document["groups"]:
            group["interval"] = SCRAPE_INTERVAL
        (directory / path.name).write_text(yaml.safe_dump(document))
    del configuration["alerting"]  # Nobody is told of a test.
    configuration["rule_files"] = [str(directory / path.name) for path in RULE_FILES]
    rendered = directory / "prometheus.yml"
    rendered.write_text(yaml.safe_dump(configuration))
    return rendered


@asynccontextmanager
async def scraping(
    tools: Tools, directory: Path, ports: Mapping[str, int], token: str | None = None
) -> AsyncIterator[Scraper]:
    """A Prometheus that has scraped the process of every job that `ports` names."""
    with Prometheus(tools, render(directory, ports, token), directory / "prometheus") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            prometheus = Scraper(client)
            await until(prometheus.reaches('sum(up{job=~"advisor-.+"})', len(ports)))
            yield prometheus


async def empty_panels(
    prometheus: Scraper, asked: Sequence[Query], without_number: Collection[str] = ()
) -> dict[str, str]:
    """Queries, by panel, that give no number; each gets time to find its samples. `without_number`:
    panels of which a series is enough."""
    waiting = list(asked)

    async def all_answered() -> bool:
        for query in list(waiting):
            values = await prometheus.run(query)
            if any(math.isfinite(value) for value in values) or (
                values and query.panel in without_number
            ):
                waiting.remove(query)
        return not waiting

    try:
        await until(all_answered)
    except TimeoutError:
        assert waiting
    return {query.panel: query.expr for query in waiting}
