"""Two processes on one port: what one of them was told or asked holds for both."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from app.local.servers import EmbeddedValkey
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.verify import verify_log
from tests.conftest import open_directory
from tests.service.processes import START_S
from tests.service.running import ROOT, drained, request, settings_for, until
from tests.service.several.several import Series, Several, gone, several, value

SCRIPTED = "scripted-1"
REASON = {"reason": "drill", "changed_by": "ops"}


async def advise(client: httpx.AsyncClient, name: str, **changes: Any) -> dict[str, Any]:
    """What is answered, as it stands in every answer to the same."""
    reply = await client.post("/advise", json=request(name, **changes))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def who_answers(client: httpx.AsyncClient) -> str:
    return str((await client.get("/healthz")).json()["process"])


async def set_state(client: httpx.AsyncClient, state: str) -> None:
    reply = await client.put("/state", json={"state": state, **REASON})
    assert reply.status_code == 200, reply.text


async def judged_in(client: httpx.AsyncClient, name: str) -> str:
    """The state of a new decision."""
    known = (await advise(client, name))["decision_id"]
    return str((await client.get(f"/decisions/{known}")).json()["decision"]["state"])


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in answer.items() if k not in ("repeated", "recorded")}


async def stored(database_url: str) -> dict[str, int]:
    log = ShadowLog.connect(database_url)
    try:
        assert await log.missing_events(await log.heads()) == 0
        return await log.counts()
    finally:
        await log.aclose()


async def test_what_one_of_two_processes_is_told_or_asked_holds_for_both(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """Connections that are opened at once are shared out; each id is answered once, counted once,
    and repeated alike by whoever gets it; state and limits are followed; both end in good order."""
    limits = Path(shutil.copy(ROOT / "limits.toml", tmp_path / "limits.toml"))
    async with several(
        tmp_path / "home", database_url, valkey_url, advisor_limits=limits
    ) as service:
        clients = [service.client() for _ in range(8)]
        bodies = [request(f"r-{number}") for number in range(300)]
        waiting = list(bodies)

        async def ask(client: httpx.AsyncClient) -> list[dict[str, Any]]:
            answers = []
            while waiting:
                reply = await client.post("/advise", json=waiting.pop())
                assert reply.status_code == 200, reply.text
                answers.append(reply.json())
            return answers

        answers = [one for many in await asyncio.gather(*map(ask, clients)) for one in many]
        each = await service.one_of_each()
        assert set(each) == {"api-1", "api-2"}
        first = {one["request_id"]: plain(one) for one in answers}
        assert len(first) == 300
        took = Counter([await who_answers(client) for client in clients])
        assert min(took["api-1"], took["api-2"]) >= 1, "a busy machine shares out less evenly"
        for client in each.values():
            for body in bodies[:20]:
                again = (await client.post("/advise", json=body)).json()
                assert again["repeated"]
                assert plain(again) == first[body["request_id"]]
            other = await client.post("/advise", json=request("r-0", candidate__rsi=11))
            assert other.status_code == 409
        for client in each.values():
            tells_of_all(await service.metrics(client), len(answers))
        await follow_each_other(*each.values())
        for client in [*clients, *each.values()]:
            await client.aclose()
        pids = service.pids()
        service.child.signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.child.ended) == 0
        await until(lambda: gone(pids))
        assert "Traceback" not in service.child.said
    settings = settings_for(database_url, valkey_url, tmp_path)
    await drained(settings)
    assert (await stored(database_url))["decisions"] == 302
    assert not (await verify_log(database_url)).findings


def tells_of_all(series: Series, decisions: int) -> None:
    """What one process tells is what both did."""
    assert (
        value(series, "advisor_decisions_total", status="advised", model_version=SCRIPTED)
        == decisions
    )
    targets = ("stream", "spool")  # A busy machine has Valkey look away for moments.
    appends = [value(series, "advisor_journal_appends_total", target=t) for t in targets]
    assert sum(appends) == decisions
    assert value(series, "advisor_stage_seconds_count", stage="prepare") >= decisions
    assert value(series, "advisor_state", state="ACTIVE") == 1
    assert value(series, "advisor_process_up", process="api-2") == 1


async def follow_each_other(one: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    """A change of state, and limits, hold in the other when they are answered."""
    await set_state(one, "HALTED")
    assert await judged_in(other, "halted") == "HALTED"
    await set_state(other, "ACTIVE")
    assert await judged_in(one, "active") == "ACTIVE"
    judging = (await one.get("/limits")).json()["in_force"][""]
    narrow = judging["toml"].replace("max_bps = 10.0", "max_bps = 1.0")
    move = {"profile": "", "seen": judging["hash"], "toml": narrow, **REASON}
    assert (await one.put("/limits", json=move)).status_code == 200

    in_force = (await other.get("/limits")).json()["in_force"][""]
    assert in_force["hash"] != judging["hash"]


async def test_a_killed_process_loses_nothing_is_counted_and_started_again(
    database_url: str, tmp_path: Path
) -> None:
    """Also while Valkey is away, when a state is told to whoever starts; a killed parent takes all
    with it."""
    with open_directory() as folder, EmbeddedValkey(folder / "valkey") as valkey:
        async with several(tmp_path / "home", database_url, valkey.url) as service:
            await lose_one(service)
            await asyncio.to_thread(valkey.stop)
            await halt_and_lose_one(service)
            pids = service.pids()
            service.child.signal(signal.SIGKILL)
            await until(lambda: gone(pids))
        valkey.start()
        await drained(settings_for(database_url, valkey.url, tmp_path))
        counts = await stored(database_url)
    assert counts["decisions"] == 40, "what was spooled waits for the next start"


async def lose_one(service: Several) -> None:
    """What was counted stays counted, what was answered is known to the others."""
    each = await service.one_of_each()
    one, other = each["api-1"], each["api-2"]
    bodies = [request(f"{name}-{number}") for name in each for number in range(20)]
    for body in bodies[:20]:
        assert (await one.post("/advise", json=body)).status_code == 200
    for body in bodies[20:]:
        assert (await other.post("/advise", json=body)).status_code == 200
    seen = [await service.metrics(one)]
    os.kill(service.pids()[1], signal.SIGKILL)

    async def told() -> bool:
        seen.append(await service.metrics(one))
        return bool((await one.get("/readyz")).json()["status"] == "degraded")

    await until(told)

    async def back() -> bool:
        seen.append(await service.metrics(one))
        return value(seen[-1], "advisor_process_up", process="api-2") == 1

    await until(back, START_S)
    for earlier, later in pairwise(seen):
        for key, before in earlier.items():
            if key[0].endswith(("_total", "_bucket", "_count")):
                assert later[key] >= before, key
    assert value(seen[-1], "advisor_process_deaths_total", process="api-2") == 1
    for body in bodies[20:]:
        assert (await one.post("/advise", json=body)).json()["repeated"]
    labels = {"status": "advised", "model_version": SCRIPTED}
    assert value(await service.metrics(one), "advisor_decisions_total", **labels) == 40
    assert "process=api-2" in service.child.said
    for client in each.values():
        await client.aclose()


async def halt_and_lose_one(service: Several) -> None:
    """While Valkey is away."""
    each = await service.one_of_each()
    await set_state(each["api-1"], "HALTED")
    assert (await each["api-2"].get("/state")).json()["state"] == "HALTED"
    assert await judged_in(each["api-2"], "halted") == "HALTED"
    os.kill(service.pids()[0], signal.SIGKILL)

    async def back() -> bool:
        series = await service.metrics()
        names = ("api-1", "api-2")
        deaths = sum(value(series, "advisor_process_deaths_total", process=n) for n in names)
        return deaths == 2 and all(value(series, "advisor_process_up", process=n) for n in names)

    await until(back, START_S)
    again = await service.one_of_each()
    for client in again.values():
        assert (await client.get("/state")).json()["state"] == "HALTED"
    for client in [*each.values(), *again.values()]:
        await client.aclose()
