"""What the agent's client costs the agent: the time of `submit`, with and without a queue on disk,
and of the adapters that need no library of an agent's.

The service is a process of its own with the scripted policy. Once at an agent's pace, a request
every few milliseconds, and once as fast as the loop can, while the client's thread sends. An
adapter's figure is all that it does for one candidate of the agent's loop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Annotated

import pandas
import typer
from rich.console import Console
from shadow_advisor_client import AdvisorClient
from shadow_advisor_client.adapters.decorator import advised
from shadow_advisor_client.adapters.spot_ai_agent import Shadow

from app.schemas import EXAMPLE
from app.shadow_log.schema.migrate import upgrade
from bench.history import record
from bench.serving.load import Load
from bench.serving.service import Measured, Served, servers, serving, variables

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


def decorated(client: AdvisorClient) -> Callable[[int], object]:
    """A decision through the decorator, of a function that does nothing."""
    return advised(client, request=lambda number: EXAMPLE | {"request_id": f"decorated-{number}"})(
        lambda number: None
    )


def spot(client: AdvisorClient) -> Callable[[int], object]:
    """A candidate that the Spot AI Agent considers, checks and turns away."""
    shadow = Shadow(client)
    index = pandas.date_range(end=datetime.now(UTC), periods=30, freq="min")
    frame = pandas.DataFrame({"close": [100.0] * 30, "volume": [2.0] * 30}, index=index)
    names = {
        "symbol": "BTCUSDT",
        "price_data": frame,
        "indicators": {"rsi": 61.0, "macd": 0.2, "adx": 25.0},
        "signal_snapshot": {"cvd": 0.3, "spread_bps": 1.2, "setup_type": "trend", "atr": 2.0},
        "session": "Asia",
        "score": 6.6,
        "prepared": SimpleNamespace(final_confidence=7.0, technical_score=6.0),
    }

    def candidate(number: int) -> None:
        shadow.considers(names)
        shadow.checked({"symbol": "BTCUSDT", "confidence": 7.2, "ml_probability": 0.6})
        shadow.decided({"symbol": "BTCUSDT", "final_skip_reason": "low score"})

    return candidate


def adapted(
    served: Served, count: int, adapter: Callable[[AdvisorClient], Callable[[int], object]]
) -> Load:
    """The time of each call through an adapter, at an agent's pace."""
    samples = []
    with AdvisorClient(
        served.url, token=served.token, queue_size=2 * count, exit_budget_s=0
    ) as client:
        call = adapter(client)
        for number in range(count):
            begin = perf_counter()
            call(number)
            samples.append(perf_counter() - begin)
            sleep(PACE_S)
        assert not client.stats().dropped
        client.close(0)
    return Load(samples, sum(samples))


def main(count: Annotated[int, typer.Option(help="Requests per run.")] = 1000) -> None:
    """Measure the client on this machine."""
    measured = Measured()
    with servers() as (folder, postgres, valkey):
        upgrade(postgres.url)
        environment, home = variables(folder, postgres, valkey), str(folder / "home")
        with (
            serving(environment, MODEL="scripted", ADVISOR_HOME=home) as served,
            tempfile.TemporaryDirectory() as disk,
        ):
            for where, queue_dir in (("memory", None), ("disk", Path(disk))):
                for how, pace_s in (("paced", PACE_S), ("burst", 0.0)):
                    done = submits(served, count, pace_s, queue_dir)
                    measured.times(f"submit, {how}, queue in {where}", f"{how}_{where}", done)
            for name, adapter in (("decorator", decorated), ("Spot AI Agent", spot)):
                done = adapted(served, count, adapter)
                measured.times(f"{name}, a candidate", name.lower().replace(" ", "_"), done)
    Console().print(measured.table)
    record("client", measured.figures)


if __name__ == "__main__":
    typer.run(main)
