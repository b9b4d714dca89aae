"""What the agent's client costs the agent: the time of `submit`, with and without a queue on disk.

The service is a process of its own with the scripted policy. Once at an agent's pace, a request
every few milliseconds, and once as fast as the loop can, while the client's thread sends.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter, sleep
from typing import Annotated

import typer
from rich.console import Console
from shadow_advisor_client import AdvisorClient

from app.schemas import EXAMPLE
from app.shadow_log.schema.migrate import upgrade
from bench.history import record
from bench.load import Load
from bench.service import ROOT, Measured, Served, servers, serving

PACE_S = 0.003


def submits(served: Served, count: int, pace_s: float, queue_dir: Path | None) -> Load:
    """Submit so many requests; the time that each call took the agent."""
    samples = []
    client = AdvisorClient(
        served.url, token=served.token, queue_size=count, queue_dir=queue_dir, exit_budget_s=0
    )
    with client:
        for number in range(count):
            request = EXAMPLE | {"request_id": f"submit-{pace_s}-{queue_dir}-{number}"}
            begin = perf_counter()
            known = client.submit(request)
            samples.append(perf_counter() - begin)
            assert known is not None
            if pace_s:
                sleep(pace_s)
        client.close(0)
    return Load(samples, sum(samples))


def main(count: Annotated[int, typer.Option(help="Requests per run.")] = 1000) -> None:
    """Measure the client on this machine."""
    measured = Measured()
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        environment = {
            **os.environ,
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "ADVISOR_LIMITS": str(ROOT / "limits.toml"),
            "ADVISOR_TOKENS": str(folder / "tokens.json"),
            "ADVISOR_HOME": str(folder / "home"),
        }
        with (
            serving(environment, MODEL="scripted") as served,
            tempfile.TemporaryDirectory() as disk,
        ):
            for where, queue_dir in (("memory", None), ("disk", Path(disk))):
                for how, pace_s in (("paced", PACE_S), ("burst", 0.0)):
                    done = submits(served, count, pace_s, queue_dir)
                    measured.times(f"submit, {how}, queue in {where}", f"{how}_{where}", done)
    Console().print(measured.table)
    record("client", measured.figures)


if __name__ == "__main__":
    typer.run(main)
